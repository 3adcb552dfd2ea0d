"""How two crossed effects share the variance of a table, such as images (rows) against tapes (columns).

The thing people get wrong: the accuracies of 16 tapes always differ, because 128 images are a sample, and the
worst of 16 is the lowest by chance as well. An effect of the columns makes them differ alike on other rows.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import special

from dbpkit.foundation.philox import uniforms
from dbpkit.statistics.intervals import Interval, difference, fisher_ends, pearson, quantile, spearman

HALVINGS = 64
"""Random halvings of the rows that a correlation of columns is averaged over."""

ORDERS = 1000
"""Random orders of the columns within every row, for the permutation test."""


WIDER = 7 / 6
"""Factor of an interval whose halves of the rows chose for each other.

Where both chose the same column, both errors are those of a lowest one, so they go together: of T normal
means whose lowest lies m deviations below 0, with a correlation of m^2 / (T - 1), at most 0.36; sqrt(1.36) is
7/6.
"""


class Components(NamedTuple):
    """Variances that add up to that of one value of the table; estimates near 0 may be negative.

    Attributes:
        rows: of the rows' own means.
        columns: of the columns' own means.
        rest: of what neither explains.
    """

    rows: float
    columns: float
    rest: float

    @property
    def shares(self) -> np.ndarray:
        """Shares of the sum, (3,), each variance at least 0; 0 where the table is constant."""
        parts = np.maximum(np.array(self), 0.0)
        total = parts.sum()
        return np.asarray(parts / total) if total > 0 else parts


def components(table: np.ndarray) -> Components:
    """Returns the variances of rows, columns and rest, unbiased.

    Args:
        table: values (n, T), at least 2 of each.

    Source:
        Henderson 1953, Biometrics 9:226, method 1 (analysis of variance) for two crossed random effects.
    """
    between_rows, between_columns, rest = mean_squares(table)
    n, count = table.shape
    return Components((between_rows - rest) / count, (between_columns - rest) / n, rest)


def mean_squares(table: np.ndarray) -> tuple[float, float, float]:
    """Returns the mean squares between rows, between columns and of the rest, of values (n, T)."""
    n, count = table.shape
    by_row, by_column, mean = table.mean(axis=1), table.mean(axis=0), table.mean()
    rest = table - by_row[:, None] - by_column + mean
    return (
        float(count * ((by_row - mean) ** 2).sum() / (n - 1)),
        float(n * ((by_column - mean) ** 2).sum() / (count - 1)),
        float((rest**2).sum() / ((n - 1) * (count - 1))),
    )


def column_ratio(table: np.ndarray) -> Interval:
    """Variance of the columns' means, as a multiple of what they would have without an effect of the columns.

    The interval is that of the ratio of the expected values; 1 is no effect.

    Args:
        table: values (n, T).

    Source:
        Searle, Casella & McCulloch 1992, Variance Components, section 3.6: the ratio divided by its expected
        value is F-distributed.
    """
    n, count = table.shape
    _, between, rest = mean_squares(table)
    if not rest > 0:
        return Interval(math.nan, math.nan, math.nan, n, "F ratio")
    value = between / rest
    degrees = count - 1, (n - 1) * (count - 1)
    low, high = (value / float(special.fdtri(*degrees, q)) for q in (0.975, 0.025))
    return Interval(value, low, high, n, "F ratio, crossed random effects")


def column_spread(table: np.ndarray) -> Interval:
    """Standard deviation of the columns' own means: of column t's mean over endless rows.

    Args:
        table: values (n, T).
    """
    ratio, rest = column_ratio(table), mean_squares(table)[2]
    value, low, high = (math.sqrt(max(0.0, r - 1) * rest / len(table)) for r in ratio[:3])
    return ratio._replace(value=value, low=low, high=high)


def column_share(table: np.ndarray) -> Interval:
    """Share of the variance of one value that the columns' own means make; ends from `column_ratio`."""
    found, ratio = components(table), column_ratio(table)
    others = max(0.0, found.rows) + found.rest
    own = [max(0.0, r - 1) * found.rest / len(table) for r in ratio[:3]]
    value, low, high = (part / (part + others) if others > 0 else math.nan for part in own)
    return ratio._replace(value=value, low=low, high=high)


