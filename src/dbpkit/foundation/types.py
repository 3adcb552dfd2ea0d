"""The shapes and protocols that the layers agree on; nothing here computes.

Axes: B batch, C H W image, K classes, R draws.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

from dbpkit.foundation.noise import NoisePlan


class Denoiser(Protocol):
    """The one question every diffusion network answers: which clean image is under this noise?"""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Estimates the clean image.

        Args:
            x: noisy images ``x0 + sigma * z`` with x0 in [-1, 1], (B, C, H, W).
            sigma: noise levels > 0, (B,) or a scalar, in units of the [-1, 1] range.

        Returns:
            Estimate of x0, (B, C, H, W), not clipped.
        """
        ...


State = tuple[Tensor, ...]
"""What a sampler carries from one step to the next: tensors whose first axis is the batch."""

StepHook = Callable[[Callable[[State], State], State], State]
"""``hook(step, state)`` returns ``step(state)``; it decides what is kept for the backward pass."""


class Sampler(Protocol):
    """Purifies images in steps; `dbpkit.purification.driver` takes them."""

    @property
    def steps(self) -> int:
        """How many steps one purification takes, at least 1."""
        ...

    def start(self, x: Tensor, noise: NoisePlan) -> State:
        """Returns the state before the first step, from images (B, C, H, W) in [-1, 1]."""
        ...

    def step(self, denoiser: Denoiser, state: State, i: int, noise: NoisePlan) -> State:
        """Returns the state after step ``i`` = 0, 1, ...; a function of its arguments alone."""
        ...

    def finish(self, state: State) -> Tensor:
        """Returns the purified images (B, C, H, W) of the last state, in [-1, 1] units and not clipped."""
        ...


class RandomisedClassifier(Protocol):
    """A classifier whose randomness is an argument. Attacks know nothing else of what they attack."""

    def __call__(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        """Returns logits (B, K) of images (B, C, H, W) in [0, 1], differentiable in ``x``."""
        ...


@runtime_checkable
class Traced(Protocol):
    """What a randomised classifier may tell an attack besides its logits; optional."""

    def traced(self, x: Tensor, *, noise: NoisePlan) -> tuple[Tensor, Tensor]:
        """Returns logits (B, K) and how far the purification strays from its forward states, (B,) >= 0.

        Both are differentiable in ``x``; the logits are those of the call without this method.
        """
        ...
