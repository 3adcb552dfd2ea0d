"""APGD against closed forms, its published algorithm in plain numbers, pyautoattack, and lucky draws."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbpkit import load_dataset, load_embedded
from dbpkit.attacks import AttackOutcome, Target, attacks, losses, make_attack
from dbpkit.attacks.apgd import apgd, apgd_targeted, checkpoints
from dbpkit.attacks.dlr import dlr, dlr_targeted
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.purification.classifier import Undefended
from dbpkit.threats.pixels import L2, Linf, ThreatModel, make_threat
from tests.oracles import NoisyClassifier, TinyClassifier, fill, uniform

ROUND_OFF = 1e-10
"""Float64 arithmetic on values of order one, and the 1e-10 of L2's norms."""
PUBLISHED: dict[str, Any] = {"eot": 1, "judge_draws": 1}
PYAUTOATTACK_NORMS = {"linf": "Linf", "l2": "L2"}


class Perceptron(nn.Module):
    """A classifier of (B, 3, 8, 8) images; 0.015 in Linf or 0.25 in L2 fools it on most of them."""

    def __init__(self, classes: int = 6) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 24), nn.Tanh(), nn.Linear(24, classes))
        fill(self, seed=2)

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.body(x - 0.5)


# ------------------------------------------------------------------ losses


def test_dlr_by_hand() -> None:
    """Sorted logits 5, 4, 2, 0: label first (4 - 5) / (5 - 2), second (5 - 4) / 3, last (5 - 0) / 3."""
    logits = torch.tensor([[2.0, 5.0, 4.0, 0.0]], dtype=torch.float64).expand(3, 4)
    found = dlr(logits, torch.tensor([1, 2, 3]))
    assert found.tolist() == pytest.approx([-1 / 3, 1 / 3, 5 / 3], abs=1e-11)


def test_dlr_targeted_by_hand() -> None:
    """(z_t - z_y) / (5 - (2 + 0) / 2) for targets 2 and 0 of label 1."""
    logits = torch.tensor([[2.0, 5.0, 4.0, 0.0, -7.0]], dtype=torch.float64).expand(2, 5)
    found = dlr_targeted(logits, torch.tensor([[1, 2], [1, 0]]))
    assert found.tolist() == pytest.approx([-1 / 4, -3 / 4], abs=1e-11)


def test_dlr_is_the_same_for_shifted_and_scaled_logits() -> None:
    logits, y = uniform(20, 6, low=-3, high=3), torch.arange(20) % 6
    pair = torch.stack([y, (y + 2) % 6], dim=1)
    for factor, shift in ((1e4, 0.0), (1e-3, 0.0), (1.0, 50.0), (30.0, -7.0)):
        changed = factor * logits + shift
        torch.testing.assert_close(dlr(changed, y), dlr(logits, y), rtol=1e-7, atol=0)
        torch.testing.assert_close(dlr_targeted(changed, pair), dlr_targeted(logits, pair), rtol=1e-7, atol=0)


def test_dlr_agrees_with_pyautoattack() -> None:
    base = pytest.importorskip("pyautoattack.autopgd_base")
    logits, y = uniform(50, 7, low=-3, high=3), torch.arange(50) % 7
    aim = (y + 1 + torch.arange(50) % 5) % 7
    torch.testing.assert_close(dlr(logits, y), base.APGDAttack(None, eps=0.1).dlr_loss(logits, y))
    targeted = base.APGDAttack_targeted(None, eps=0.1)
    targeted.y_target = aim
    found = dlr_targeted(logits, torch.stack([y, aim], dim=1))
    torch.testing.assert_close(found, targeted.dlr_loss_targeted(logits, y))


def test_dlr_equal_logits_have_finite_gradients() -> None:
    logits = torch.zeros(1, 5, requires_grad=True)
    for value in (dlr(logits, torch.tensor([0])), dlr_targeted(logits, torch.tensor([[0, 1]]))):
        (grad,) = torch.autograd.grad(value.sum(), logits)
        assert bool(grad.isfinite().all())


def test_dlr_too_few_classes_raises() -> None:
    with pytest.raises(UserError, match="loss 'dlr' needs at least 3 classes, not 2"):
        dlr(torch.zeros(1, 2), torch.tensor([0]))
    with pytest.raises(UserError, match="loss 'dlr_targeted' needs at least 4 classes, not 3"):
        dlr_targeted(torch.zeros(1, 3), torch.tensor([[0, 1]]))


