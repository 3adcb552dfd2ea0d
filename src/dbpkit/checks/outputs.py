"""Checks of what a classifier returns: bounded or saturating outputs that take the gradient away.

The thing people get wrong: a head that changes no prediction is taken for harmless. Where it is flat for the
label, no attack with a gradient of the outputs pushes the label down.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from dbpkit.checks.check import Probe, checks
from dbpkit.checks.culprits import heading_module
from dbpkit.checks.passes import purified, repeated, slopes, softmax_error
from dbpkit.foundation.types import RandomisedClassifier
from dbpkit.models.heads import Head, heads_of
from dbpkit.purification.classifier import PurifiedClassifier, Undefended
from dbpkit.results.flags import Flag

LOST = 2.0**-24
"""Weight of the label, relative to the largest, that float32 loses beside it."""

USEFUL_STEP = 0.5
"""Least share of the steepest rise that a step along the float32 gradient must reach."""

LOST_SHARE = 0.25
"""Share of images that may lose something before it is an error."""

FAIR = 0.5
SKEWED = 0.25
"""Any loss that does not depend on a shift of the logits gives the label half of all weights. A head that
leaves it less than half of that, or the others less than half of theirs, is named."""

PILE = 1e-3
"""Share of the range of all outputs within which an output counts as lying at a bound."""

UNDONE = (
    "Every attacker of this spec attacks the values before it. The rows 'undefended' and 'transfer' do not:"
    " their attack has the gradient of the outputs."
)
"""What is said where the remedy is in the spec."""

REMEDY = (
    "Let the classifier return the values before it, or add an attacker of them: knowledge = [...,"
    ' { name = "unsquashed", gradient = "unsquashed" }].'
)
REMEDY_OF_A_PART = "Let every part of the classifier return the values before it, and average those."
"""What helps against a head that squashes, and against one that is averaged with others."""


@checks.add(
    "saturated_loss",
    stage="model",
    expects="the loss's gradient is not lost in rounding",
    remedy='Attack a loss of the logits (options = { loss = "margin" }) or divide the logits.',
)
def saturated_loss(probe: Probe) -> list[Flag]:
    """Flags logits so large that the gradient of the cross-entropy is lost in rounding.

    A step along the gradient as an attack gets it is compared with a step along J^T (p - e_y), where the
    softmax p is computed in float64 and the difference scaled to length 1 before the backward pass, so that
    nothing underflows. What counts is the rise of the loss to first order.

    Source:
        Carlini & Wagner 2017 (arXiv:1608.04644), section V: why defensive distillation seems to work.
    """
    found = slopes(probe)
    if found is None:
        return []
    logits, exact = found.logits, found.exact
    grad = torch.zeros_like(exact) if found.loss is None else found.loss
    best = (probe.threat.steepest(exact) * exact).flatten(1).sum(1)
    rise = (probe.threat.steepest(grad) * exact).flatten(1).sum(1)
    judged = (logits.argmax(1) == probe.y) & (best > 0)
    lost = judged & ~(rise >= USEFUL_STEP * best)
    if not bool(lost.any()):
        return []
    count, of = int(lost.sum()), int(judged.sum())
    margins = logits.detach().sort(dim=1).values[lost][:, -2:].diff(dim=1)
    message = (
        f"For {count} of {of} images the gradient of the cross-entropy is lost in rounding: the label's logit"
        f' leads by up to {float(margins.max()):.3g}. Use a loss of the logits (options = {{ loss = "margin"'
        " }) or divide the logits."
    )
    return [Flag("saturated_loss", "error" if count > LOST_SHARE * of else "warning", message)]


@checks.add(
    "squashed_outputs",
    stage="model",
    expects="the outputs are not squashed into a range in which attacks stall",
    remedy="Let the classifier return the values before the head, or add an attacker of them ('unsquashed').",
)
def squashed_outputs(probe: Probe) -> list[Flag]:
    """Flags a head that is so flat for the label or for all others that their gradient is lost.

    With z the values before the head, s the outputs and the loss a cross-entropy, the weights of the rows of
    dz/dx in the gradient are q = (ds/dz)^T (softmax(s) - e_y). If s = a z + b, whatever a and b are for an
    image, they add up to 0 and the label's is half of the sum of their sizes. Inverted images help to find z.

    Source:
        Carlini & Wagner 2017 (arXiv:1608.04644), section V: a saturated output has no gradient to follow.
    """
    x, y = probe.x, probe.y
    plan = probe.noise.rows(torch.arange(len(x)).repeat(2))
    model, both = _behind_purification(probe)
    heads = heads_of(lambda: model(both, noise=plan))
    if not heads:
        return _piled_up(repeated(probe, 1)[0], y)
    right = heads[0].outputs[: len(x)].argmax(dim=1) == y
    found: list[Flag] = []
    for number, head in enumerate(heads):
        weights = head.weights(softmax_error(head.outputs, y.repeat(2)))[: len(x)][right].double().abs()
        found += _flattened(
            head,
            weights,
            y[right],
            partial(heading_module, model, both, plan, head.values),
            REMEDY_OF_A_PART if number else REMEDY,
        )
        if found and not number:
            break
    errors = [flag for flag in found if flag.severity == "error"]
    return (errors or found)[-1:] or _piled_up(heads[0].outputs[: len(x)], y)


def _behind_purification(probe: Probe) -> tuple[RandomisedClassifier, Tensor]:
    """What may have a head, and the probe's and the inverted images (2B, C, H, W) as it gets them.

    Behind a diffusion chain that is the classifier alone, which is cheap: no graph of the chain is needed.
    """
    model, inverted = probe.model, 1 - probe.x
    images = purified(probe) if isinstance(model, PurifiedClassifier) else None
    if images is None or not isinstance(model, PurifiedClassifier):
        return model, torch.cat([probe.x, inverted])
    with torch.no_grad():
        return Undefended(model.classifier), torch.cat([images, model.purifier(inverted, noise=probe.noise)])


def _flattened(head: Head, weights: Tensor, y: Tensor, culprit: Callable[[], str], remedy: str) -> list[Flag]:
    """A flag if the label or all others have hardly any of the weights (B, K) of a head's values."""
    label = weights.gather(1, y[:, None])[:, 0]
    lost = ~(label > LOST * weights.amax(dim=1))
    share = label / weights.sum(dim=1).clamp_min(1e-300)
    skewed = (share - FAIR).abs() > FAIR - SKEWED
    if not head.operations or int(skewed.sum()) * 2 <= len(weights):
        return []
    what = (
        f"For {int(lost.sum())} of {len(lost)} images the label's derivative is lost in rounding"
        if bool(lost.any())
        else f"The label has {float(share.median()):.1%} of the gradient's weights where logits give it 50%"
    )
    named = culprit()
    message = (
        f"{what}: values of {float(head.values.amin()):.3g} to {float(head.values.amax()):.3g} are squashed"
        f" to outputs of {float(head.outputs.amin()):.3g} to {float(head.outputs.amax()):.3g}"
        f" {f'in {named}' if named else f'by {head.operations[0]}'}. {remedy}"
    )
    severe = int(lost.sum()) > LOST_SHARE * len(weights)
    return [Flag("squashed_outputs", "error" if severe else "warning", message)]


