"""The methods of all 95 % intervals; each covers at least 93.5 % in the simulations of the tests.

The thing people get wrong: a bootstrap percentile interval of 8 to 20 images is too short, and that of a
share of 0 % has no width at all. A verdict needs more images than an interval (`VERDICT_EXAMPLES`,
`CROSSED_EXAMPLES`). Draws, tapes and directions of one image are not independent images: average them first.
"""

import math
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from scipy import special

from dbpkit.statistics.bootstrap import counted, resampled

VERDICT_EXAMPLES = 16
"""Fewest images of a verdict: from here on at most 5 % of verdicts are wrong in the simulations."""

CROSSED_EXAMPLES = 64
"""Fewest images of a verdict on numbers of several purifiers, whose interval resamples both."""

_SKEWED = 512
"""With more examples than this, skewness no longer shows in a mean's interval and Student's t is enough."""

Values = Sequence[float] | np.ndarray


class Interval(NamedTuple):
    """A value with its 95 % interval.

    Attributes:
        value: the number.
        low: lower end; nan where there is no interval.
        high: upper end.
        examples: independent examples behind it.
        method: how the interval was made.
    """

    value: float
    low: float
    high: float
    examples: int
    method: str

    @property
    def drawn(self) -> tuple[float, float, float]:
        """Value and ends for a chart; where there is no interval, both ends are the value."""
        low, high = (self.value if math.isnan(end) else end for end in (self.low, self.high))
        return self.value, low, high

    def scaled(self, factor: float) -> "Interval":
        """The interval of ``factor`` > 0 times the number."""
        return self._replace(value=factor * self.value, low=factor * self.low, high=factor * self.high)


@cache
def quantile(examples: int, comparisons: int = 1) -> float:
    """97.5 % point of Student's t with ``examples`` - 1 degrees of freedom, at least one.

    Args:
        examples: n.
        comparisons: by which the 2.5 % beyond it are divided.
    """
    return float(special.stdtrit(max(1, examples - 1), 1 - 0.025 / comparisons))


