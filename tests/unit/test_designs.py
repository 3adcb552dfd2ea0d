"""Designs of draws: what they draw, that the gradient's expectation stays, and that every attack has them."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dbpkit.attacks.libraries  # noqa: F401 - registers their attacks
from benchmarks.gradient_error import errors, moments
from dbpkit import PurifiedClassifier, Purifier, evaluate
from dbpkit.attacks import AttackOutcome, Design, Target, accepted_options, attacks, designed, make_attack
from dbpkit.attacks import designs as of_designs
from dbpkit.attacks.designs import controlled
from dbpkit.checks import Checked
from dbpkit.evaluation.counting import passes
from dbpkit.evaluation.rows import Rows
from dbpkit.evaluation.trial import try_attacks
from dbpkit.experiment.build import build
from dbpkit.experiment.execution import Execution
from dbpkit.experiment.spec import DesignSpec, EvaluationSpec
from dbpkit.foundation import coupling
from dbpkit.foundation.drawing import by_operations
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.spec import spec_hash, validate
from dbpkit.purification.views import surrogate
from dbpkit.results.run_directory import RunDirectory
from dbpkit.threats.pixels import Linf
from tests.parts import TINY, ChannelMean, data, gaussian_denoiser

PLAN = NoisePlan.of(3, [5, 9, 2], "attack")


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_antithetic_rows_are_mirror_images(kind: str) -> None:
    plan = PLAN.at(4).repeat(5, antithetic=True)
    drawn = getattr(plan, kind)("forward", 2, torch.zeros(15, 7, dtype=torch.float64)).unflatten(0, (3, 5))
    mirrored = -drawn[:, 0::2] if kind == "normal" else 1 - 2.0**-24 - drawn[:, 0::2]
    assert torch.equal(drawn[:, 1::2], mirrored[:, :2])
    assert drawn.flatten(1).unique(dim=0).shape[0] == 3
    assert not torch.equal(drawn[:, 0], drawn[:, 2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_mirror_images_are_those_of_every_way_to_draw(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signs and reflections come after drawing: what an accelerator draws is turned as what NumPy draws."""
    plan, like = PLAN.at(4).repeat(4, antithetic=True), torch.zeros(12, 7, dtype=dtype)
    here = getattr(plan, kind)("forward", 2, like)
    asked: list[int] = []

    def elsewhere(like: Tensor, rows: Any, *rest: Any) -> Tensor:
        asked.extend(rows.draws.tolist())
        return by_operations(like, rows, *rest)

    monkeypatch.setattr(coupling, "values", elsewhere)
    assert torch.equal(getattr(plan, kind)("forward", 2, like), here)
    assert set(asked) == {16, 17}
    assert float(here.min()) >= 0 or kind == "normal"


def test_antithetic_rows_survive_what_is_done_to_a_plan() -> None:
    plan, like = PLAN.repeat(4, antithetic=True), torch.zeros(12, 6)
    whole = plan.normal("reverse", 1, like)
    order = [7, 0, 1, 11, 6]
    assert torch.equal(plan.rows(order).normal("reverse", 1, like[:5]), whole[order])
    assert torch.equal(plan.rows(slice(3, 8)).normal("reverse", 1, like[:5]), whole[3:8])
    padded = plan.rows([1]).padded(3).normal("reverse", 1, like[:3])
    assert torch.equal(padded, whole[[1, 1, 1]])
    assert torch.equal(
        plan.in_lane(2).normal("reverse", 1, like)[1::2], -plan.in_lane(2).normal("reverse", 1, like)[0::2]
    )
    assert torch.equal(plan.at(0).normal("reverse", 1, like)[0], plan.at(0).normal("reverse", 1, like)[1])


def test_repetitions_of_a_mirror_image_are_mirror_images() -> None:
    """An ensemble repeats its plan; the two of a pair must not become the same draws."""
    for orthogonal in (False, True):
        pairs = PLAN.repeat(2, antithetic=True, orthogonal=orthogonal).repeat(3)
        values = pairs.normal("reverse", 0, torch.zeros(18, 5)).unflatten(0, (3, 2, 3))
        assert torch.equal(values[:, 1], -values[:, 0])
        plain = PLAN.repeat(3).normal("reverse", 0, torch.zeros(9, 5)).unflatten(0, (3, 3))
        assert torch.equal(values[:, 0], plain)


