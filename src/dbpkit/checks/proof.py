"""Proof by behaviour: how well a denoiser denoises the user's images, and how often a classifier is right.

A wrong convention leaves every shape valid, so a model is judged by what it does. A denoiser's error stands
between two bounds: that of doing nothing, and that of the best linear estimate, which is the optimum if
images are Gaussian with the mean and covariance of these. The thing people get wrong: a covariance fitted to
the few images that it is scored on. It knows them by heart, and its error is far too low.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import fft, special
from torch import Tensor

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.frozen import call_apart, own_device
from dbpkit.foundation.inputs import check_images, check_labels, check_length, check_outputs
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.types import Denoiser
from dbpkit.statistics.intervals import Interval, mean

LEVELS = (0.17, 0.34, 0.68)
"""Noise levels in [-1, 1] units: that of t* = 0.1, half of it, and twice as much."""

ROWS = 32
"""Images in one call of a model."""

MOST_VALUES, FEWEST_IMAGES, FOLDS = 1024, 16, 5
"""A covariance of all pixels is fitted to images of so few values, from so many images, in so many parts."""


class Level(NamedTuple):
    """What a denoiser does at one noise level; errors are mean squares in [-1, 1] units.

    Attributes:
        sigma: the level.
        error: of the denoiser, with the interval over images.
        nothing: of the noisy image itself, sigma squared.
        gaussian: of the best linear estimate, see `linear_errors`; nan for a single image.
    """

    sigma: float
    error: Interval
    nothing: float
    gaussian: float


class Proof(NamedTuple):
    """How well a denoiser denoises some images, beside two bounds.

    Attributes:
        levels: one for each noise level, increasing.
    """

    levels: tuple[Level, ...]

    @property
    def denoises(self) -> bool:
        """Whether the error's interval lies below the error of doing nothing at every level."""
        return all(level.error.high < level.nothing for level in self.levels)

    @property
    def beats_linear(self) -> bool:
        """Whether the error is below that of the best linear estimate at every level."""
        return all(level.error.value < level.gaussian for level in self.levels)

    @property
    def line(self) -> str:
        """The proof in one sentence."""
        own, nothing, linear = (
            ", ".join(f"{value:.3g}" for value in values)
            for values in (
                [level.error.value for level in self.levels],
                [level.nothing for level in self.levels],
                [level.gaussian for level in self.levels],
            )
        )
        at = ", ".join(f"{level.sigma:.3g}" for level in self.levels)
        count = self.levels[0].error.examples
        beside = "" if "nan" in linear else f", the best linear estimate {linear}"
        said = f"Denoising error {own} on {count} images at noise levels {at}; doing nothing has {nothing}"
        return f"{said}{beside}."

    def as_data(self) -> list[dict[str, Any]]:
        """The proof for programs, a dictionary for each level."""
        return [
            {
                "sigma": level.sigma,
                "error": level.error.value,
                "low": level.error.low,
                "high": level.error.high,
                "nothing": level.nothing,
                "gaussian": level.gaussian,
                "images": level.error.examples,
            }
            for level in self.levels
        ]


class ClassifierProof(NamedTuple):
    """How often a classifier is right on some labelled images, beside guessing.

    Attributes:
        accuracy: share that is right, with Clopper and Pearson's exact interval.
        chance: 1 / K for K classes.
    """

    accuracy: Interval
    chance: float

    @property
    def better_than_chance(self) -> bool:
        """Whether the whole interval lies above chance."""
        return self.accuracy.low > self.chance

    @property
    def line(self) -> str:
        """The proof in one sentence."""
        a = self.accuracy
        ends = f"95 % interval {a.low:.1%} to {a.high:.1%}"
        return (
            f"The classifier is right on {a.value:.1%} of {a.examples} labelled images ({ends}); guessing has"
            f" {self.chance:.1%}."
        )


