"""Whether gradients are those of the function: checks of exact derivatives against numeric ones.

The thing people get wrong: a gradient that exists is not a gradient that is right.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dbpkit.attacks import cross_entropy
from dbpkit.checks.check import Probe, checks
from dbpkit.checks.culprits import detaching_module
from dbpkit.checks.fit import first_line
from dbpkit.checks.passes import slopes
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.precision import EXACT, precise
from dbpkit.purification.replay import DEFAULT_MEMORY, central_difference
from dbpkit.results.flags import Flag

DIFFERENCE_STEPS = (0.1, 0.03, 0.01, 0.003)
"""Lengths of the numeric difference, in Euclidean pixel units; the best agreement counts."""

DERIVATIVE_TOLERANCE = 0.1
"""Largest relative disagreement. Float32 rounding and the kinks of clips stay well below; a BPDA gradient
or a detached path disagrees by a factor."""

DIRECTIONS = 4
"""Random directions in which the Jacobian is compared with differences."""

JACOBIAN_STEPS = (0.01, 0.003)
JACOBIAN_TOLERANCE = 0.25
"""As `DIFFERENCE_STEPS` and `DERIVATIVE_TOLERANCE`. A random direction crosses many kinks of ReLU and max
pooling for little slope; measured on sound models the disagreement is 0.01 to 0.12."""

REPLAY_TOLERANCE = 1e-3
"""Largest relative difference between replayed and plain gradients; float32 rounding stays far below."""

REMEDY = "Look for a path that is detached, or that autograd is told another derivative of."


@checks.add(
    "derivative",
    stage="model",
    expects="the exact gradient agrees with a numeric derivative",
    remedy=REMEDY,
    needs="exact gradient",
    raises=("gradient_mismatch",),
)
@precise(EXACT)  # a difference of two rounded losses would measure the rounding
def derivative(probe: Probe) -> list[Flag]:
    """Flags a gradient that disagrees with the numeric derivative along itself."""
    found = slopes(probe)
    if found is None:
        culprit = detaching_module(probe.model, probe.x, probe.noise)
        where = f" in {culprit}" if culprit else ""
        message = f"The output does not depend on the input for autograd: a path is detached{where}."
        return [Flag("gradient_mismatch", "error", message)]
    grad = found.loss
    if grad is None or not bool(torch.isfinite(grad).all()):
        message = "The gradient of the loss is missing or not finite at a clean image."
        return [Flag("non_finite_gradient", "error", message)]
    norm = grad.flatten(1).norm(dim=1)
    if bool((norm == 0).all()):
        message = (
            "The gradient of the loss is exactly zero at every probed image: a detached path, rounding, or"
            " saturated logits."
        )
        return [Flag("zero_gradient", "error", message)]
    direction = grad / norm.clamp_min(1e-30)[:, None, None, None]
    exact = (grad * direction).flatten(1).sum(1)
    gaps = (_difference_gap(probe, direction, exact, norm, step) for step in DIFFERENCE_STEPS)
    gap = _least(gaps, DERIVATIVE_TOLERANCE)
    return _mismatch(probe, gap, "the gradient", DERIVATIVE_TOLERANCE)


@checks.add(
    "jacobian",
    stage="model",
    expects="the exact derivatives of the logits agree with numeric ones in random directions",
    remedy=REMEDY,
    needs="exact gradient",
    raises=("gradient_mismatch",),
)
@precise(EXACT)  # a difference of two rounded losses would measure the rounding
def jacobian(probe: Probe) -> list[Flag]:
    """Flags derivatives of the logits that disagree with numeric ones in random directions.

    A path that is hidden from autograd need not show along the gradient of the rest, and a saturated loss
    can hide what the logits do. So a random sum of the logits is compared in random directions.
    """
    draws, x = probe.noise.on("control"), probe.x
    found = slopes(probe)
    if found is None:
        return []  # `derivative` says so
    directions = [
        normalize(draws.at(r).normal("probe", 3, x).flatten(1), dim=1).view_as(x) for r in range(DIRECTIONS)
    ]
    exact = torch.stack([(found.weighted * d).flatten(1).sum(1) for d in directions])  # (directions, B)

    def gap_of(step: float) -> float:
        slants = [central_difference(probe.outputs, x, d, step) for d in directions]  # (B, K) each
        numeric = torch.stack([(found.weights * slant).sum(1) for slant in slants])
        gap = (exact - numeric).norm(dim=0) / numeric.norm(dim=0).clamp_min(1e-12)
        return float(gap.median())

    gap = _least(map(gap_of, JACOBIAN_STEPS), JACOBIAN_TOLERANCE)
    return _mismatch(probe, gap, "random directions", JACOBIAN_TOLERANCE)


@checks.add(
    "inexact_gradient",
    stage="model",
    expects="the purifier does not say that its gradient is another's",
    needs="gradient note",
    remedy="Attack it without gradients too (square), and read the accuracy as an upper bound.",
)
def inexact_gradient(probe: Probe) -> list[Flag]:
    """Flags a purifier that says that its gradient is not the derivative of its values."""
    message = (
        f"{probe.gradient_note}. The purifier says so itself: attacks that follow it, the white box too, are"
        " of BPDA's kind, and what they leave is an upper bound."
    )
    return [Flag("inexact_gradient", "warning", message)]


@checks.add(
    "replay",
    stage="model",
    expects="a replayed step computes what it computed before",
    remedy="Pass everything that a sampler's step needs through its arguments.",
    needs="diffusion",
    raises=("replay_differs",),
)
def replay(probe: Probe) -> list[Flag]:
    """Flags a purification whose replayed steps differ from the first run, in value or in gradient.

    One image tells, the one with the largest gradient. As many of its graphs are kept as an attack may keep,
    so that the check takes no more memory than the attack.
    """
    purifier = probe.diffusion
    if purifier is None:
        return []
    before = purifier.memory_bytes, purifier.verify_replay
    grads: list[Tensor] = []
    try:
        one = _steepest(probe)
        for memory_bytes in (0, before[0] or DEFAULT_MEMORY):  # every step but the last replayed; few or none
            purifier.memory_bytes, purifier.verify_replay = memory_bytes, memory_bytes == 0
            leaf = one.x.detach().requires_grad_()
            loss = cross_entropy(one.outputs(leaf), one.y).sum()
            grads += torch.autograd.grad(loss, leaf, materialize_grads=True)
    except UserError as error:
        return [Flag("replay_differs", "error", f"{error}")]
    except RuntimeError as error:
        message = f"The purification cannot be differentiated: {first_line(error)}."
        return [Flag("gradient_mismatch", "error", message)]
    finally:
        purifier.memory_bytes, purifier.verify_replay = before
    gap = float((grads[0] - grads[1]).norm() / grads[1].norm().clamp_min(1e-30))
    if gap > REPLAY_TOLERANCE:
        message = (
            f"The gradient differs by {gap:.1%} when steps are replayed: a sampler step uses a tensor that"
            " depends on the image but is not its argument. Pass everything through the step's argument."
        )
        return [Flag("replay_differs", "error", message)]
    return []


def _steepest(probe: Probe) -> Probe:
    """The probe of the one image with the largest gradient of the loss."""
    found = slopes(probe)
    if found is None or found.loss is None:
        return probe.first(1)
    row = int(found.loss.flatten(1).norm(dim=1).argmax())
    return probe.rows(slice(row, row + 1))


def _least(gaps: Iterable[float], enough: float) -> float:
    """The least of the gaps, of which no more are computed once one is small enough."""
    least = None
    for gap in gaps:
        least = gap if least is None else min(least, gap)
        if least <= enough:
            break
    return torch.inf if least is None else least


def _difference_gap(probe: Probe, direction: Tensor, exact: Tensor, norm: Tensor, step: float) -> float:
    """Median relative gap between the derivative along a direction and a difference of two losses."""
    numeric = central_difference(lambda z: cross_entropy(probe.outputs(z), probe.y), probe.x, direction, step)
    return float(((exact - numeric).abs() / (numeric.abs() + 1e-3 * norm.mean() + 1e-12)).median())


def _mismatch(probe: Probe, gap: float, where: str, tolerance: float) -> list[Flag]:
    if gap <= tolerance:
        return []
    culprit = detaching_module(probe.model, probe.x, probe.noise)
    by = f"{gap:.0%}" if gap < 10 else "more than 1000%"
    message = (
        f"The exact and the numeric derivative disagree by {by} along {where} (median of {len(probe)}"
        " images): the gradient is not that of the function, so attacks with it prove nothing."
    )
    said = f" No gradient leaves {culprit}." if culprit else ""
    return [Flag("gradient_mismatch", "error", message + said)]
