"""Attacks against known optima, the averaging of gradients against an explicit loop, and the seam."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import dbpkit
from dbpkit.attacks import Path, Target, attacks, losses, make_attack
from dbpkit.attacks.pgd import pgd
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import SITES, NoisePlan
from dbpkit.purification.classifier import Undefended
from dbpkit.threats.pixels import L2, Linf, make_threat, threats
from tests.oracles import NoisyClassifier, TinyClassifier, case_name, cross_entropy, uniform

ROUND_OFF = 1e-10
"""Float64 arithmetic on values of order one, and the 1e-10 of L2's norms."""
EPS = {"linf": 8 / 255, "l2": 0.3}
SHORT: dict[str, list[dict[str, Any]]] = {
    "apgd": [
        {"iterations": 5, "eot": 2, "judge_draws": 3, "n_restarts": 2},
        {"iterations": 5, "eot": 1, "judge_draws": 2, "n_restarts": 2, "loss": "dlr", "stop": True},
    ],
    "apgd_targeted": [{"iterations": 3, "eot": 2, "judge_draws": 2, "n_targets": 2, "stop": True}],
    "autoattack": [
        {"version": "rand", "iterations": 3, "eot": 2, "judge_draws": 3},
        {"iterations": 2, "eot": 1, "judge_draws": 1, "parts": ["apgd", "apgd_targeted", "fab"]},
    ],
    "autopilot": [
        {"gradients": 40},
        {"gradients": 20, "draws": 2, "loss": "ce"},
        {"gradients": 3, "loss": "margin"},
    ],
    "diffattack": [{"iterations": 5, "eot": 2}, {"weight": 0.0, "iterations": 4, "eot": 2}],
    "fab": [
        {"iterations": 4, "eot": 2, "n_targets": 2},
        {"iterations": 4, "eot": 1, "n_targets": 2, "n_restarts": 2},
    ],
    "low_frequency": [{"iterations": 5, "eot": 2}, {"step": "adam", "iterations": 4, "eot": 2}],
    "pgd": [
        {"iterations": 5, "eot": 3},
        {"iterations": 4, "eot": 2, "start": "random", "keep": "best", "keep_draws": 3, "loss": "margin"},
    ],
    "selective_eot": [{"iterations": 5, "eot": 3}, {"iterations": 4, "eot": 3, "momentum": 0.0}],
    "square": [{"iterations": 20, "eot": 2}, {"iterations": 20, "eot": 1, "reevaluate": False}],
}
"""Options with which the tests of the seam run an attack: short, with restarts, and with early stopping.

An attack that is not named here runs once, with its defaults.
"""
OURS = [n for n in attacks if not attacks.get(n).__module__.startswith("dbpkit.attacks.libraries.")]
"""All but those of other libraries, which have a contract of their own."""
each_attack = pytest.mark.parametrize(
    ("attack", "options"), [(a, o) for a in OURS for o in SHORT.get(a, [{}])], ids=case_name
)
two_class_losses = [name for name in losses if name != "dlr"]  # which needs a third class
each_threat = pytest.mark.parametrize("norm", [norm for norm in threats if norm != "perceptual"])  # norms


def linear(features: int, seed: int = 3) -> tuple[nn.Module, Tensor]:
    """A two-class linear classifier and the difference of its weight rows, (features,)."""
    weight = uniform(2, features, seed=seed, low=-1, high=1)
    layer = nn.Linear(features, 2, bias=False, dtype=torch.float64)
    layer.weight.data.copy_(weight)
    return Undefended(nn.Sequential(nn.Flatten(), layer)), weight[0] - weight[1]


def toward_other_class(y: Tensor, difference: Tensor, shape: torch.Size) -> Tensor:
    """The direction in which a linear margin falls, for every label."""
    return torch.where(y[:, None] == 0, -difference, difference).reshape(shape)


# ------------------------------------------------------------------ known optimum


