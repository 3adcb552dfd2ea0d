"""Projected gradient descent with expectation over the defence's randomness."""

from typing import Literal

import torch
from torch import Tensor

from dbpkit.attacks.attack import AttackOutcome, Path, attacks
from dbpkit.attacks.loss import LossName, losses
from dbpkit.attacks.target import Target
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count, Length
from dbpkit.threats.pixels import ThreatModel


@attacks.register("pgd")
def pgd(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    noise: NoisePlan,
    iterations: Count = 20,
    eot: Count = 10,
    step_size: Length | None = None,
    start: Literal["zero", "random"] = "zero",
    keep: Literal["last", "best"] = "last",
    keep_draws: Count = 10,
    loss: LossName = "ce",
) -> AttackOutcome:
    """PGD with EoT; the defaults are the published attack (PGD20+EoT10).

    Args:
        target: the classifier, as an attack may use it.
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).
        threat: budget, projection and steepest direction.
        noise: draws of the attack; iteration i averages over draws i * eot to i * eot + eot - 1.
        iterations: number of steps.
        eot: draws averaged in each gradient.
        step_size: step length in [0, 1] pixel units; None takes the threat model's published share.
        start: the image itself, or a random allowed one.
        keep: the last iterate (published), or the one with the highest loss on draws of its own.
        keep_draws: draws per iterate for ``keep = "best"``, never used by a gradient.
        loss: registered loss that is maximised.

    Returns:
        The attacked images and, per iteration, loss and gradient norm.

    Raises:
        UserError: if an option is out of range.

    Source:
        Madry et al. 2018 (arXiv:1706.06083); settings of Liu et al., ICLR 2025.
    """
    target = Target.of(target)
    step_size = threat.default_step_size if step_size is None else step_size
    x_adv = x.clone() if start == "zero" else threat.random_start(x, noise)
    best, best_loss = x_adv, torch.full_like(x[:, 0, 0, 0], -torch.inf)
    path = Path()
    for i in range(iterations):
        grad, value, _ = target.gradient(x_adv, y, noise=noise.at(i), eot=eot, loss=loss)
        path.note(value, grad)
        x_adv = threat.project(x, x_adv + step_size * threat.steepest(grad))
        target.visit(x_adv, noise)
        if keep == "best":
            judged = _expected_loss(target, x_adv, y, noise.at(iterations * eot + i), keep_draws, loss)
            better = judged > best_loss
            best_loss = torch.where(better, judged, best_loss)
            best = torch.where(better[:, None, None, None], x_adv, best)
    return path.outcome(best if keep == "best" else x_adv)


def _expected_loss(target: Target, x: Tensor, y: Tensor, noise: NoisePlan, draws: int, loss: str) -> Tensor:
    """Mean loss (B,) over draws whose numbers no gradient has used."""
    logits = target.draws(x, noise=noise, count=draws).flatten(0, 1)
    values = losses.resolve(loss)(logits, y.repeat_interleave(draws))
    mean: Tensor = values.unflatten(0, (len(x), draws)).mean(dim=1)
    return mean
