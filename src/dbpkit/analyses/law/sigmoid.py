"""A falling sigmoid through points, by least squares, and how well it predicts what it has not seen.

The thing people get wrong: with few points on one flank, plateau, slope and centre can trade places. Look
at the intervals, and at the error on points that were left out, before reading a parameter.
"""

from typing import NamedTuple

import numpy as np


class Sigmoid(NamedTuple):
    """``plateau / (1 + exp(slope (x - centre)))``, falling in x."""

    plateau: float
    slope: float
    centre: float

    def at(self, x: np.ndarray) -> np.ndarray:
        """Values at ``x``, of any shape."""
        return self.plateau * _logistic(self.slope * (np.asarray(x) - self.centre))


def fit_sigmoid(x: np.ndarray, y: np.ndarray, rounds: int = 16) -> Sigmoid:
    """Least-squares sigmoid with a plateau in [0, 1] and a positive slope.

    The plateau is linear, so it is solved for; slope and centre are found on a grid that narrows around the
    best point. No starting values, no local minimum.

    Args:
        x: positions, (n,).
        y: values in [0, 1], (n,).
        rounds: narrowings, each by half.

    Source:
        Liu & Wei (ICLR 2026 submission): robustness is a sigmoid of the compression rate.
    """
    grid = np.linspace(-1, 1, 13)
    span = float(np.ptp(x)) or 1.0
    log_slope, centre = np.log(10 / span), float(x.min() + x.max()) / 2
    width = np.array([4.0, span])  # slopes from 0.2 to 550 per span; centres up to half a span outside
    plateau = 0.0
    for _ in range(rounds):
        slopes, centres = np.exp(log_slope + width[0] * grid), centre + width[1] * grid
        shape = _logistic(slopes[:, None, None] * (x - centres[None, :, None]))
        plateaus = ((shape @ y) / ((shape**2).sum(axis=2) + 1e-300)).clip(0, 1)
        errors = ((plateaus[..., None] * shape - y) ** 2).sum(axis=2)
        i, j = np.unravel_index(int(errors.argmin()), errors.shape)
        log_slope, centre, plateau = np.log(slopes[i]), float(centres[j]), float(plateaus[i, j])
        width = width / 2
    return Sigmoid(plateau, float(np.exp(log_slope)), centre)


def leave_one_out(x: np.ndarray, y: np.ndarray, rounds: int = 8) -> np.ndarray:
    """Mean absolute error (N,) of sigmoids fitted without one configuration, at that configuration.

    Args:
        x: positions, (N, E).
        y: accuracies, (N, E).
        rounds: of each fit.
    """
    keep = ~np.eye(len(x), dtype=bool)
    fits = [fit_sigmoid(x[k].ravel(), y[k].ravel(), rounds) for k in keep]
    return np.array([np.abs(f.at(a) - b).mean() for f, a, b in zip(fits, x, y, strict=True)])


def _logistic(z: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(z)), without overflow."""
    return 1 / (1 + np.exp(np.clip(z, -500, 500)))