@pytest.mark.parametrize("loss", two_class_losses)
@pytest.mark.parametrize("start", ["zero", "random"])
def test_pgd_linf_linear_classifier_reaches_the_optimum(start: str, loss: str) -> None:
    """The margin w . x falls most at x - eps sign(w); 20 steps of eps / 4 get there from any start."""
    model, w = linear(12)
    x, y = uniform(4, 3, 2, 2, low=0.1, high=0.9), torch.tensor([0, 1, 0, 1])
    found = pgd(
        model, x, y, threat=Linf(8 / 255), noise=NoisePlan.of(0, range(4)), start=start, loss=loss, eot=1
    )
    expected = x + 8 / 255 * toward_other_class(y, w.sign(), x.shape)
    torch.testing.assert_close(found.x_adv, expected, rtol=0, atol=ROUND_OFF)


def test_pgd_linf_linear_classifier_at_the_pixel_range_reaches_the_clipped_optimum() -> None:
    model, w = linear(12)
    x, y = uniform(4, 3, 2, 2).round(), torch.tensor([0, 1, 0, 1])
    found = pgd(model, x, y, threat=Linf(8 / 255), noise=NoisePlan.of(0, range(4)), eot=1)
    expected = (x + 8 / 255 * toward_other_class(y, w.sign(), x.shape)).clamp(0, 1)
    torch.testing.assert_close(found.x_adv, expected, rtol=0, atol=ROUND_OFF)
    assert float((found.x_adv - x).abs().min()) == 0  # the pixel range does bind


@pytest.mark.parametrize("loss", two_class_losses)
def test_pgd_l2_linear_classifier_reaches_the_optimum(loss: str) -> None:
    """x - eps w / |w|."""
    model, w = linear(12)
    x, y = uniform(4, 3, 2, 2, low=0.4, high=0.6), torch.tensor([0, 1, 0, 1])
    found = pgd(model, x, y, threat=L2(0.3), noise=NoisePlan.of(0, range(4)), loss=loss, eot=1)
    expected = x + 0.3 * toward_other_class(y, w / w.norm(), x.shape)
    torch.testing.assert_close(
        found.x_adv, expected, rtol=0, atol=1e-8
    )  # L2's 1e-10, against gradients of 0.1


def test_pgd_published_defaults_are_the_published_attack() -> None:
    """PGD20+EoT10 from the image itself: 200 differentiated rows per image, losses of 20 iterates."""
    target = Target(NoisyClassifier(TinyClassifier()))
    x, y = uniform(2, 1, 4, 4), torch.tensor([0, 1])
    found = pgd(target, x, y, threat=Linf(8 / 255), noise=NoisePlan.of(0, range(2)))
    assert found.loss.shape == found.grad_norm.shape == (2, 20)
    assert target.gradient_rows == target.forward_rows == 2 * 20 * 10


def test_pgd_first_step_is_the_published_step_along_the_sign() -> None:
    model, w = linear(12)
    x, y = uniform(2, 3, 2, 2, low=0.1, high=0.9), torch.tensor([0, 1])
    found = pgd(model, x, y, threat=Linf(8 / 255), noise=NoisePlan.of(0, range(2)), iterations=1, eot=1)
    expected = x + 2 / 255 * toward_other_class(y, w.sign(), x.shape)
    torch.testing.assert_close(found.x_adv, expected, rtol=0, atol=ROUND_OFF)


def test_pgd_outcome_records_loss_and_gradient_norm_before_every_step() -> None:
    """Replaying the recorded path: iterate i is what the attack returns after i iterations."""
    classifier = TinyClassifier()
    model, x, y = Undefended(classifier), uniform(3, 1, 4, 4), torch.tensor([0, 1, 2])
    noise, threat = NoisePlan.of(0, range(3)), Linf(0.05)
    found = pgd(model, x, y, threat=threat, noise=noise, iterations=4, eot=1)
    for i in range(4):
        iterate = x if i == 0 else pgd(model, x, y, threat=threat, noise=noise, iterations=i, eot=1).x_adv
        leaf = iterate.clone().requires_grad_()
        loss = cross_entropy(classifier(leaf), y)
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
        torch.testing.assert_close(found.loss[:, i], loss.detach(), rtol=0, atol=ROUND_OFF)
        torch.testing.assert_close(found.grad_norm[:, i], grad.flatten(1).norm(dim=1), rtol=0, atol=ROUND_OFF)


