"""DDIM: the same marginals as DDPM with as much randomness as wanted."""

import math

import torch
from torch import Tensor

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Share
from dbpkit.foundation.types import Denoiser, StepHook
from dbpkit.purification.samplers.method import Method, clipped, diffuse, level, samplers


def ddim(
    denoiser: Denoiser,
    x: Tensor,
    levels: Tensor,
    *,
    noise: NoisePlan,
    step: StepHook,
    eta: Share = 0.0,
    clip: bool = True,
) -> Tensor:
    """DDIM; with ``eta`` = 0 only the forward noise is random.

    Args:
        denoiser: estimates the clean image; called once a step.
        x: images (B, C, H, W) in [-1, 1].
        levels: (S + 1,) noise levels, decreasing to 0.
        noise: gives the ``forward`` and, if ``eta`` > 0, the ``reverse`` draws.
        step: hook around every step.
        eta: 0 is deterministic, 1 has the variance of small-variance DDPM.
        clip: whether the clean estimate is limited to [-1, 1]; the noise direction keeps the unclipped one,
            as in the published pipeline.

    Returns:
        Purified images (B, C, H, W).

    Raises:
        UserError: if ``eta`` is outside [0, 1].

    Source:
        Song, Meng & Ermon 2021 (arXiv:2010.02502), eq. 12 and 16, in sigma coordinates.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"ddim eta {eta} is outside [0, 1]. 0 is deterministic, 1 is as random as DDPM.")
    x = diffuse(x, levels[0], noise)
    for i, (sigma, sigma_next) in enumerate(zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True)):

        def ddim_step(x: Tensor, i: int = i, sigma: float = sigma, sigma_next: float = sigma_next) -> Tensor:
            estimate = denoiser(x, level(sigma, x))
            std = eta * sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)
            noise_pred = (x - estimate) / sigma
            x = torch.add(clipped(estimate, clip), noise_pred, alpha=math.sqrt(sigma_next**2 - std**2))
            return x + std * noise.normal("reverse", i, x) if std > 0 else x

        x = step(ddim_step, x)
    return x


samplers.register("ddim")(
    Method(
        ddim,
        sites=lambda options: frozenset({"forward", "reverse"} if options.get("eta", 0) else {"forward"}),
    )
)