def wilson(mean: float, examples: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a mean of ``examples`` values in [0, 1], with Student's t.

    The normal quantile of the textbook form covers 92.3 % for 16 examples at 0.5 and 92.5 % for 20 at 0.05;
    Student's t, as used for clustered values, covers 94 % and more. For values that are themselves averages
    over draws it is conservative: no distribution on [0, 1] with that mean has a larger variance than the
    binary one.

    Source:
        Wilson 1927, JASA 22:209; Dean & Pagano 2015, J. Surv. Stat. Methodol. 3:484, for the quantile.
    """
    t = quantile(examples)
    centre = mean + t**2 / (2 * examples)
    spread = t * math.sqrt(mean * (1 - mean) / examples + t**2 / (4 * examples**2))
    scale = 1 + t**2 / examples
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def share(values: Values) -> Interval:
    """Mean of values in [0, 1], one per example, with Wilson's interval; see `wilson`."""
    data = np.asarray(values, dtype=float)
    value = float(data.mean())
    return Interval(value, *wilson(min(1.0, max(0.0, value)), len(data)), len(data), "Wilson")


def difference(values: Values, comparisons: int = 1) -> Interval:
    """Mean of differences in [-1, 1], one per example, with Bonett and Price's interval.

    A pair that favours one side and a pair that favours the other are added to those that were seen. So the
    interval has a width where all pairs are equal, and is wide enough where nearly all are.

    Args:
        values: one per example.
        comparisons: of which it is one, chosen after looking: the level is divided by it (Bonferroni).

    Source:
        Bonett & Price 2012, J. Educ. Behav. Stat. 37:479, for binary pairs; with Student's t.
    """
    data = np.asarray(values, dtype=float)
    n = len(data) + 2
    centre = data.sum() / n
    spread = quantile(n, comparisons) * math.sqrt(((data**2).sum() + 2) / n - centre**2) / math.sqrt(n)
    ends = max(-1.0, centre - spread), min(1.0, centre + spread)
    return Interval(float(data.mean()), float(ends[0]), float(ends[1]), len(data), "Bonett-Price, paired")


def mean(values: Values) -> Interval:
    """Mean of any values, one per example: the wider end each of Student's t and the studentised bootstrap.

    Student's t is right for symmetric values, the studentised bootstrap for skewed ones. Few examples have
    few different resamples, so its level is lowered by n / (n + 4). Without an interval where all values are
    equal or there is only one: they say nothing about what other images would give.

    Source:
        Student 1908; Efron & Tibshirani 1993, section 12.5 (bootstrap-t).
    """
    value, low, high = means(np.asarray(values, dtype=float)[:, None])
    return Interval(float(value[0]), float(low[0]), float(high[0]), len(values), "mean, t and bootstrap-t")


def means(table: Sequence[Sequence[float]] | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`mean` of each column of (n, k): values, lows and highs, each (k,)."""
    data = np.asarray(table, dtype=float)
    n, value = len(data), data.mean(axis=0)
    apart = data - value
    error = apart.std(axis=0, ddof=1) / math.sqrt(n) if n > 1 else np.full(data.shape[1], np.nan)
    error = np.where(error > 1e-12 * np.abs(value), error, np.nan)  # nothing but rounding
    down = up = quantile(n)
    if 1 < n <= _SKEWED:
        weights = _weights(n)
        moved, square = weights @ apart, weights @ apart**2
        spread = np.maximum(square - moved**2, 1e-3 * (apart**2).mean(axis=0))  # resamples of one value
        with np.errstate(invalid="ignore", divide="ignore"):
            tail = 0.025 * n / (n + 4)
            ends = np.quantile(moved * math.sqrt(n - 1) / np.sqrt(spread), [tail, 1 - tail], axis=0)
        down, up = np.maximum(up, ends[1]), np.maximum(down, -ends[0])
    return value, value - down * error, value + up * error


def bands(table: Sequence[Sequence[float]] | np.ndarray) -> tuple[list[float], list[float], list[float]]:
    """`means` for a chart: values, lows and highs, the value itself where there is no interval."""
    value, low, high = means(table)
    low, high = (np.where(np.isnan(end), value, end) for end in (low, high))
    return value.tolist(), low.tolist(), high.tolist()


def median(values: Values) -> Interval:
    """Median with the exact interval between order statistics, whatever the distribution.

    Without an interval for fewer than 6 examples, of which not even the extremes enclose it so often.

    Source:
        David & Nagaraja 2003, Order Statistics, section 7.1.
    """
    data = np.sort(np.asarray(values, dtype=float))
    n = len(data)
    place = _first_order(n)
    low, high = (data[place - 1], data[n - place]) if place else (math.nan, math.nan)
    return Interval(float(np.median(data)), float(low), float(high), n, "median, order statistics")


def ratio(a: Values, b: Values) -> Interval:
    """Ratio of the means of paired values in [0, 1]: all r up to 2 that `difference` of a - r b allows.

    Without an interval where it would reach 2: the mean of b may well be 0.

    Source:
        Fieller 1954, J. R. Stat. Soc. B 16:175, for the idea.
    """
    top, bottom = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    value = float(top.mean() / bottom.mean()) if bottom.any() else math.nan
    tried = np.linspace(0, 2, 401)
    found = [difference((top - r * bottom) / max(1.0, r)) for r in tried]
    possible = tried[[f.low <= 0 <= f.high for f in found]]
    known = len(possible) > 0 and possible[-1] < tried[-1]
    low, high = (float(possible[0]), float(possible[-1])) if known else (math.nan, math.nan)
    return Interval(value, low, high, len(top), "ratio of means, Bonett-Price inverted")


def root(value: float, grid: np.ndarray, scores: np.ndarray) -> Interval:
    """A parameter that makes a mean of scores 0: all values at which the scores' `mean` may well be 0.

    Args:
        value: the estimate.
        grid: values of the parameter, increasing, (G,).
        scores: each example's score there, (n, G), its mean falling through 0 once.

    Source:
        Boos 1992, Am. Stat. 46:327, generalised score test.
    """
    _, low, high = means(scores)
    possible = np.flatnonzero((low <= 0) & (high >= 0))
    method = "score test, t and bootstrap-t"
    if not len(possible):
        return Interval(value, math.nan, math.nan, len(scores), method)
    ends = grid[max(0, possible[0] - 1)], grid[min(len(grid) - 1, possible[-1] + 1)]  # not inside a step
    return Interval(value, float(ends[0]), float(ends[1]), len(scores), method)


def rank_correlation(a: Values, b: Values) -> Interval:
    """Spearman's correlation of pairs, ties at their mean rank, with Bonett and Wright's interval.

    Without an interval for fewer than 5 pairs or where one side is constant.

    Source:
        Bonett & Wright 2000, Psychometrika 65:23; with Student's t.
    """
    value = float(spearman(np.asarray(a, dtype=float), np.asarray(b, dtype=float)))
    low, high = fisher_ends(value, len(a))
    return Interval(value, low, high, len(a), "Bonett-Wright")


def fisher_ends(value: float, pairs: int, variance: float = 0.0) -> tuple[float, float]:
    """Ends of a rank correlation's interval, by Fisher's scale, with ``variance`` added to that of pairs."""
    if pairs < 5 or not math.isfinite(value):
        return math.nan, math.nan
    most = 1 - 6 / (pairs**3 - pairs)  # half of what one swap of neighbours changes
    z, t = math.atanh(max(-most, min(most, value))), quantile(pairs - 1)
    spread = t * math.sqrt((1 + value**2 / 2) / (pairs - 3) + variance)
    return min(value, math.tanh(z - spread)), max(value, math.tanh(z + spread))


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation along the last axis; ties share their mean rank, nan where one is constant."""
    from scipy.stats import rankdata  # takes a second, for which a report need not wait

    return pearson(rankdata(a, axis=-1), rankdata(b, axis=-1))


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's correlation along the last axis; nan where one is constant.

    SciPy's makes a p-value of every pair, which thousands of resamples do not need, warns where one side is
    constant, and gives 1 - 2e-16 for equal orders.
    """
    a, b = (v - v.mean(axis=-1, keepdims=True) for v in (a, b))
    scale = np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scale > 0, (a * b).sum(axis=-1) / scale, np.nan)


@lru_cache(maxsize=256)
def _first_order(count: int) -> int:
    """Rank of the order statistic below which the median lies at most 2.5 % of the time; 0 for none."""
    return int(np.argmax(special.bdtr(np.arange(count + 1), count, 0.5) >= 0.025))


@lru_cache(maxsize=32)
def _weights(count: int) -> np.ndarray:
    return counted(resampled(count), count)