def test_first_of_each_pair_is_a_plain_draw() -> None:
    plan, like = PLAN.at(3), torch.zeros(3, 8)
    pairs = plan.repeat(2, antithetic=True).normal("forward", 0, torch.zeros(6, 8))
    assert torch.equal(pairs[0::2], PLAN.at(6).normal("forward", 0, like))


def test_shared_sites_are_not_mirrored() -> None:
    told = PLAN.on("report").at(2)
    plan = PLAN.sharing(["forward"], told).repeat(2, antithetic=True, orthogonal=True)
    like = torch.zeros(6, 8)
    assert torch.equal(
        plan.normal("forward", 0, like), told.normal("forward", 0, like[:3]).repeat_interleave(2, 0)
    )
    assert torch.equal(plan.normal("reverse", 0, like)[1], -plan.normal("reverse", 0, like)[0])


def test_draws_made_elsewhere_are_left_out() -> None:
    whole = PLAN.at(2).repeat(7).normal("forward", 0, torch.zeros(21, 4)).unflatten(0, (3, 7))
    rest = PLAN.at(2).repeat(3, skip=4, of=7).normal("forward", 0, torch.zeros(9, 4)).unflatten(0, (3, 3))
    assert torch.equal(rest, whole[:, 4:])
    assert torch.equal(PLAN.at(2).repeat(7).draw, PLAN.at(2).repeat(7, antithetic=False).draw)


@pytest.mark.parametrize("antithetic", [False, True])
def test_orthogonal_normals_are_at_right_angles_and_each_like_an_independent_one(antithetic: bool) -> None:
    like = torch.zeros(24, 3, 5, 7, dtype=torch.float64)
    plan = PLAN.repeat(8, antithetic=antithetic, orthogonal=True)
    z = plan.normal("forward", 1, like).flatten(1).unflatten(0, (3, 8))
    z = z[:, 0::2] if antithetic else z
    gram = z @ z.transpose(1, 2)
    lengths = gram.diagonal(dim1=1, dim2=2)
    assert (gram - torch.diag_embed(lengths)).abs().max() < 1e-11 * lengths.max()
    first = plan.draw & 0xFFFFFFFF
    g = PLAN.at(0).repeat(8).normal("forward", 1, like).flatten(1).unflatten(0, (3, 8))
    torch.testing.assert_close(lengths, g[:, : z.shape[1]].square().sum(2))
    assert first.max() < 8
    order = [17, 3, 4, 22]
    assert torch.equal(
        plan.rows(order).normal("forward", 1, like[:4]), plan.normal("forward", 1, like)[order]
    )


def test_orthogonal_draws_alone_are_standard_normal() -> None:
    """The last of a group in three dimensions, over 20,000 images: moments within 4 standard errors."""
    n = 20_000
    plan = NoisePlan.of(1, range(n)).repeat(3, orthogonal=True).rows(slice(2, None, 3))
    z = plan.normal("forward", 0, torch.zeros(n, 3, dtype=torch.float64))
    assert (z.mean(0) * math.sqrt(n)).abs().max() < 4
    covariance = (z.T @ z / n - torch.eye(3)) * math.sqrt(n)
    assert covariance.abs().max() < 4 * math.sqrt(2)
    assert abs(float((z**4).mean()) - 3) < 4 * math.sqrt(96 / (3 * n))


def test_more_orthogonal_draws_than_values_begin_anew() -> None:
    z = PLAN.repeat(5, orthogonal=True).normal("forward", 0, torch.zeros(15, 2, dtype=torch.float64))
    z = z.unflatten(0, (3, 5))
    assert torch.isfinite(z).all()
    for a, b in ((0, 1), (2, 3)):
        torch.testing.assert_close((z[:, a] * z[:, b]).sum(1), torch.zeros(3, dtype=torch.float64))
    assert (z[:, 1] * z[:, 2]).sum(1).abs().min() > 1e-6


DESIGNS = [
    Design(antithetic=True),
    Design(orthogonal=True),
    Design(antithetic=True, orthogonal=True),
    Design(control=10, control_draws=4),
    Design(antithetic=True, control=10, control_draws=4),
    Design(orthogonal=True, control=10, control_draws=4),
]


