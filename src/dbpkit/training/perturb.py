"""Perturbed noise for fine-tuning a denoiser: CGPO, RBGM, the schedule lambda, and their controls.

Adversarial Denoising Diffusion Training (ADDT) replaces a small part of the training noise by a perturbation
that would mislead a classifier, mapped to Gaussian values. The search for it leaves no trace: both networks
are frozen and in eval mode meanwhile, and only the perturbation gets a gradient.

Source:
    Liu et al., ICLR 2025 (arXiv:2404.14309), section 5 and its training code.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import CountOrNone, Length, NonNegative, Share
from dbpkit.foundation.registry import Registry
from dbpkit.training.losses import Expect, at_once

perturbations: Registry[Any] = Registry("perturbation")


class Problem(NamedTuple):
    """What a perturbation is made for.

    Attributes:
        denoiser: the network in training.
        guide: classifier of pixels in [0, 1], or None.
        x0: clean images (B, C, H, W) in [-1, 1].
        y: labels (B,).
        sigma: noise levels (B, 1, 1, 1).
        noise: the images' noise. Site ``forward`` step 0 is the training noise, later steps are the search's;
            site ``start`` holds the values that perturbations are mapped to.
        expect: told of what must hold of the search.
    """

    denoiser: nn.Module
    guide: nn.Module | None
    x0: Tensor
    y: Tensor
    sigma: Tensor
    noise: NoisePlan
    expect: Expect = at_once

    def z(self, step: int) -> Tensor:
        """Plain noise of search step 1, 2, ..., or of the training step, 0; (B, C, H, W)."""
        return self.noise.normal("forward", step, self.x0)

    def values(self, step: int) -> Tensor:
        """Standard normals that search step ``step`` maps its gradient to; (B, C, H, W)."""
        return self.noise.normal("start", step, self.x0)

    def estimate(self, noise: Tensor) -> Tensor:
        """The one-step estimate of x0 under composite ``noise``; (B, C, H, W), not clipped."""
        estimate = self.denoiser(self.x0 + self.sigma * noise, self.sigma.flatten())
        return estimate.to(self.x0.dtype)  # autocast may have lowered it

    def classification_loss(self, noise: Tensor) -> Tensor:
        """Cross-entropy of the guide on the one-step estimate, summed over the batch."""
        if self.guide is None:
            raise UserError("this perturbation is guided by a classifier. Set objective_options.guide.")
        logits = self.guide(self.estimate(noise) / 2 + 0.5)
        return functional.cross_entropy(logits.to(self.x0.dtype), self.y, reduction="sum")


def strength(
    sigma: Tensor, lambda_unit: float = 0.03, lambda_min: float = 0.0, lambda_max: float = 0.3
) -> Tensor:
    """The share clip(lambda_unit * gamma, lambda_min, lambda_max), gamma = 1 / sigma; same shape.

    Referred to the image, the perturbation then has deviation ``lambda_unit`` at every level above
    ``lambda_unit / lambda_max``.
    """
    return (lambda_unit / sigma).clamp(lambda_min, lambda_max)


def mixed(z: Tensor, perturbation: Tensor, share: Tensor) -> Tensor:
    """The composite noise sqrt(1 - lambda**2) z + lambda perturbation; (B, C, H, W)."""
    return (1 - share**2).sqrt() * z + share * perturbation


def rank_gaussian(gradient: Tensor, z: Tensor) -> Tensor:
    """Rank-based Gaussian mapping (RBGM): the values of ``z`` in the order of ``gradient``.

    Ranks are taken within each image and channel. Equal gradients keep the order of ``z``, so that a
    constant channel maps to ``z`` itself and not to a ramp across the image.

    Args:
        gradient: (B, C, H, W), any finite values.
        z: fresh standard normals (B, C, H, W).

    Returns:
        (B, C, H, W): per image and channel, a permutation of the values of ``z``.
    """
    values, at = z.flatten(2).sort(dim=2)  # positions from the smallest z up
    order = gradient.flatten(2).gather(2, at).argsort(dim=2, stable=True)
    return torch.empty_like(values).scatter(2, at.gather(2, order), values).view_as(z)


def norm_rescaled(gradient: Tensor, z: Tensor) -> Tensor:
    """The gradient scaled to the norm of ``z``, per image; 0 where the gradient is 0."""
    exact = gradient.double()  # squares of a confident classifier's gradients vanish in float32
    norm = exact.flatten(1).norm(dim=1).clamp(min=1e-100)
    return (exact * (z.double().flatten(1).norm(dim=1) / norm)[:, None, None, None]).to(z.dtype)


def moment_matched(gradient: Tensor, z: Tensor) -> Tensor:
    """The gradient shifted and scaled to mean 0 and deviation 1, per image and channel; 0 if constant."""
    exact = gradient.double()
    centred = exact - exact.mean(dim=(2, 3), keepdim=True)
    return (centred / centred.square().mean(dim=(2, 3), keepdim=True).sqrt().clamp(min=1e-100)).to(z.dtype)


def gaussian_order(gradient: Tensor, z: Tensor) -> Tensor:
    """The values of the moment-matched gradient in the order of ``z``: adversarial values, random order."""
    return rank_gaussian(z, moment_matched(gradient, z))


@contextlib.contextmanager
def frozen(*modules: nn.Module | None) -> Iterator[None]:
    """Puts modules into eval mode without weight gradients inside the block, and back afterwards."""
    parts = [m for module in modules if module is not None for m in module.modules()]
    modes = [m.training for m in parts]
    trained = [p for m in parts for p in m.parameters(recurse=False) if p.requires_grad]
    try:
        for module in modules:
            if module is not None:
                module.eval()
        for p in trained:
            p.requires_grad_(False)
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
        for m, mode in zip(parts, modes, strict=True):
            m.training = mode


@perturbations.register("none")
@dataclass(frozen=True)
class Unperturbed:
    """No perturbation: fine-tuning on clean images."""

    needs_guide = False

    def noise(self, problem: Problem) -> Tensor:
        """Returns plain training noise; (B, C, H, W)."""
        return problem.z(0)


@perturbations.register("addt")
@dataclass(frozen=True)
class ADDT:
    """ADDT: classifier-guided (CGPO), gradients accumulated, mapped to Gaussian values by rank (RBGM).

    Attributes:
        iterations: steps of the search.
        lambda_unit: deviation of the perturbation, referred to the image, in [-1, 1] units.
        lambda_min: smallest share of the perturbation in the noise.
        lambda_max: largest share.
    """

    iterations: CountOrNone = 5
    lambda_unit: NonNegative = 0.03
    lambda_min: Share = 0.0
    lambda_max: Share = 0.3
    needs_guide = True

    def __post_init__(self) -> None:
        if self.lambda_min > self.lambda_max:
            raise UserError(
                f"lambda_min {self.lambda_min:g} is above lambda_max {self.lambda_max:g}. Exchange them."
            )

    def noise(self, problem: Problem) -> Tensor:
        """Returns the composite noise that the denoiser is trained on; (B, C, H, W)."""
        share = strength(problem.sigma, self.lambda_unit, self.lambda_min, self.lambda_max)
        with frozen(problem.denoiser, problem.guide):
            perturbation = self._search(problem, share)
        return mixed(problem.z(0), perturbation, share)

    def _search(self, problem: Problem, share: Tensor) -> Tensor:
        """CGPO: ascends without a step size, since only the order of the accumulated gradient matters."""
        perturbation = problem.values(0)
        accumulated = torch.zeros_like(perturbation)
        for step in range(1, self.iterations + 1):
            perturbation.requires_grad_()
            z = problem.z(step)
            with torch.enable_grad():
                loss = self._loss(problem, mixed(z, perturbation, share), z)
            accumulated += search_gradient(loss, perturbation, problem.expect)
            perturbation = self._map(accumulated, problem.values(step))
        return perturbation

    def _loss(self, problem: Problem, noise: Tensor, z: Tensor) -> Tensor:
        """What the search makes large: summed over the batch."""
        del z
        return problem.classification_loss(noise)

    def _map(self, gradient: Tensor, z: Tensor) -> Tensor:
        """The perturbation of an accumulated gradient."""
        return rank_gaussian(gradient, z)


@perturbations.register("mse")
@dataclass(frozen=True)
class MSEGuided(ADDT):
    """ADDT guided by the denoiser's own noise error instead of a classifier: the published ablation."""

    needs_guide = False

    def _loss(self, problem: Problem, noise: Tensor, z: Tensor) -> Tensor:
        """Squared error of the predicted noise against the plain part of the noise, as published."""
        x = problem.x0 + problem.sigma * noise
        noise_pred = (x - problem.estimate(noise)) / problem.sigma
        return (noise_pred - z).square().flatten(1).mean(dim=1).sum()


