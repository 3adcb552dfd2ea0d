"""Ensembles: the report draws of an image in groups, the logits of a group averaged before a class is taken.

A record lists the classes of all groups: first of groups of 2, then of 3, 5, 10, 20, ... draws, as many of
each as do not overlap, and last that of all draws. The thing people get wrong: R repetitions are one answer
of an ensemble, not R. Of R draws there is one ensemble of R, so its interval has one answer an image.
"""

from collections.abc import Iterator

import numpy as np

from dbpkit.results.columns import RowColumns
from dbpkit.statistics.estimates import Estimate, mean_accuracy

_STEPS = (1, 2, 3, 5)


def sizes(draws: int) -> list[int]:
    """Returns how many draws the groups have, ascending; groups of 1 are the predictions themselves.

    Example:
        >>> sizes(100)
        [2, 3, 5, 10, 20, 30, 50, 100]
    """
    powers = (10**k for k in range(len(str(draws))))
    smaller = (step * power for power in powers for step in _STEPS)
    return [*sorted(s for s in smaller if 1 < s < draws), *([draws] if draws > 1 else [])]


def count(draws: int) -> int:
    """Returns how many groups there are in all."""
    return sum(draws // size for size in sizes(draws))


def groups(draws: int) -> Iterator[tuple[int, slice]]:
    """Yields each size with where its groups stand in the list of a record."""
    start = 0
    for size in sizes(draws):
        yield size, slice(start, start + draws // size)
        start += draws // size


def ensemble_estimates(group: RowColumns, estimand: str) -> list[Estimate]:
    """Accuracy of ensembles of each size, averaged over those of an image; none where none are recorded.

    Args:
        group: the records of one row with one tape.
        estimand: name, to which the size is added: ``mean_logits@10``.
    """
    listed, draws = group.ensembles, int(group.draws.max(initial=0))
    if not listed.counts.any() or (group.draws != draws).any() or (listed.counts != count(draws)).any():
        return []
    right = listed.values.reshape(len(group), -1) == group.label[:, None]
    found = []
    for size, where in groups(draws):
        held = right[:, where].mean(axis=1)
        found.append(mean_accuracy(f"{estimand}@{size}", np.asarray(held).tolist(), draws))
    return found