def small_model(steps: int = 20) -> PurifiedClassifier:
    """A nonlinear model of closed-form parts: `ddpm` with 3 calls, and 2 with 10 steps."""
    return PurifiedClassifier(Purifier(gaussian_denoiser(), "ddpm", steps=steps), ChannelMean(200.0))


def same_image(count: int) -> tuple[Tensor, Tensor, NoisePlan]:
    """One image of 4 x 4 under as many ids: as many independent repetitions of an estimate."""
    x = data().x()[:1, :, :4, :4].repeat(count, 1, 1, 1).double()
    return x, torch.zeros(count, dtype=torch.long), NoisePlan.of(11, range(count), "attack")


@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_designs_leave_the_expectation_as_it_is(design: Design) -> None:
    """4,096 plain draws against 1,024 gradients of a design: all 48 values within 4.5 standard errors."""
    x, y, noise = same_image(1024)
    target = Target(small_model(), 4096)
    plain = target.gradient(x, y, noise=noise.in_lane(1), eot=4).grad
    found = target.gradient(x, y, noise=noise.in_lane(2), eot=6, design=design).grad
    error = (found.mean(0) - plain.mean(0)) / ((found.var(0) + plain.var(0)) / 1024).sqrt()
    assert error.abs().max() < 4.5
    assert found.var(0).mean() > 0


def test_weight_that_is_fitted_to_its_own_draws_would_be_biased() -> None:
    """What leaving the own draw out is for: the check above sees the bias of the simple way."""
    generator = torch.Generator().manual_seed(0)
    s = torch.empty(20_000, 4, 1, dtype=torch.float64).normal_(generator=generator)
    m = torch.empty(20_000, 4, 1, dtype=torch.float64).normal_(generator=generator)
    f = s.square()
    found = controlled(f, s, m, Design(control=1)).flatten() - 1
    own = s - s.mean(1, keepdim=True)
    weight = (own * f).sum(1) / own.square().sum(1) / 2
    simple = f.mean((1, 2)) - weight[:, 0] * (s.mean((1, 2)) - m.mean((1, 2))) - 1
    t = [float(v.mean() / v.std() * math.sqrt(len(v))) for v in (found, simple)]
    assert abs(t[0]) < 4 < abs(t[1])


class Polynomial(nn.Module):
    """Logits (x + z, 0) squared or not, of one pixel: its gradient is odd, or even, in z."""

    sites = frozenset({"forward"})

    def __init__(self, even: bool) -> None:
        super().__init__()
        self.even = even

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        z = noise.normal("forward", 0, x)
        value = (x * z.square() if self.even else (x + z).square() / 2).flatten(1).sum(1)
        return torch.stack([value, torch.zeros_like(value)], dim=1)


def first_logit(logits: Tensor, y: Tensor) -> Tensor:
    """The loss of the polynomial models."""
    del y
    return logits[:, 0]


def test_antithetic_pairs_remove_the_odd_part_entirely_and_double_the_even_one() -> None:
    x = torch.full((4096, 1, 1, 1), 0.3, dtype=torch.float64)
    y, noise = torch.zeros(4096, dtype=torch.long), NoisePlan.of(2, range(4096), "attack")
    ask = {"noise": noise, "eot": 4, "loss": first_logit, "design": Design(antithetic=True)}
    odd = Target(Polynomial(even=False), 8192).gradient(x, y, **ask).grad
    torch.testing.assert_close(odd, x, rtol=1e-14, atol=1e-15)
    even = Target(Polynomial(even=True), 8192).gradient(x, y, **ask).grad
    assert float(even.var()) == pytest.approx(2 / 2, rel=0.15)  # Var z^2 = 2, two pairs; 4 draws: 2 / 4


def test_controlled_is_what_it_says() -> None:
    """Against a slow loop, for pairs and a draw without a partner."""
    generator = torch.Generator().manual_seed(3)
    f, s, m = (torch.empty(2, n, 3, 2, dtype=torch.float64).normal_(generator=generator) for n in (7, 7, 5))
    found = controlled(f, s, m, Design(antithetic=True, control=1))
    blocks = [[0, 1], [2, 3], [4, 5], [6]]
    for b in range(2):
        total = torch.zeros(3, 2, dtype=torch.float64)
        for block in blocks:
            others = [o for o in blocks if o != block]
            fo, so = (torch.stack([g[b, o].mean(0) for o in others]) for g in (f, s))
            fo, so = fo - fo.mean(0), so - so.mean(0)
            weight = (fo * so).sum() / (so * so).sum() * 5 / 12
            total += sum(f[b, r] - weight * (s[b, r] - m[b].mean(0)) for r in block)
        torch.testing.assert_close(found[b], total / 7)


