"""Autopilot: known optima, a budget that holds, decisions on toys whose right one is known, and batches."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbpkit.attacks import Target
from dbpkit.attacks.autopilot import agreement, autopilot
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.purification.classifier import Undefended
from dbpkit.threats.pixels import L2, Linf
from tests.oracles import NoisyClassifier, TinyClassifier, uniform


def linear(seed: int = 3) -> tuple[nn.Module, Tensor]:
    """A two-class linear classifier of 12 pixel values and the difference of its weight rows, (12,)."""
    weight = uniform(2, 12, seed=seed, low=-1, high=1)
    layer = nn.Linear(12, 2, bias=False, dtype=torch.float64)
    layer.weight.data.copy_(weight)
    return nn.Sequential(nn.Flatten(), layer), weight[0] - weight[1]


def falls(y: Tensor, difference: Tensor, shape: torch.Size) -> Tensor:
    """The direction in which the label's lead of a linear classifier falls."""
    return torch.where(y[:, None] == 0, -difference, difference).reshape(shape)


class Chain(nn.Module):
    """A noisy linear classifier of many calls, whose surrogates of one call have a matrix of their own."""

    sites = frozenset({"forward"})

    def __init__(
        self, weight: Tensor, cheap: Tensor | None = None, sigma: float = 0.1, calls: int = 12
    ) -> None:
        super().__init__()
        self.weight, self.cheap, self.sigma, self.calls = weight, cheap, sigma, calls
        self.purifier = self  # which says how many calls it makes

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        """Returns logits (B, 2)."""
        return (x + self.sigma * noise.normal("forward", 0, x)).flatten(1) @ self.weight.T

    def coarser(self, steps: int) -> "Chain | None":
        """The surrogate; None if there is none."""
        return None if self.cheap is None else Chain(self.cheap, None, self.sigma, 1)


def run(model: Any, x: Tensor, y: Tensor, **options: Any) -> tuple[Any, Target]:
    """The outcome of an attack on a new target, and the target."""
    target, ids = Target(model, 64), range(len(x))
    settings = {"threat": Linf(0.05), "noise": NoisePlan.of(0, ids, "attack"), **options}
    return autopilot(target, x, y, **settings), target


# ------------------------------------------------------------------ known optimum


@pytest.mark.parametrize("gradients", [20, 60])
@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_autopilot_linf_linear_classifier_reaches_the_optimum(sigma: float, gradients: int) -> None:
    """The label's lead falls most at x - eps sign(w), with noise or without."""
    classifier, w = linear()
    model = NoisyClassifier(classifier, sigma) if sigma else Undefended(classifier)
    x, y = uniform(4, 3, 2, 2, low=0.1, high=0.9), torch.tensor([0, 1, 0, 1])
    found, _ = run(model, x, y, gradients=gradients)
    right = classifier(x).argmax(dim=1) == y  # APGD stops with what is wrong already
    expected = x + 0.05 * falls(y, w.sign(), x.shape)
    torch.testing.assert_close(found.x_adv[right], expected[right], rtol=0, atol=1e-10)
    assert bool(right.any())
    assert sigma == 0 or bool((found.x_adv == expected).all())


def test_autopilot_l2_noisy_linear_classifier_comes_close_to_the_optimum() -> None:
    """x - eps w / |w|: the last steps are 2 % of the first, and gradients of a linear model are exact."""
    classifier, w = linear()
    x, y = uniform(4, 3, 2, 2, low=0.4, high=0.6), torch.tensor([0, 1, 0, 1])
    found, _ = run(NoisyClassifier(classifier, 0.1), x, y, threat=L2(0.3), gradients=40)
    torch.testing.assert_close(found.x_adv, x + 0.3 * falls(y, w / w.norm(), x.shape), rtol=0, atol=1e-6)


def test_autopilot_still_model_breaks_what_apgd_breaks() -> None:
    """On a model that draws nothing it is APGD: every image that the closed form breaks is broken."""
    classifier, w = linear()
    x = uniform(16, 3, 2, 2, low=0.2, high=0.8)
    y = classifier(x).argmax(dim=1)
    found, target = run(Undefended(classifier), x, y, gradients=40, threat=Linf(0.15))
    worst = classifier(x + 0.15 * falls(y, w.sign(), x.shape)).argmax(dim=1) != y
    assert 0 < int(worst.sum()) < 16
    assert torch.equal(classifier(found.x_adv).argmax(dim=1) != y, worst)
    assert min(target.spent.values()) < max(target.spent.values()) / 2  # a broken image costs no more


# ------------------------------------------------------------------ the budget


@pytest.mark.parametrize("still", [False, True])
@pytest.mark.parametrize("gradients", [1, 2, 5, 16, 33, 60])
def test_autopilot_any_budget_is_never_exceeded_and_is_used(gradients: int, still: bool) -> None:
    classifier = TinyClassifier(classes=5)
    x = uniform(6, 1, 4, 4)
    y = classifier(x).argmax(dim=1)
    model = Undefended(classifier) if still else NoisyClassifier(classifier, 0.3)
    _, target = run(model, x, y, gradients=gradients, threat=Linf(0.002))
    spent = list(target.spent.values())
    assert max(spent) <= 2 * gradients
    assert min(spent) >= 0.7 * 2 * gradients


