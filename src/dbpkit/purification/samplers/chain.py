"""The base of all samplers: a walk down a grid of noise levels, and the parts that samplers share."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import checked_options, options_of
from dbpkit.foundation.registry import Registry
from dbpkit.foundation.types import Denoiser, State
from dbpkit.models.schedule import discrete_levels
from dbpkit.purification.samplers.columns import Level

samplers: Registry[Any] = Registry("sampler")

FORWARD_SITES = frozenset({"forward", "level"})
"""Noise sites of the way to t*: the noise, and which t*, levels and sampler where they are drawn."""

REVERSE_SITES = frozenset({"reverse", "churn", "corrector"})
"""Noise sites of the way back from t*."""

GIVEN = ("levels",)
"""Fields of a sampler that are not options."""


@dataclass(frozen=True)
class Chain(ABC):
    """A sampler that walks down noise levels, one step from each to the next.

    A sampler is a frozen dataclass derived from this one. Its fields are its options, and ``step`` is its
    algorithm. By default the state is one tensor, ``x0 + sigma * z``; a sampler with a memory returns more
    tensors from ``step``. Everything a step needs of an earlier one must be in the state, because exact
    gradients run steps again from their states.

    Attributes:
        levels: noise levels in [-1, 1] units, decreasing to 0; the first is where purification starts.
        grid: ``grid(t_star, steps, **options)`` gives the published levels, (S + 1,).

    A sampler whose arithmetic also takes levels that differ from image to image says ``by_row = True``: where
    t* or the grid is drawn, each of its ``levels`` above 0 is a column, (B, 1, 1, 1). The functions of
    `dbpkit.purification.samplers.columns` take both.

    Raises:
        UserError: if an option is not what its annotation says.
    """

    levels: tuple[float, ...]
    grid: ClassVar[Callable[..., Tensor]] = staticmethod(discrete_levels)
    by_row: ClassVar[bool] = False

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in options_of(type(self), GIVEN)}
        what = f"sampler {type(self).__name__}"
        for name, value in checked_options(type(self), given, what, GIVEN).items():
            object.__setattr__(self, name, value)

    @property
    def sites(self) -> frozenset[str]:
        """Noise sites it draws from; all of its randomness is there."""
        return frozenset({"forward", "reverse"})

    @property
    def clamps(self) -> bool:
        """Whether the published pipeline clips the purified image to the pixel range."""
        return True

    @property
    def generates(self) -> bool:
        """Whether it makes images of noise alone; what works on an image that is there does not."""
        return True

    @property
    def steps(self) -> int:
        """How many steps one purification takes; one from each level to the next."""
        return len(self.levels) - 1

    @property
    def calls(self) -> int:
        """Network calls of one purification; derivatives that a step takes itself are not counted."""
        return self.steps

    @property
    def highest(self) -> float:
        """The largest noise level that an image can meet."""
        return self.levels[0]

    def bound(self, noise: NoisePlan, x: Tensor) -> "Chain":
        """Returns the sampler with the levels of these images (B, C, H, W); itself where nothing is drawn."""
        del noise, x
        return self

    def on(self, levels: tuple[Any, ...]) -> Self:
        """Returns the same sampler on other levels."""
        return replace(self, levels=levels)

    def start(self, x: Tensor, noise: NoisePlan) -> State:
        """Returns the first state: images (B, C, H, W) in [-1, 1], noised to the first level."""
        return (diffuse(x, self.levels[0], noise),)

    @abstractmethod
    def step(self, denoiser: Denoiser, state: State, i: int, noise: NoisePlan) -> State:
        """Returns the state after step ``i``, from ``levels[i]`` to ``levels[i + 1]``."""

    def finish(self, state: State) -> Tensor:
        """Returns the purified images of the last state."""
        return self.image(state)

    def image(self, state: State) -> Tensor:
        """Returns the noisy images of a state, the first of its tensors."""
        return state[0]

    def scale(self, sigma: Level) -> Level:
        """Returns what the image of a state at level ``sigma`` is of ``x0 + sigma * z``; 1 by default."""
        del sigma
        return 1.0

    def place(self, i: int) -> tuple[Level, int]:
        """Returns where step ``i`` leads: a noise level, and the number of the forward draw of its round."""
        return self.levels[i + 1], 0


def diffuse(x: Tensor, sigma: Level, noise: NoisePlan) -> Tensor:
    """Noises images (B, C, H, W) to level ``sigma`` with the plan's ``forward`` draw: x + sigma z."""
    sigma = sigma if isinstance(sigma, Tensor) and sigma.ndim else float(sigma)
    noisy: Tensor = x + sigma * noise.normal("forward", 0, x)
    return noisy


def level(sigma: Level, x: Tensor) -> Tensor:
    """A level for a denoiser, (B,) of a column; on the device of ``x`` and in at least single precision.

    In half precision 41 of the 1,000 levels of the DDPM schedule are taken for a neighbour.
    """
    if isinstance(sigma, Tensor) and sigma.ndim:
        return sigma.flatten()
    return torch.full((), float(sigma), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)


def clipped(x0: Tensor, clip: bool) -> Tensor:
    """The clean estimate, limited to the pixel range [-1, 1] if ``clip``; gradients flow through the clip."""
    return x0.clamp(-1, 1) if clip else x0