def test_losses_hold_the_loss_of_the_label_alone() -> None:
    assert losses.get("dlr") is dlr
    assert "dlr_targeted" not in losses


# ------------------------------------------------------------------ the published algorithm


def test_checkpoints_are_the_published_ones() -> None:
    """p = 0, 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99: gaps shrink by 0.03 down to 0.06."""
    published = [0, 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99]
    assert checkpoints(100) == [round(100 * p) for p in published]
    assert checkpoints(1000) == [round(1000 * p) for p in published]
    assert checkpoints(20) == [0, 5, 9, 12, 14, 16, 18, 19, 20]  # 4.4, 8.2, 11.4, 14, 16, 17.4, 18.6, 19.8 up
    for iterations in (1, 2, 3, 7):
        found = checkpoints(iterations)
        assert found == sorted(set(found))
        assert (found[0], found[-1]) == (0, iterations)


def two_classes(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Undefended, Tensor]:
    """A linear classifier, and the direction (B, C, H, W) in which the margin of each label falls."""
    layer = nn.Linear(weight.shape[1], 2, bias=False, dtype=torch.float64)
    layer.weight.data.copy_(weight)
    down = torch.where(y[:, None] == 0, weight[1] - weight[0], weight[0] - weight[1])
    return Undefended(nn.Sequential(nn.Flatten(), layer)), down.reshape(x.shape)


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_linear_classifier_reaches_the_optimum(norm: str, loss: str) -> None:
    """x + eps sign(d) in Linf and x + eps d / |d| in L2, for the direction d in which the margin falls."""
    x, y = uniform(6, 3, 2, 2, low=0.4, high=0.6), torch.arange(6) % 2
    model, down = two_classes(x, y, uniform(2, 12, seed=3, low=-1, high=1))
    threat: ThreatModel = Linf(0.05) if norm == "linf" else L2(0.3)
    unit = down.sign() if norm == "linf" else down / down.flatten(1).norm(dim=1)[:, None, None, None]
    noise = NoisePlan.of(0, range(6), "attack")
    found = apgd(
        model, x, y, threat=threat, noise=noise, iterations=100, loss=loss, n_restarts=2, **PUBLISHED
    )
    torch.testing.assert_close(found.x_adv, x + threat.eps * unit, rtol=0, atol=1e-4 * threat.eps)