def no_column_effect(table: np.ndarray) -> float:
    """p-value that the columns of every row may be exchanged, by `ORDERS` random orders within each row.

    The statistic is the variance of the columns' means; for zeros and ones the test is Cochran's Q.

    Source:
        Cochran 1950, Biometrika 37:256.
    """
    n, count = table.shape
    observed = table.sum(axis=0).var()
    found = np.empty(ORDERS)
    for k in range(ORDERS):
        order = uniforms(n, count, "order", k).argsort(axis=1)
        found[k] = np.take_along_axis(table, order, axis=1).sum(axis=0).var()
    return float((1 + (found >= observed - 1e-9).sum()) / (1 + ORDERS))


def row_share(table: np.ndarray) -> Interval:
    """Share of the variance of one value that the rows' own means make; two-way jackknife."""
    return jackknifed(lambda t: float(components(t).shares[0]), table, 0.0, 1.0)


def rest_share(table: np.ndarray) -> Interval:
    """Share of the variance of one value that neither rows nor columns make; two-way jackknife."""
    return jackknifed(lambda t: float(components(t).shares[2]), table, 0.0, 1.0)


def residual_correlation(a: np.ndarray, b: np.ndarray) -> Interval:
    """Correlation of two tables beyond the means of their rows and columns; two-way jackknife.

    Args:
        a: values (n, T).
        b: values of the same rows and columns.
    """
    return jackknifed(lambda pair: float(pearson(*map(_residuals, pair))), np.stack([a, b]), -1.0, 1.0)


def jackknifed(
    statistic: Callable[[np.ndarray], float], table: np.ndarray, least: float, most: float
) -> Interval:
    """A statistic with an interval that allows for other rows and other columns.

    The variances of leaving out each row and each column are added, which counts the rest twice: it errs
    to the wide side.

    Args:
        statistic: number of a table.
        table: values (..., n, T).
        least: smallest value it can have.
        most: largest.

    Source:
        Owen 2007, Ann. Appl. Stat. 1:386, for the sum; Efron & Tibshirani 1993, chapter 11 (jackknife).
    """
    n, count = table.shape[-2:]
    value = statistic(table)
    method = f"jackknife over {n} images and {count} tapes"
    if min(n, count) < 3:
        return Interval(value, math.nan, math.nan, n, method)
    by_row = np.array([statistic(np.delete(table, i, axis=-2)) for i in range(n)])
    by_column = np.array([statistic(np.delete(table, t, axis=-1)) for t in range(count)])
    variance = sum((k - 1) * v.var() for k, v in ((n, by_row), (count, by_column)))
    spread = quantile(min(n, count)) * math.sqrt(variance)
    ends = max(least, value - spread), min(most, value + spread)
    return Interval(value, *ends, n, method)


def carried_over(a: np.ndarray, b: np.ndarray) -> Interval:
    """Rank correlation of columns in one table and in another on other rows, averaged over random halvings.

    On the same rows the columns' means agree by what is special to these rows; on other rows an effect of the
    columns alone makes them agree. Without one it is 0 up to chance, which the interval allows for.

    Args:
        a: values (n, T).
        b: values of the same rows and columns, or the same table.
    """
    n, count = a.shape
    first = uniforms(HALVINGS, n, "probe", 99).argsort(axis=1).argsort(axis=1) < n // 2
    halves = np.concatenate([first, ~first]).astype(float)
    value = float(spearman(halves @ a, (1 - halves) @ b).mean())
    low, high = fisher_ends(value, count)
    return Interval(value, low, high, n, f"rank correlation over {count} tapes, halves of the images")


def chosen_elsewhere(table: np.ndarray, *, lowest: bool) -> Interval:
    """How far the lowest or highest column lies from the mean of all, on rows that it was not chosen on.

    Every row is judged under the column that the other half of the rows (every second one) chose, and the
    interval is widened by `WIDER`.

    Args:
        table: values (n, T) in [0, 1].
        lowest: whether the lowest is meant.
    """
    n = len(table)
    apart = np.empty(n)
    for half in (0, 1):
        means = table[1 - half :: 2].mean(axis=0)
        column = int(means.argmin() if lowest else means.argmax())
        own = table[half::2]
        apart[half::2] = own[:, column] - own.mean(axis=1)
    found = difference(apart)
    low, high = (found.value + WIDER * (end - found.value) for end in found[1:3])
    method = f"{found.method}, chosen on the other half of the images"
    return found._replace(low=max(-1.0, low), high=min(1.0, high), method=method)


def _residuals(table: np.ndarray) -> np.ndarray:
    rows, columns = table.mean(axis=1, keepdims=True), table.mean(axis=0)
    return np.ravel(table - rows - columns + table.mean())