def undone(flags: Sequence[Flag]) -> list[Flag]:
    """Returns the flags for a spec whose attackers all attack the values before the head."""
    return [
        f._replace(severity="warning", message=f.message.replace(REMEDY, UNDONE))
        if f.name == "squashed_outputs" and REMEDY in f.message
        else f
        for f in flags
    ]


def _piled_up(outputs: Tensor, y: Tensor) -> list[Flag]:
    """A flag if most outputs lie at the two ends of their range although they move; log-probabilities may."""
    live = outputs.amax(dim=0) > outputs.amin(dim=0)
    if int(live.sum()) < 2 or float(outputs.logsumexp(dim=1).abs().max()) < 1e-3:
        return []
    low, high = outputs[:, live].amin(), outputs[:, live].amax()
    ends = torch.minimum(outputs - low, high - outputs) <= PILE * (high - low)
    share = float(ends[:, live].double().mean())
    if share <= 0.5:
        return []
    label = ends.gather(1, y[:, None])[outputs.argmax(dim=1) == y]
    severe = int(label.sum()) > LOST_SHARE * len(y)
    message = (
        f"{share:.0%} of the outputs lie within {PILE:.1%} of the ends of their range, {float(low):.3g} to"
        f" {float(high):.3g}, where they are flat and an attack has no gradient to follow. {REMEDY}"
    )
    return [Flag("squashed_outputs", "error" if severe else "warning", message)]
