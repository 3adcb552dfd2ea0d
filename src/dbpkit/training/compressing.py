"""Training for compression: what a short purification leaves of a displacement, at noise that is fixed.

At fixed noise a purifier is a map f, and the law of compression says that robustness follows from how much
it shrinks displacements: ||f(x + delta) - f(x)|| / ||delta||. The objectives of this file make that quantity
small, beside the denoising loss that keeps the network a denoiser, with gradients of the weights through a
whole short chain. The thing people get wrong: other noise on the two paths; the difference is then that of
two draws.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.nn import functional

from dbpkit.data import Dataset
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.frozen import own_device
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count, Length, NonNegative, Share
from dbpkit.purification.driver import drive
from dbpkit.purification.samplers import Chain, make_sampler
from dbpkit.training.objectives import Batch, Denoising, Part, named, objectives
from dbpkit.training.perturb import frozen, search_gradient

Map = Callable[[nn.Module, Tensor], Tensor]
"""f(model, x): images (B, C, H, W) in [-1, 1] at fixed noise; twice as many are the same examples again."""

TAPES = (1, 2)
"""Branches of an example's noise that chains draw from; the denoising loss has the trunk."""

MEASURED = 100
"""Test images whose term is a figure of the finished model."""


def shrinkage(purified: Tensor, displaced: Tensor, delta: Tensor) -> Tensor:
    """Squared shrinkage ||f(x + delta) - f(x)||**2 / ||delta||**2, (B,), of f(x), f(x + delta) and delta."""
    length = delta.flatten(1).square().sum(dim=1)
    return (displaced - purified).flatten(1).square().sum(dim=1) / length.clamp(min=1e-12)


