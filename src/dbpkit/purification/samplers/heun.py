"""EDM's second-order sampler with optional churn."""

import math

import torch
from torch import Tensor

from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Positive
from dbpkit.foundation.types import Denoiser, StepHook
from dbpkit.models.schedule import karras_levels, vp_sigma
from dbpkit.purification.samplers.method import Method, diffuse, level, samplers


def heun(
    denoiser: Denoiser,
    x: Tensor,
    levels: Tensor,
    *,
    noise: NoisePlan,
    step: StepHook,
    churn: Positive = 0.0,
    churn_min: Positive = 0.01,
    churn_max: Positive = 0.46,
    churn_noise: Positive = 1.007,
) -> Tensor:
    """EDM's Heun sampler; without churn it is the deterministic flow.

    Args:
        denoiser: estimates the clean image; called twice a step, once in the last.
        x: images (B, C, H, W) in [-1, 1].
        levels: (S + 1,) noise levels, decreasing to 0.
        noise: gives the ``forward`` and, with churn, the ``churn`` draws.
        step: hook around every step.
        churn: S_churn; 0 is "EDM-ODE", 6 the published "EDM-SDE".
        churn_min: S_min, lowest level that is churned.
        churn_max: S_max, highest level that is churned.
        churn_noise: S_noise, factor on the added noise.

    Returns:
        Purified images (B, C, H, W).

    Source:
        Karras et al. 2022 (arXiv:2206.00364), algorithm 2; settings of Liu et al., ICLR 2025.
    """
    steps = len(levels) - 1
    x = diffuse(x, levels[0], noise)
    for i, (sigma, sigma_next) in enumerate(zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True)):
        gamma = min(churn / steps, math.sqrt(2) - 1) if churn_min <= sigma <= churn_max else 0.0

        def heun_step(
            x: Tensor,
            i: int = i,
            sigma: float = sigma,
            sigma_next: float = sigma_next,
            gamma: float = gamma,
        ) -> Tensor:
            sigma_hat = sigma * (1 + gamma)
            if gamma > 0:
                x = x + math.sqrt(sigma_hat**2 - sigma**2) * churn_noise * noise.normal("churn", i, x)
            slope = (x - denoiser(x, level(sigma_hat, x))) / sigma_hat
            x_next = torch.add(x, slope, alpha=sigma_next - sigma_hat)
            if sigma_next == 0:
                return x_next
            slope_next = (x_next - denoiser(x_next, level(sigma_next, x))) / sigma_next
            return torch.add(x, slope + slope_next, alpha=(sigma_next - sigma_hat) / 2)

        x = step(heun_step, x)
    return x


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


samplers.register("heun")(
    Method(
        heun,
        levels=heun_levels,
        sites=lambda o: frozenset({"forward", "churn"} if o.get("churn", 0) else {"forward"}),
    )
)
