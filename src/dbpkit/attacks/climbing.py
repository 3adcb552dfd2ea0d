"""One stretch of a stochastic ascent: gradients averaged over iterations, and steps that shrink.

The thing people get wrong: buying each step a precise gradient. Ten draws at one iterate and ten at the next
say nearly the same; a running mean over iterations is as precise, and the passes buy more steps.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dbpkit.attacks.designs import Design
from dbpkit.attacks.loss import margin
from dbpkit.attacks.passing import mean_in_order
from dbpkit.attacks.target import Target
from dbpkit.foundation.noise import NoisePlan
from dbpkit.threats.pixels import ThreatModel

Rule = Literal["chance", "ce", "margin", "dlr"]
"""What is maximised: a registered loss, or ``chance``, a smooth chance that a draw is misclassified."""

MEMORY = 10
"""Iterations over which gradients are averaged at most; a tenth of a shorter schedule."""

STEPS = 20
"""A schedule of fewer iterations takes longer steps, so that its way is as long as that of so many."""

LAST = 0.02
"""The last step of a whole schedule, as a share of the first."""

SHARPNESS = 1.0
"""Width of the chance's sigmoid, as a share of the image's own margins."""


class Leg(NamedTuple):
    """What one stretch of ascent may use.

    Attributes:
        passes: network passes per image.
        first: the first draw of the attack's plan that is its own.
        begin: share of the whole schedule that is over when it begins.
        end: and when it ends.
    """

    passes: int
    first: int
    begin: float
    end: float


class Climb(NamedTuple):
    """Where a stretch of ascent ended, row by row.

    Attributes:
        x: the last iterate (B, C, H, W).
        direction: running mean of gradients there (B, C, H, W).
        loss: expected loss at each iterate (B, I), as often as the leg has room for one draw.
        grad_norm: Euclidean norm of the gradient there (B, I).
    """

    x: Tensor
    direction: Tensor
    loss: Tensor
    grad_norm: Tensor


def climb(
    target: Target,
    x: Tensor,
    y: Tensor,
    begin: Tensor,
    direction: Tensor,
    *,
    threat: ThreatModel,
    noise: NoisePlan,
    leg: Leg,
    eot: int,
    rule: Rule,
    step_size: float,
) -> Climb:
    """Steps along the running mean of gradients, each of a length that shrinks along a cosine.

    Args:
        target: the classifier, or a surrogate of it.
        x: clean images (B, C, H, W), at least one.
        y: labels (B,).
        begin: where it begins (B, C, H, W).
        direction: running mean of gradients so far, or zeros.
        threat: budget, projection and steepest direction.
        noise: the attack's plan of these examples.
        leg: passes, draws and part of the schedule.
        eot: draws of each gradient; more than one are in mirrored pairs if the target has no design.
        rule: what is maximised.
        step_size: the first step of the whole schedule.

    Source:
        Momentum: Dong et al. 2018 (arXiv:1710.06081). Cosine: Loshchilov & Hutter 2017 (arXiv:1608.03983).
    """
    count = leg.passes // (2 * target.calls * eot)
    columns = leg.passes // (2 * target.calls)
    design = Design(antithetic=True) if eot % 2 == 0 and target.design.plain else None
    here, scale = begin, None
    whole = count / max(leg.end - leg.begin, 1e-6)  # iterations of all of the schedule at this pace
    memory = max(2.0, min(MEMORY, whole / 10))
    longest = step_size * min(max(1.0, STEPS / max(whole, 1.0)), 8.0)
    name = "margin" if rule == "chance" else rule
    values, norms = [], []
    for i in range(count):
        at = noise.at(-(-leg.first // eot) + i)
        found = target.per_draw(here, y, noise=at, eot=eot, loss=name, design=design)
        grads = found.grad
        if rule == "chance":
            weight, scale = _weights(found.logits, y, scale)
            grads = weight[:, :, None, None, None] * grads
        grad = mean_in_order(grads)
        direction = (1 - 1 / memory) * direction + grad / memory
        values.append(mean_in_order(found.loss))
        norms.append(grad.flatten(1).norm(dim=1))
        share = leg.begin + (leg.end - leg.begin) * i / count
        length = longest * (LAST + (1 - LAST) * (1 + math.cos(math.pi * share)) / 2)
        here = threat.project(x, here + length * threat.steepest(direction))
        target.visit(here, noise)
    none = x.new_zeros(len(x))
    return Climb(here, direction, _padded(values, columns, none), _padded(norms, columns, none))


def _weights(logits: Tensor, y: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Slopes of sigmoid(margin / T) of each draw (B, R), at most 1, and the running mean square margin.

    T is the root mean square of the image's margins so far: where all draws are far on one side of the
    boundary they weigh alike, and where some are beyond it, those near it decide.
    """
    gap = margin(logits.flatten(0, 1), y.repeat_interleave(logits.shape[1])).unflatten(0, logits.shape[:2])
    square = mean_in_order(gap.square())
    scale = square if scale is None else 0.8 * scale + 0.2 * square
    width = SHARPNESS * scale.sqrt().clamp_min(1e-6)
    return torch.cosh((gap / (2 * width[:, None])).clamp(-30, 30)).reciprocal().square(), scale


def _padded(values: list[Tensor], columns: int, none: Tensor) -> Tensor:
    """Values as columns (B, columns), the last one repeated; the number is that of the longest path."""
    values = values or [none][:columns]
    return (
        torch.stack((values + values[-1:] * (columns - len(values))), 1) if values else none[:, None][:, :0]
    )
