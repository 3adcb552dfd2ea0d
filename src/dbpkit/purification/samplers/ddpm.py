"""Ancestral DDPM sampling with strided steps."""

import math
from dataclasses import dataclass
from typing import Literal

from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.types import Denoiser, State
from dbpkit.purification.samplers.chain import Chain, clipped, level, samplers


@samplers.register("ddpm")
@dataclass(frozen=True)
class DDPM(Chain):
    """DDPM ancestral sampling; every step adds fresh noise.

    Attributes:
        variance: ``"large"`` (beta_t, published) or ``"small"`` (posterior beta_t).
        clip: whether the clean estimate is limited to [-1, 1] at every step (published).

    Source:
        Ho et al. 2020 (arXiv:2006.11239), eq. 7 and section 3.2, in sigma coordinates.
    """

    variance: Literal["large", "small"] = "large"
    clip: bool = True

    def step(self, denoiser: Denoiser, state: State, i: int, noise: NoisePlan) -> State:
        """One ancestral step; one call of the denoiser."""
        (x,), (sigma, sigma_next) = state, self.levels[i : i + 2]
        x0 = clipped(denoiser(x, level(sigma, x)), self.clip)
        if sigma_next == 0:
            return (x0,)
        keep = (sigma_next / sigma) ** 2
        mean = x0 + keep * (x - x0)
        if self.variance == "small":
            std = sigma_next * math.sqrt(1 - keep)
        else:  # beta_t = 1 - alpha_bar_t / alpha_bar_next, divided by alpha_bar_next
            std = math.sqrt((1 + sigma_next**2) * (sigma**2 - sigma_next**2) / (1 + sigma**2))
        return (mean + std * noise.normal("reverse", i, x),)
