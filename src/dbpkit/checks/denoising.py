"""Checks of the denoiser and of what purification leaves of an image.

Clean images are noised to the level where purification starts, so the right answer is known. The thing people
get wrong: a network under the wrong prediction type, schedule or pixel range still returns images; only their
error tells.
"""

import torch
from torch import Tensor

from dbpkit.checks.check import Probe, checks
from dbpkit.checks.passes import purified
from dbpkit.foundation.types import Denoiser
from dbpkit.purification.diffusion import Purifier
from dbpkit.results.flags import Flag

NO_GAIN = 0.9
"""Share of the error of doing nothing, or of shrinking, above which a denoiser gains nothing."""

POSTERIOR = 2.0
"""A draw from a perfect posterior is twice as far from the truth as the best estimate, in mean square."""


@checks.add(
    "denoiser_worse_than_nothing",
    stage="model",
    expects="the denoiser's estimate is nearer to the clean image than a plain shrink",
    remedy="Train it on such images, or give its own prediction type, schedule and pixel range.",
    needs="diffusion",
)
@torch.no_grad()
def denoiser_worse_than_nothing(probe: Probe) -> list[Flag]:
    """Flags a denoiser whose estimate is no nearer to the clean image than what it was given."""
    purifier = probe.diffusion
    if purifier is None:
        return []
    sigma, clean, noisy = _noised(purifier, probe)
    error = _distance(_denoised(purifier.denoiser, noisy, sigma), clean)
    baseline, what = _baseline(clean, sigma)
    if error < NO_GAIN * baseline:
        return []
    message = (
        f"At noise level {sigma:.3g}, where purification starts, the denoiser's mean squared error is"
        f" {error:.3g} in [-1, 1] units; {what} has {baseline:.3g}. It is untrained, or was trained on other"
        " images, or its prediction type, its schedule or its pixel range is another one."
    )
    return [Flag("denoiser_worse_than_nothing", "error", message)]


@checks.add(
    "purifier_destroys",
    stage="model",
    expects="purification loses no more of a clean image than its noise hid",
    remedy="Lower t_star, take more steps, or give the denoiser its own settings.",
    needs="diffusion",
)
@torch.no_grad()
def purifier_destroys(probe: Probe) -> list[Flag]:
    """Flags purified clean images that are further from the clean ones than a sample has to be.

    The best linear estimate of a pixel of variance s^2 under noise sigma has the error s^2 sigma^2 / (s^2 +
    sigma^2), no perfect denoiser has more, and a perfect sample of the posterior has twice as much as that.
    """
    purifier = probe.diffusion
    images = purified(probe)
    if purifier is None or images is None:
        return []
    sigma, clean, noisy = _noised(purifier, probe)
    error = _distance(2 * images - 1, 2 * probe.x - 1)
    baseline, what = _baseline(clean, sigma)
    if error <= POSTERIOR * baseline:
        return []
    one_step = _distance(_denoised(purifier.denoiser, noisy, sigma), clean)
    message = (
        f"Purified clean images are {error:.3g} from the clean ones (mean square in [-1, 1] units); one step"
        f" of the denoiser is {one_step:.3g} away, {what} {baseline:.3g}."
    )
    return [Flag("purifier_destroys", "error", message)]


def _noised(purifier: Purifier, probe: Probe) -> tuple[float, Tensor, Tensor]:
    """The level where purification starts, and the images in [-1, 1], clean and noised to it."""
    sigma, clean = purifier.sampler.levels[0], 2 * purifier.fitted(probe.x) - 1
    return sigma, clean, clean + sigma * probe.noise.on("control").normal("probe", 4, clean)


def _denoised(denoiser: Denoiser, noisy: Tensor, sigma: float) -> Tensor:
    return denoiser(noisy, noisy.new_tensor(sigma))


def _distance(a: Tensor, b: Tensor) -> float:
    """Mean squared difference."""
    return float((a.double() - b.double()).square().mean())


def _baseline(clean: Tensor, sigma: float) -> tuple[float, str]:
    """The least error of doing nothing and of a linear shrink towards the channel means, and which it is.

    The shrink counts only where images stand out of the noise: of nearly constant images it knows more than a
    denoiser of other images can.
    """
    shrunk, variance = _shrunk(clean, sigma)
    if variance < sigma**2:
        return sigma**2, "the noisy image itself"
    return shrunk, "shrinking it towards its mean colour"


def _shrunk(clean: Tensor, sigma: float) -> tuple[float, float]:
    """The error of the best shrink towards the mean colours, and the variance of the pixels around them."""
    variance = float((clean - clean.mean(dim=(2, 3), keepdim=True)).square().mean())
    return variance * sigma**2 / (variance + sigma**2), variance