@pytest.mark.parametrize("cheap", [1.0, -1.0])
def test_autopilot_with_a_surrogate_never_exceeds_its_budget(cheap: float) -> None:
    _, w = linear()
    weight = torch.stack([w, -w])
    x, y = uniform(4, 3, 2, 2, low=0.2, high=0.8), torch.tensor([0, 1, 0, 1])
    _, target = run(Chain(weight, cheap * weight, sigma=0.5), x, y, gradients=64)
    assert 0.9 * 2 * 12 * 64 < min(target.spent.values()) <= max(target.spent.values()) <= 2 * 12 * 64


def test_autopilot_published_budget_is_that_of_pgd20_eot10() -> None:
    target = Target(NoisyClassifier(TinyClassifier()))
    x, y = uniform(2, 1, 4, 4), torch.tensor([0, 1])
    autopilot(target, x, y, threat=Linf(8 / 255), noise=NoisePlan.of(0, range(2)))
    assert 0.95 * 400 <= min(target.spent.values()) <= max(target.spent.values()) <= 400


# ------------------------------------------------------------------ decisions


def test_autopilot_misleading_surrogate_is_abandoned_after_its_trial() -> None:
    """Its gradient points the wrong way: it loses on fresh draws, and gets an eighth of the budget."""
    _, w = linear()
    weight = torch.stack([w, -w])
    x, y = uniform(4, 3, 2, 2, low=0.2, high=0.8), torch.tensor([0, 1, 0, 1])
    found, target = run(Chain(weight, -weight, sigma=0.3), x, y, gradients=64)
    spent = sum(2 * t.calls * t.gradient_passes[0] for t in target.surrogates.values())
    assert 0 < spent <= 2 * 12 * 64 / 8
    torch.testing.assert_close(found.x_adv, x + 0.05 * falls(y, w.sign(), x.shape), rtol=0, atol=1e-10)


class Slopes(Chain):
    """A linear classifier whose slopes are noisy: only many draws tell their signs."""

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        """Returns logits (B, 2), with slopes of 1 and noise of deviation 3."""
        slopes = 1 + self.sigma * noise.normal("forward", 0, x)
        lead = ((x - 0.5) * slopes).flatten(1).sum(dim=1)
        return torch.stack([lead, -lead], dim=1)

    def coarser(self, steps: int) -> "Slopes | None":
        """The same at a twelfth of the calls."""
        return Slopes(self.weight, None, self.sigma, 1)


def test_autopilot_good_surrogate_goes_on() -> None:
    """One with a twelfth of the calls that tells the truth averages over twelve times the draws."""
    x, y = torch.full((4, 3, 8, 8), 0.5, dtype=torch.float64), torch.tensor([0, 0, 0, 0])
    found, target = run(Slopes(torch.zeros(1, 1), sigma=3.0), x, y, gradients=64)
    _, exact = run(Slopes(torch.zeros(1, 1), sigma=3.0), x, y, gradients=64, surrogate=False)
    spent = [sum(2 * t.gradient_passes[i] for t in target.surrogates.values()) for i in range(4)]
    assert min(spent) > 2 * 12 * 64 / 4
    assert not exact.surrogates
    assert bool((found.x_adv < x).all())


def test_autopilot_draws_that_disagree_get_more_draws() -> None:
    """At equal budgets a noisier gradient is averaged over more draws, and so has fewer iterates."""
    counts = {}
    for sigma in (0.001, 3.0):
        seen: list[int] = []
        target = Target(NoisyClassifier(TinyClassifier(classes=5), sigma))
        target.visit = lambda x, _noise, seen=seen: seen.append(len(x))
        x, y = uniform(1, 1, 4, 4), torch.tensor([0])
        autopilot(target, x, y, threat=Linf(0.05), noise=NoisePlan.of(0, [3]), gradients=60)
        counts[sigma] = len(seen)
    assert counts[3.0] <= counts[0.001] / 2


def test_agreement_of_equal_and_of_independent_draws() -> None:
    """1 where draws are equal; v^2 / (v^2 + 1) on average where they are v plus noise of variance 1."""
    same = uniform(2, 1, 1, 4, 4).expand(2, 5, 1, 4, 4)
    torch.testing.assert_close(agreement(same), torch.ones(2, dtype=torch.float64))
    z = NoisePlan.of(0, range(400)).normal("probe", 0, torch.zeros(400, 4, 1, 30, 30))
    for v in (0.0, 0.5, 2.0):
        found = agreement(z + v)
        assert float(found.mean()) == pytest.approx(v**2 / (v**2 + 1), abs=0.005)


# ------------------------------------------------------------------ the seam


def test_autopilot_outcome_has_as_many_columns_for_every_batch() -> None:
    """Draws of a gradient differ from image to image, and so does the number of iterates."""
    model, x = NoisyClassifier(TinyClassifier(classes=5), 1.0), uniform(4, 1, 4, 4)
    y, plan = model.classifier(x).argmax(dim=1), NoisePlan.of(0, range(4), "attack")
    settings: dict[str, Any] = {"threat": Linf(0.05), "gradients": 40}
    whole = autopilot(Target(model, 4, fixed_shape=True), x, y, noise=plan, **settings)
    for i in range(4):
        rows = slice(i, i + 1)
        target = Target(model, 4, fixed_shape=True)
        one = autopilot(target, x[rows], y[rows], noise=plan.rows(rows), **settings)
        for a, b in zip(one[:3], whole[:3], strict=True):
            assert torch.equal(a, b[rows])


def test_autopilot_unknown_loss_raises() -> None:
    with pytest.raises(UserError, match="attack 'autopilot': loss must be"):
        run(NoisyClassifier(TinyClassifier()), uniform(1, 1, 4, 4), torch.tensor([0]), loss="hinge")