@dataclass(frozen=True)
class ThroughChain(Denoising):
    """The denoising loss, and ``weight`` times a term that is measured through a short chain.

    Attributes:
        weight: of the term.
        sampler: of the chain: registered name, or name and options.
        t_star: diffusion time where the chain starts, in (0, 1).
        steps: S of the sampler's published grid; 20 makes three calls of ``ddim`` at t* = 0.1.
    """

    weight: NonNegative = 1.0
    sampler: Part = "ddim"
    t_star: Share = 0.1
    steps: Count = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        chain = self.chain()  # a mistaken name or option is found before training
        if getattr(chain, "variance", None) == "learned":
            raise UserError('objective_options.sampler: variance "learned" is not trained. Use "small".')

    def chain(self, model: Any = None) -> Chain:
        """Returns the sampler, on the levels of a denoiser that has a table of its own."""
        spec = named(self.sampler, "sampler")
        table = getattr(model, "discrete_levels", None)
        return make_sampler(spec.name, self.t_star, self.steps, spec.options, table=table)

    def purified(self, model: nn.Module, x: Tensor, noise: NoisePlan) -> Tensor:
        """Purifies images (B, C, H, W) in [-1, 1]; with weights that are trained, and every graph is kept."""
        chain = self.chain(extract_model_from_parallel(model))

        def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
            return model(x, sigma).to(x.dtype)  # autocast may have lowered it

        x0 = drive(chain, denoiser, x, noise)
        return x0.clamp(-1, 1) if chain.clamps else x0

    @abstractmethod
    def term(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns what is made small beside the denoising loss, of every image; (B,)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the denoising loss plus weight times the mean of the term; scalar."""
        return super().loss(model, batch) + self.weight * self.term(model, batch).mean()

    def check(self, model: nn.Module, data: Dataset, trained: bool) -> None:
        """Raises UserError unless the parts fit, or if dropout would differ between the two paths."""
        if any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in model.modules()):
            raise UserError(
                "the network drops units at random, other ones on each of two paths whose difference is"
                " trained. Set dropout = 0.0."
            )
        super().check(model, data, trained)

    def evaluate(self, model: nn.Module, data: Dataset, seed: int) -> dict[str, Any]:
        """Returns the figures of a denoiser, and the mean term of 100 test images (unmirrored)."""
        few = data.select(slice(0, MEASURED))
        device = own_device(model)
        noise = NoisePlan.of(seed, few.ids, "report")
        plain = Batch(few.x().to(device), few.labels.to(device), noise)
        term = float(self._unmirrored().term(model, plain).mean())
        return super().evaluate(model, data, seed) | {"term": {"images": len(few), "mean": term}}

    def _unmirrored(self) -> "ThroughChain":
        """The same objective without mirroring; the guide is not loaded again."""
        made = replace(self, flip=False)
        made.__dict__["_guide"] = self._guide
        return made


@objectives.register("compress")
@dataclass(frozen=True)
class Compress(ThroughChain):
    """Denoising, and squared shrinkage of an adversarial displacement through a short chain at fixed noise.

    The displacement is found by sign ascent, from a random start within the budget, on the guide's
    cross-entropy of the purified image at that very noise; denoiser and guide are frozen meanwhile.

    Attributes:
        eps: Linf radius of the displacement in [0, 1] pixel units.
        step_size: length of a step of the ascent in [0, 1] pixel units.
        iterations: steps of the ascent.
        through: ``"chain"``, or ``"call"``: f is one call of the denoiser at the noise of the denoising loss,
            whose call is then that of the path without a displacement; sampler, t_star and steps say nothing.
        as_error: whether, with ``"call"``, what is left of the displacement counts as an error of the
            estimate does: its mean square, times the weight of its level, instead of the squared shrinkage.

    Source:
        The quantity is the adversarial compression rate of Liu & Wei 2025 (arXiv:2505.22839), squared; the
        objective is this package's own.
    """

    eps: Length = 4 / 255
    step_size: Length = 3 / 255
    iterations: Count = 2
    through: Literal["chain", "call"] = "chain"
    as_error: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.as_error and self.through == "chain":
            raise UserError(
                'as_error weighs by the level of one call. Set through = "call", or leave it out.'
            )
        if self.guide is None:
            raise UserError("objective 'compress' is guided by a classifier. Set objective_options.guide.")

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the denoising loss plus weight times the mean squared shrinkage; scalar."""
        if self.through == "chain":
            return super().loss(model, batch)
        x0, sigma, noise = self.noised(model, batch)
        one_call = self._call(sigma, noise)
        purified, shrunk, delta = self._shrunk(one_call, model, batch)
        if self.as_error:
            shrunk = shrunk * self._levels.weight(sigma) * delta.square().flatten(1).mean(dim=1)
        return self.error(purified, x0, sigma) + self.weight * shrunk.mean()

    def term(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns ||f(x + delta) - f(x)||**2 / ||delta||**2 at the noise of each image; (B,)."""
        if self.through == "chain":
            return self._shrunk(self._chain(batch), model, batch)[1]
        _, sigma, noise = self.noised(model, batch)
        return self._shrunk(self._call(sigma, noise), model, batch)[1]

    def _chain(self, batch: Batch) -> Map:
        """The whole chain at the noise of each image's first tape."""
        noise = batch.noise.branch(TAPES[0])

        def f(model: nn.Module, x: Tensor) -> Tensor:
            rows = list(range(len(noise))) * (len(x) // len(noise))
            return self.purified(model, x, noise.rows(rows))

        return f

    def _call(self, sigma: Tensor, noise: Tensor) -> Map:
        """One call of the denoiser at the noise and the noise levels (B,) of the denoising loss."""

        def f(model: nn.Module, x: Tensor) -> Tensor:
            again = len(x) // len(noise)
            levels, z = sigma.repeat(again), noise.repeat(again, 1, 1, 1)
            return model(x + levels[:, None, None, None] * z, levels).to(x.dtype)

        return f

    def _shrunk(self, f: Map, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The purified images f(x), squared shrinkage (B,) of a displacement, and the displacement found."""
        x, delta = self.images(batch), self.displacement(f, model, batch)
        purified, displaced = f(model, torch.cat([x, x + delta])).chunk(2)  # one call for both paths
        return purified, shrinkage(purified, displaced, delta), delta

    def displacement(self, f: Map, model: nn.Module, batch: Batch) -> Tensor:
        """Returns delta (B, C, H, W), in units of [-1, 1]: within the budget, and x + delta in the range."""
        assert self._guide is not None
        x, eps = self.images(batch), 2 * self.eps
        bare = extract_model_from_parallel(model)  # a search must not wait for the other processes
        start = 2 * batch.noise.branch(TAPES[0]).uniform("start", 0, x) - 1
        delta = _within(eps * start, x, eps)
        with frozen(bare, self._guide):
            for _ in range(self.iterations):
                delta.requires_grad_()
                with torch.enable_grad():
                    logits = self._guide(f(bare, x + delta) / 2 + 0.5)
                    loss = functional.cross_entropy(logits.to(x.dtype), batch.y, reduction="sum")
                ascent = search_gradient(loss, delta, batch.expect).sign()
                delta = _within(delta.detach() + 2 * self.step_size * ascent, x, eps)
        return delta


@objectives.register("consistency")
@dataclass(frozen=True)
class Consistency(ThroughChain):
    """Denoising, and squared distance of two purifications of the same image at two tapes of noise.

    The distance is per value and in units of twice the variance of the noise that the chain starts from, the
    distance of the two noised images: it is the squared shrinkage of the difference of two draws.
    """

    def term(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns mean (f(x, tape 1) - f(x, tape 2))**2 / (2 sigma**2) of every image; (B,)."""
        x = self.images(batch)
        one, two = (self.purified(model, x, batch.noise.branch(tape)) for tape in TAPES)
        start = self.chain(extract_model_from_parallel(model)).levels[0]
        return (one - two).square().flatten(1).mean(dim=1) / (2 * start**2)


def _within(delta: Tensor, x: Tensor, eps: float) -> Tensor:
    """The displacement within the budget, and such that the image stays in [-1, 1]."""
    return (x + delta.clamp(-eps, eps)).clamp(-1, 1) - x
