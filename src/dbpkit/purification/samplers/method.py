"""What a registered sampler consists of, and the parts that samplers share."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import call_with_options, checked_options
from dbpkit.foundation.registry import Registry
from dbpkit.foundation.types import Sampler
from dbpkit.models.schedule import discrete_levels

samplers: Registry["Method"] = Registry("sampler")

REVERSE_SITES = frozenset({"reverse", "churn", "corrector"})
"""Noise sites of the way back from t*."""


def unscaled(sigma: float) -> float:
    """The scale of samplers whose state is ``x0 + sigma * z`` itself: 1."""
    del sigma
    return 1.0


@dataclass(frozen=True)
class Method:
    """A sampler with its published grid of noise levels.

    Attributes:
        sample: the algorithm.
        levels: ``levels(t_star, steps, **grid)`` gives its noise levels, the last one 0.
        clamps: whether the published pipeline clips the purified image to the pixel range.
        sites: noise sites it draws from, given its options.
        scale: a state at level sigma is ``scale(sigma) * (x0 + sigma * z)``.
    """

    sample: Callable[..., Tensor]
    levels: Callable[..., Tensor] = discrete_levels
    clamps: bool = True
    sites: Callable[[Mapping[str, Any]], frozenset[str]] = field(
        default=lambda _: frozenset({"forward", "reverse"})
    )
    scale: Callable[[float], float] = unscaled

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.sample.__doc__)  # `dbpkit list` shows the algorithm's


class BoundSampler(NamedTuple):
    """A sampler with its options and levels filled in.

    Attributes:
        sample: called as ``sample(denoiser, x, levels, noise=..., step=...)``.
        levels: (calls + 1,) float64, decreasing to 0.
        clamps: whether the purified image is clipped to the pixel range.
        sites: noise sites it draws from.
        scale: a state at level sigma is ``scale(sigma) * (x0 + sigma * z)``.
    """

    sample: Sampler
    levels: Tensor
    clamps: bool
    sites: frozenset[str]
    scale: Callable[[float], float] = unscaled


def make_sampler(
    name: str,
    t_star: float = 0.1,
    steps: int = 1000,
    options: Mapping[str, Any] | None = None,
    grid: Mapping[str, Any] | None = None,
) -> BoundSampler:
    """Binds a sampler to its levels and options.

    Args:
        name: registered name, or import path of a `Method` or of a plain sampler function.
        t_star: diffusion time where purification starts, in (0, 1).
        steps: S of the sampler's published grid.
        options: keyword arguments of the algorithm (``eta``, ``variance``, ``clip``, ...).
        grid: further keyword arguments of the grid (``sigma_max``, ...).

    Raises:
        UserError: if a name or an option is unknown, or the levels do not decrease to 0.
    """
    found: Any = samplers.resolve(name)
    method = (
        found if isinstance(found, Method) else Method(found, sites=lambda _: REVERSE_SITES | {"forward"})
    )
    given = list(inspect.signature(method.sample).parameters)[:3]  # denoiser, image, levels
    options = checked_options(method.sample, options or {}, f"sampler '{name}'", (*given, "noise", "step"))
    if not isinstance(grid or {}, Mapping):
        raise UserError(f"the grid of sampler '{name}' must be a table of names and values.")
    for reserved in ("t_star", "steps"):
        if reserved in (grid or {}):
            raise UserError(
                f"the grid of sampler '{name}' has no option '{reserved}'. Give it beside the grid."
            )
    settings = {"t_star": t_star, "steps": steps, **(grid or {})}
    levels = call_with_options(method.levels, settings, f"the grid of sampler '{name}'")
    check_levels(levels, name)
    return BoundSampler(
        partial(method.sample, **options), levels, method.clamps, method.sites(options), method.scale
    )


def check_levels(levels: Tensor, name: str) -> None:
    """Raises UserError unless ``levels`` (S + 1,) decrease strictly to 0."""
    if (
        levels.ndim != 1
        or len(levels) < 2
        or bool((levels[1:] >= levels[:-1]).any())
        or float(levels[-1]) != 0
    ):
        raise UserError(f"sampler '{name}': noise levels must decrease strictly to 0, got {levels.tolist()}.")


def diffuse(x: Tensor, sigma: Tensor, noise: NoisePlan) -> Tensor:
    """Noises images (B, C, H, W) to level ``sigma`` with the plan's ``forward`` draw: x + sigma z."""
    return x + float(sigma) * noise.normal("forward", 0, x)


def level(sigma: float, x: Tensor) -> Tensor:
    """A noise level for a denoiser, on the device of ``x`` and in at least single precision.

    In half precision 41 of the 1,000 levels of the DDPM schedule are taken for a neighbour.
    """
    return torch.full((), sigma, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)


def clipped(x0: Tensor, clip: bool) -> Tensor:
    """The clean estimate, limited to the pixel range [-1, 1] if ``clip``; gradients flow through the clip."""
    return x0.clamp(-1, 1) if clip else x0
