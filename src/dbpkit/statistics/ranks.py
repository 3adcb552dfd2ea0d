"""Ranks of several defences with the doubt that is in them: who can be told apart, all pairs at once.

The thing people get wrong: to sort accuracies and number the lines. With forty pairs, two of them look
different at 95 % although none is.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dbpkit.statistics.intervals import VERDICT_EXAMPLES, Interval, difference, quantile

Scores = Mapping[int, float]
"""Values in [0, 1] by example id."""


class Rank(NamedTuple):
    """Where one of K stands, 1 being the best.

    Attributes:
        best: no better rank is compatible with the data.
        worst: no worse one is.
    """

    best: int
    worst: int

    def __str__(self) -> str:
        return str(self.best) if self.best == self.worst else f"{self.best}–{self.worst}"


def compared(a: Scores, b: Scores, comparisons: int) -> Interval:
    """Mean of a - b with an interval that holds for ``comparisons`` of them at once.

    Paired over the examples that both have, if these are enough for a verdict; else of two samples.

    Args:
        a: values of one defence.
        b: values of another.
        comparisons: by which the level is divided (Bonferroni).

    Returns:
        The interval; the whole range [-1, 1] if there are too few examples for a verdict.

    Source:
        Bonett & Price 2012 for pairs; Agresti & Caffo 2000, Am. Stat. 54:280, for two samples; with
        Student's t.
    """
    shared = sorted(a.keys() & b.keys())
    if len(shared) >= VERDICT_EXAMPLES:
        return difference([a[i] - b[i] for i in shared], comparisons)
    fewest = min(len(a), len(b))
    if shared or fewest < VERDICT_EXAMPLES:
        value = float(np.mean(list(a.values())) - np.mean(list(b.values()))) if fewest else math.nan
        return Interval(value, -1.0, 1.0, len(shared), "too few images")
    means = [(sum(own.values()) + 1) / (len(own) + 2) for own in (a, b)]
    variances = [m * (1 - m) / (len(own) + 2) for m, own in zip(means, (a, b), strict=True)]
    centre, spread = means[0] - means[1], quantile(fewest, comparisons) * math.sqrt(sum(variances))
    value = sum(a.values()) / len(a) - sum(b.values()) / len(b)
    low, high = max(-1.0, centre - spread), min(1.0, centre + spread)
    return Interval(value, low, high, fewest, "Agresti-Caffo, two samples")


def all_pairs(scores: Sequence[Scores]) -> dict[tuple[int, int], Interval]:
    """Returns the differences of all pairs (i, j), i < j; with 95 % all intervals hold at once."""
    pairs = [(i, j) for i in range(len(scores)) for j in range(i + 1, len(scores))]
    return {(i, j): compared(scores[i], scores[j], len(pairs)) for i, j in pairs}


def ranks(count: int, better: set[tuple[int, int]]) -> list[Rank]:
    """Returns the ranks of ``count`` defences.

    Args:
        count: how many there are.
        better: pairs (i, j) of which i was found better than j.

    Returns:
        Of each the best rank, one after those that are better, and the worst, before those that are worse. If
        ``better`` comes from intervals that hold at once, the ranks hold at once, too.

    Source:
        Mogstad, Romano, Shaikh & Wilhelm 2024, Rev. Econ. Stud. 91:476 (ranks from simultaneous differences).
    """
    above, below = [0] * count, [0] * count
    for i, j in better:
        below[i] += 1
        above[j] += 1
    return [Rank(1 + above[k], count - below[k]) for k in range(count)]
