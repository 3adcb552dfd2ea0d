"""Losses: what an attack maximises, as functions of logits and labels."""

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional

from dbpkit.foundation.errors import UserError
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
    check_classes(y, logits)
    return functional.cross_entropy(logits, y, reduction="none")


@losses.register("margin")
def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest other logit minus the label's, (B,); positive where misclassified.

    Source:
        Carlini & Wagner 2017 (arXiv:1608.04644), f6 without the floor.
    """
    check_classes(y, logits)
    label = functional.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(label, -torch.inf).amax(dim=1) - logits[label]


def check_classes(y: Tensor, logits: Tensor) -> None:
    """Raises UserError if a label (B,) or (B, n) has no logit (B, K)."""
    if not y.is_floating_point() and int(y.max()) >= logits.shape[1]:
        raise UserError(
            f"the model has {logits.shape[1]} classes, but the labels go up to {int(y.max())}. Use a"
            " classifier trained on this data."
        )
