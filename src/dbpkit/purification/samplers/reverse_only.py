"""The reverse chain alone: the image is taken for a noisy state, no noise is added first."""

import math
from typing import Literal

from torch import Tensor

from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.types import Denoiser, StepHook
from dbpkit.purification.samplers.ddpm import ancestral
from dbpkit.purification.samplers.method import Method, samplers


def reverse_only(
    denoiser: Denoiser,
    x: Tensor,
    levels: Tensor,
    *,
    noise: NoisePlan,
    step: StepHook,
    scaled: bool = False,
    variance: Literal["large", "small"] = "large",
    clip: bool = True,
) -> Tensor:
    """DDPM's reverse chain from the image itself, without forward noise.

    Args:
        denoiser: estimates the clean image; called once a step.
        x: images (B, C, H, W) in [-1, 1].
        levels: (S + 1,) noise levels, decreasing to 0.
        noise: gives the ``reverse`` draws.
        step: hook around every step.
        scaled: whether the image is first multiplied by sqrt(alpha_bar), as forward noising would. Without
            it (the reading of the paper) the image is the variance-preserving state as it is.
        variance: as in ``ddpm``.
        clip: as in ``ddpm``.

    Returns:
        Purified images (B, C, H, W).

    Source:
        Liu & Wei 2025 (arXiv:2505.22839), "reverse-only"; whether they scale is not published.
    """
    start = x if scaled else x * math.sqrt(1 + float(levels[0]) ** 2)
    return ancestral(denoiser, start, levels, noise=noise, step=step, variance=variance, clip=clip)


samplers.register("reverse_only")(Method(reverse_only, sites=lambda _: frozenset({"reverse"})))
