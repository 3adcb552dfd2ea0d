"""A plain implementation of what published code for diffusion-based purification does. Not part of dbpkit.

Written for these benchmarks, to compare with; it is nobody's code. It has the four habits that are common:

1. weights are not frozen: ``loss.backward()`` computes and stores their gradients, which nobody uses;
2. every step of the chain is a `torch.utils.checkpoint`, whatever memory there is;
3. of an expectation over transformations (EoT) one draw of the images at a time goes through the networks;
4. images are brought to the host inside the loop, to be looked at or saved.

It computes the same function on the same noise as `dbpkit.Purifier` with the sampler ``ddpm``, which is
checked wherever the two are timed. The noise is drawn before the time is taken: it costs this code nothing.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from benchmarks.subjects import Subject
from dbpkit import NoisePlan, Purifier


class PlainPurification:
    """Noises images to t* and walks back, one checkpoint per step.

    Args:
        one: its denoiser is used, and its weights are no longer frozen inside `trainable`.
        purifier: says the noise levels.
        noise: plan of the images' noise.
        x: gives the shape.
    """

    def __init__(self, one: Subject, purifier: Purifier, noise: NoisePlan, x: Tensor) -> None:
        self.denoiser = one.denoiser
        self.levels = purifier.sampler.levels
        self.first = noise.normal("forward", 0, x)
        self.z = [noise.normal("reverse", i, x) for i in range(len(self.levels) - 2)]
        self.seen: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        """Purifies images (B, C, H, W) in [0, 1]."""
        state = 2 * x - 1 + self.levels[0] * self.first
        self.seen.clear()
        for i in range(len(self.levels) - 1):
            if torch.is_grad_enabled():
                state = checkpoint(self._step, state, i, use_reentrant=False)
            else:
                state = self._step(state, i)
            self.seen.append(state.detach().to("cpu", copy=True))
        return ((state + 1) / 2).clamp(0, 1)

    def _step(self, state: Tensor, i: int) -> Tensor:
        """One ancestral step of DDPM (Ho et al. 2020, eq. 7) in sigma coordinates."""
        sigma, after = self.levels[i : i + 2]
        level = torch.full((len(state),), sigma, dtype=state.dtype, device=state.device)
        x0 = self.denoiser(state, level).clamp(-1, 1)
        if after == 0:
            return x0
        keep = (after / sigma) ** 2
        std = math.sqrt((1 + after**2) * (sigma**2 - after**2) / (1 + sigma**2))
        return x0 + keep * (state - x0) + std * self.z[i]


class Trainable:
    """Weights that are not frozen, inside the block; frozen again and without gradients afterwards."""

    def __init__(self, *modules: nn.Module) -> None:
        self.parameters = [p for m in modules for p in m.parameters()]

    def __enter__(self) -> None:
        for p in self.parameters:
            p.requires_grad_(True)

    def __exit__(self, *_: object) -> None:
        for p in self.parameters:
            p.requires_grad_(False)
            p.grad = None


def plain_gradient(one: Subject, purifications: Sequence[PlainPurification]) -> Tensor:
    """The gradient of the cross-entropy, averaged over the purifications' draws, one draw at a time."""
    total = torch.zeros(one.x.shape, dtype=one.x.dtype)
    with Trainable(one.denoiser, one.classifier):
        for purify in purifications:
            leaf = one.x.clone().requires_grad_()
            loss = functional.cross_entropy(one.classifier(purify(leaf)), one.y, reduction="sum")
            loss.backward()
            assert leaf.grad is not None
            total += leaf.grad.cpu()
            for p in (*one.denoiser.parameters(), *one.classifier.parameters()):
                p.grad = None
    return (total / len(purifications)).to(one.x)


def draws(one: Subject, purifier: Purifier, eot: int) -> list[PlainPurification]:
    """The purifications of every draw that `dbpkit` makes of an expectation over ``eot`` draws."""
    plan = one.noise.repeat(eot)
    rows: Iterable[slice] = (slice(r, None, eot) for r in range(eot))
    return [PlainPurification(one, purifier, plan.rows(row), one.x) for row in rows]


def apart(a: Tensor, b: Tensor) -> float:
    """How far two gradients are apart: the norm of the difference over the norm of the first."""
    return float((a - b).norm() / a.norm())
