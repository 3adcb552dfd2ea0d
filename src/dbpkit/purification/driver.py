"""The one loop over a sampler's steps, and what may be watched of it.

Whatever must happen around each step is a hook: exact gradients at bounded memory are one
(`dbpkit.purification.replay.Replay`), the trace of states is another.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.types import Denoiser, Sampler, State, StepHook
from dbpkit.purification.samplers.chain import Chain
from dbpkit.purification.samplers.functions import FunctionSampler


def plainly(step: Callable[[State], State], state: State) -> State:
    """The step hook that does nothing: plain autograd keeps every graph."""
    return step(state)


def drive(
    sampler: Sampler, denoiser: Denoiser, x: Tensor, noise: NoisePlan, hook: StepHook = plainly
) -> Tensor:
    """Purifies images with a sampler.

    Args:
        sampler: says the first state, each step and the result.
        denoiser: estimates clean images.
        x: images (B, C, H, W) in [-1, 1].
        noise: plan of the same B examples.
        hook: calls each step.

    Returns:
        Purified images (B, C, H, W), not clipped.

    Raises:
        UserError: if the sampler's state is not a tuple of tensors.
    """
    if isinstance(sampler, FunctionSampler):
        return sampler.sample(denoiser, x, noise, hook)

    state = checked(sampler.start(x, noise), sampler, "start")
    for i in range(sampler.steps):

        def step(state: State, i: int = i) -> State:
            return checked(sampler.step(denoiser, state, i, noise), sampler, "step")

        state = hook(step, state)
    return sampler.finish(state)


def checked(state: State, sampler: Sampler, where: str) -> State:
    """Returns the state if it is a tuple of tensors.

    Raises:
        UserError: if it is none; a lone tensor would be taken apart by its rows.
    """
    if not isinstance(state, tuple) or not all(isinstance(x, Tensor) for x in state):
        raise UserError(
            f"{where} of sampler {type(sampler).__name__} must return a tuple of tensors, not"
            f" {type(state).__name__}. Write `return (x,)`."
        )
    return state


class Trace:
    """A step hook around another one that keeps the image of every state, for DiffAttack's deviation.

    Args:
        sampler: the sampler that is driven.
        hook: calls each step.
    """

    def __init__(self, sampler: Chain, hook: StepHook) -> None:
        self.sampler = sampler
        self.hook = hook
        self.images: list[Tensor] = []

    def __call__(self, step: Callable[[State], State], state: State) -> State:
        """Returns ``step(state)`` and keeps its image."""
        state = self.hook(step, state)
        self.images.append(self.sampler.image(state))
        return state

    def deviation(self, x: Tensor, noise: NoisePlan) -> Tensor:
        """How far the way back strays from the way there, (B,).

        Of every third state, counted from the purified image upwards, it is the mean squared difference from
        the forward state at its level, on the same draw and in the sampler's own units. In a sampler of
        several rounds all forward states are those of ``x``, on the draw of their round.

        Args:
            x: images that were purified, (B, C, H, W) in [-1, 1].
            noise: plan of the same B examples.

        Source:
            Kang et al. 2023 (DiffAttack, NeurIPS), the deviated-reconstruction loss at a third of the steps,
            taken evenly and weighted equally.
        """

        @cache
        def forward_draw(number: int) -> Tensor:
            drawn = "forward" in self.sampler.sites
            return noise.normal("forward", number, x) if drawn else torch.zeros_like(x)

        gaps = []
        for i in range(len(self.images) - 1, -1, -3):
            sigma, number = self.sampler.place(i)
            forward = self.sampler.scale(sigma) * (x + sigma * forward_draw(number))
            gaps.append((self.images[i] - forward).square().flatten(1).mean(dim=1))
        return torch.stack(gaps, dim=1).mean(dim=1)
