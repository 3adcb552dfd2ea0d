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


StepHook = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
"""``step(function, x)`` returns ``function(x)``; the hook decides what is kept for the backward pass."""


class Sampler(Protocol):
    """Purifies images by noising them to ``levels[0]`` and denoising down to 0."""

    def __call__(
        self, denoiser: Denoiser, x: Tensor, levels: Tensor, *, noise: NoisePlan, step: StepHook
    ) -> Tensor:
        """Purifies ``x``, (B, C, H, W) in [-1, 1] units; returns the same shape, unclipped at the end."""
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
