"""The reverse variance-preserving SDE by Euler-Maruyama, with an optional Langevin corrector."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import CountOrNone, Length, Positive
from dbpkit.foundation.types import Denoiser, StepHook
from dbpkit.models.schedule import BETA_MAX, BETA_MIN, continuous_levels, vp_time
from dbpkit.purification.samplers.method import Method, diffuse, level, samplers


def vpsde(
    denoiser: Denoiser,
    x: Tensor,
    levels: Tensor,
    *,
    noise: NoisePlan,
    step: StepHook,
    corrector_steps: CountOrNone = 0,
    snr: Positive = 0.16,
    beta_min: Positive = BETA_MIN,
    beta_max: Length = BETA_MAX,
) -> Tensor:
    """Reverse VP-SDE (the DiffPure sampler), returning the last step's mean.

    Args:
        denoiser: estimates the clean image; called once a predictor and once a corrector step.
        x: images (B, C, H, W) in [-1, 1].
        levels: (S + 1,) noise levels, decreasing to 0.
        noise: gives ``forward``, ``reverse`` and ``corrector`` draws.
        step: hook around every predictor step (with its correctors).
        corrector_steps: Langevin steps before each predictor step; 0 is the published default row.
        snr: signal-to-noise ratio of the corrector, per example.
        beta_min: schedule's beta at t = 0.
        beta_max: schedule's beta at t = 1.

    Returns:
        Purified images (B, C, H, W), not clipped.

    Source:
        Song et al. 2021 (arXiv:2011.13456), algorithms 3 and 5; grid and last mean as in Liu et al. 2025.
    """
    times = [*vp_time(levels[:-1], beta_min, beta_max).tolist(), 0.0]
    first = float(levels[0])
    state = diffuse(x, levels[0], noise) / math.sqrt(1 + first**2)  # variance preserving from here on
    for i, sigma in enumerate(levels[:-1].tolist()):

        def score(state: Tensor, sigma: float = sigma) -> Tensor:
            signal = 1 / math.sqrt(1 + sigma**2)
            x0 = denoiser(state / signal, level(sigma, state))
            return (signal * x0 - state) / (signal * sigma) ** 2

        def predict(state: Tensor, i: int = i, score: Callable[[Tensor], Tensor] = score) -> Tensor:
            beta = beta_min + times[i] * (beta_max - beta_min)
            dt = times[i] - times[i + 1]
            for j in range(corrector_steps):
                state = _correct(
                    state,
                    score(state),
                    noise.normal("corrector", i * corrector_steps + j, state),
                    beta,
                    snr,
                )
            mean = state + (0.5 * beta * state + beta * score(state)) * dt
            if i + 1 == len(times) - 1:
                return mean
            return mean + math.sqrt(beta * dt) * noise.normal("reverse", i, state)

        state = step(predict, state)
    return state


def _correct(state: Tensor, score: Tensor, z: Tensor, beta: float, snr: float) -> Tensor:
    """One Langevin step whose size is set by the ratio of norms of each example."""
    ratio = z.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1)
    size = ((snr * ratio) ** 2 * 2 * (1 - beta / 1000))[:, None, None, None]
    return state + size * score + torch.sqrt(2 * size) * z


def _scale(sigma: float) -> float:
    """The variance-preserving state at level sigma is this times x0 + sigma z."""
    return 1 / math.sqrt(1 + sigma**2)


def _sites(options: Mapping[str, Any]) -> frozenset[str]:
    """Noise sites, with the corrector's if it runs."""
    corrector = {"corrector"} if options.get("corrector_steps", 0) else set()
    return frozenset({"forward", "reverse"} | corrector)


samplers.register("vpsde")(
    Method(
        vpsde,
        levels=continuous_levels,
        clamps=False,
        sites=_sites,
        scale=_scale,
    )
)