def test_controlled_a_few_images_at_a_time_is_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    full, paired, further = (torch.empty(5, n, 3, 2, 2).normal_(generator=generator) for n in (4, 4, 6))
    whole = controlled(full, paired, further, Design(antithetic=True))
    seen: list[int] = []
    combine = of_designs._controlled
    monkeypatch.setattr(
        of_designs, "_controlled", lambda f, *rest: (seen.append(len(f)), combine(f, *rest))[1]
    )
    monkeypatch.setattr(of_designs, "AT_ONCE", 2 * 14 * 12)
    assert torch.equal(controlled(full, paired, further, Design(antithetic=True)), whole)
    assert seen == [2, 2, 1]


def test_control_of_a_surrogate_that_errs_alike_leaves_the_error_of_its_mean() -> None:
    s = torch.tensor([[1.0, 2.0, 4.0, 5.0]])[:, :, None]
    m = torch.tensor([[3.0, 5.0]])[:, :, None]
    found = controlled(2 * s + 7, s, m, Design(control=1))
    assert float(found) == pytest.approx(7 + 2 * (4 * 3 + 2 * 4) / 6)


@pytest.mark.parametrize("design", [*DESIGNS, Design(common=True)], ids=str)
def test_designs_do_not_depend_on_batch_micro_batch_or_order(design: Design) -> None:
    some = data()
    x, y, noise = some.x()[:5], some.labels[:5], NoisePlan.of(4, some.ids[:5], "attack").at(3)
    ask = {"eot": 5, "design": design}
    whole = Target(small_model(), 64).gradient(x, y, noise=noise, **ask).grad
    small = Target(small_model(), 3).gradient(x, y, noise=noise, **ask).grad
    assert torch.equal(whole, small)
    order = torch.tensor([4, 1])
    part = Target(small_model(), 64).gradient(x[order], y[order], noise=noise.rows(order), **ask).grad
    assert torch.equal(part, whole[order])


def test_common_draws_are_those_of_every_iteration() -> None:
    some = data()
    ask = {"x": some.x()[:2], "y": some.labels[:2], "eot": 3}
    noise, target = NoisePlan.of(4, some.ids[:2], "attack"), Target(small_model(), 64)
    first = target.gradient(**ask, noise=noise)
    later = target.gradient(**ask, noise=noise.at(9), design=Design(common=True))
    assert torch.equal(first.grad, later.grad)
    assert not torch.equal(first.grad, target.gradient(**ask, noise=noise.at(9)).grad)


@pytest.mark.parametrize("design", [*DESIGNS, Design(common=True)], ids=str)
def test_designs_change_nothing_where_nothing_is_random(design: Design) -> None:
    some = data()
    noise = NoisePlan.of(4, some.ids[:3], "attack")
    known = noise.sharing(["forward", "reverse"], noise.on("report").at(1)).at(2)
    found = []
    for one in (Design(), design):
        target = Target(small_model(), 64)
        got = target.gradient(some.x()[:3], some.labels[:3], noise=known, eot=2, design=one)
        found.append((got.grad, target.spent))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_network_passes_are_told_and_shared_with_surrogates() -> None:
    some = data()
    x, y, noise = some.x()[:2], some.labels[:2], NoisePlan.of(4, [3, 8], "attack")
    target = Target(small_model(), 64)
    coarse = target.coarser(10)
    assert (target.calls, coarse.calls) == (3, 2)
    target(x, noise=noise)
    coarse(x[:1], noise=noise.rows([0]))
    assert target.spent == {3: 3 + 2, 8: 3}
    target.gradient(x, y, noise=noise, eot=2, design=Design(control=10, control_draws=5))
    assert target.spent[8] == 3 + 2 * (2 * 3 + (2 + 5) * 2)
    assert coarse.spent is target.spent
    assert target.extra_calls(8) == (2 + 5) * 2
    assert target.coarser(10) is coarse
    assert target.coarser(20) is None
    assert target.coarser(1).calls == 1
    single = PurifiedClassifier(Purifier(gaussian_denoiser(), "one_step", steps=20), ChannelMean(200.0))
    assert torch.equal(target.coarser(1)(x, noise=noise), Target(single)(x, noise=noise))
    assert Target(single).coarser(1) is None
    assert Target(surrogate(small_model(), steps=1)).calls == 1
    with pytest.raises(UserError, match="divide"):
        target.coarser(30)
    assert Target(lambda x, noise: x.mean((2, 3))).coarser(1) is None


