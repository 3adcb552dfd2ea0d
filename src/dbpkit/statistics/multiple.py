"""Several tests at once: p-values that belong to the intervals of this package, and Holm's correction.

The thing people get wrong: of twenty orders that are pure chance, one is significant at 5 %. So the tests of
one table are judged together.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import special

from dbpkit.foundation.philox import uniforms
from dbpkit.statistics.intervals import Interval, Values, quantile

EXACT, FLIPS = 12, 20_000
"""Most pairs of which all flips of signs are counted, and how many flips are drawn of more."""


def difference_p(values: Values) -> float:
    """Two-sided p-value that a mean of differences in [-1, 1] is 0.

    It is at most 5 % exactly where `dbpkit.statistics.intervals.difference` leaves 0 out.

    Source:
        Bonett & Price 2012, J. Educ. Behav. Stat. 37:479, inverted; with Student's t.
    """
    data = np.asarray(values, dtype=float)
    n = len(data) + 2
    centre = data.sum() / n
    error = math.sqrt(((data**2).sum() + 2) / n - centre**2) / math.sqrt(n)
    return float(2 * special.stdtr(n - 1, -abs(centre) / error))


def sign_flip_p(values: Values) -> float:
    """Two-sided p-value that paired differences are as likely to favour either side, by flipping their signs.

    Exact for up to `EXACT` pairs, of all 2^n flips; for more, of `FLIPS` fixed random ones and none. With
    differences of -1, 0 and 1 it is McNemar's exact test.

    Source:
        Fisher 1935, The Design of Experiments, section 21; Phipson & Smyth 2010, Stat. Appl. Genet. Mol.
        Biol. 9:39, for counting the order that was seen among the random ones.
    """
    data = np.asarray(values, dtype=float)
    data = data[data != 0]
    n = len(data)
    if n == 0:
        return 1.0
    sums = np.abs(_flips(n) @ data)
    return float(np.mean(sums >= abs(data.sum()) - 1e-9))


@lru_cache(maxsize=32)
def _flips(pairs: int) -> np.ndarray:
    """Signs (flips, pairs): all there are, or random ones after none."""
    if pairs <= EXACT:
        return 1 - 2.0 * (np.arange(2**pairs)[:, None] >> np.arange(pairs) & 1)
    signs = np.where(uniforms(FLIPS, pairs, "probe", 98) < 0.5, 1.0, -1.0)
    signs[0] = 1.0
    return signs


def apart_p(a: Interval, b: Interval) -> float:
    """Two-sided p-value that two numbers are equal, of which only intervals are known; nan without them.

    The standard error of a difference is at most the sum of both, however the numbers go together, so it is
    conservative. A constant is an interval of no width.
    """
    if not all(map(math.isfinite, (a.low, a.high, b.low, b.high))):
        return math.nan
    error = sum((one.high - one.low) / 2 / quantile(one.examples) for one in (a, b))
    if error <= 0:
        return math.nan
    n = min(one.examples for one in (a, b) if one.high > one.low)
    return float(2 * special.stdtr(max(1, n - 1), -abs(a.value - b.value) / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being several; those below 5 % together hold at a family-wise level of 5 %.

    Source:
        Holm 1979, Scand. J. Stat. 6:65.

    Example:
        >>> holm([0.01, 0.5, 0.02])
        [0.03, 0.5, 0.04]
    """
    adjusted, worst = [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted
