"""Samplers of the older contract: one function that runs all of its steps through a hook it is given.

They still work, by import path and registered. A function cannot say how many steps it will make, so steps
beyond one per noise level are always run again in the backward pass, and its state is one tensor.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dbpkit.foundation.errors import UserError, shown
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.types import Denoiser, State, StepHook
from dbpkit.models.schedule import discrete_levels
from dbpkit.purification.samplers.chain import REVERSE_SITES, Chain


def unscaled(sigma: float) -> float:
    """The scale of samplers whose state is ``x0 + sigma * z`` itself: 1."""
    del sigma
    return 1.0


@dataclass(frozen=True)
class Method:
    """A sampler function with its published grid of noise levels; new samplers are a `Chain`.

    Attributes:
        sample: ``sample(denoiser, x, levels, *, noise, step, **options)`` returns the purified images;
            ``step(function, x)`` returns ``function(x)`` and must be used for every step.
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

    @property
    def given(self) -> tuple[str, ...]:
        """Parameters of the function that are not options."""
        return (*list(inspect.signature(self.sample).parameters)[:3], "noise", "step")


@dataclass(frozen=True, eq=False)
class FunctionSampler(Chain):
    """A sampler function with its levels and options filled in.

    Attributes:
        method: the function and what it says of itself.
        options: keyword arguments of the function.
        own_levels: its levels as its grid gave them, (S + 1,).
    """

    method: Method
    options: Mapping[str, Any]
    own_levels: Tensor

    def __post_init__(self) -> None:
        """Leaves the options alone: they are the function's."""

    @property
    def sites(self) -> frozenset[str]:
        """Noise sites it says that it draws from."""
        return self.method.sites(self.options)

    @property
    def clamps(self) -> bool:
        """Whether its pipeline clips the purified image."""
        return self.method.clamps

    def start(self, x: Tensor, noise: NoisePlan) -> State:
        """Returns the images themselves: the function noises them."""
        return (x,)

    def step(self, denoiser: Denoiser, state: State, i: int, noise: NoisePlan) -> State:
        """Refuses: the function makes its steps by itself, see `sample`."""
        raise UserError("the steps of a sampler function cannot be taken one by one. Write it as a Chain.")

    def sample(self, denoiser: Denoiser, x: Tensor, noise: NoisePlan, hook: StepHook) -> Tensor:
        """Runs the function on images (B, C, H, W) in [-1, 1], each of its steps through the hook."""

        def step(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
            return hook(lambda state: (function(*state),), (x,))[0]

        return self.method.sample(denoiser, x, self.own_levels, noise=noise, step=step, **self.options)

    def scale(self, sigma: Any) -> Any:
        """Returns what a state at level ``sigma`` is of ``x0 + sigma * z``."""
        return self.method.scale(sigma)


def as_method(part: Any, name: str) -> Method:
    """Returns the `Method` of a function that was named as a sampler, which draws from any site.

    Raises:
        UserError: if it is not a function.
    """
    if isinstance(part, type) or not callable(getattr(part, "sample", part)):
        raise UserError(
            f"sampler '{name}' must be a class derived from dbpkit.purification.samplers.Chain, not"
            f" {shown(part)}."
        )
    warnings.warn(
        f"sampler '{name}' is a function that calls its step hook; derive it from"
        " dbpkit.purification.samplers.Chain instead.",
        DeprecationWarning,
        stacklevel=3,
    )
    return part if isinstance(part, Method) else Method(part, sites=lambda _: REVERSE_SITES | {"forward"})
