"""Random directions around images, and what a purifier leaves of a step along them.

CR = ||f(x + delta) - f(x)|| / ||delta|| with the same noise in both; f(x) is the anchor. The same seed would
not do: each tape's noise belongs to its example.

Source:
    Liu & Wei 2025 (arXiv:2505.22839), compression rate.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from dbpkit.analyses.analysis import Subject
from dbpkit.foundation.noise import NoisePlan
from dbpkit.threats.pixels import typical_length

TINY = 1e-12
"""Keeps the direction of a zero gradient from being nan."""

Kind = Literal["gaussian", "uniform", "sign"]
RANDOM: tuple[Kind, ...] = get_args(Kind)
"""How a random direction is drawn."""


def lengths(x: Tensor) -> Tensor:
    """Euclidean lengths (B,) of images or perturbations (B, ...)."""
    return x.flatten(1).norm(dim=1)


def along(size: Tensor | float, direction: Tensor) -> Tensor:
    """Steps of sizes (B,), or of one size, along directions (B, C, H, W)."""
    if isinstance(size, Tensor):
        size = size.to(direction)[:, None, None, None]
    return size * direction


def budget_length(subject: Subject, x: Tensor) -> Tensor:
    """Typical Euclidean length (B,) of a perturbation of the budget at images ``x``, float64."""
    return typical_length(subject.parts.threat, x)


def unit_direction(kind: Kind, noise: NoisePlan, x: Tensor) -> Tensor:
    """Random unit directions (B, C, H, W), from the plan's ``probe`` site."""
    z = noise.normal("probe", 0, x)
    if kind == "sign":
        z = z.sign()
    if kind == "uniform":
        z = 2 * noise.uniform("probe", 1, x) - 1
    return z / lengths(z)[:, None, None, None]


def compression_rate(
    subject: Subject,
    x: Tensor,
    anchor: Tensor,
    noise: NoisePlan,
    kind: Kind = "gaussian",
    size: Tensor | float = 1.0,
    directions: int = 2,
) -> Tensor:
    """||f(x + delta) - f(x)|| / ||delta|| at fixed noise, mean over random directions; forward passes only.

    Args:
        subject: gives the purifier f.
        x: images (B, C, H, W) in [0, 1].
        anchor: f(x) under the same noise.
        noise: the tape of the B examples.
        kind: of direction.
        size: Euclidean lengths (B,) of delta, or one for all, in pixel units.
        directions: random directions per example.

    Returns:
        Rates (B,), >= 0.
    """
    rates = []
    for which in range(directions):
        delta = along(size, unit_direction(kind, noise.on("control").in_lane(which), x))
        rates.append(lengths(subject.purify(x + delta, noise) - anchor) / lengths(delta))
    return torch.stack(rates).mean(0)