def test_path_without_gradients_has_norms_of_no_iterate() -> None:
    path, loss = Path(), torch.tensor([1.0, 2.0])
    path.note(loss)
    path.note(2 * loss)
    found = path.outcome(torch.zeros(2, 1, 4, 4))
    assert torch.equal(found.loss, torch.tensor([[1.0, 2.0], [2.0, 4.0]]))
    assert found.grad_norm.shape == (2, 0)


def test_pgd_keep_best_returns_the_iterate_of_highest_loss() -> None:
    """Steps of the size of the budget overshoot, so that the last iterate is not the best for every image."""
    classifier = TinyClassifier()
    model, x, y = Undefended(classifier), uniform(8, 1, 4, 4), torch.arange(8) % 3
    settings: dict[str, Any] = {
        "threat": L2(0.9),
        "noise": NoisePlan.of(0, range(8)),
        "eot": 1,
        "step_size": 0.9,
    }
    iterates = [pgd(model, x, y, iterations=i, **settings).x_adv for i in range(1, 7)]
    per_iterate = torch.stack([cross_entropy(classifier(a), y) for a in iterates])
    assert int((per_iterate.argmax(dim=0) < 5).sum()) > 0
    best = pgd(model, x, y, iterations=6, keep="best", keep_draws=1, **settings).x_adv
    expected = torch.stack(iterates)[per_iterate.argmax(dim=0), torch.arange(8)]
    torch.testing.assert_close(best, expected, rtol=0, atol=ROUND_OFF)


class Witness(NoisyClassifier):
    """Notes which draws were used with and without a gradient."""

    def __init__(self) -> None:
        super().__init__(TinyClassifier())
        self.used: dict[bool, set[tuple[int, int]]] = {True: set(), False: set()}

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        keys = zip(noise.example_ids.tolist(), noise.draw.tolist(), strict=True)
        self.used[torch.is_grad_enabled() and x.requires_grad].update(keys)
        return super().forward(x, noise=noise)


def test_pgd_keep_best_judges_on_draws_that_no_gradient_used() -> None:
    model = Witness()
    x, y = uniform(2, 1, 4, 4), torch.tensor([0, 1])
    pgd(
        model,
        x,
        y,
        threat=Linf(0.05),
        noise=NoisePlan.of(0, [7, 9]),
        iterations=5,
        eot=3,
        keep="best",
        keep_draws=4,
    )
    assert len(model.used[True]) == 2 * 5 * 3
    assert len(model.used[False]) == 2 * 5 * 4
    assert not model.used[True] & model.used[False]


def test_pgd_every_gradient_uses_draws_of_its_own() -> None:
    model = Witness()
    pgd(model, uniform(1, 1, 4, 4), torch.tensor([0]), threat=Linf(0.05), noise=NoisePlan.of(0, [7]))
    assert model.used[True] == {(7, d) for d in range(200)}


@pytest.mark.parametrize("option", ["iterations", "eot", "keep_draws"])
def test_pgd_count_below_one_raises(option: str) -> None:
    model, _ = linear(4)
    with pytest.raises(
        UserError, match=f"attack 'pgd': {option} must be a whole number of at least 1, not 0"
    ):
        pgd(
            model,
            uniform(1, 1, 2, 2),
            torch.tensor([0]),
            threat=Linf(0.1),
            noise=NoisePlan.of(0, [0]),
            **{option: 0},
        )


