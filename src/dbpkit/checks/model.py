"""What the model is: checks of its outputs and of its randomness on a few images with fixed noise."""

import torch
from torch import Tensor

from dbpkit.checks.check import Probe, checks
from dbpkit.checks.culprits import coupling_module, flat_module, random_module
from dbpkit.checks.passes import repeated
from dbpkit.results.flags import Flag

RUNS = 3
"""Equal calls that must agree; a module may be random only now and then."""

COUPLING_TOLERANCE = 0.02
"""Largest change of a logit with the rest of the batch, relative to the spread of all logits."""

MOVED_VALUES = 32
MOVE = 4e-6
"""How many pixel values are moved, and how far, to see whether the model is piecewise constant. Few values
and short moves seldom cross a step of a quantiser; float32 resolves the move."""


@checks.add(
    "probabilities",
    stage="model",
    expects="the classifier returns logits, not probabilities",
    remedy="Return the values before the softmax.",
)
@torch.no_grad()
def probabilities(probe: Probe) -> list[Flag]:
    """Flags a model whose outputs are probabilities, which flattens the loss of every attack."""
    (logits,) = repeated(probe, 1)
    if bool((logits >= 0).all()) and torch.allclose(logits.sum(1), torch.ones_like(logits[:, 0]), atol=1e-4):
        message = "The classifier returns probabilities (rows sum to 1); return logits before the softmax."
        return [Flag("probabilities", "error", message)]
    return []


@checks.add(
    "untracked_randomness",
    stage="model",
    expects="the same image and noise give the same output twice",
    remedy="Put the model in eval mode, and draw all noise from the plan that it is given.",
)
@torch.no_grad()
def untracked_randomness(probe: Probe) -> list[Flag]:
    """Flags a model that gives two results for the same image and the same noise, and names the submodule."""
    first, *others = repeated(probe, RUNS)
    gap = max(_gap(first, other) for other in others)
    if gap == 0:
        return []
    named = (random_module(probe.model, probe.x, probe.noise) for _ in range(RUNS))
    culprit = next((name for name in named if name), "")
    where = f" It comes from {culprit}." if culprit else ""
    message = (
        f"Two calls with the same image and noise differ by {gap:.3g} in a logit: something draws noise of"
        f" its own (dropout, train mode, random augmentation), and no attacker can be told it.{where}"
    )
    return [Flag("untracked_randomness", "error", message)]


@checks.add(
    "batch_dependence",
    stage="model",
    expects="an image's logits do not depend on the rest of the batch",
    remedy="Put batch norm in eval mode, and draw each image's noise from its own row of the plan.",
)
@torch.no_grad()
def batch_dependence(probe: Probe) -> list[Flag]:
    """Flags a model whose logits depend on the other images of the batch or on the place in it."""
    if len(probe) < 2:
        return []
    order = torch.arange(len(probe)).flip(0)
    logits, again = repeated(probe, 2)
    if not torch.equal(logits, again):
        return []  # `untracked_randomness` says so
    turned = probe.model(probe.x[order], noise=probe.noise.rows(order))[order]
    alone = probe.model(probe.x[:1], noise=probe.noise.rows([0]))
    gap = max(float((logits - turned).abs().max()), float((logits[:1] - alone).abs().max()))
    if gap <= COUPLING_TOLERANCE * float(logits.std()):
        return []
    culprit = coupling_module(probe.model, probe.x, probe.noise)
    where = f" It begins in {culprit}." if culprit else ""
    message = (
        f"The logits of an image change by {gap:.3g} with the other images of the batch or its place among"
        f" them (batch norm in train mode, noise by position): no two runs attack the same model.{where}"
    )
    return [Flag("batch_dependence", "error", message)]


@checks.add(
    "piecewise_constant",
    stage="model",
    expects="the logits move when the pixels do",
    remedy="Attack through a smooth stand-in for the step (gradient 'surrogate' or 'bpda').",
    needs="exact gradient",
)
@torch.no_grad()
def piecewise_constant(probe: Probe) -> list[Flag]:
    """Flags a model whose logits do not move at all with the pixels (quantisation, rounded outputs).

    Source:
        Athalye, Carlini & Wagner 2018 (arXiv:1802.00420), section 3: shattered gradients.
    """
    x, draws = probe.x, probe.noise.on("control")
    inside = (x + (2 * draws.uniform("probe", 0, x) - 1) / 255).clamp(0.01, 0.99)  # off the 8-bit grid
    order = draws.uniform("probe", 1, x.flatten(1)).argsort(dim=1)
    few = torch.zeros_like(x).flatten(1).scatter(1, order[:, :MOVED_VALUES], 1).view_as(x)
    moved = inside + MOVE * few
    stuck = (probe.outputs(inside) == probe.outputs(moved)).all(dim=1)
    if int(stuck.sum()) * 2 <= len(x):
        return []
    rows = probe.noise.rows(stuck.nonzero()[:, 0].cpu())
    culprit = flat_module(probe.model, inside[stuck], moved[stuck], rows)
    where = f" It happens in {culprit}." if culprit else ""
    message = (
        f"For {int(stuck.sum())} of {len(x)} images no logit changes in a single bit when {MOVED_VALUES}"
        f" pixel values move by {MOVE:g}: the model is piecewise constant, its true gradient is zero.{where}"
    )
    return [Flag("piecewise_constant", "error", message)]


def _gap(a: Tensor, b: Tensor) -> float:
    """The largest difference of two results; values that are the same, such as NaN twice, differ by 0."""
    same = (a == b) | (a.isnan() & b.isnan())
    return float((a - b).abs().masked_fill(same, 0).nan_to_num(torch.inf).max())
