"""Estimands of a row: accuracies of recorded predictions, with their intervals.

A row's scores are a table: one line per example, one column per draw, 1 where the prediction was right.
The thing people get wrong: the examples are the sample, the draws are not. Ten draws of one image are not ten
images, so every interval has n = examples.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dbpkit.statistics.binomial import mcnemar
from dbpkit.statistics.intervals import difference, wilson

__all__ = [
    "Estimate",
    "all_draws",
    "any_iterate",
    "average_difference",
    "majority",
    "mcnemar",
    "mean_accuracy",
    "paired_difference",
    "per_draw",
    "vote",
]


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


def average_difference(
    a: Sequence[Mapping[int, float]], b: Sequence[Mapping[int, float]], draws: int = 1
) -> Estimate:
    """Mean of a - b over several conditions that the same examples met, such as the budgets of two curves.

    An example's value is its mean over the conditions, so their correlation is kept, and n is the number of
    examples.

    Args:
        a: each condition's values by example id, in [0, 1].
        b: those of the other, under as many conditions.
        draws: draws behind each value, for the label.

    Returns:
        `paired_difference` over the examples that all conditions of both have.
    """
    shared = sorted(set.intersection(*(set(values) for values in (*a, *b))))
    left, right = ([sum(values[i] for values in side) / len(side) for i in shared] for side in (a, b))
    return paired_difference(left, right, draws)


def _draws(predicted: Sequence[Sequence[int]]) -> int:
    return max((len(ps) for ps in predicted), default=0)
