"""Bootstrap intervals of any statistic of examples, and correlation with its interval.

The thing people get wrong: draws, tapes and directions of one image are not independent images. Average them
first, or resample whole examples.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from dbpkit.noise import NoisePlan


def bootstrap(
    values: Sequence[float] | np.ndarray,
    statistic: Callable[[np.ndarray], float] = lambda sample: float(sample.mean()),
    resamples: int = 2000,
) -> tuple[float, float, float]:
    """Value and 95 % percentile interval of a statistic, examples resampled with replacement.

    Args:
        values: one row per independent example, (n,) or (n, ...).
        statistic: maps (n, ...) to a number.
        resamples: bootstrap samples.

    Returns:
        (value, low, high); the interval is the value itself for fewer than 2 examples.

    Source:
        Efron & Tibshirani 1993, chapter 13.
    """
    data = np.asarray(values, dtype=float)
    value = statistic(data)
    if len(data) < 2:
        return value, value, value
    found = np.array([statistic(data[rows]) for rows in _resampled(len(data), resamples)])
    found = found[np.isfinite(found)]
    if not len(found):
        return value, value, value
    low, high = np.quantile(found, [0.025, 0.975])
    return value, float(low), float(high)


def bootstrap_means(
    table: Sequence[Sequence[float]] | np.ndarray, resamples: int = 2000
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of columns with 95 % percentile intervals: `bootstrap` of each column, all at once.

    Args:
        table: one row per independent example, (n, k).
        resamples: bootstrap samples.

    Returns:
        (values, lows, highs), each (k,).
    """
    data = np.asarray(table, dtype=float)
    value = data.mean(axis=0)
    if len(data) < 2:
        return value, value, value
    weights = np.zeros((resamples, len(data)))
    np.add.at(weights, (np.arange(resamples)[:, None], _resampled(len(data), resamples)), 1 / len(data))
    low, high = np.quantile(weights @ data, [0.025, 0.975], axis=0)
    return value, low, high


def pearson(pairs: np.ndarray) -> float:
    """Pearson's correlation of the two columns of (n, 2); nan where one is constant."""
    centred = pairs - pairs.mean(axis=0)
    scale = np.sqrt((centred**2).sum(axis=0).prod())
    return float((centred[:, 0] * centred[:, 1]).sum() / scale) if scale > 0 else float("nan")


def spearman(pairs: np.ndarray) -> float:
    """Spearman's rank correlation of the two columns of (n, 2); ties share their mean rank."""
    return pearson(np.stack([_ranks(pairs[:, 0]), _ranks(pairs[:, 1])], axis=1))


def _resampled(count: int, resamples: int) -> np.ndarray:
    """Positions of examples drawn with replacement, (resamples, count)."""
    plan = NoisePlan.of(0, range(resamples), "report")
    uniform = plan.uniform("probe", 1, torch.zeros(resamples, count, dtype=torch.float64)).numpy()
    return (uniform * count).astype(int)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties averaged."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((2 * ends - counts + 1) / 2)[inverse]
