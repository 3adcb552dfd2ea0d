"""A check: whether the classifier is sure of everything, so that its confidence says nothing."""

import torch

from dbpkit.checks import Flag, Probe, checks

SURE = 1 - 1e-6  # of a class probability


@checks.add(
    "saturated_confidence",
    stage="model",
    expects="the classifier's confidence differs from image to image",
    remedy="Calibrate it, for example by dividing its logits by a temperature.",
)
@torch.no_grad()
def saturated_confidence(probe: Probe) -> list[Flag]:
    """Flags a classifier whose confidence on clean images is 1 up to rounding."""
    sure = probe.outputs().softmax(dim=1).amax(dim=1) > SURE
    if int(sure.sum()) * 2 <= len(probe):
        return []
    message = (
        f"The classifier is more than {SURE:.6%} sure of {int(sure.sum())} of {len(probe)} clean images."
    )
    return [Flag("saturated_confidence", "warning", message)]
