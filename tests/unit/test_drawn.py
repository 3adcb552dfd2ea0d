"""A drawn t* and drawn grids: each row walks levels of its own, told by the plan alone.

The oracle of a row is the same sampler on that row's levels as plain numbers. For x0 ~ N(mean, v I) the
Jacobian of one purification is theta(sigma) for any grid, so over an interval it is the mean of theta.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from dbpkit.experiment.knowledge import known
from dbpkit.experiment.spec import EvaluationSpec, PurifierSpec
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.spec import spec_hash, validate
from dbpkit.foundation.times import middle, read_start, start_words
from dbpkit.models.schedule import discrete_sigmas
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.driver import drive
from dbpkit.purification.samplers import Chain, make_sampler, samplers
from dbpkit.purification.tiles import PlaneNoise
from dbpkit.results.schemas import RecordedPurifier
from tests.oracles import GaussianDenoiser, case_name, few_steps, sampler_cases, tiny_denoiser, uniform

ROUND_OFF = 1e-12
INTERVAL = [0.05, 0.15]
CASES = [(name, options) for name, options in sampler_cases() if samplers.get(name).by_row]
each_sampler = pytest.mark.parametrize(("name", "options"), CASES, ids=case_name)
NOISE = NoisePlan.of(1, [2, 4, 8])
X = uniform(3, 1, 4, 4, low=-1, high=1)


class Told(NoisePlan):
    """A plan whose uniforms of levels are given: (B,) the first, and the others one half."""

    def uniform(self, site: str, step: int, like: Tensor) -> Tensor:
        """Returns the given values in the first place."""
        u = torch.full_like(like, 0.5)
        u[:, 0] = torch.tensor(STARTS, dtype=like.dtype)[self.example_ids]
        return u


STARTS = [(k + 0.5) / 101 for k in range(101)]


def grids(name: str) -> list[tuple[Any, dict[str, Any]]]:
    """An interval, a random grid, and both, as far as a sampler has inner levels."""
    found: list[tuple[Any, dict[str, Any]]] = [(INTERVAL, {})]
    return found if name == "one_step" else [*found, (0.1, {"random": True}), (INTERVAL, {"random": True})]


def drawn(name: str, options: dict[str, Any], which: int = -1) -> Chain:
    t_star, grid = grids(name)[which]
    return make_sampler(name, t_star, few_steps(name), options, grid)


def rows_of(sampler: Chain, noise: NoisePlan, x: Tensor) -> list[list[float]]:
    """The levels of every row, as numbers."""
    columns = [c.flatten() for c in sampler.bound(noise, x).levels[:-1]]
    return [[*row, 0.0] for row in torch.stack(columns, dim=1).tolist()]


@each_sampler
def test_drawn_rows_are_those_of_the_sampler_on_their_own_levels(name: str, options: dict[str, Any]) -> None:
    for which in range(len(grids(name))):
        sampler = drawn(name, options, which)
        found = drive(sampler, tiny_denoiser(), X, NOISE)
        levels = rows_of(sampler, NOISE, X)
        assert len(set(map(tuple, levels))) == 3
        for b, row in enumerate(levels):
            plain = samplers.get(name)(tuple(row), **options)
            expected = drive(plain, tiny_denoiser(), X[[b]], NOISE.rows([b]))
            torch.testing.assert_close(found[[b]], expected, rtol=0, atol=ROUND_OFF)


@each_sampler
def test_drawn_rows_do_not_depend_on_the_batch_to_the_bit(name: str, options: dict[str, Any]) -> None:
    x, noise = uniform(9, 1, 4, 4, low=-1, high=1), NoisePlan.of(1, range(9))
    sampler = drawn(name, options)
    options = {"variance": "small"} if options.get("variance") else {}
    whole = drive(sampler, GaussianDenoiser(), x, noise)
    for index in ([0], [8, 3], [1, 2, 4, 5, 7]):
        assert torch.equal(drive(sampler, GaussianDenoiser(), x[index], noise.rows(index)), whole[index])


@each_sampler
def test_drawn_sites_are_all_the_randomness_there_is(name: str, options: dict[str, Any]) -> None:
    sampler = drawn(name, options)
    assert sampler.sites == make_sampler(name, 0.1, few_steps(name), options).sites | {"level"}
    expected, other = drive(sampler, tiny_denoiser(), X, NOISE), NOISE.on("attack").at(5)
    assert torch.equal(drive(sampler, tiny_denoiser(), X, other.sharing(sampler.sites, NOISE)), expected)
    fixed = other.sharing(sampler.sites - {"level"}, NOISE)
    assert not torch.equal(drive(sampler, tiny_denoiser(), X, fixed), expected)


@each_sampler
def test_drawn_gradient_with_replay_is_exact(name: str, options: dict[str, Any]) -> None:
    t_star, grid = grids(name)[-1]
    purifier = Purifier(
        tiny_denoiser(),
        name,
        t_star=t_star,
        steps=few_steps(name),
        options=options,
        grid=grid,
        clamp=False,
        memory_bytes=0,
    )
    purifier.verify_replay = True
    x = (X[:2, :, :2, :2] / 4 + 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: purifier(x, noise=NOISE.rows([0, 1])), x, fast_mode=True)


def test_drawn_starts_are_the_whole_times_of_the_interval_equally_often() -> None:
    sampler = make_sampler("ddpm", INTERVAL, 20)
    x = torch.zeros(4000, 1, 1, 1)
    first = sampler.bound(NoisePlan.of(0, range(4000)), x).levels[0].flatten()
    times = torch.searchsorted(discrete_sigmas().float(), first.contiguous())
    assert torch.equal(discrete_sigmas().float()[times], first)
    assert (int(times.min()), int(times.max())) == (50, 150)
    counts = np.bincount(times.numpy() - 50, minlength=101)
    assert stats.chisquare(counts).pvalue > 0.001
    assert sampler.levels == make_sampler("ddpm", 0.1, 20).levels
    assert sampler.highest == float(discrete_sigmas()[150])


def test_drawn_opposite_uniforms_start_at_mirrored_times() -> None:
    sampler = make_sampler("ddim", INTERVAL, 20)
    told = Told.of(0, range(101))
    x = torch.zeros(101, 1, 1, 1, dtype=torch.float64)
    first = torch.tensor(rows_of(sampler, told, x))[:, 0]
    torch.testing.assert_close(first, discrete_sigmas()[50:151].float())
    assert torch.equal(first.double().argsort(), torch.arange(101))


def test_drawn_starts_end_with_the_last_time_of_the_schedule() -> None:
    sampler = make_sampler("ddpm", [0.2, 0.999], 10)
    assert sampler.highest == float(discrete_sigmas()[-1])


def test_drawn_times_stretch_the_grid_of_the_middle() -> None:
    """t = 100, 50, 0 becomes 50, 25, 0 and 150, 75, 0; times are whole, so levels are the network's."""
    table = make_sampler("ddim", INTERVAL, 20).table[:, 0]
    sigmas = discrete_sigmas()
    for k, times in ((0, [50, 25, 0]), (50, [100, 50, 0]), (100, [150, 75, 0])):
        assert table[k].tolist() == [*sigmas[times].tolist(), 0.0]