class Spy(nn.Module):
    """A noisy linear classifier that notes which draws it was asked for."""

    sites = frozenset({"forward"})

    def __init__(self) -> None:
        super().__init__()
        self.head = ChannelMean(5.0)
        self.mirrored = 0
        self.draws: set[int] = set()

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            self.mirrored += int((noise.draw >> 32 & 1).sum())
            self.draws |= set(noise.draw.tolist())
        return self.head(x + 0.02 * noise.normal("forward", 0, x))


def quick(name: str) -> dict[str, Any]:
    """Options of an attack that takes few passes."""
    known = accepted_options(name)
    few = {"iterations": 2, "eot": 4, "queries": 2, "n_restarts": 1, "restarts": 1, "n_targets": 1}
    few |= {"draws": 4, "gradients": 20} if name == "autopilot" else {}  # which chooses single draws here
    return {k: v for k, v in few.items() if k in known}


@pytest.mark.parametrize("name", sorted(attacks))
def test_every_attack_that_differentiates_gets_the_design(name: str) -> None:
    some, model = data(), Spy()
    attack = designed(make_attack(name, quick(name)), Design(antithetic=True, common=True))
    target = Target(model, 64)
    noise = NoisePlan.of(4, some.ids[:2], "attack")
    try:
        attack(target, some.x()[:2], some.labels[:2], threat=Linf(0.03), noise=noise)
    except UserError as error:
        pytest.skip(str(error))
    if not target.gradient_rows:
        pytest.skip("asks for no gradient")
    assert 2 * model.mirrored == target.gradient_rows
    assert {d & 0xFFFFFFFF for d in model.draws} == {0, 1}
    assert target.design == Design()


def test_spec_of_a_design_is_told_and_the_default_is_not() -> None:
    plain = EvaluationSpec.model_validate({"attacks": ["pgd"]})
    assert spec_hash(plain) == spec_hash(EvaluationSpec())
    assert "design" not in plain.model_dump(mode="json")["attacks"][0]
    table = {"attacks": [{"name": "pgd", "design": {"antithetic": True}}]}
    spec = EvaluationSpec.model_validate(table)
    assert spec.model_dump(mode="json")["attacks"][0] == {
        "name": "pgd",
        "options": {},
        "design": {"antithetic": True},
    }
    assert spec.attacks[0].design.resolve() == Design(antithetic=True)
    assert {n: f.default for n, f in DesignSpec.model_fields.items()} == {
        f.name: f.default for f in dataclasses.fields(Design)
    }
    with pytest.raises(UserError, match="antithetc"):
        validate({"attacks": [{"name": "pgd", "design": {"antithetc": True}}]}, EvaluationSpec, "s")


