"""One-step denoising: a single clean estimate from t*."""

from torch import Tensor

from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.types import Denoiser, StepHook
from dbpkit.models.schedule import discrete_levels
from dbpkit.purification.samplers.method import Method, clipped, diffuse, level, samplers


def one_step(
    denoiser: Denoiser,
    x: Tensor,
    levels: Tensor,
    *,
    noise: NoisePlan,
    step: StepHook,
    clip: bool = True,
) -> Tensor:
    """One call of the denoiser at t*, as in denoised smoothing.

    Args:
        denoiser: estimates the clean image; called once.
        x: images (B, C, H, W) in [-1, 1].
        levels: only the first noise level is used.
        noise: gives the ``forward`` draw.
        step: hook around the call.
        clip: whether the estimate is limited to [-1, 1].

    Returns:
        Purified images (B, C, H, W).

    Source:
        Carlini et al. 2023 (arXiv:2206.10550), algorithm 1.
    """
    sigma = float(levels[0])
    x = diffuse(x, levels[0], noise)
    return step(lambda x: clipped(denoiser(x, level(sigma, x)), clip), x)


def one_level(t_star: float, steps: int) -> Tensor:
    """The first level of the discrete grid, and 0; (2,) float64."""
    return discrete_levels(t_star, steps)[[0, -1]]


samplers.register("one_step")(Method(one_step, levels=one_level, sites=lambda _: frozenset({"forward"})))