def test_drawn_inner_levels_fill_their_cells_and_the_ends_stay() -> None:
    sampler = make_sampler("ddim", 0.1, 50, grid={"random": True})  # t = 100, 80, ..., 0
    x = torch.zeros(2000, 1, 1, 1)
    levels = torch.tensor(rows_of(sampler, NoisePlan.of(0, range(2000)), x))
    times = torch.searchsorted(discrete_sigmas().float(), levels[:, :-1].contiguous())
    assert times[:, 0].unique().tolist() == [100]
    assert times[:, -1].unique().tolist() == [0]
    for i, center in ((1, 80), (2, 60), (3, 40), (4, 20)):
        found = times[:, i]
        assert int(found.min()) == center - 10
        assert int(found.max()) == center + 9  # cells are half open, so neighbours never meet
        assert abs(float(found.double().mean()) - (center - 0.5)) < 0.6
    assert abs(np.corrcoef(times[:, 1], times[:, 2])[0, 1]) < 0.1


def test_drawn_gaussian_data_jacobian_averages_over_the_interval() -> None:
    denoiser = GaussianDenoiser(0.1, 0.25)
    purifier = Purifier(
        denoiser, "ddpm", t_star=INTERVAL, steps=20, options={"variance": "small", "clip": False}, clamp=False
    )
    x = uniform(101, 1, 1, 1).requires_grad_()
    (slopes,) = torch.autograd.grad(purifier(x, noise=Told.of(0, range(101))).sum(), x)
    theta = [denoiser.theta(float(s)) for s in discrete_sigmas()[50:151]]
    assert float(slopes.mean()) == pytest.approx(np.mean(theta), abs=1e-6)
    assert slopes.flatten().tolist() == pytest.approx(theta, abs=1e-6)