@pytest.mark.parametrize("options", [{"start": "centre"}, {"keep": "first"}])
def test_pgd_unknown_choice_raises(options: dict[str, Any]) -> None:
    model, _ = linear(4)
    with pytest.raises(UserError, match=rf"attack 'pgd': {next(iter(options))} must be '\w+' or '\w+', not"):
        pgd(
            model,
            uniform(1, 1, 2, 2),
            torch.tensor([0]),
            threat=Linf(0.1),
            noise=NoisePlan.of(0, [0]),
            **options,
        )


def test_pgd_unknown_loss_raises_with_nearest() -> None:
    model, _ = linear(4)
    with pytest.raises(
        UserError, match=r"unknown loss 'margn'\. Did you mean 'margin'\? Available: ce, dlr, margin"
    ):
        pgd(
            model,
            uniform(1, 1, 2, 2),
            torch.tensor([0]),
            threat=Linf(0.1),
            noise=NoisePlan.of(0, [0]),
            loss="margn",
        )


# ------------------------------------------------------------------ the target


@pytest.mark.parametrize("loss", list(losses))
@pytest.mark.parametrize("micro_batch", [1, 4, 100])
def test_gradient_eot_is_the_mean_of_an_explicit_loop(micro_batch: int, loss: str) -> None:
    """Repetition r of draw d is draw d * eot + r, as `NoisePlan.repeat` promises."""
    model, x, y = NoisyClassifier(TinyClassifier()), uniform(3, 1, 4, 4), torch.tensor([0, 1, 2])
    noise = NoisePlan.of(0, [4, 5, 6], "attack")
    found = Target(model, micro_batch).gradient(x, y, noise=noise.at(2), eot=5, loss=loss)
    grads, values = [], []
    for r in range(5):
        leaf = x.clone().requires_grad_()
        value = losses.get(loss)(model(leaf, noise=noise.at(2 * 5 + r)), y)
        grads.append(torch.autograd.grad(value.sum(), leaf)[0])
        values.append(value.detach())
    torch.testing.assert_close(found.grad, torch.stack(grads).mean(dim=0), rtol=0, atol=ROUND_OFF)
    torch.testing.assert_close(found.loss, torch.stack(values).mean(dim=0), rtol=0, atol=ROUND_OFF)
    assert not torch.equal(grads[0], grads[1])


