"""The Frechet distance of two Gaussians, and the Gaussian of features that come in batches."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from dbpkit.foundation.errors import UserError


class Statistics(NamedTuple):
    """Mean (F,) and covariance (F, F) of the features of ``images`` images, float64."""

    mean: Tensor
    covariance: Tensor
    images: int


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians, computed in float64.

    |mean_a - mean_b|**2 + tr(A + B - 2 (A B)**(1/2)). The last trace is that of (A**(1/2) B A**(1/2))**(1/2),
    a symmetric matrix with the same eigenvalues; those that rounding makes negative are 0.

    Args:
        mean_a: (F,).
        cov_a: (F, F), symmetric and positive semi-definite; it may be singular.
        mean_b: (F,).
        cov_b: (F, F), likewise.

    Returns:
        The distance, >= 0, in squared units of the features.

    Raises:
        UserError: if shapes do not fit or a value is not finite.

    Source:
        Heusel et al. 2017 (arXiv:1706.08500), eq. 6; Dowson & Landau 1982.
    """
    mean_a, cov_a, mean_b, cov_b = (t.double() for t in (mean_a, cov_a, mean_b, cov_b))
    size = mean_a.numel()
    shapes = [tuple(t.shape) for t in (mean_a, cov_a, mean_b, cov_b)]
    if shapes != [(size,), (size, size)] * 2:
        raise UserError(
            f"expected two means (F,) with covariances (F, F), got {shapes}. Use the same features."
        )
    if not all(bool(torch.isfinite(t).all()) for t in (mean_a, cov_a, mean_b, cov_b)):
        raise UserError(
            "the mean or covariance of the features is not finite. Check the network they come from and the"
            " images it is given."
        )
    values, vectors = _spectrum(cov_a)
    _spectrum(cov_b)
    root_a = vectors * values.sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()
    distance = float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * overlap)
    if not math.isfinite(distance):
        raise UserError(
            "the distance of the features is too large for a number. Check the network they come from."
        )
    return max(distance, 0.0)  # equal Gaussians may come out below 0 by rounding


def feature_statistics(batches: Iterable[Tensor]) -> Statistics:
    """Mean and covariance (divisor N - 1) of features that come in batches (B, F), in float64.

    Raises:
        UserError: if a batch is not (B, F), or there are fewer than 2 images.

    Source:
        Chan, Golub & LeVeque 1983, pairwise update: no difference of large sums, so nothing cancels.
    """
    count = 0
    mean = scatter = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        if batch.ndim != 2:
            raise UserError(f"features must be (B, F), not {tuple(batch.shape)}. Flatten or pool them.")
        rows = batch.detach().cpu().double()
        if count and rows.shape[1] != len(mean):
            raise UserError(f"features of {rows.shape[1]} values follow features of {len(mean)}.")
        if not bool(torch.isfinite(rows).all()):
            raise UserError(
                f"features of image {count + int((~torch.isfinite(rows)).any(dim=1).nonzero()[0])} are not"
                " finite. Check the network they come from and the images it is given."
            )
        total = count + len(rows)
        shift = rows.mean(dim=0) - mean
        centred = rows - rows.mean(dim=0)
        mean = mean + shift * len(rows) / total
        scatter = scatter + centred.T @ centred + torch.outer(shift, shift) * (count * len(rows) / total)
        count = total
    if count < 2:
        raise UserError(
            f"{count} images have no covariance. Use at least 2; more than features are sensible."
        )
    return Statistics(mean, scatter / (count - 1), count)


def _spectrum(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, those that rounding makes negative as 0, and eigenvectors of a covariance.

    Raises:
        UserError: if it is not symmetric, or an eigenvalue is further below 0 than rounding puts it.
    """
    scale = float(covariance.abs().max()) if covariance.numel() else 0.0
    if not torch.allclose(covariance, covariance.T, rtol=0, atol=1e-9 * scale):
        raise UserError("a covariance must be symmetric. Use feature_statistics to make it.")
    values, vectors = torch.linalg.eigh(covariance)
    if values.numel() and float(values.min()) < -1e-6 * scale * len(covariance):
        raise UserError(
            f"a covariance must have no negative eigenvalue, not {float(values.min()):g}. Use"
            " feature_statistics to make it."
        )
    return values.clamp(min=0), vectors