def test_drawn_attacker_with_fixed_randomness_knows_the_levels() -> None:
    purifier = Purifier(tiny_denoiser(), "ddpm", t_star=INTERVAL, steps=20, options={"variance": "small"})
    x, report = (X + 1) / 2, NoisePlan.of(3, [2, 4, 8])
    attack = NoisePlan.of(3, [2, 4, 8], "attack").in_lane(2).at(7)
    expected = purifier(x, noise=report)
    assert known["dw_both"].leaves_nothing_random(purifier.sites)
    assert not known["dw_rev"].leaves_nothing_random(purifier.sites)
    assert torch.equal(purifier(x, noise=known["dw_both"].apply(attack, 0)), expected)
    assert not torch.equal(purifier(x, noise=known["dw_fwd"].apply(attack, 0)), expected)
    told = known["dw_fwd"].apply(attack, 0)
    levels = rows_of(purifier.sampler, report, x)
    assert rows_of(purifier.sampler, told, x) == levels
    assert rows_of(purifier.sampler, known["dw_rev"].apply(attack, 0), x) != levels


def test_drawn_repetitions_draw_their_own_levels() -> None:
    sampler = make_sampler("one_step", INTERVAL, 1000)
    plan = NoisePlan.of(0, [5]).repeat(64)
    found = {row[0] for row in rows_of(sampler, plan, torch.zeros(64, 1, 1, 1))}
    assert len(found) > 30


def test_drawn_traced_deviation_is_at_the_images_own_levels() -> None:
    purifier = Purifier(tiny_denoiser(), "ddim", t_star=INTERVAL, steps=20)
    x = (X + 1) / 2
    whole = purifier.traced(x, noise=NOISE)[1]
    for b in range(3):
        levels = rows_of(purifier.sampler, NOISE, x)[b]
        plain = Purifier(tiny_denoiser(), "ddim", steps=20)
        plain.sampler = replace(plain.sampler, levels=tuple(levels))
        torch.testing.assert_close(plain.traced(x[[b]], noise=NOISE.rows([b]))[1], whole[[b]])


def test_drawn_half_precision_images_stay_so() -> None:
    sampler = make_sampler("ddim", INTERVAL, 20)
    x = X.half()
    levels = sampler.bound(NOISE, x).levels[0]
    assert levels.dtype == torch.float32
    assert drive(sampler, GaussianDenoiser(), x, NOISE).dtype == torch.float16


def test_drawn_fewer_steps_keep_the_interval() -> None:
    purifier = Purifier(tiny_denoiser(), "ddpm", t_star=INTERVAL, steps=100, grid={"random": True})
    coarse = purifier.with_steps(50)
    assert coarse.settings["t_star"] == INTERVAL
    assert (purifier.calls, coarse.calls, coarse.sites) == (11, 6, purifier.sites)