@perturbations.register("norm-rescaled")
@dataclass(frozen=True)
class NormRescaled(ADDT):
    """Control: ADDT whose gradient is scaled to a Gaussian's norm instead of mapped by rank."""

    def _map(self, gradient: Tensor, z: Tensor) -> Tensor:
        return norm_rescaled(gradient, z)


@perturbations.register("moment-matched")
@dataclass(frozen=True)
class MomentMatched(ADDT):
    """Control: ADDT whose gradient is shifted and scaled to mean 0 and deviation 1 instead."""

    def _map(self, gradient: Tensor, z: Tensor) -> Tensor:
        return moment_matched(gradient, z)


@perturbations.register("gaussian-order")
@dataclass(frozen=True)
class GaussianOrder(ADDT):
    """Control: the adversarial values in the order of a Gaussian sample, so their place is random."""

    def _map(self, gradient: Tensor, z: Tensor) -> Tensor:
        return gaussian_order(gradient, z)


@perturbations.register("random-order")
@dataclass(frozen=True)
class RandomOrder(ADDT):
    """Control: a second Gaussian in the perturbation's place, unguided; as good as clean fine-tuning."""

    needs_guide = False

    def _search(self, problem: Problem, share: Tensor) -> Tensor:
        del share
        return problem.values(self.iterations)