def test_gradient_and_logits_any_cut_are_bit_equal_with_a_fixed_shape() -> None:
    """In float32, where kernels that see another number of rows may round otherwise."""
    classifier = TinyClassifier(channels=3).float()
    x, y = uniform(7, 3, 8, 8).float(), torch.arange(7) % 3
    noise, threat = NoisePlan.of(0, range(20, 27), "attack"), Linf(8 / 255)
    outcomes = []
    for size in (7, 3, 1):
        target = Target(NoisyClassifier(classifier), 4, fixed_shape=True)
        logits, images = [], []
        for i in range(0, 7, size):
            rows = slice(i, min(i + size, 7))
            logits.append(target(x[rows], noise=noise.rows(rows)))
            found = pgd(target, x[rows], y[rows], threat=threat, noise=noise.rows(rows), iterations=3, eot=3)
            images.append((found.x_adv, found.loss, found.grad_norm))
        outcomes.append([torch.cat(logits), *(torch.cat(parts) for parts in zip(*images, strict=True))])
    for other in outcomes[1:]:
        for a, b in zip(outcomes[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("fixed_shape", [False, True])
@pytest.mark.parametrize("micro_batch", [1, 2, 5, 64])
def test_target_any_micro_batch_gives_the_models_logits(micro_batch: int, fixed_shape: bool) -> None:
    model, x, noise = NoisyClassifier(TinyClassifier()), uniform(5, 1, 4, 4), NoisePlan.of(0, [9, 8, 7, 6, 5])
    logits = Target(model, micro_batch, fixed_shape=fixed_shape)(x, noise=noise)
    torch.testing.assert_close(logits, model(x, noise=noise), rtol=0, atol=ROUND_OFF)


def test_target_draws_are_the_repetitions_of_each_image() -> None:
    model, x, noise = NoisyClassifier(TinyClassifier()), uniform(3, 1, 4, 4), NoisePlan.of(0, [9, 8, 7])
    logits = Target(model, 4).draws(x, noise=noise.at(3), count=2)
    assert logits.shape == (3, 2, 3)
    for r in range(2):
        torch.testing.assert_close(logits[:, r], model(x, noise=noise.at(6 + r)), rtol=0, atol=ROUND_OFF)


class RowCounter(NoisyClassifier):
    """Notes the size of every batch it is given."""

    def __init__(self) -> None:
        super().__init__(TinyClassifier())
        self.rows: list[int] = []

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        self.rows.append(len(x))
        return super().forward(x, noise=noise)


def test_target_micro_batches_are_never_larger_than_asked() -> None:
    model = RowCounter()
    x, y, noise = uniform(3, 1, 4, 4), torch.tensor([0, 1, 2]), NoisePlan.of(0, [1, 2, 3])
    Target(model, 4).gradient(x, y, noise=noise, eot=3)
    assert model.rows == [4, 4, 1]


def test_target_fixed_shape_gives_every_call_the_same_number_of_rows() -> None:
    model = RowCounter()
    x, y, noise = uniform(3, 1, 4, 4), torch.tensor([0, 1, 2]), NoisePlan.of(0, [1, 2, 3])
    Target(model, 4, fixed_shape=True).gradient(x, y, noise=noise, eot=3)
    Target(model, 4, fixed_shape=True)(x, noise=noise)
    assert model.rows == [4, 4, 4, 4]


@pytest.mark.parametrize("fixed_shape", [False, True])
def test_target_counts_rows_of_images_and_draws(fixed_shape: bool) -> None:
    """Rows that only fill up a fixed shape do not count: they are no queries of the attack."""
    target = Target(NoisyClassifier(TinyClassifier()), 4, fixed_shape=fixed_shape)
    x, y, noise = uniform(3, 1, 4, 4), torch.tensor([0, 1, 2]), NoisePlan.of(0, [1, 2, 3])
    target(x, noise=noise)
    assert (target.forward_rows, target.gradient_rows) == (3, 0)
    target.draws(x, noise=noise, count=5)
    assert (target.forward_rows, target.gradient_rows) == (18, 0)
    target.gradient(x, y, noise=noise, eot=2)
    assert (target.forward_rows, target.gradient_rows) == (24, 6)


def test_target_of_a_target_is_itself() -> None:
    target = Target(NoisyClassifier(TinyClassifier()), 4)
    assert Target.of(target) is target
    model = NoisyClassifier(TinyClassifier())
    assert Target.of(model).model is model


def test_target_logits_carry_no_gradient() -> None:
    x = uniform(2, 1, 4, 4).requires_grad_()
    assert not Target(NoisyClassifier(TinyClassifier()))(x, noise=NoisePlan.of(0, [1, 2])).requires_grad


def test_target_batch_of_another_length_than_the_plan_raises() -> None:
    target = Target(NoisyClassifier(TinyClassifier()), 100)
    with pytest.raises(UserError, match="noise plan of 2 examples was used on a batch of 3"):
        target(uniform(3, 1, 4, 4), noise=NoisePlan.of(0, [1, 2]))


# ------------------------------------------------------------------ losses


def test_cross_entropy_by_hand_and_against_torch() -> None:
    """-log softmax: for logits (0, 0) it is log 2, for (1000, 0) with label 1 it is 1000 without overflow."""
    logits = torch.tensor([[0.0, 0.0], [1000.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
    y = torch.tensor([0, 1, 0])
    found = losses.get("ce")(logits, y)
    assert found.tolist() == pytest.approx([0.6931471805599453, 1000.0, 2.1269280110429727], abs=1e-12)
    torch.testing.assert_close(found, functional.nll_loss(logits.log_softmax(1), y, reduction="none"))


def test_margin_by_hand() -> None:
    logits = torch.tensor([[2.0, 5.0, 4.0], [2.0, 5.0, 4.0], [1.0, 1.0, -3.0]])
    assert losses.get("margin")(logits, torch.tensor([1, 0, 0])).tolist() == [-1.0, 3.0, 0.0]


@pytest.mark.parametrize("name", list(losses))
def test_loss_any_is_per_example_and_rises_as_the_label_loses(name: str) -> None:
    logits, y = uniform(6, 4, low=-2, high=2), torch.tensor([0, 1, 2, 3, 0, 1])
    value = losses.get(name)(logits, y)
    assert value.shape == (6,)
    worse = logits.clone()
    worse[torch.arange(6), y] -= 3
    assert bool((losses.get(name)(worse, y) > value).all())
    for b in range(6):
        torch.testing.assert_close(
            losses.get(name)(logits[b : b + 1], y[b : b + 1])[0], value[b], rtol=0, atol=1e-15
        )
    assert torch.autograd.gradcheck(lambda z: losses.get(name)(z, y), logits.requires_grad_())


# ------------------------------------------------------------------ the seam: every registered attack


@each_threat
@each_attack
def test_attack_any_stays_within_budget_and_raises_the_loss(
    attack: str, options: dict[str, Any], norm: str
) -> None:
    threat = make_threat(norm, EPS.get(norm, 0.1))
    classifier, x = TinyClassifier(classes=5), uniform(4, 1, 4, 4)
    y = classifier(x).argmax(dim=1)
    found = make_attack(attack, options)(
        NoisyClassifier(classifier, 0.05), x, y, threat=threat, noise=NoisePlan.of(0, range(4), "attack")
    )
    assert found.x_adv.shape == x.shape
    assert found.x_adv.dtype == x.dtype
    assert not found.x_adv.requires_grad
    assert float(threat.distance(x, found.x_adv).max()) <= threat.eps + 1e-9
    assert 0 <= float(found.x_adv.min()) <= float(found.x_adv.max()) <= 1
    rises = [loss(classifier(found.x_adv), y) > loss(classifier(x), y) for loss in map(losses.get, losses)]
    assert bool(torch.stack(rises).any(dim=0).all())  # an attack may maximise any of them
    assert found.grad_norm.shape in (found.loss.shape, (4, 0))  # (4, 0): it uses no gradients
    assert len(found.loss) == 4
    assert bool(found.loss.isfinite().all())
    assert bool(found.grad_norm.isfinite().all())


@each_attack
def test_attack_any_leaves_its_arguments_alone(attack: str, options: dict[str, Any]) -> None:
    x, y = uniform(2, 1, 4, 4), torch.tensor([0, 1])
    before = x.clone()
    make_attack(attack, options)(
        NoisyClassifier(TinyClassifier(classes=5)), x, y, threat=Linf(0.05), noise=NoisePlan.of(0, range(2))
    )
    assert torch.equal(x, before)
    assert y.tolist() == [0, 1]


class Aligned(nn.Module):
    """Refuses rows whose noise belongs to another image: two pixels of example i are its octal digits.

    It is blind to these pixels, so that gradients leave them alone. Its logits depend on the example's noise,
    so that a wrong draw changes the attack as well.
    """

    sites = frozenset({"forward"})

    def __init__(self) -> None:
        super().__init__()
        self.weight = uniform(5, 1, 4, 4, seed=8, low=-1, high=1)
        self.weight[:, :, 0, :2] = 0

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        carried = (8 * x[:, 0, 0, :2].detach()).round().long() @ torch.tensor([8, 1])
        if not torch.equal(carried, noise.example_ids):
            raise AssertionError(f"images {carried.tolist()} met the noise of {noise.example_ids.tolist()}")
        z = torch.tanh(x + 0.5 * noise.normal("forward", 0, x))
        return torch.stack([(3 * w * z).flatten(1).sum(dim=1) for w in self.weight], dim=1)

    def traced(self, x: Tensor, *, noise: NoisePlan) -> tuple[Tensor, Tensor]:
        return self(x, noise=noise), noise.normal("forward", 0, x).mul(x).square().flatten(1).mean(dim=1)


def labelled_images(count: int) -> Tensor:
    """Images that carry their number in two pixels; a budget of 0.02 cannot move them by half a step."""
    x = uniform(count, 1, 4, 4, low=0.2, high=0.8)
    number = torch.arange(count)
    x[:, 0, 0, :2] = torch.stack([number // 8, number % 8], dim=1) / 8
    return x


@each_threat
@each_attack
def test_attack_any_batch_size_gives_the_same_images_with_aligned_noise(
    attack: str, options: dict[str, Any], norm: str
) -> None:
    x, model, threat = labelled_images(48), Aligned(), make_threat(norm, 0.02)
    noise = NoisePlan.of(0, range(48), "attack")
    y = model(x, noise=noise).argmax(dim=1)
    run = make_attack(attack, options)
    whole = run(model, x, y, threat=threat, noise=noise).x_adv
    assert float(threat.distance(x, whole).median()) > 0.005
    for size, count in ((1, 8), (3, 24), (16, 48)):
        cuts = [slice(i, i + size) for i in range(0, count, size)]
        parts = [run(model, x[c], y[c], threat=threat, noise=noise.rows(c)).x_adv for c in cuts]
        torch.testing.assert_close(torch.cat(parts), whole[:count], rtol=0, atol=ROUND_OFF)
    order = torch.arange(47, -1, -1)
    backwards = run(model, x[order], y[order], threat=threat, noise=noise.rows(order)).x_adv
    torch.testing.assert_close(backwards[order], whole, rtol=0, atol=ROUND_OFF)


@each_threat
@each_attack
def test_attack_any_cut_is_bit_equal_with_a_fixed_shape(
    attack: str, options: dict[str, Any], norm: str
) -> None:
    """In float32, where a rounding that depends on the batch could tip a choice."""
    model, x = NoisyClassifier(TinyClassifier(channels=3, classes=5).float()), uniform(7, 3, 8, 8).float()
    noise, threat = NoisePlan.of(0, range(20, 27), "attack"), make_threat(norm, EPS.get(norm, 0.1))
    y, run = model.classifier(x).argmax(dim=1), make_attack(attack, options)
    outcomes = []
    for size in (7, 3):
        target = Target(model, 4, fixed_shape=True)
        cuts = [slice(i, min(i + size, 7)) for i in range(0, 7, size)]
        parts = [run(target, x[c], y[c], threat=threat, noise=noise.rows(c))[:3] for c in cuts]
        outcomes.append([torch.cat(tensors) for tensors in zip(*parts, strict=True)])
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


def test_aligned_stub_wrong_noise_is_refused() -> None:
    """So that the test above can fail."""
    x, model = labelled_images(16), Aligned()
    with pytest.raises(AssertionError, match="met the noise of"):
        model(x, noise=NoisePlan.of(0, [*range(1, 16), 0]))
    with pytest.raises(AssertionError, match="met the noise of"):
        model(x.repeat(2, 1, 1, 1), noise=NoisePlan.of(0, range(16)).repeat(2))


@each_attack
def test_attack_any_uses_its_own_plan_and_no_other_randomness(attack: str, options: dict[str, Any]) -> None:
    x, model = uniform(2, 1, 4, 4), NoisyClassifier(TinyClassifier(classes=5))
    y = model.classifier(x).argmax(dim=1)
    run = make_attack(attack, options)
    state = torch.get_rng_state()
    first, again, other = (
        run(model, x, y, threat=L2(0.3), noise=n).x_adv
        for n in (NoisePlan.of(0, [1, 2]), NoisePlan.of(0, [1, 2]), NoisePlan.of(1, [1, 2]))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


class Taped(nn.Module):
    """A classifier whose noise is one fixed tape, looked up by example: no longer random at all."""

    sites: frozenset[str] = frozenset()

    def __init__(self, model: nn.Module, tape: NoisePlan) -> None:
        super().__init__()
        self.model = model
        self.tape = tape

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        return self.model(x, noise=self.looked_up(noise))

    def traced(self, x: Tensor, *, noise: NoisePlan) -> tuple[Tensor, Tensor]:
        return self.model.traced(x, noise=self.looked_up(noise))

    def looked_up(self, noise: NoisePlan) -> NoisePlan:
        return self.tape.rows([self.tape.example_ids.tolist().index(i) for i in noise.example_ids.tolist()])


@each_attack
def test_attack_any_known_noise_reaches_the_model(attack: str, options: dict[str, Any]) -> None:
    """With the defender's draws shared, the attack meets those draws and no others, whatever its own plan.

    Random starts and searches are shared as well, so that nothing else tells the plans apart.
    """
    x, y, model = uniform(2, 1, 4, 4), torch.tensor([0, 1]), NoisyClassifier(TinyClassifier(classes=5))
    run = make_attack(attack, options)
    report = NoisePlan.of(0, [1, 2], "report", draw=3)
    own = NoisePlan.of(0, [1, 2], "attack")
    plans = [own.in_lane(lane).sharing(SITES, report) for lane in (0, 5)]
    images = [run(model, x, y, threat=L2(0.3), noise=plan).x_adv for plan in plans]
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=ROUND_OFF)
    tape = run(
        Taped(model, report), x, y, threat=L2(0.3), noise=NoisePlan.of(9, [1, 2]).sharing(SITES, report)
    ).x_adv
    torch.testing.assert_close(images[0], tape, rtol=0, atol=1e-7)  # mean of equal gradients, summed in turn


@pytest.mark.parametrize("name", list(attacks))
def test_make_attack_unknown_option_raises_with_the_known_ones(name: str) -> None:
    with pytest.raises(UserError, match=f"attack '{name}' has no option 'iteration'. Available: "):
        make_attack(name, {"iteration": 3})


@pytest.mark.parametrize("reserved", ["target", "x", "y", "threat", "noise"])
def test_make_attack_reserved_argument_raises(reserved: str) -> None:
    for name in attacks:
        with pytest.raises(UserError, match=f"has no option '{reserved}'"):
            make_attack(name, {reserved: 1})


def test_make_attack_unknown_name_raises_with_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown attack 'pdg'\. Did you mean 'pgd'\?"):
        make_attack("pdg")


def test_make_attack_options_are_bound() -> None:
    x, y, model = uniform(2, 1, 4, 4), torch.tensor([0, 1]), NoisyClassifier(TinyClassifier())
    settings: dict[str, Any] = {"threat": Linf(0.05), "noise": NoisePlan.of(0, [1, 2])}
    bound = make_attack("pgd", {"iterations": 2, "eot": 1})(model, x, y, **settings)
    direct = pgd(model, x, y, iterations=2, eot=1, **settings)
    assert all(torch.equal(a, b) for a, b in zip(bound[:3], direct[:3], strict=True))


def test_dlr_of_a_label_below_the_third_class_is_above_one() -> None:
    """Logits 3, 2, 1, -5 and the last as label: (3 + 5) / (3 - 1) = 4; the first as label: (2 - 3) / 2."""
    logits = torch.tensor([[3.0, 2.0, 1.0, -5.0]] * 2)
    found = losses.get("dlr")(logits, torch.tensor([3, 0]))
    torch.testing.assert_close(found, torch.tensor([4.0, -0.5]))


@pytest.mark.parametrize("name", sorted(attacks))
def test_every_attack_is_a_function_of_the_package(name: str) -> None:
    """`dbpkit.attacks.pgd` is a module, `dbpkit.pgd` its function; a plugin's attack is its own module's."""
    attack = attacks.get(name)
    if attack.__module__.startswith("dbpkit."):
        assert getattr(dbpkit, name) is attack
    else:
        assert not hasattr(dbpkit, name)
