"""Losses: what an attack maximises, as functions of logits and labels."""

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.later import refuse, waits
from dbpkit.foundation.options import Named
from dbpkit.foundation.registry import Registry

losses: Registry["Loss"] = Registry("loss")

Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(logits, y)`` of logits (B, K) is (B,); ``y`` is (B,), or (B, n) where the label is not enough."""

LossName = Annotated[str, Named(losses)]
"""An option that names a registered loss."""


@losses.register("ce")
def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of logits (B, K) with labels (B,); (B,)."""
    return functional.cross_entropy(logits, check_classes(y, logits), reduction="none")


@losses.register("margin")
def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest other logit minus the label's, (B,); positive where misclassified.

    Source:
        Carlini & Wagner 2017 (arXiv:1608.04644), f6 without the floor.
    """
    own = check_classes(y, logits)[:, None]
    label = torch.arange(logits.shape[1], device=y.device) == own
    return logits.masked_fill(label, -torch.inf).amax(dim=1) - logits.gather(1, own)[:, 0]


def check_classes(y: Tensor, logits: Tensor) -> Tensor:
    """Returns labels (B,) or (B, n) that all have a logit (B, K).

    Where the answer comes later, see `dbpkit.foundation.later`, labels that have none become ones that do.

    Raises:
        UserError: if a label is K or more.
    """
    if y.is_floating_point():
        return y
    classes, high = logits.shape[1], y.amax()

    def error(high: Tensor) -> UserError:
        return UserError(
            f"the model has {classes} classes, but the labels go up to {int(high)}. Use a classifier trained"
            " on this data."
        )

    refuse(high >= classes, error, high, about="classes")
    return y.clamp(0, classes - 1) if waits(y.device) else y
