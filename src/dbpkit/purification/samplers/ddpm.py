"""Ancestral DDPM sampling with strided steps."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.types import Denoiser, State
from dbpkit.purification.samplers.chain import clipped, level, samplers
from dbpkit.purification.samplers.columns import Level, is_clean, logarithm, root
from dbpkit.purification.samplers.corrector import Corrected


@samplers.register("ddpm")
@dataclass(frozen=True)
class DDPM(Corrected):
    """DDPM ancestral sampling; every step adds fresh noise.

    Attributes:
        variance: ``"large"`` (beta_t, published), ``"small"`` (posterior beta_t), or ``"learned"`` between
            the two, pixel by pixel, of a network that returns it.
        clip: whether the clean estimate is limited to [-1, 1] at every step (published).

    Source:
        Ho et al. 2020 (arXiv:2006.11239), eq. 7 and section 3.2, in sigma coordinates; Nichol & Dhariwal 2021
        (arXiv:2102.09672), eq. 15, for the learned variance.
    """

    variance: Literal["large", "small", "learned"] = "large"
    clip: bool = True
    by_row = True

    @property
    def sites(self) -> frozenset[str]:
        """Noise sites, with the corrector's if it runs."""
        return frozenset({"forward", "reverse"}) | self.corrector_sites

    def step(self, denoiser: Denoiser, state: State, i: int, noise: NoisePlan) -> State:
        """One ancestral step; one call of the denoiser, and one for each corrector step."""
        (x,), (sigma, sigma_next) = state, self.levels[i : i + 2]
        x = self.corrected(denoiser, x, sigma, i, noise)
        if self.variance == "learned":
            return (self._learned(denoiser, x, i, noise),)
        x0 = clipped(denoiser(x, level(sigma, x)), self.clip)
        if is_clean(sigma_next):
            return (x0,)
        mean, std = posterior(x, x0, sigma, sigma_next, self.variance)
        return (mean + std * noise.normal("reverse", i, x),)

    def _learned(self, denoiser: Any, x: Tensor, i: int, noise: NoisePlan) -> Tensor:
        """The image after a step whose variance is the network's."""
        sigma, sigma_next = self.levels[i : i + 2]
        x0, share = denoiser.with_variance(x, level(sigma, x))
        x0 = clipped(x0, self.clip)
        if is_clean(sigma_next):
            return x0
        mean, large = posterior(x, x0, sigma, sigma_next, "large")
        _, small = posterior(x, x0, sigma, sigma_next, "small")
        return mean + between(share, small, large) * noise.normal("reverse", i, x)


def between(share: Tensor, small: Level, large: Level) -> Tensor:
    """The deviation whose logarithm is ``share`` of the way from ``small`` to ``large``, of any shape."""
    return torch.exp(share * logarithm(large) + (1 - share) * logarithm(small))


def posterior(
    x: Tensor, x0: Tensor, sigma: Level, sigma_next: Level, variance: Literal["large", "small"] = "large"
) -> tuple[Tensor, Level]:
    """Mean and standard deviation of the state at a lower level.

    Args:
        x: state ``x0 + sigma * z``, (B, C, H, W).
        x0: estimate of the clean images, same shape.
        sigma: level of the state.
        sigma_next: the lower level, above 0.
        variance: as in `DDPM`.

    Source:
        Ho et al. 2020 (arXiv:2006.11239), eq. 7, in sigma coordinates.
    """
    keep = (sigma_next / sigma) ** 2
    mean = x0 + keep * (x - x0)
    if variance == "small":
        return mean, sigma_next * root(1 - keep)
    # beta_t = 1 - alpha_bar_t / alpha_bar_next, divided by alpha_bar_next
    return mean, root((1 + sigma_next**2) * (sigma**2 - sigma_next**2) / (1 + sigma**2))
