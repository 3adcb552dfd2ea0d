"""EDM's second-order sampler with optional churn."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import NonNegative
from dbpkit.foundation.types import Denoiser, State
from dbpkit.models.schedule import karras_levels, vp_sigma
from dbpkit.purification.samplers.chain import Chain, level, samplers
from dbpkit.purification.samplers.columns import is_clean, plus, root, within


def heun_levels(
    t_star: float,
    steps: int,
    sigma_max: float | None = None,
    sigma_min: float = 0.002,
    rho: float = 7.0,
) -> Tensor:
    """The EDM grid from ``sigma_max`` (0.5 in the paper), or from the noise level of VP time ``t_star``.

    Args:
        t_star: where purification starts, in (0, 1), if there is no ``sigma_max``.
        steps: S, levels of the grid above 0.
        sigma_max: highest noise level, where purification starts; unset takes that of ``t_star``.
        sigma_min: lowest noise level above 0.
        rho: how much closer the levels lie at the lower end; 1 spaces them evenly.

    Returns:
        (steps + 1,) float64 levels.
    """
    top = float(vp_sigma(torch.tensor(t_star, dtype=torch.float64))) if sigma_max is None else sigma_max
    return karras_levels(top, steps, sigma_min, rho)


@samplers.register("heun")
@dataclass(frozen=True)
class Heun(Chain):
    """EDM's Heun sampler; without churn it is the deterministic flow.

    Attributes:
        churn: S_churn; 0 is "EDM-ODE", 6 the published "EDM-SDE".
        churn_min: S_min, lowest level that is churned.
        churn_max: S_max, highest level that is churned.
        churn_noise: S_noise, factor on the added noise.

    Source:
        Karras et al. 2022 (arXiv:2206.00364), algorithm 2; settings of Liu et al., ICLR 2025.
    """

    churn: NonNegative = 0.0
    churn_min: NonNegative = 0.01
    churn_max: NonNegative = 0.46
    churn_noise: NonNegative = 1.007
    by_row = True
    grid = staticmethod(heun_levels)

    @property
    def sites(self) -> frozenset[str]:
        """Noise sites, with that of the churn if there is any."""
        return frozenset({"forward", "churn"} if self.churn else {"forward"})

    @property
    def calls(self) -> int:
        """Network calls: two a step, one in the last."""
        return 2 * self.steps - 1

    def step(self, denoiser: Denoiser, state: State, i: int, noise: NoisePlan) -> State:
        """Churn, Euler step, correction; two calls of the denoiser, one in the last step."""
        (x,), (sigma, sigma_next) = state, self.levels[i : i + 2]
        gamma = min(self.churn / self.steps, math.sqrt(2) - 1) * within(sigma, self.churn_min, self.churn_max)
        sigma_hat = sigma * (1 + gamma)
        if self.churn and not is_clean(gamma):
            x = x + root(sigma_hat**2 - sigma**2) * self.churn_noise * noise.normal("churn", i, x)
        slope = (x - denoiser(x, level(sigma_hat, x))) / sigma_hat
        x_next = plus(x, slope, sigma_next - sigma_hat)
        if is_clean(sigma_next):
            return (x_next,)
        slope_next = (x_next - denoiser(x_next, level(sigma_next, x))) / sigma_next
        return (plus(x, slope + slope_next, (sigma_next - sigma_hat) / 2),)
