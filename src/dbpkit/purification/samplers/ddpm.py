"""Ancestral DDPM sampling with strided steps."""

import math
from typing import Literal

from torch import Tensor

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.types import Denoiser, StepHook
from dbpkit.purification.samplers.method import Method, clipped, diffuse, level, samplers


def ddpm(
    denoiser: Denoiser,
    x: Tensor,
    levels: Tensor,
    *,
    noise: NoisePlan,
    step: StepHook,
    variance: Literal["large", "small"] = "large",
    clip: bool = True,
) -> Tensor:
    """DDPM ancestral sampling; every step adds fresh noise.

    Args:
        denoiser: estimates the clean image; called once a step.
        x: images (B, C, H, W) in [-1, 1].
        levels: (S + 1,) noise levels, decreasing to 0.
        noise: gives ``forward`` and ``reverse`` draws.
        step: hook around every step.
        variance: ``"large"`` (beta_t, published) or ``"small"`` (posterior beta_t).
        clip: whether the clean estimate is limited to [-1, 1] at every step (published).

    Returns:
        Purified images (B, C, H, W).

    Raises:
        UserError: if ``variance`` is unknown.

    Source:
        Ho et al. 2020 (arXiv:2006.11239), eq. 7 and section 3.2, in sigma coordinates.
    """
    return ancestral(
        denoiser,
        diffuse(x, levels[0], noise),
        levels,
        noise=noise,
        step=step,
        variance=variance,
        clip=clip,
    )


def ancestral(
    denoiser: Denoiser,
    x: Tensor,
    levels: Tensor,
    *,
    noise: NoisePlan,
    step: StepHook,
    variance: str,
    clip: bool,
) -> Tensor:
    """The reverse chain alone, from a state ``x`` at ``levels[0]``; arguments as `ddpm`."""
    if variance not in ("large", "small"):
        raise UserError(f"variance '{variance}' is unknown. Available: large, small.")
    for i, (sigma, sigma_next) in enumerate(zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True)):

        def ancestral_step(
            x: Tensor, i: int = i, sigma: float = sigma, sigma_next: float = sigma_next
        ) -> Tensor:
            x0 = clipped(denoiser(x, level(sigma, x)), clip)
            if sigma_next == 0:
                return x0
            keep = (sigma_next / sigma) ** 2
            mean = x0 + keep * (x - x0)
            if variance == "small":
                std = sigma_next * math.sqrt(1 - keep)
            else:  # beta_t = 1 - alpha_bar_t / alpha_bar_next, divided by alpha_bar_next
                std = math.sqrt((1 + sigma_next**2) * (sigma**2 - sigma_next**2) / (1 + sigma**2))
            return mean + std * noise.normal("reverse", i, x)

        x = step(ancestral_step, x)
    return x


samplers.register("ddpm")(Method(ddpm))
