"""Selective EoT: a mixture whose mean gradient vanishes, cases where it must be PGD, and its EM by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbpkit.attacks import Target
from dbpkit.attacks.pgd import pgd
from dbpkit.attacks.selective_eot import selective_eot
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.purification.classifier import Undefended
from dbpkit.threats.pixels import L2, Linf
from tests.oracles import NoisyClassifier, TinyClassifier, uniform

ROUND_OFF = 1e-10
"""Float64 arithmetic on values of order one."""


class TwoPaths(nn.Module):
    """Even draws fail towards brighter images, odd ones, which are further from failing, towards darker ones.

    The margins are -1 + 4 s and -1.5 - 4 s, where s is the summed change of a grey image.
    """

    sites = frozenset({"forward"})

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        shift = 4 * (x - 0.5).flatten(1).sum(dim=1)
        margin = torch.where((noise.draw % 2 == 0).to(x.device), shift - 1, -shift - 1.5)
        return torch.stack([torch.zeros_like(margin), margin], dim=1)


class Shifted(nn.Module):
    """A linear classifier whose logits, and not their gradients, depend on the draw."""

    sites = frozenset({"forward"})

    def __init__(self) -> None:
        super().__init__()
        self.weight = uniform(2, 16, seed=3, low=-1, high=1)

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        shift = noise.normal("forward", 0, x[:, 0, 0, :1].repeat(1, 2))
        return x.flatten(1) @ self.weight.T + 3 * shift


def right(model: nn.Module, x: Tensor, y: Tensor, ids: list[int]) -> Tensor:
    """Share of 100 report draws that classify right, (B,)."""
    logits = Target(model).draws(x, noise=NoisePlan.of(0, ids, "report"), count=100)
    return (logits.argmax(dim=2) == y[:, None]).double().mean(dim=1)


# ------------------------------------------------------------------ conflicting draws


def test_selective_eot_conflicting_draws_breaks_its_path_where_pgd_stays() -> None:
    """The mean gradient is exactly 0, so that PGD never moves; half of the draws can be broken."""
    x, y = torch.full((2, 1, 2, 2), 0.5, dtype=torch.float64), torch.tensor([0, 0])
    settings: dict[str, Any] = {"threat": Linf(0.1), "noise": NoisePlan.of(0, [3, 4], "attack"), "eot": 10}
    averaged = pgd(TwoPaths(), x, y, loss="margin", iterations=50, **settings)
    assert torch.equal(averaged.x_adv, x)
    assert right(TwoPaths(), averaged.x_adv, y, [3, 4]).tolist() == [1.0, 1.0]
    selected = selective_eot(TwoPaths(), x, y, **settings)
    torch.testing.assert_close(selected.x_adv, x + 0.1, rtol=0, atol=ROUND_OFF)
    assert right(TwoPaths(), selected.x_adv, y, [3, 4]).tolist() == [0.5, 0.5]


def test_selective_eot_share_follows_the_draws_that_fail() -> None:
    """Once half of the draws fail by a margin of 3 and the others hold by 5.5, only they have a say.

    The weighted gradient of equal and opposite gradients is their difference in weight: near 1, from near 0.
    """
    x, y = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64), torch.tensor([0])
    found = selective_eot(TwoPaths(), x, y, threat=Linf(0.25), noise=NoisePlan.of(0, [3], "attack"), eot=10)
    norm = 4 * math.sqrt(4)  # of one draw's gradient
    a, b = 1 / (1 + math.exp(1)), 1 / (1 + math.exp(1.5))
    assert float(found.grad_norm[0, 0]) == pytest.approx(norm * (a - b) / (a + b), abs=1e-9)
    assert float(found.grad_norm[0, -1]) > 0.99 * norm


# ------------------------------------------------------------------ where it is PGD


def test_selective_eot_equal_gradients_is_pgd() -> None:
    """Draws of very different margins, but one gradient: there is nothing to select."""
    x, y = uniform(3, 1, 4, 4), torch.tensor([0, 1, 0])
    settings: dict[str, Any] = {
        "threat": L2(0.3),
        "noise": NoisePlan.of(0, range(3), "attack"),
        "iterations": 6,
        "eot": 5,
    }
    margins = Target(Shifted()).draws(x, noise=settings["noise"], count=5).diff(dim=2)
    assert float(margins.std(dim=1).min()) > 1
    a, b = selective_eot(Shifted(), x, y, **settings), pgd(Shifted(), x, y, loss="margin", **settings)
    for found, expected in zip(a[:3], b[:3], strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=ROUND_OFF)


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_selective_eot_deterministic_model_without_momentum_is_pgd(loss: str) -> None:
    model, x, y = Undefended(TinyClassifier()), uniform(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    settings: dict[str, Any] = {"threat": L2(0.5), "noise": NoisePlan.of(0, range(4)), "iterations": 5}
    a = selective_eot(model, x, y, eot=3, momentum=0.0, loss=loss, **settings)
    b = pgd(model, x, y, eot=1, loss=loss, **settings)
    for found, expected in zip(a[:3], b[:3], strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=ROUND_OFF)


def test_selective_eot_high_temperature_without_momentum_is_pgd() -> None:
    model, x, y = NoisyClassifier(TinyClassifier(), 0.5), uniform(3, 1, 4, 4), torch.tensor([0, 1, 2])
    settings: dict[str, Any] = {
        "threat": L2(0.5),
        "noise": NoisePlan.of(0, range(3), "attack"),
        "iterations": 4,
        "eot": 6,
    }
    expected = pgd(model, x, y, loss="margin", **settings).x_adv
    flat = selective_eot(model, x, y, temperature=1e9, momentum=0.0, **settings).x_adv
    torch.testing.assert_close(flat, expected, rtol=0, atol=1e-8)  # weights are equal to 1e-9
    sharp = selective_eot(model, x, y, momentum=0.0, **settings).x_adv
    assert float((sharp - expected).abs().max()) > 1e-3


# ------------------------------------------------------------------ EM, draw by draw


def test_selective_eot_steps_are_those_of_stepwise_em_by_hand() -> None:
    """Written out for one image with plain numbers: responsibilities, share, averaged direction."""
    model, x, y = NoisyClassifier(TinyClassifier(), 0.5), uniform(1, 1, 4, 4), torch.tensor([1])
    noise, eot, temperature = NoisePlan.of(0, [8], "attack"), 4, 0.3
    image, pi, direction = x.clone(), 0.5, torch.zeros_like(x)
    losses_seen = []
    for t in range(1, 6):
        grads, margins = [], []
        for r in range(eot):
            leaf = image.clone().requires_grad_()
            logits = model(leaf, noise=noise.at((t - 1) * eot + r))[0]
            margin = max(logits[0], logits[2]) - logits[1]
            grads.append(torch.autograd.grad(margin, leaf)[0])
            margins.append(margin.item())
        odds = [pi / (1 - pi) * math.exp(m / temperature) for m in margins]
        shares = [o / (1 + o) for o in odds]
        step = t**-0.5
        weighted = sum(s * g for s, g in zip(shares, grads, strict=True)) / sum(shares)
        pi = (1 - step) * pi + step * (sum(shares) + 1) / (eot + 2)
        direction = (1 - step) * direction + step * weighted
        losses_seen.append(sum(margins) / eot)
        image = L2(0.5).project(x, image + 0.1 * L2(0.5).steepest(direction))
    found = selective_eot(
        model, x, y, threat=L2(0.5), noise=noise, iterations=5, eot=eot, temperature=temperature
    )
    torch.testing.assert_close(found.x_adv, image, rtol=0, atol=ROUND_OFF)
    assert found.loss[0].tolist() == pytest.approx(losses_seen, abs=ROUND_OFF)


@pytest.mark.parametrize("micro_batch", [1, 4, 100])
@pytest.mark.parametrize("fixed_shape", [False, True])
def test_per_draw_gradients_are_those_of_single_draws(micro_batch: int, fixed_shape: bool) -> None:
    model, x, y = NoisyClassifier(TinyClassifier()), uniform(3, 1, 4, 4), torch.tensor([0, 1, 2])
    noise = NoisePlan.of(0, [4, 5, 6], "attack")
    target = Target(model, micro_batch, fixed_shape=fixed_shape)
    found = target.per_draw(x, y, noise=noise.at(2), eot=5)
    assert found.grad.shape == (3, 5, 1, 4, 4)
    for r in range(5):
        single = target.gradient(x, y, noise=noise.at(2 * 5 + r))
        torch.testing.assert_close(found.grad[:, r], single.grad, rtol=0, atol=ROUND_OFF)
        torch.testing.assert_close(found.loss[:, r], single.loss, rtol=0, atol=ROUND_OFF)
        logits = model(x, noise=noise.at(2 * 5 + r))
        torch.testing.assert_close(found.logits[:, r], logits, rtol=0, atol=ROUND_OFF)
    assert not found.logits.requires_grad
    assert target.gradient_rows == target.forward_rows == 30


def test_selective_eot_every_step_uses_draws_of_its_own_and_visits_its_iterate() -> None:
    target, seen = Target(NoisyClassifier(TinyClassifier())), []
    target.visit = lambda x_adv, noise: seen.append((x_adv, noise.example_ids.tolist()))
    x, y = uniform(2, 1, 4, 4), torch.tensor([0, 1])
    found = selective_eot(target, x, y, threat=Linf(0.05), noise=NoisePlan.of(0, [1, 2]), iterations=3, eot=4)
    assert [ids for _, ids in seen] == [[1, 2]] * 3
    assert torch.equal(seen[-1][0], found.x_adv)
    assert target.gradient_rows == 2 * 3 * 4


@pytest.mark.parametrize(
    "options",
    [{"iterations": 0}, {"eot": 0}, {"temperature": 0.0}, {"temperature": math.nan}, {"momentum": 1.1}],
)
def test_selective_eot_option_out_of_range_raises(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"attack 'selective_eot': {next(iter(options))} must be a"):
        selective_eot(
            Undefended(TinyClassifier()),
            uniform(1, 1, 4, 4),
            torch.tensor([0]),
            threat=Linf(0.1),
            noise=NoisePlan.of(0, [0]),
            **options,
        )
