"""The noise plan: a published generator, keyed by example, independent in every part of the key."""

import copy
import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor

from dbpkit.foundation.drawing import Rows
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import (
    MAX_ID,
    SITES,
    STREAMS,
    NoisePlan,
    permutation,
    seeded_generator,
)
from dbpkit.foundation.philox import philox4x32
from dbpkit.models.heads import _Watcher
from tests.oracles import golden

MANY = 1_000_000
FIVE_SIGMA = 5 / math.sqrt(MANY)
"""A correlation of independent values has standard deviation 1 / sqrt(n)."""
ROUND_OFF = 1e-12
"""Float64 logarithm, root, sine and product, each exact to a few 1e-16, on values up to 7."""
WORD = 0xFFFFFFFF


def philox_by_the_paper(counter: list[int], key: list[int]) -> list[int]:
    """Salmon et al. 2011, section 3.3, in Python integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = divmod(c0 * 0xD2511F53, 1 << 32)
        high1, low1 = divmod(c2 * 0xCD9E8D57, 1 << 32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return [c0, c1, c2, c3]


def words(
    example: int, draw: int, site: str, step: int, *, block: int, kind: int, seed: int, lane: int
) -> list[int]:
    """The generator's output for one block of the stream ``attack``, whose number is 0.

    The upper twelve bits of an id of 44 lie above the block's twenty.
    """
    where = kind << 31 | SITES[site] << 24 | step
    counter = [block | example >> 32 << 20, example & WORD, draw, where]
    return philox_by_the_paper(counter, [seed, lane << 8 | 0])


def box_muller(u: list[int]) -> list[float]:
    """Four normals of four words: radius from the even ones, angle from the odd ones."""
    radius = [math.sqrt(-2 * math.log((u[i] + 0.5) / 2**32)) for i in (0, 2)]
    angle = [2 * math.pi * u[i] / 2**32 for i in (1, 3)]
    return [r * f(a) for r, a in zip(radius, angle, strict=True) for f in (math.cos, math.sin)]


def flat(plan: NoisePlan, site: str = "reverse", step: int = 3, count: int = MANY) -> Tensor:
    """Many values of one key."""
    return plan.normal(site, step, torch.zeros(1, count, dtype=torch.float64))[0]


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


@pytest.fixture(scope="module")
def base() -> Tensor:
    return flat(NoisePlan.of(5, [17], "attack"))


def test_philox_golden_files_vectors_match_the_paper() -> None:
    """The transcription that other tests rely on is right itself."""
    for vector in golden("philox4x32")["vectors"]:
        counter, key, output = ([int(w, 16) for w in vector[part]] for part in ("counter", "key", "output"))
        assert philox_by_the_paper(counter, key) == output


@pytest.mark.parametrize("vector", golden("philox4x32")["vectors"], ids=["zeros", "ones", "pi"])
def test_philox_known_answer_vectors_match(vector: dict[str, list[str]]) -> None:
    counter = tuple(torch.tensor([int(w, 16)]) for w in vector["counter"])
    key = (int(vector["key"][0], 16), int(vector["key"][1], 16))
    assert [int(w) for w in philox4x32(counter, key)] == [int(w, 16) for w in vector["output"]]


def test_philox_broadcast_counters_match_one_at_a_time() -> None:
    blocks, examples = [0, 1, WORD], [7, 1 << 31]
    counter = (
        torch.tensor([blocks]),
        torch.tensor(examples)[:, None],
        torch.tensor([[3]]),
        torch.tensor([[9]]),
    )
    together = torch.stack(philox4x32(counter, (123, WORD)), dim=-1)
    expected = [[philox_by_the_paper([b, e, 3, 9], [123, WORD]) for b in blocks] for e in examples]
    assert together.tolist() == expected


@pytest.mark.parametrize("lane", [0, 5, (1 << 24) - 1])
def test_normal_float64_matches_recomputation_from_philox_words(lane: int) -> None:
    """Ten values are 3 blocks: value j is quarter j // 3 of block j % 3; computed in float64 throughout."""
    examples = [12, WORD, WORD + 13, MAX_ID - 1]
    plan = NoisePlan.of(WORD, examples, "attack", draw=6).in_lane(lane)
    z = plan.normal("churn", 77, torch.zeros(4, 10, dtype=torch.float64))
    for row, example in enumerate(examples):
        blocks = [
            box_muller(words(example, 6, "churn", 77, block=b, kind=0, seed=WORD, lane=lane))
            for b in range(3)
        ]
        expected = [blocks[j % 3][j // 3] for j in range(10)]
        assert z[row].tolist() == pytest.approx(expected, abs=ROUND_OFF)


def test_normal_many_values_match_recomputation_to_float64() -> None:
    """The float32 error of a logarithm near u = 1 is 1e-5; over 1e5 values it would show."""
    count = 100_000
    plan = NoisePlan.of(3, [8], "attack")
    counter = (
        torch.arange(count // 4),
        torch.tensor([8]),
        torch.tensor([0]),
        torch.tensor([SITES["forward"] << 24]),
    )
    u = [w.to(torch.float64) for w in philox4x32(counter, (3, 0))]
    radii = [torch.sqrt(-2 * torch.log((u[i] + 0.5) / 2.0**32)) for i in (0, 2)]
    angles = [2 * math.pi * u[i] / 2.0**32 for i in (1, 3)]
    expected = torch.cat(
        [r * f(a) for r, a in zip(radii, angles, strict=True) for f in (torch.cos, torch.sin)]
    )
    torch.testing.assert_close(flat(plan, "forward", 0, count), expected, rtol=0, atol=ROUND_OFF)


def test_normal_float32_is_the_float64_value_rounded() -> None:
    plan = NoisePlan.of(0, [1, 2])
    exact = plan.normal("forward", 0, torch.zeros(2, 3, 5, 5, dtype=torch.float64))
    assert torch.equal(plan.normal("forward", 0, torch.zeros(2, 3, 5, 5)), exact.to(torch.float32))


def test_uniform_matches_recomputation_from_philox_words() -> None:
    """The top 24 bits of each word, so that float32 holds the value exactly."""
    plan = NoisePlan.of(9, [4], "attack")
    u = plan.uniform("start", 2, torch.zeros(1, 6))
    blocks = [words(4, 0, "start", 2, block=b, kind=1, seed=9, lane=0) for b in range(2)]
    assert u[0].tolist() == [(blocks[j % 2][j // 2] >> 8) / 2**24 for j in range(6)]


def test_uniform_many_values_are_multiples_in_the_unit_interval() -> None:
    u = NoisePlan.of(1, [0]).uniform("start", 0, torch.zeros(1, MANY))
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    assert bool((u * 2**24 == (u * 2**24).round()).all())
    assert stats.kstest(u[0].numpy(), "uniform").pvalue > 1e-3


def test_normal_many_values_have_normal_moments(base: Tensor) -> None:
    """Standard errors of mean, variance, skewness and kurtosis of n normals: 1, 2, 6, 24 over n, rooted."""
    for value, variance in (
        (base.mean(), 1),
        (base.var() - 1, 2),
        (base.pow(3).mean(), 15),  # E z^6 = 15 without standardising
        (base.pow(4).mean() - 3, 96),  # E z^8 - 9 = 105 - 9
    ):
        assert abs(float(value)) < 5 * math.sqrt(variance / MANY)


def test_normal_many_values_pass_kolmogorov_smirnov(base: Tensor) -> None:
    assert stats.kstest(base.numpy(), "norm").pvalue > 1e-3


def test_normal_many_values_stay_within_the_documented_bound(base: Tensor) -> None:
    """The smallest uniform is 2**-33: sqrt(2 * 33 ln 2) = 6.763. Half of 1e6 samples pass 4.8."""
    assert 4.5 < float(base.abs().max()) <= 6.77


@pytest.mark.parametrize(
    "other",
    [
        lambda: flat(NoisePlan.of(6, [17], "attack")),
        lambda: flat(NoisePlan.of(WORD, [17], "attack")),
        lambda: flat(NoisePlan.of(5, [18], "attack")),
        lambda: flat(NoisePlan.of(5, [1 << 31], "attack")),
        lambda: flat(NoisePlan.of(5, [17 + (1 << 32)], "attack")),
        lambda: flat(NoisePlan.of(5, [17 + (1 << 43)], "attack")),
        lambda: flat(NoisePlan.of(5, [17], "attack", draw=1)),
        lambda: flat(NoisePlan.of(5, [17], "attack").in_lane(1)),
        lambda: flat(NoisePlan.of(5, [17], "attack").in_lane((1 << 24) - 1)),
        lambda: flat(NoisePlan.of(5, [17], "attack"), step=4),
        *[lambda s=s: flat(NoisePlan.of(5, [17], s)) for s in STREAMS if s != "attack"],
        *[lambda s=s: flat(NoisePlan.of(5, [17], "attack"), site=s) for s in SITES if s != "reverse"],
    ],
    ids=[
        *(
            "seed",
            "far_seed",
            "example",
            "far_example",
            "high_example",
            "highest_example",
            "draw",
            "lane",
            "far_lane",
            "step",
        ),
        *[f"stream_{s}" for s in STREAMS if s != "attack"],
        *[f"site_{s}" for s in SITES if s != "reverse"],
    ],
)
def test_normal_one_part_of_the_key_changed_is_uncorrelated(
    base: Tensor, other: Callable[[], Tensor]
) -> None:
    z = other()
    assert abs(correlation(base, z)) < FIVE_SIGMA
    assert abs(correlation(base.abs(), z.abs())) < FIVE_SIGMA


@pytest.mark.parametrize("lag", [1, 2, 1024, MANY // 4, MANY // 2, 3 * MANY // 4])
def test_normal_positions_of_one_draw_are_uncorrelated(base: Tensor, lag: int) -> None:
    """A quarter apart lie the cosine and the sine of one radius: independent, in size too."""
    a, b = base[lag:], base[:-lag]
    bound = 5 / math.sqrt(len(a))
    assert abs(correlation(a, b)) < bound
    assert abs(correlation(a.abs(), b.abs())) < bound


def test_uniform_same_key_is_uncorrelated_with_normal(base: Tensor) -> None:
    u = NoisePlan.of(5, [17], "attack").uniform("reverse", 3, torch.zeros(1, MANY, dtype=torch.float64))[0]
    assert abs(correlation(base, u)) < FIVE_SIGMA
    assert abs(correlation(base.abs(), u)) < FIVE_SIGMA


def test_values_of_all_extreme_keys_differ() -> None:
    """No part of the key may run over into another: 4 * 9 * 3 * 5 * 3 * 2 keys give as many values."""
    ids = [0, WORD, 1 << 32, MAX_ID - 1]
    like = torch.zeros(4, 1, dtype=torch.float64)
    values = []
    for stream in STREAMS:
        for lane in (0, 1, (1 << 24) - 1):
            for draw in (0, WORD):
                plan = NoisePlan.of(0, ids, stream, draw).in_lane(lane)
                for site in SITES:
                    for step in (0, 1, (1 << 24) - 1):
                        values += plan.normal(site, step, like)[:, 0].tolist()
                        values += (8 + plan.uniform(site, step, like)[:, 0]).tolist()
    assert len(values) == 2 * 4 * len(SITES) * 3 * len(STREAMS) * 3 * 2
    normals = [v for v in values if v < 8]
    assert len(set(normals)) == len(normals)
    # Of 3,240 uniforms with 2**24 values 0.3 pairs agree by chance; a key that ran over would make hundreds.
    assert len({v for v in values if v >= 8}) >= len(normals) - 5


@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_values_any_batch_order_or_history_are_the_same(draw: str) -> None:
    ids = [31, 4, 15, 9, 26]
    shape = (3, 4, 5)
    whole = getattr(NoisePlan.of(2, ids), draw)("reverse", 8, torch.zeros(5, *shape))
    for b, example in enumerate(ids):
        plan = NoisePlan.of(2, [example])
        plan.normal("forward", 0, torch.zeros(1, 7))
        assert torch.equal(getattr(plan, draw)("reverse", 8, torch.zeros(1, *shape))[0], whole[b])
    backwards = getattr(NoisePlan.of(2, ids[::-1]), draw)("reverse", 8, torch.zeros(5, *shape))
    assert torch.equal(backwards.flip(0), whole)
    for index in ([3, 0], torch.tensor([3, 0]), slice(1, 4), torch.tensor([False, True, True, False, True])):
        part = NoisePlan.of(2, ids).rows(index)
        chosen = whole[index]
        assert torch.equal(getattr(part, draw)("reverse", 8, torch.zeros(len(chosen), *shape)), chosen)


def test_values_torch_seed_and_default_dtype_changed_are_the_same() -> None:
    like = torch.zeros(1, 1000)
    before = NoisePlan.of(0, [0]).normal("forward", 0, like)
    try:
        torch.set_default_dtype(torch.float64)
        with seeded_generator(99):
            after = NoisePlan.of(0, [0]).normal("forward", 0, like)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(before, after)


def test_values_global_generator_is_untouched() -> None:
    state = torch.get_rng_state()
    NoisePlan.of(0, [0]).normal("forward", 0, torch.zeros(1, 8))
    permutation(0, 5, 0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 3, 4, 5), (2, 0), (0, 3)])
def test_normal_any_shape_follows_like(shape: tuple[int, ...]) -> None:
    z = NoisePlan.of(0, range(shape[0])).normal("forward", 0, torch.zeros(shape, dtype=torch.float64))
    assert z.shape == shape
    assert z.dtype == torch.float64


def test_repeat_draw_numbers_are_draw_times_draws_plus_repetition() -> None:
    plan = NoisePlan.of(1, [5, 6]).at(4).repeat(3)
    assert len(plan) == 6
    z = plan.normal("forward", 0, torch.zeros(6, 2))
    for row, (example, draw) in enumerate([(5, 12), (5, 13), (5, 14), (6, 12), (6, 13), (6, 14)]):
        assert torch.equal(
            z[row], NoisePlan.of(1, [example], draw=draw).normal("forward", 0, torch.zeros(1, 2))[0]
        )


def test_repeat_successive_draws_never_use_a_value_twice() -> None:
    plan = NoisePlan.of(1, [5])
    z = torch.cat([plan.at(i).repeat(4).repeat(2).normal("forward", 0, torch.zeros(8, 1)) for i in range(5)])
    assert len(set(z.flatten().tolist())) == 40


@pytest.mark.parametrize("other", [lambda p: p.on("select"), lambda p: p.at(1), lambda p: p.in_lane(1)])
def test_another_stream_draw_or_lane_keeps_rows_and_changes_values(
    other: Callable[[NoisePlan], NoisePlan],
) -> None:
    plan = NoisePlan.of(1, [5, 6])
    changed = other(plan)
    assert torch.equal(changed.example_ids, plan.example_ids)
    like = torch.zeros(2, 8)
    assert not bool((changed.normal("forward", 0, like) == plan.normal("forward", 0, like)).any())


def test_sharing_named_sites_take_the_source_and_others_do_not() -> None:
    source = NoisePlan.of(1, [5, 6], "report", draw=2)
    plan = NoisePlan.of(1, [5, 6], "attack").sharing(["forward"], source)
    like = torch.zeros(2, 8)
    assert torch.equal(plan.normal("forward", 0, like), source.normal("forward", 0, like))
    assert torch.equal(plan.uniform("forward", 0, like), source.uniform("forward", 0, like))
    own = NoisePlan.of(1, [5, 6], "attack")
    assert torch.equal(plan.normal("reverse", 0, like), own.normal("reverse", 0, like))


@pytest.mark.parametrize("moved", [lambda p: p.at(7), lambda p: p.on("select"), lambda p: p.in_lane(3)])
def test_sharing_plan_moved_elsewhere_keeps_the_sources_draw(moved: Callable[[NoisePlan], NoisePlan]) -> None:
    source = NoisePlan.of(1, [5, 6], "report", draw=2)
    plan = moved(NoisePlan.of(1, [5, 6], "attack").sharing(["forward"], source))
    like = torch.zeros(2, 8)
    assert torch.equal(plan.normal("forward", 0, like), source.normal("forward", 0, like))


def test_sharing_repeated_plan_keeps_the_sources_draw_in_every_repetition() -> None:
    source = NoisePlan.of(1, [5, 6], "report", draw=2)
    plan = NoisePlan.of(1, [5, 6], "attack").sharing(["forward"], source).at(9).repeat(3)
    z = plan.normal("forward", 0, torch.zeros(6, 8))
    assert torch.equal(z, source.normal("forward", 0, torch.zeros(2, 8)).repeat_interleave(3, dim=0))
    assert len(set(plan.normal("reverse", 0, torch.zeros(6, 1)).flatten().tolist())) == 6


def test_sharing_rows_chosen_later_take_the_sources_rows() -> None:
    source = NoisePlan.of(1, [5, 6, 7], "report")
    plan = NoisePlan.of(1, [5, 6, 7], "attack").sharing(["forward"], source).rows([2, 0])
    z = source.normal("forward", 0, torch.zeros(3, 8))
    assert torch.equal(plan.normal("forward", 0, torch.zeros(2, 8)), z[[2, 0]])


@pytest.mark.parametrize("ids", [[6, 5], [5], [5, 7], [5, 6, 6]])
def test_sharing_other_examples_raises(ids: list[int]) -> None:
    with pytest.raises(UserError, match="only between plans of the same examples in the same order"):
        NoisePlan.of(1, [5, 6]).sharing(["forward"], NoisePlan.of(1, ids))


def test_sharing_unknown_site_raises_with_nearest() -> None:
    plan = NoisePlan.of(1, [5])
    with pytest.raises(UserError, match=r"unknown noise site 'fowrard'\. Did you mean 'forward'\?"):
        plan.sharing(["fowrard"], plan)


@pytest.mark.parametrize("draw", ["normal", "uniform"])
@pytest.mark.parametrize("rows", [1, 3])
def test_values_batch_of_another_length_raises(draw: str, rows: int) -> None:
    plan = NoisePlan.of(0, [1, 2])
    with pytest.raises(
        UserError, match=rf"noise plan of 2 examples was used on a batch of {rows}\. Slice the plan"
    ):
        getattr(plan, draw)("forward", 0, torch.zeros(rows, 4))


def test_values_shared_site_with_wrong_batch_raises() -> None:
    plan = NoisePlan.of(0, [1, 2])
    with pytest.raises(UserError, match="was used on a batch of 3"):
        plan.sharing(["forward"], plan.on("attack")).normal("forward", 0, torch.zeros(3, 4))


def test_values_unknown_site_raises_with_nearest() -> None:
    with pytest.raises(
        UserError, match=r"unknown noise site 'revers'\. Did you mean 'reverse'\? Available: augment, "
    ):
        NoisePlan.of(0, [1]).normal("revers", 0, torch.zeros(1, 4))


@pytest.mark.parametrize("step", [-1, 1 << 24])
def test_values_step_out_of_range_raises(step: int) -> None:
    with pytest.raises(UserError, match=rf"noise step {step} is outside \[0, 2\*\*24\)"):
        NoisePlan.of(0, [1]).normal("reverse", step, torch.zeros(1, 4))


@pytest.mark.parametrize("seed", [-1, 1 << 32])
def test_plan_seed_out_of_range_raises(seed: int) -> None:
    with pytest.raises(UserError, match=rf"seed {seed} is outside \[0, 2\*\*32\)"):
        NoisePlan.of(seed, [1])


@pytest.mark.parametrize("ids", [[-1], [1 << 44], torch.tensor([[1, 2]]), torch.tensor(1)])
def test_plan_ids_out_of_range_or_nested_raise(ids: list[int] | Tensor) -> None:
    with pytest.raises(UserError, match="example ids must be a flat list of integers"):
        NoisePlan.of(0, ids)


def test_values_largest_block_of_an_id_does_not_reach_the_next_id() -> None:
    """The last of 2**22 values is in block 2**20 - 1; an id 2**32 further on begins one block above it."""
    count = 1 << 22
    like = torch.zeros(1, count, dtype=torch.float64)
    last = NoisePlan.of(0, [5]).uniform("forward", 0, like)[0].reshape(4, -1)[:, -4:]
    first = NoisePlan.of(0, [5 + (1 << 32)]).uniform("forward", 0, like)[0].reshape(4, -1)[:, :4]
    assert not set(last.flatten().tolist()) & set(first.flatten().tolist())


def test_values_too_large_an_example_raises() -> None:
    like = torch.zeros(1, dtype=torch.float32).expand(1, (1 << 22) + 1)
    with pytest.raises(UserError, match=r"an example of \(4194305,\) values exceeds 2\*\*22"):
        NoisePlan.of(0, [1]).normal("forward", 0, like)


def test_plan_fractional_ids_raise() -> None:
    """A truncated id would silently share its noise with another example."""
    with pytest.raises(UserError, match="example ids must be a flat list of integers"):
        NoisePlan.of(0, torch.tensor([3.2, 3.7]))


@pytest.mark.parametrize("draw", [-1, 1 << 32])
def test_plan_draw_out_of_range_raises(draw: int) -> None:
    with pytest.raises(UserError, match=str(draw)):
        NoisePlan.of(0, [1], draw=draw)
    with pytest.raises(UserError, match=str(draw)):
        NoisePlan.of(0, [1]).at(draw)


def test_plan_unknown_stream_raises_with_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown stream 'atack'\. Did you mean 'attack'\?"):
        NoisePlan.of(0, [1], "atack")
    with pytest.raises(UserError, match=r"unknown stream 'reports'\. Did you mean 'report'\?"):
        NoisePlan.of(0, [1]).on("reports")


@pytest.mark.parametrize("lane", [-1, 1 << 24])
def test_plan_lane_out_of_range_raises(lane: int) -> None:
    with pytest.raises(UserError, match=rf"noise lane {lane} is outside \[0, 2\*\*24\)"):
        NoisePlan.of(0, [1]).in_lane(lane)


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_permutation_any_count_holds_every_index_once(count: int) -> None:
    assert sorted(permutation(3, count, 2).tolist()) == list(range(count))


def test_permutation_epochs_and_seeds_differ_and_repeat() -> None:
    first = permutation(3, 1000, 2)
    assert torch.equal(first, permutation(3, 1000, 2))
    for other in (permutation(3, 1000, 3), permutation(4, 1000, 2), torch.arange(1000)):
        # A random permutation has one fixed point in the mean, variance 1: 11 is past ten deviations.
        assert int((first == other).sum()) <= 11
        assert abs(correlation(first.double(), other.double())) < 5 / math.sqrt(1000)


def test_seeded_generator_same_seed_gives_same_weights_and_restores_state() -> None:
    state = torch.get_rng_state()
    weights = []
    for seed in (1, 1, 2):
        with seeded_generator(seed):
            weights.append(torch.nn.Linear(3, 3).weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_cuda_agree_with_cpu(dtype: torch.dtype) -> None:
    plan = NoisePlan.of(4, range(100), "attack", draw=3)
    like = torch.zeros(100, 3, 32, 32, dtype=dtype)
    here, there = plan.normal("reverse", 5, like), plan.normal("reverse", 5, like.cuda())
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-6)
    assert torch.equal(plan.uniform("reverse", 5, like.cuda()).cpu(), plan.uniform("reverse", 5, like))


def test_branches_meet_no_other_lane() -> None:
    plan = NoisePlan.of(0, [5], "attack")
    lanes = [plan.in_lane(lane) for lane in (0, 1, 2, (1 << 20) - 1)]
    every = [flat(p) for lane in lanes for p in (lane, *(lane.branch(k) for k in (1, 2, 15)))]
    assert len({tuple(values.tolist()) for values in every}) == len(every)


@pytest.mark.parametrize(("lane", "part"), [(0, 0), (0, 16), (1 << 20, 1)])
def test_branch_out_of_range_raises(lane: int, part: int) -> None:
    with pytest.raises(UserError, match="has no branch"):
        NoisePlan.of(0, [1]).in_lane(lane).branch(part)


def test_branch_keeps_known_noise() -> None:
    known = NoisePlan.of(0, [5])
    plan = NoisePlan.of(0, [5], "attack").sharing(["forward"], known)
    assert torch.equal(flat(plan.branch(3), "forward"), flat(known, "forward"))


THERE = torch.device("meta")
"""Stands for an accelerator; the twins under its name lie on the CPU here, so that they can be compared."""


def placed(draw: int = 0) -> NoisePlan:
    """A plan that has drawn on a device, and shares a site with one that has too."""
    own, known = NoisePlan.of(0, [5, 1 << 40, 7], "attack", draw), NoisePlan.of(0, [5, 1 << 40, 7], draw=9)
    for plan in (own, known):
        plan.twins[THERE] = Rows(plan.example_ids.clone(), plan.draw.clone())
    return own.sharing(["forward"], known)


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan.at(3),
        lambda plan: plan.repeat(4),
        lambda plan: plan.at(2).repeat(3).rows(slice(2, 7)),
        lambda plan: plan.rows([2, 0]).on("report"),
        lambda plan: plan.rows(torch.tensor([True, False, True])).in_lane(3),
        lambda plan: plan.padded(5).branch(2),
        lambda plan: plan.tape(6).repeat(2),
        lambda plan: plan.repeat(2).repeat(2).at(8),
    ],
)
def test_plans_made_of_a_placed_one_have_its_ids_and_draws_there(
    change: Callable[[NoisePlan], NoisePlan],
) -> None:
    made = change(placed(draw=1))
    for plan in (made, *made.shared.values()):
        assert torch.equal(plan.twins[THERE].ids, plan.example_ids)
        assert torch.equal(plan.twins[THERE].draws, plan.draw)
        assert plan.placed(THERE).twins is plan.twins
        assert plan.twins[THERE].ids.device.type == "cpu"  # not placed anew


def test_plan_with_other_rows_put_in_has_no_twin_of_the_old_ones() -> None:
    plan = placed()
    assert not dataclasses.replace(plan, draw=plan.draw + 1).twins


def test_plan_is_placed_with_those_it_shares_with() -> None:
    own, known = NoisePlan.of(0, [5, 7], "attack"), NoisePlan.of(0, [5, 7])
    plan = own.sharing(["forward"], known).placed(THERE)
    assert plan.twins[THERE].ids.device == known.twins[THERE].ids.device == THERE


@pytest.mark.parametrize(("count", "draws"), [(2, [1, 2]), (4, [1, 2, 2, 2])])
def test_padded_repeats_the_last_row(count: int, draws: list[int]) -> None:
    plan = dataclasses.replace(NoisePlan.of(0, [5, 7]), draw=torch.tensor([1, 2]))
    assert plan.padded(count).draw.tolist() == draws
    assert plan.padded(count).example_ids.tolist() == [5, 7, 7, 7][:count]


def test_noise_drawn_while_operations_are_watched_is_the_same() -> None:
    """Whoever watches a model hands it copies of what looks like logits, (B, K)."""
    plan, like = NoisePlan.of(0, [1, 2, 3]), torch.zeros(3, 3, 8, 8)
    drawn: list[Tensor] = []
    with _Watcher():
        drawn += [plan.normal("forward", 0, like), plan.uniform("forward", 0, like)]
    assert torch.equal(drawn[0], plan.normal("forward", 0, like))
    assert torch.equal(drawn[1], plan.uniform("forward", 0, like))


@pytest.mark.parametrize("change", [lambda plan: plan, lambda plan: plan.repeat(2).rows([1, 2])])
def test_plan_that_first_draws_inside_a_transform_keeps_nothing_of_it(
    change: Callable[[NoisePlan], NoisePlan],
) -> None:
    """A twin that `torch.func` has wrapped has no memory once that is over: no kernel can read it."""
    plan = NoisePlan.of(0, [5, 7])
    x = torch.zeros(2, 3, 4, 4, device=THERE)
    torch.func.grad(lambda x: (x * change(plan).normal("forward", 0, x)).sum())(x)
    assert all(twin.lasts for twin in plan.placed(THERE).twins.values())
    assert change(plan).normal("forward", 0, x).shape == x.shape


def test_plan_is_copied_without_what_belongs_to_a_device() -> None:
    """A copy must not share what the first one notes; nor is it there where another process reads one."""
    for again in (copy.copy(placed()), copy.deepcopy(placed())):
        assert not again.twins
        assert torch.equal(flat(again.rows([1]), "reverse"), flat(placed().rows([1]), "reverse"))
