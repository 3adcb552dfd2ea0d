"""Estimands and intervals: pure functions of recorded predictions.

A row's scores are a table: one line per example, one column per draw, 1 where the prediction was right.
The thing people get wrong: the examples are the sample, the draws are not. Ten draws of one image are no
ten images, so every interval has n = examples.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dbpkit.statistics.intervals import difference, wilson


class Estimate(NamedTuple):
    """A number that can be published.

    Attributes:
        estimand: what it estimates, such as ``per_draw`` or ``all_draws@10``.
        value: in [0, 1], or [-1, 1] for a difference.
        low: lower end of the 95 % interval.
        high: upper end.
        examples: n, independent examples.
        draws: draws per example.
        method: how the interval was made.
    """

    estimand: str
    value: float
    low: float
    high: float
    examples: int
    draws: int
    method: str


def per_draw(predicted: Sequence[Sequence[int]], labels: Sequence[int]) -> Estimate:
    """Accuracy of one deployed query: the mean over examples of the mean over draws."""
    right = [ps.count(y) / len(ps) for ps, y in zip(predicted, labels, strict=True)]
    return mean_accuracy("per_draw", right, _draws(predicted))


def majority(predicted: Sequence[Sequence[int]], labels: Sequence[int]) -> Estimate:
    """Accuracy of a vote over all draws; a tie counts against the defence."""
    right = [float(vote(ps, y)) for ps, y in zip(predicted, labels, strict=True)]
    return mean_accuracy("majority", right, _draws(predicted))


def vote(predicted: Sequence[int], label: int) -> bool:
    """Whether the label got strictly more of the draws than any other class."""
    own = predicted.count(label)
    return 2 * own > len(predicted) or own > max(
        (predicted.count(k) for k in {*predicted} - {label}), default=0
    )


def all_draws(predicted: Sequence[Sequence[int]], labels: Sequence[int]) -> Estimate:
    """Share of examples right on every draw: the adversary may resubmit as often as there are draws."""
    right = [float(ps.count(y) == len(ps)) for ps, y in zip(predicted, labels, strict=True)]
    return mean_accuracy(f"all_draws@{_draws(predicted)}", right, _draws(predicted))


def any_iterate(failed_at: Sequence[int | None], queries: Sequence[int]) -> Estimate:
    """Share of examples that no query broke while the attack ran.

    Args:
        failed_at: number of the first query that was answered wrongly, from 1 on; None where none was.
        queries: how many each example met; the largest is in the name.
    """
    most = max(queries, default=0)
    return mean_accuracy(f"any_iterate@{most}", [float(at is None) for at in failed_at], most)


def mean_accuracy(estimand: str, right: Sequence[float], draws: int) -> Estimate:
    """An estimate of a mean over examples of values in [0, 1], with Wilson's interval."""
    mean = sum(right) / len(right) if right else math.nan
    low, high = wilson(mean, len(right)) if right else (math.nan, math.nan)
    return Estimate(estimand, mean, low, high, len(right), draws, "wilson")


def paired_difference(a: Sequence[float], b: Sequence[float], draws: int = 1) -> Estimate:
    """Mean of a - b over the same examples, with an interval over pairs.

    A value may be a mean over draws. If draw r of both has the same noise, as with equal seeds, the draws
    are then paired as well: the difference of two means over draws is the mean of the draws' differences.

    Args:
        a: per-example values of one row or run, in [0, 1].
        b: those of the other, in the same order.
        draws: draws behind each value, for the label.

    Returns:
        The difference with its interval; see `dbpkit.statistics.intervals.difference`.

    Raises:
        ValueError: if the lengths differ.
    """
    if len(a) != len(b):
        raise ValueError(f"a paired difference needs pairs: {len(a)} values were given against {len(b)}.")
    if len(a) == 0:
        return Estimate("difference", math.nan, math.nan, math.nan, 0, draws, "no examples")
    found = difference(np.asarray(a, dtype=float) - np.asarray(b, dtype=float))
    return Estimate("difference", found.value, found.low, found.high, found.examples, draws, found.method)


def mcnemar(a: Sequence[float], b: Sequence[float]) -> float:
    """Exact two-sided p-value of McNemar's test that a and b are right equally often.

    Only pairs in which one is right and the other wrong count; without a difference each is a fair coin.

    Args:
        a: 1 where one run was right, else 0; one draw per example.
        b: those of the other, in the same order.

    Returns:
        The p-value in (0, 1]; 1 if no pair is discordant.

    Raises:
        ValueError: if the lengths differ or a value is neither 0 nor 1.

    Source:
        McNemar 1947, Psychometrika 12:153; exact binomial form.
    """
    if {*a, *b} - {0, 1}:
        raise ValueError("McNemar's test is for single draws: every value must be 0 or 1.")
    pairs = list(zip(a, b, strict=True))
    only_a, only_b = (sum(pair == one for pair in pairs) for one in ((1, 0), (0, 1)))
    n, ways, tail = only_a + only_b, 1, 0
    for k in range(min(only_a, only_b) + 1):
        tail += ways  # ways = binomial coefficient (n, k), in whole numbers
        ways = ways * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)


def _draws(predicted: Sequence[Sequence[int]]) -> int:
    return max((len(ps) for ps in predicted), default=0)