def proof(
    denoiser: Denoiser, x: Tensor, noise: NoisePlan | None = None, levels: Sequence[float] = LEVELS
) -> Proof:
    """Measures a denoiser's error at some noise levels beside the bounds.

    Args:
        denoiser: maps noisy images in [-1, 1] units and their level to clean ones.
        x: images (B, C, H, W) in [0, 1] of the kind that it was trained on; 8 are enough.
        noise: plan of the B images; ids 0 to B - 1 and seed 0 if not given.
        levels: noise levels in [-1, 1] units.

    Raises:
        UserError: if images, plan or levels do not fit, or the denoiser returns no images.
    """
    check_images(x, "proof")
    noise = NoisePlan.of(0, range(len(x)), "select") if noise is None else noise
    check_length(noise, len(x), "proof")
    levels = sorted(levels)
    if not levels or not all(0 < sigma < math.inf for sigma in levels):
        raise UserError("proof needs noise levels above 0, such as levels = [0.17, 0.34, 0.68].")
    device = own_device(denoiser)
    clean = (2 * x - 1).to(device)
    bounds = linear_errors(clean, levels).mean(axis=1)
    errors = denoising_errors(denoiser, clean, noise, levels)
    return proof_of(levels, errors, bounds)


def proof_of(levels: Sequence[float], errors: np.ndarray, bounds: np.ndarray) -> Proof:
    """Returns the proof of errors (levels, B) and linear bounds (levels,)."""
    rows = zip(levels, errors, bounds, strict=True)
    return Proof(tuple(Level(s, mean(e), s**2, float(b)) for s, e, b in rows))


@torch.no_grad()
def denoising_errors(
    denoiser: Denoiser, clean: Tensor, noise: NoisePlan, levels: Sequence[float], *, first: int = 0
) -> np.ndarray:
    """Returns a denoiser's squared error of each image at each level, (levels, B).

    Args:
        denoiser: is asked in batches of `ROWS`.
        clean: images (B, C, H, W) in [-1, 1].
        noise: their plan; every level has noise of its own.
        levels: noise levels.
        first: place of the first of them, if they are a part of several.

    Raises:
        UserError: if the denoiser does not return images as it is given.
    """
    found = np.empty((len(levels), len(clean)))
    control = noise.on("control")
    for k, sigma in enumerate(levels):
        for start in range(0, len(clean), ROWS):
            few = slice(start, start + ROWS)
            images = clean[few]
            noisy = images + sigma * control.rows(few).normal("probe", 8 + first + k, images)
            guess = call_apart(denoiser, noisy, noisy.new_tensor(sigma))
            if not isinstance(guess, Tensor) or guess.shape != images.shape:
                shape = tuple(guess.shape) if isinstance(guess, Tensor) else type(guess).__name__
                raise UserError(f"the denoiser must return clean images {tuple(images.shape)}, got {shape}.")
            gap = (guess.double() - images.double()).square().flatten(1).mean(dim=1)
            found[k, few] = gap.cpu().numpy()
    return found


def proof_of_classifier(classifier: Any, x: Tensor, y: Tensor) -> ClassifierProof:
    """Measures how often a classifier is right.

    Args:
        classifier: maps images in [0, 1] to logits (B, K).
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).

    Raises:
        UserError: if images, labels and logits do not fit.
    """
    check_images(x, "proof_of_classifier")
    check_labels(y, len(x), "proof_of_classifier")
    logits = classified(classifier, x)
    right = (logits.argmax(dim=1) == y.to(logits.device)).sum().item()
    return ClassifierProof(exact_share(int(right), len(x)), 1 / logits.shape[1])


@torch.no_grad()
def classified(classifier: Any, x: Tensor) -> Tensor:
    """Returns logits (B, K), asked for in batches of `ROWS`."""
    device = own_device(classifier)
    few = [x[start : start + ROWS].to(device) for start in range(0, len(x), ROWS)]
    return torch.cat([check_outputs(call_apart(classifier, images), len(images)) for images in few])


def exact_share(count: int, trials: int) -> Interval:
    """A share with Clopper and Pearson's 95 % interval, which covers at least so often whatever the share.

    Source:
        Clopper & Pearson 1934, Biometrika 26:404.
    """
    low = 0.0 if count == 0 else float(special.betaincinv(count, trials - count + 1, 0.025))
    high = 1.0 if count == trials else float(special.betaincinv(count + 1, trials - count, 0.975))
    return Interval(count / trials, low, high, trials, "Clopper-Pearson")


