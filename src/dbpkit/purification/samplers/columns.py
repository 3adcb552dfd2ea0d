"""Arithmetic of noise levels that are one number for all images, or a column (B, 1, 1, 1) with one of each.

A number stays a number of Python, in double precision, so that what is computed from it does not depend on
the type of the images. The thing people get wrong: `math` with a column.
"""

import math

import torch
from torch import Tensor

Level = float | Tensor
"""A noise level: one number, or a column (B, 1, 1, 1)."""


def is_clean(sigma: Level) -> bool:
    """Returns whether nothing is left of the noise; the last level is a number in any case."""
    return not isinstance(sigma, Tensor) and sigma == 0


def root(value: Level) -> Level:
    """Returns the square root; of a column's value that rounding took below 0 it is 0."""
    return value.clamp(min=0).sqrt() if isinstance(value, Tensor) else math.sqrt(value)


def logarithm(value: Level) -> Level:
    """Returns the natural logarithm."""
    return value.log() if isinstance(value, Tensor) else math.log(value)


def plus(x: Tensor, y: Tensor, factor: Level) -> Tensor:
    """Returns ``x + factor * y`` of two tensors (B, C, H, W)."""
    return x + factor * y if isinstance(factor, Tensor) else torch.add(x, y, alpha=factor)


def within(value: Level, low: float, high: float) -> Level:
    """Returns 1 where ``low <= value <= high``, and 0 elsewhere."""
    if isinstance(value, Tensor):
        return ((value >= low) & (value <= high)).to(value.dtype)
    return float(low <= value <= high)
