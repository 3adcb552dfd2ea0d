"""GDMP: DDPM whose steps are drawn back towards the image that came in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import NonNegative
from dbpkit.foundation.types import Denoiser, State
from dbpkit.purification.samplers.chain import clipped, diffuse, level, samplers
from dbpkit.purification.samplers.columns import is_clean
from dbpkit.purification.samplers.ddpm import DDPM, posterior
from dbpkit.statistics.ssim import ssim


@samplers.register("gdmp")
@dataclass(frozen=True)
class GDMP(DDPM):
    """DDPM guided by the incoming image: each mean moves down the gradient of a distance to it.

    In variance-preserving units the mean of a step of deviation s moves by ``-3 guidance sigma s`` times the
    gradient of D, where D is the sum of squared differences, or CHW (1 - SSIM). The gradient is a part of the
    purification: what an attacker differentiates has its derivative too, second derivatives of the network
    included where it ``compares`` the estimate.

    Attributes:
        distance: ``"mse"`` or ``"ssim"``.
        compares: ``"state"`` compares the state with the incoming image under fresh noise of the same level
            (published); ``"estimate"`` the network's clean estimate with the image itself.
        guidance: strength; 0 is plain ``ddpm``.
        variance: as in ``ddpm``; ``"learned"`` is not offered.
        clip: as in ``ddpm``.

    Source:
        Wang et al. 2022 (arXiv:2205.14969), algorithm 1 and its scale 3 sqrt(1 - abar) / (s sqrt(abar)); the
        factor ``guidance`` of the published runs is not known to us.
    """

    variance: Literal["large", "small"] = "large"
    distance: Literal["mse", "ssim"] = "mse"
    compares: Literal["state", "estimate"] = "state"
    guidance: NonNegative = 1.0
    generates = False

    @property
    def calls(self) -> int:
        """Network calls: those of ``ddpm``, and one more a step but the last to compare the estimate."""
        return super().calls + (self.steps - 1) * (self.compares == "estimate" and self.guidance > 0)

    def start(self, x: Tensor, noise: NoisePlan) -> State:
        """Returns the noised images, and the images to be guided by."""
        return diffuse(x, self.levels[0], noise), x

    def step(self, denoiser: Denoiser, state: State, i: int, noise: NoisePlan) -> State:
        """One ancestral step with guidance; one call of the denoiser, two of them on the estimate."""
        (x, image), (sigma, sigma_next) = state, self.levels[i : i + 2]
        x = self.corrected(denoiser, x, sigma, i, noise)
        x0 = clipped(denoiser(x, level(sigma, x)), self.clip)
        if is_clean(sigma_next):
            return x0, image
        mean, std = posterior(x, x0, sigma, sigma_next, self.variance)
        if self.guidance:
            mean = mean - 3 * self.guidance * sigma * std * self._uphill(denoiser, x, image, i, noise)
        return mean + std * noise.normal("reverse", i, x), image

    def _uphill(self, denoiser: Denoiser, x: Tensor, image: Tensor, i: int, noise: NoisePlan) -> Tensor:
        """The gradient of the distance at a state, in variance-preserving units, (B, C, H, W)."""
        sigma = self.levels[i]
        signal = (1 + sigma**2) ** -0.5
        if self.compares == "state":
            noised = signal * (image + sigma * noise.normal("forward", i + 1, image))
            return gradient(lambda v: self._distance(v, noised), signal * x)
        return gradient(lambda v: self._distance(denoiser(v / signal, level(sigma, v)), image), signal * x)

    def _distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of images (B, C, H, W) in [-1, 1] units, summed over pixels and images."""
        if self.distance == "mse":
            return (x - y).square().sum()
        return ((1 - ssim(x, y, data_range=2.0)) * x[0].numel()).sum()


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient of a scalar function, itself differentiable wherever ``x`` is part of a graph.

    Args:
        function: maps (B, C, H, W) to a scalar, a sum over examples.
        x: where; (B, C, H, W).
    """
    if is_functorch_wrapped_tensor(x):
        slope: Tensor = torch.func.grad(function)(x)
        return slope
    asked = torch.is_grad_enabled() and x.requires_grad
    with torch.enable_grad():
        at = x.view_as(x) if asked else x.detach().requires_grad_()
        # With a graph even where none is asked for: without one, backward formulas round otherwise, and a
        # step must give the same bits whether it is judged, differentiated or replayed.
        (found,) = torch.autograd.grad(function(at), at, create_graph=True)
    return found if asked else found.detach()