@perturbations.register("linf")
@dataclass(frozen=True)
class ADDTLinf:
    """ADDT without RBGM: projected gradient ascent on the image within an Linf ball.

    Attributes:
        iterations: steps of the search.
        eps: radius in [0, 1] pixel units.
        step_size: length of a step in [0, 1] pixel units.
        gamma_max: cap of gamma = 1 / sigma, which carries the perturbation over into the noise.
    """

    iterations: CountOrNone = 5
    eps: NonNegative = 8 / 255
    step_size: Length = 4 / 255
    gamma_max: Length = 10.0
    needs_guide = True

    def noise(self, problem: Problem) -> Tensor:
        """Returns z + gamma * delta, which the denoiser must remove whole; (B, C, H, W)."""
        gamma = (1 / problem.sigma).clamp(0, self.gamma_max)
        delta = torch.zeros_like(problem.x0)
        with frozen(problem.denoiser, problem.guide):
            for step in range(1, self.iterations + 1):
                delta.requires_grad_()
                with torch.enable_grad():
                    loss = problem.classification_loss(problem.z(step) + gamma * delta)
                ascent = search_gradient(loss, delta, problem.expect).sign()
                delta = (delta.detach() + 2 * self.step_size * ascent).clamp(-2 * self.eps, 2 * self.eps)
                delta = (problem.x0 + delta).clamp(-1, 1) - problem.x0
        return problem.z(0) + gamma * delta


def search_gradient(loss: Tensor, perturbation: Tensor, expect: Expect) -> Tensor:
    """The gradient of a search's loss, which must be finite, because ranks would hide that it is not."""
    (gradient,) = torch.autograd.grad(loss, perturbation)
    expect(
        torch.isfinite(gradient).all(),
        "the gradient that guides the perturbation is not finite. Check the classifier on"
        " the denoiser's estimates, or lower optimiser.lr.",
    )
    return gradient