def linear_errors(clean: Tensor, levels: Sequence[float]) -> np.ndarray:
    """Expected squared error of the best linear estimate of each image at each level, (levels, B).

    The estimate W u + (I - W) m with W = S / (S + sigma^2) is the optimum for Gaussian images of mean m and
    covariance S, and no optimal denoiser of images with these two has a larger error. Mean and covariance
    come from the other images, so an estimate's error is that of an image it has not seen: too high rather
    than too low by what few images do not tell. The expectation over the noise is exact.

    Two kinds of S are tried, and the better one is taken at each level. One is stationary: cosine transforms
    share a covariance of channels among all frequencies of one length, and the mean colour is that of the
    noisy image; the other images are all but one. The other is of all pixels, shrunk (Ledoit-Wolf), for small
    images of which there are many; the others are four fifths of them.

    Args:
        clean: images (B, C, H, W) in [-1, 1]; of a single one nothing is known, and the errors are nan.
        levels: noise levels.

    Source:
        Wiener 1949; Ahmed, Natarajan & Rao 1974, IEEE Trans. Comput. 23:90, for cosine transforms of images;
        Ledoit & Wolf 2004, J. Multivar. Anal. 88:365.
    """
    images = clean.detach().double().cpu().numpy()
    found = _stationary(images, levels)
    if len(images) >= FEWEST_IMAGES and images[0].size <= MOST_VALUES:
        full = _of_all_pixels(images.reshape(len(images), -1), levels)
        better = full.mean(axis=1) < found.mean(axis=1)
        found[better] = full[better]
    return found


def _stationary(images: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Errors with a covariance of channels for each length of a frequency, from all images but one."""
    count, channels, height, width = images.shape
    found = np.full((len(levels), count), np.nan)
    if count < 2:
        return found
    waves = fft.dctn(images, axes=(2, 3), norm="ortho").reshape(count, channels, -1)
    down, right = np.arange(height)[:, None] / height, np.arange(width)[None] / width
    ring = np.rint(np.hypot(down, right) * max(height, width)).astype(int).ravel()
    ring[0] = ring.max() + 1  # the mean colour
    kinds, ring = np.unique(ring, return_inverse=True)
    sizes = np.bincount(ring)
    order = np.argsort(ring, kind="stable")
    products = waves[:, :, None, order] * waves[:, None, :, order]  # (B, C, C, frequencies)
    starts = np.cumsum(sizes) - sizes
    moments = np.moveaxis(np.add.reduceat(products, starts, axis=3), 3, 1)  # (B, rings, C, C)
    others = (moments.sum(axis=0) - moments) / ((count - 1) * sizes[:, None, None])
    for k, sigma in enumerate(levels):
        noise = sigma**2 * np.eye(channels)
        lost = np.linalg.solve(others + noise, np.broadcast_to(noise, others.shape))  # I - W
        lost[:, len(kinds) - 1] = 0
        kept = np.eye(channels) - lost
        bias = np.einsum("brij,brjk,brik->b", lost, moments, lost)
        spread = sigma**2 * np.einsum("r,brij,brij->b", sizes.astype(float), kept, kept)
        found[k] = (bias + spread) / images[0].size
    return found


def _of_all_pixels(flat: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Errors with a shrunk covariance of all values, fitted to the other parts of the images, (B, values)."""
    from sklearn.covariance import ledoit_wolf  # takes a second to import

    found = np.empty((len(levels), len(flat)))
    part = np.arange(len(flat)) % FOLDS
    for k in range(FOLDS):
        others, own = flat[part != k], part == k
        centre = others.mean(axis=0)
        variances, axes = np.linalg.eigh(ledoit_wolf(others - centre, assume_centered=True)[0])
        squares = ((flat[own] - centre) @ axes) ** 2
        for j, sigma in enumerate(levels):
            kept = variances / (variances + sigma**2)
            found[j, own] = (squares @ (1 - kept) ** 2 + sigma**2 * (kept**2).sum()) / flat.shape[1]
    return found