@pytest.mark.parametrize("wrong", [{"antithetic": 1}, {"control": 0}, {"control_draws": 0}])
def test_wrong_design_raises(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        Design(**wrong)


def test_runner_applies_a_design_and_counts_the_surrogate(tmp_path: Path) -> None:
    """Record and estimate agree, and rows of attackers who know all noise are those without a design."""
    found = {}
    for name, design in (
        ("plain", {}),
        ("designed", {"antithetic": True, "control": 10, "control_draws": 4}),
    ):
        attack = {"name": "pgd", "options": {"iterations": 3, "eot": 2}, "design": design}
        table = {**TINY, "attacks": [attack], "knowledge": ["white_box", "dw_both"], "examples": {"count": 2}}
        spec = EvaluationSpec.model_validate(table)
        execution = Execution(device="cpu", batch_size=2, micro_batch=8)
        rows = passes(spec, build(spec, "cpu"), execution)
        counted = {p.rows[0]: p.network_calls for p in rows}
        evaluate(spec, tmp_path / name, execution)
        records = list(RunDirectory(tmp_path / name).records())
        found[name] = {(r["row"], r["example"]): r for r in records}
        assert {counted["white_box"]} == {
            r["network_calls"] for (row, _), r in found[name].items() if row == "white_box"
        }
    for key, record in found["designed"].items():
        plain = found["plain"][key]
        if key[0] == "white_box":
            assert record["network_calls"] == 3 * (2 * 11 + (2 + 4) * 2)
            assert record["loss"] != plain["loss"]
        else:
            assert record == plain


def test_control_without_a_surrogate_is_refused_before_the_run() -> None:
    attack = {"name": "pgd", "design": {"control": 100}}
    spec = EvaluationSpec.model_validate({**TINY, "attacks": [attack]})
    with pytest.raises(UserError, match=r"design\.control = 100 needs a diffusion purifier that makes fewer"):
        build(spec, "cpu")


def test_benchmark_of_the_error_finds_the_moments_of_a_known_gradient() -> None:
    """g = mu + a z + b e and s = c z + e with e = z^2 - 1, of 4 pixels and 2,000 images: closed forms."""
    a, b, c, mu, n = 2.0, 1.0, 3.0, 1.5, 4
    z = NoisePlan.of(6, range(2000)).repeat(8, antithetic=True)
    z = z.normal("forward", 0, torch.zeros(16_000, n, dtype=torch.float64)).unflatten(0, (2000, 8))
    f, s = mu + a * z + b * (z.square() - 1), c * z + z.square() - 1
    grams = {"ff": f @ f.mT, "fs": f @ s.mT, "ss": s @ s.mT}
    found = moments([{k: v[i].tolist() for k, v in grams.items()} for i in range(2000)])
    expected = {
        "V": n * (a**2 + 2 * b**2), "C": n * (2 * b**2 - a**2), "mu": n * mu**2, "Vs": n * (c**2 + 2),
        "Cs": n * (2 - c**2), "K": n * (a * c + 2 * b), "Kc": n * (2 * b - a * c),
    }  # fmt: skip
    for name, value in expected.items():
        assert found[name].mean() == pytest.approx(value, rel=0.05, abs=0.4), name
    means = {name: value.mean(keepdims=True) for name, value in found.items()}
    error = errors(means, calls=10)
    assert error["antithetic"][0] / error["plain"][0] == pytest.approx(4 * b**2 / (a**2 + 2 * b**2), rel=0.06)
    left = 1 - 8 / 9 * (a * c + 2 * b) ** 2 / (c**2 + 2) / (a**2 + 2 * b**2)
    assert error["control, M = 8 R"][0] / error["plain"][0] == pytest.approx(1.9 * left, abs=0.03)


def test_design_of_an_attack_without_gradients_is_refused_before_the_run(tmp_path: Path) -> None:
    """It would change nothing, and nobody would notice."""
    spec = validate({**TINY, "attacks": [SQUARE]}, EvaluationSpec, "tiny")
    with pytest.raises(UserError, match="attack 'square' takes no gradients, so its design changes nothing"):
        evaluate(spec, tmp_path / "run", Execution("cpu"), checks=lambda *_: Checked([], ()))
    assert not (tmp_path / "run" / "records.jsonl").exists()


SQUARE = {"name": "square", "options": {"iterations": 4, "eot": 1}, "design": {"antithetic": True}}


def late(target: Any, x: Tensor, y: Tensor, *, threat: Any, noise: NoisePlan, iterations: int = 5) -> Any:
    """Differentiates in its last iteration alone, which a short trial does not reach."""
    if iterations > 2:
        target.gradient(x, y, noise=noise, eot=2)
    return AttackOutcome(x, x.new_zeros(len(x), 0), x.new_zeros(len(x), 0))


def test_design_of_an_attack_that_differentiates_late_is_taken(tmp_path: Path) -> None:
    attack = {"name": f"{__name__}:late", "design": {"antithetic": True}}
    spec = validate({**TINY, "attacks": [attack], "knowledge": ["white_box"]}, EvaluationSpec, "tiny")
    parts, execution = build(spec, "cpu"), Execution("cpu", micro_batch=32)
    try_attacks(spec, parts, Rows(spec, parts, execution, RunDirectory(tmp_path)))
    evaluate(spec, tmp_path / "run", execution, parts=parts, checks=lambda *_: Checked([], ()))