class Hill(nn.Module):
    """Two classes; the margin of label 0 is a function of an image's only pixel."""

    sites: frozenset[str] = frozenset()

    def __init__(self, height: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.height = height

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        del noise
        value = self.height(x.flatten(1))
        return torch.cat([torch.zeros_like(value), value], dim=1)


def published_path(
    f: Callable[[float], float], slope: Callable[[float], float], x: float, start: float, eps: float, n: int
) -> tuple[list[float], list[float]]:
    """Algorithm 1 of Croce & Hein 2020 for one pixel in Linf, in plain numbers: iterates and step sizes."""

    def project(z: float) -> float:
        return min(max(z, x - eps, 0.0), x + eps, 1.0)

    def sign(z: float) -> float:
        return float((z > 0) - (z < 0))

    marks = [0] + [-(-p * n // 100) for p in (22, 41, 57, 70, 80, 87, 93, 99)]
    eta = 2 * eps
    points, etas = [start], [eta]
    points.append(project(start + eta * sign(slope(start))))
    etas.append(eta)
    top = max(points, key=f)
    tops, risen = [f(start), f(top)], [f(points[1]) > f(points[0])]
    now, before = points[1], points[0]
    for k in range(1, n):
        if k in marks:  # iterate k is the one that the checkpoint looks at
            previous = marks[marks.index(k) - 1]
            slow = sum(risen[previous:k]) < 0.75 * (k - previous)
            flat = etas[previous] == etas[k] and tops[previous] == tops[k]
            if slow or flat:
                eta, now = eta / 2, top
        z = project(now + eta * sign(slope(now)))
        following = project(now + 0.75 * (z - now) + 0.25 * (now - before))
        risen.append(f(following) > f(now))
        before, now = now, following
        top = max(top, now, key=f)
        points.append(now)
        etas.append(eta)
        tops.append(f(top))
    return points, etas


HILLS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "parabola": (lambda z: -((z - 0.52) ** 2), lambda z: -2 * (z - 0.52)),
    "two peaks": (
        lambda z: -((z - 0.44) ** 2) * ((z - 0.57) ** 2) + 1e-4 * z,
        lambda z: -2 * (z - 0.44) * (z - 0.57) * (2 * z - 1.01) + 1e-4,
    ),
    "slope": (lambda z: 0.1 * z, lambda z: 0.1 + 0 * z),
    "spike": (  # from its top at the start every step falls, and then climbs for long without reaching it
        lambda z: 0.1 * z + 0.05 / (1 + 1e8 * (z - 0.5) ** 2),
        lambda z: 0.1 - 1e7 * (z - 0.5) / (1 + 1e8 * (z - 0.5) ** 2) ** 2,
    ),
}


@pytest.mark.parametrize("name", list(HILLS))
def test_apgd_iterates_are_those_of_the_published_algorithm(name: str) -> None:
    """Momentum, checkpoints, both reasons to halve, and the return to the best point, iterate by iterate."""
    f, slope = HILLS[name]
    threat, noise = Linf(0.1), NoisePlan.of(4, range(8), "attack")
    grey = torch.full((8, 1, 1, 1), 0.5, dtype=torch.float64)
    x, y = 2 * grey - threat.random_start(grey, noise), torch.zeros(8, dtype=torch.long)  # all start at 0.5
    target, seen = Target(Hill(f)), []
    target.visit = lambda x_adv, _noise: seen.append(x_adv.flatten())
    found = apgd(target, x, y, threat=threat, noise=noise, iterations=50, loss="margin", **PUBLISHED)
    start = threat.random_start(x, noise.at(0)).flatten()
    iterates = torch.stack([start, *seen], dim=1)
    assert iterates.shape == (8, 51)
    for b in range(8):
        points, etas = published_path(f, slope, float(x[b]), float(start[b]), 0.1, 50)
        assert len(set(etas)) > 2  # it does halve
        torch.testing.assert_close(
            iterates[b], torch.tensor(points, dtype=torch.float64), rtol=0, atol=ROUND_OFF
        )
        assert float(found.x_adv[b]) == pytest.approx(max(points, key=f), abs=ROUND_OFF)
        assert found.loss[b].tolist() == pytest.approx([f(p) for p in points], abs=ROUND_OFF)
        assert found.grad_norm[b].tolist() == pytest.approx([abs(slope(p)) for p in points], abs=ROUND_OFF)


def test_apgd_without_momentum_takes_the_whole_step() -> None:
    """On a slope the first step reaches the edge of the budget with any momentum, and stays there."""
    x, y = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64), torch.tensor([0])
    plan = NoisePlan.of(0, [3], "attack")
    model = Hill(lambda z: z)
    found = apgd(
        model, x, y, threat=Linf(0.1), noise=plan, iterations=3, momentum=1.0, loss="margin", **PUBLISHED
    )
    assert found.loss[0, 1:].tolist() == pytest.approx([0.6, 0.6, 0.6])


# ------------------------------------------------------------------ random defences


class Witness(NoisyClassifier):
    """Notes which draws were used with and without a gradient, in order."""

    def __init__(self, sigma: float = 0.1, classes: int = 5) -> None:
        super().__init__(TinyClassifier(classes=classes), sigma)
        self.used: dict[bool, list[tuple[int, int]]] = {True: [], False: []}

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        keys = zip(noise.example_ids.tolist(), noise.draw.tolist(), strict=True)
        self.used[torch.is_grad_enabled() and x.requires_grad] += keys
        return super().forward(x, noise=noise)


def test_apgd_published_defaults_cost_what_they_say() -> None:
    """101 iterates of 20 draws with a gradient, and two candidates judged on 20 draws."""
    target = Target(NoisyClassifier(TinyClassifier()), 1000)
    x, y = uniform(1, 1, 4, 4), torch.tensor([0])
    found = apgd(target, x, y, threat=Linf(8 / 255), noise=NoisePlan.of(0, [5], "attack"))
    assert found.loss.shape == found.grad_norm.shape == (1, 101)
    assert (target.gradient_rows, target.forward_rows) == (101 * 20, 101 * 20 + 2 * 20)


@pytest.mark.parametrize(
    ("attack", "options", "runs"),
    [
        ("apgd", {"n_restarts": 2, "stop": True}, 2),
        ("apgd_targeted", {"n_targets": 3, "stop": True}, 3),
        ("apgd_targeted", {"n_targets": 9, "n_restarts": 2}, 8),  # 4 wrong classes, twice
    ],
)
def test_apgd_gradients_judges_and_rankings_never_share_a_draw(
    attack: str, options: dict[str, Any], runs: int
) -> None:
    """For awkward numbers: 3 draws of a gradient, 4 of a judge."""
    model, x = Witness(), uniform(3, 1, 4, 4)
    y = model.classifier(x).argmax(dim=1)
    run = make_attack(attack, {"iterations": 4, "eot": 3, "judge_draws": 4, **options})
    run(model, x, y, threat=Linf(0.1), noise=NoisePlan.of(0, [7, 8, 9], "attack"))
    with_gradient, without = model.used[True], model.used[False]
    assert len(with_gradient) == len(set(with_gradient)) <= 3 * runs * 5 * 3  # every gradient has its own
    if not options.get("stop"):
        assert len(with_gradient) == 3 * runs * 5 * 3
    assert not set(with_gradient) & set(without)
    judged = min(d for i, d in without if d >= max(d for _, d in with_gradient))
    assert {d for _, d in without} >= set(range(judged, judged + 4))


def iterates_of(
    run: Callable[..., AttackOutcome], model: nn.Module, x: Tensor, **settings: Any
) -> list[Tensor]:
    """What the attack shows of itself: the random start and every later iterate."""
    target = Target(model)
    seen = [settings["threat"].random_start(x, settings["noise"].at(0))]
    target.visit = lambda x_adv, _noise: seen.append(x_adv)
    run(target, x, **settings)
    return seen


def test_apgd_chooses_by_fresh_draws_between_the_most_fooling_and_the_loudest_iterate() -> None:
    """Both candidates and the choice recomputed from the iterates, for a model that is often lucky."""
    model, x = NoisyClassifier(Perceptron(), 0.1), uniform(12, 3, 8, 8)
    y, noise, threat = model.classifier(x).argmax(dim=1), NoisePlan.of(0, range(12), "attack"), Linf(0.005)
    settings: dict[str, Any] = {"threat": threat, "noise": noise, "iterations": 9, "eot": 4, "judge_draws": 7}
    seen = iterates_of(apgd, model, x, y=y, **settings)
    target = Target(model)
    found = [target.gradient(a, y, noise=noise.at(i), eot=4) for i, a in enumerate(seen)]
    right, loss = (
        torch.stack(values, dim=1) for values in ([f.right for f in found], [f.loss for f in found])
    )
    fooling = [min(range(10), key=lambda i, b=b: (right[b, i], -loss[b, i])) for b in range(12)]
    loudest = loss.argmax(dim=1).tolist()
    candidates = [torch.stack([seen[i][b] for b, i in enumerate(chosen)]) for chosen in (fooling, loudest)]
    judged = []
    for candidate in candidates:
        logits = target.draws(candidate, noise=noise.at(6), count=7)  # 10 * 4 draws lie below 6 * 7
        gap = losses.get("margin")(logits.flatten(0, 1), y.repeat_interleave(7)).unflatten(0, (12, 7))
        judged.append(((logits.argmax(2) == y[:, None]).double().mean(1), gap.mean(1)))
    (first, gap), (second, other) = judged
    take = (second < first) | ((second == first) & (other > gap))
    expected = torch.where(take[:, None, None, None], candidates[1], candidates[0])
    assert 0 < int(take.sum()) < 12  # both occur
    torch.testing.assert_close(apgd(model, x, y, **settings).x_adv, expected, rtol=0, atol=ROUND_OFF)


class Coin(nn.Module):
    """Right with probability one half, whatever the image; notes the draws used without a gradient."""

    sites = frozenset({"forward"})

    def __init__(self) -> None:
        super().__init__()
        self.used: Counter[tuple[int, int]] = Counter()

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        if not torch.is_grad_enabled():
            self.used.update(zip(noise.example_ids.tolist(), noise.draw.tolist(), strict=True))
        z = noise.normal("forward", 0, x[:, :1, 0, 0])
        return torch.cat([z, -z, 0 * z, 0 * z], dim=1) + 1e-3 * x.flatten(1)[:, :4]


@pytest.mark.parametrize("attack", ["apgd", "apgd_targeted"])
def test_apgd_one_wrong_draw_stops_no_image(attack: str) -> None:
    """One draw of each iterate is wrong half of the time; twenty fresh ones all are once in 10^6."""
    model, x, y = Coin(), uniform(8, 1, 2, 2), torch.zeros(8, dtype=torch.long)
    target, noise = Target(model), NoisePlan.of(0, range(8), "attack")
    options = {"iterations": 10, "eot": 1, "judge_draws": 20, "stop": True}
    options |= {"n_targets": 2} if attack == "apgd_targeted" else {"n_restarts": 2}
    make_attack(attack, options)(target, x, y, threat=Linf(0.1), noise=noise)
    assert target.gradient_rows == 8 * 2 * 11
    again = {(i, d) for (i, d), times in model.used.items() if times > 1}
    assert again == {
        (i, d) for i in range(8) for d in range(40, 60)
    }  # two runs, two candidates: 22 draws < 40
    assert {model.used[key] for key in again} == {4}
    assert len(model.used) > 8 * 60  # every iterate that looked broken met draws of its own


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_stop_on_a_deterministic_model_saves_passes_and_breaks_the_same_images(norm: str) -> None:
    classifier, x = Perceptron(), uniform(30, 3, 8, 8)
    model, y = Undefended(classifier), classifier(x).argmax(dim=1)
    noise, threat = NoisePlan.of(0, range(30), "attack"), make_threat(norm, {"linf": 0.02, "l2": 0.25}[norm])
    right, rows, outcomes = [], [], []
    for stop in (False, True):
        target = Target(model)
        outcomes.append(
            apgd(
                target, x, y, threat=threat, noise=noise, iterations=15, n_restarts=2, stop=stop, **PUBLISHED
            )
        )
        right.append(classifier(outcomes[-1].x_adv).argmax(dim=1) == y)
        rows.append(target.gradient_rows)
    assert 3 < int(right[0].sum()) < 27
    assert torch.equal(right[0], right[1])
    assert rows[0] == 30 * 2 * 16
    first = Target(model)
    apgd(first, x, y, threat=threat, noise=noise, iterations=15, stop=True, **PUBLISHED)
    assert rows[1] <= first.gradient_rows + 16 * sum(n == 16 for n in first.gradient_passes.values())
    path = outcomes[1].loss[~right[1]]
    last = losses.get("ce")(classifier(outcomes[1].x_adv), y)[~right[1]]
    torch.testing.assert_close(path[:, -1], last, rtol=0, atol=ROUND_OFF)
    assert bool((path[:, 5:] == path[:, -1:]).any())  # the last value is repeated from the stop on


class Misleading(nn.Module):
    """Three classes; beyond 0.55 label 0 loses to one class, and the cross-entropy is lower than before."""

    sites: frozenset[str] = frozenset()

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        del noise
        z = x.flatten(1)
        right, wrong = torch.cat([0 * z, z - 1, z - 1], 1), torch.cat([0 * z, z - 0.5, z - 10], 1)
        return torch.where(z > 0.55, wrong, right)


def test_apgd_stop_leaves_an_image_where_it_broke_while_others_go_on() -> None:
    """0.5 breaks within 0.1, where the loss log(1 + e^0.1 + e^-9.4) is below the start's; 0.3 does not."""
    x, y = (
        torch.tensor([0.5, 0.3], dtype=torch.float64)[:, None, None, None],
        torch.zeros(2, dtype=torch.long),
    )
    target, plan = Target(Misleading()), NoisePlan.of(0, [1, 2], "attack")
    found = apgd(target, x, y, threat=Linf(0.1), noise=plan, iterations=20, stop=True, **PUBLISHED)
    assert float(found.x_adv[0]) == pytest.approx(0.6)
    broke = math.log(1 + math.exp(0.1) + math.exp(-9.4))
    assert found.loss[0, 0] > broke
    assert found.loss[0, 1:].tolist() == pytest.approx([broke] * 20)
    assert dict(target.gradient_passes) == {1: 2, 2: 21}


def test_apgd_more_restarts_never_help_the_judged_accuracy() -> None:
    """Run r starts alike whatever the number of runs, and the model is deterministic."""
    classifier, x = Perceptron(), uniform(30, 3, 8, 8)
    y, noise = classifier(x).argmax(dim=1), NoisePlan.of(0, range(30), "attack")
    settings: dict[str, Any] = {"threat": L2(0.2), "noise": noise, "iterations": 5, **PUBLISHED}
    gaps = []
    for n_restarts in (1, 2, 4):
        found = apgd(Undefended(classifier), x, y, n_restarts=n_restarts, **settings)
        gaps.append(losses.get("margin")(classifier(found.x_adv), y))
    assert bool((gaps[0] <= gaps[1]).all())
    assert bool((gaps[1] <= gaps[2]).all())
    assert bool((gaps[0] < gaps[2]).any())


@pytest.mark.parametrize("attack", ["apgd", "apgd_targeted", "square"])
def test_frozen_noise_gives_the_same_accuracy_at_batch_sizes_16_and_48(attack: str) -> None:
    """Noise by example: peers, which address it by position, differ by up to 0.39 (field.md, section 3)."""
    model, x = NoisyClassifier(TinyClassifier(classes=5), 0.3), uniform(48, 1, 4, 4)
    report = NoisePlan.of(0, range(48), "report")
    y, noise = model(x, noise=report).argmax(dim=1), report.on("attack").sharing(["forward"], report)
    options: dict[str, Any] = {"iterations": 20, "eot": 1}
    options |= {"reevaluate": False} if attack == "square" else {"judge_draws": 1, "stop": True}
    run, accuracy = make_attack(attack, options), []
    for size in (16, 48):
        cuts = [slice(i, i + size) for i in range(0, 48, size)]
        parts = [run(model, x[c], y[c], threat=Linf(0.1), noise=noise.rows(c)).x_adv for c in cuts]
        accuracy.append(float((model(torch.cat(parts), noise=report).argmax(1) == y).double().mean()))
    assert accuracy[0] == accuracy[1]
    assert 0 < accuracy[0] < 1


# ------------------------------------------------------------------ targets


class Softplane(nn.Module):
    """A linear classifier of images (B, 1, 4, 4)."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.weight = nn.Parameter(uniform(classes, 16, seed=5, low=-1, high=1))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


@pytest.mark.parametrize("n_targets", [1, 4])
def test_apgd_targeted_linear_classifier_is_broken_where_a_target_can_be_reached(n_targets: int) -> None:
    """Target t can be reached within Linf eps, off the pixel range, iff z_y - z_t < eps |w_t - w_y|_1.

    With one target that is the likeliest other class, or a class that the way to it happens to pass.
    """
    classifier, x = Softplane(), uniform(60, 1, 4, 4, low=0.2, high=0.8)
    logits = classifier(x).detach()
    y, eps = logits.argmax(dim=1), 0.05
    gap = logits.gather(1, y[:, None]) - logits
    reach = eps * (classifier.weight[None] - classifier.weight[y][:, None]).abs().sum(dim=2).detach()
    reached = (gap < reach).scatter(1, y[:, None], False)
    rank = logits.scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True)[:, :n_targets]
    noise, threat = NoisePlan.of(0, range(60), "attack"), Linf(eps)
    found = apgd_targeted(
        Undefended(classifier),
        x,
        y,
        threat=threat,
        noise=noise,
        n_targets=n_targets,
        iterations=30,
        **PUBLISHED,
    )
    broken = classifier(found.x_adv).argmax(dim=1) != y
    assert 10 < int(broken.sum()) < 50
    assert bool((broken >= reached.gather(1, rank).any(dim=1)).all())
    assert bool((broken <= reached.any(dim=1)).all())


def test_apgd_targeted_aims_at_the_likeliest_classes_of_the_averaged_logits() -> None:
    """The labels that reach the loss, rank by rank; the averages are those of draws of their own."""
    model, x = Witness(sigma=0.3), uniform(6, 1, 4, 4)
    y, noise = torch.arange(6) % 5, NoisePlan.of(0, range(6), "attack")
    target, aims = Target(model), []
    gradient = target.gradient

    def spy(x: Tensor, labels: Tensor, **settings: Any) -> Any:
        aims.append(labels)
        return gradient(x, labels, **settings)

    target.gradient = spy
    apgd_targeted(
        target, x, y, threat=Linf(0.05), noise=noise, iterations=1, eot=2, judge_draws=8, n_targets=3
    )
    ranking = sorted({d for i, d in model.used[False] if i == 0})[-8:]  # the last block
    draws = torch.stack([NoisyClassifier.forward(model, x, noise=noise.at(d)) for d in ranking])
    order = draws.mean(dim=0).argsort(dim=1, descending=True).tolist()
    expected = [[c for c in row if c != label][:3] for row, label in zip(order, y.tolist(), strict=True)]
    assert torch.stack(aims[::2])[:, :, 1].T.tolist() == expected
    assert all(torch.equal(pair[:, 0], y) for pair in aims)


# ------------------------------------------------------------------ options


@pytest.mark.parametrize("attack", ["apgd", "apgd_targeted"])
@pytest.mark.parametrize(
    "options",
    [
        {"iterations": 0},
        {"eot": 0},
        {"n_restarts": 0},
        {"judge_draws": 0},
        {"momentum": 0.0},
        {"momentum": 1.5},
    ],
)
def test_apgd_option_out_of_range_raises(attack: str, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"attack '{attack}': {next(iter(options))} must be a"):
        make_attack(attack, options)
    x, y, noise = uniform(1, 1, 4, 4), torch.tensor([0]), NoisePlan.of(0, [0])
    with pytest.raises(UserError, match=rf"attack '{attack}': {next(iter(options))} must be a"):
        attacks.get(attack)(Undefended(TinyClassifier()), x, y, threat=Linf(0.1), noise=noise, **options)


@dataclass(frozen=True)
class Other(Linf):
    """A threat model that no paper on APGD treats."""


@pytest.mark.parametrize("attack", ["apgd", "apgd_targeted"])
def test_apgd_other_threat_raises(attack: str) -> None:
    x, y, noise = uniform(1, 1, 4, 4), torch.tensor([0]), NoisePlan.of(0, [0])
    with pytest.raises(UserError, match=f"{attack} needs the threat linf or l2, not Other"):
        make_attack(attack)(Undefended(TinyClassifier()), x, y, threat=Other(0.1), noise=noise)


def test_apgd_targeted_three_classes_raises() -> None:
    x, y, noise = uniform(1, 1, 4, 4), torch.tensor([0]), NoisePlan.of(0, [0])
    with pytest.raises(UserError, match="needs at least 4 classes, not 3"):
        apgd_targeted(Undefended(TinyClassifier()), x, y, threat=Linf(0.1), noise=noise)


# ------------------------------------------------------------------ pyautoattack


def reference(
    model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float, iterations: int, loss: str
) -> Tensor:
    """Where pyautoattack's APGD leaves the model right, (B,); ``loss`` targeted aims at 3 classes."""
    base = pytest.importorskip("pyautoattack.autopgd_base")
    shared = {"n_iter": iterations, "norm": PYAUTOATTACK_NORMS[norm], "eps": eps, "seed": 0, "device": "cpu"}
    if loss == "targeted":
        x_adv = base.APGDAttack_targeted(model, n_target_classes=3, **shared).perturb(x, y)
    else:
        x_adv = base.APGDAttack(model, loss=loss, **shared).perturb(x, y)
    return model(x_adv).argmax(dim=1) == y


def ours(model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float, iterations: int, loss: str) -> Tensor:
    """Where ours does, with the same budget."""
    threat, noise = make_threat(norm, eps), NoisePlan.of(0, range(len(x)), "attack")
    options: dict[str, Any] = {"iterations": iterations, "stop": True, **PUBLISHED}
    if loss == "targeted":
        found = apgd_targeted(Undefended(model), x, y, threat=threat, noise=noise, n_targets=3, **options)
    else:
        found = apgd(Undefended(model), x, y, threat=threat, noise=noise, loss=loss, **options)
    return model(found.x_adv).argmax(dim=1) == y


@pytest.mark.parametrize("loss", ["ce", "dlr", "targeted"])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.015), ("l2", 0.25)])
def test_apgd_toy_is_as_strong_as_pyautoattack(norm: str, eps: float, loss: str) -> None:
    model = Perceptron().float()
    x = uniform(64, 3, 8, 8).float()
    y = model(x).argmax(dim=1)
    left, theirs = (attack(model, x, y, norm, eps, 20, loss) for attack in (ours, reference))
    assert 5 < int(theirs.sum()) < 59
    assert int(left.sum()) <= int(theirs.sum()) + 1
    assert int((left != theirs).sum()) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_real_images_is_as_strong_as_pyautoattack(loss: str) -> None:
    _, model = load_embedded()
    data = load_dataset("embedded").select(slice(0, 32))
    left, theirs = (
        attack(model, data.x(), data.labels, "linf", 1 / 255, 6, loss) for attack in (ours, reference)
    )
    assert 5 < int(theirs.sum()) < 27
    assert int(left.sum()) <= int(theirs.sum()) + 1
    assert int((left != theirs).sum()) <= 1