@pytest.mark.parametrize(
    ("name", "t_star", "steps", "grid", "said"),
    [
        ("ddpm", INTERVAL, 1000, {}, "levels that are drawn could meet: too many steps"),
        ("one_step", 0.1, 1000, {"random": True}, "needs a level between the first and the last"),
        ("ddpm", [0.1, 0.1001], 20, {}, "no two of its grids differ. Give one t_star"),
        ("ddpm", [1e-9, 0.99], 50, {}, "levels that are drawn could meet"),
        ("heun", INTERVAL, 10, {"sigma_max": 0.5}, "its grid does not depend on t_star"),
        ("ddpm", 0.1, 20, {"random": 1}, "random must be true or false, not 1"),
        ("ddpm", [0.15, 0.05], 20, {}, r"an interval of two, not \[0.15, 0.05\]"),
        ("tests.parts:half", INTERVAL, 20, {}, "is a function, which has one grid for all images"),
    ],
)
@pytest.mark.filterwarnings("ignore:sampler .* is a function")
def test_drawn_what_cannot_be_drawn_is_refused(
    name: str, t_star: Any, steps: int, grid: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        make_sampler(name, t_star, steps, None, grid)


@pytest.mark.parametrize("name", [n for n in samplers if not getattr(samplers.get(n), "by_row", False)])
def test_drawn_levels_are_refused_by_samplers_of_one_grid(name: str) -> None:
    with pytest.raises(UserError, match=r"walks the same levels for all images|is a function"):
        make_sampler(name, INTERVAL, few_steps(name))


def test_drawn_sampler_that_reads_numbers_is_told_of_columns() -> None:
    class Own(samplers.get("ddim")):
        by_row = False

    import sys
    from types import ModuleType

    module = ModuleType("own_samplers")
    module.Own = Own
    sys.modules["own_samplers"] = module
    try:
        with pytest.raises(UserError, match="walks the same levels for all images"):
            make_sampler("own_samplers:Own", INTERVAL, 20)
    finally:
        del sys.modules["own_samplers"]


@pytest.mark.parametrize(
    "wrong", [[0.1], [0.1, 0.2, 0.3], [0.2, 0.1], ["a", "b"], [0, 0.5], [0.5, 1], "0.1", True]
)
def test_start_time_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"interval|Input should be"):
        read_start(wrong)
    with pytest.raises(UserError, match=r"purifier\.t_star|t_star"):
        validate({"purifier": {"t_star": wrong}}, EvaluationSpec, "wrong")


def test_start_time_in_a_spec_is_hashed_as_before_and_an_interval_otherwise() -> None:
    plain = validate({"purifier": {"t_star": 0.1}}, EvaluationSpec, "a")
    assert spec_hash(plain) == spec_hash(EvaluationSpec())
    spec = validate({"purifier": {"t_star": INTERVAL}}, EvaluationSpec, "b")
    assert spec.purifier.t_star == INTERVAL
    assert spec.model_dump(mode="json")["purifier"]["t_star"] == INTERVAL
    assert spec_hash(spec) != spec_hash(plain)
    assert RecordedPurifier.model_validate(spec.purifier.model_dump(mode="json")).t_star == INTERVAL
    assert PurifierSpec(t_star=INTERVAL).arguments()["t_star"] == INTERVAL
    assert (middle(INTERVAL), start_words(INTERVAL)) == (pytest.approx(0.1), "0.05 to 0.15")


def test_drawn_levels_are_one_for_all_tiles_of_an_image() -> None:
    sampler = make_sampler("ddim", INTERVAL, 20, grid={"random": True})
    corners = [(0, 0), (0, 8), (8, 0)]
    plane = PlaneNoise.over(NoisePlan.of(1, [2]), corners)
    levels = rows_of(sampler, plane, torch.zeros(3, 1, 8, 8))
    assert levels[0] == levels[1] == levels[2]
    assert levels[0] == rows_of(sampler, NoisePlan.of(1, [2]), torch.zeros(1, 1, 8, 8))[0]
    assert levels != rows_of(sampler, PlaneNoise.over(NoisePlan.of(1, [3]), corners), torch.zeros(3, 1, 8, 8))
