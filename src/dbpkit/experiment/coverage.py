"""Whether the chosen examples show every class, and which file has which label.

The thing people get wrong: an accuracy over one class looks like any other accuracy.
"""

import logging
from functools import lru_cache

import numpy as np

from dbpkit.data import Dataset
from dbpkit.foundation import console
from dbpkit.results.flags import Flag

EXAMPLES_LOG = logging.getLogger(console.EXAMPLES)
"""Says once in a process, at level INFO, what the first examples of a data set are."""

MISSING_CLASSES = "missing_classes"
"""Name of the flag."""

CHANCE = 0.05
"""Random examples that show so few classes less often than this are not a fair choice."""

SHOWN = 3
"""Missing classes that are named."""


def missing_classes(data: Dataset, order: str) -> list[Flag]:
    """Flags examples that leave out classes which a fair choice of as many would hold.

    A balanced choice shows every class that has an example. Other choices are compared with examples that are
    drawn at random from equally large classes.

    Args:
        data: the chosen examples.
        order: in which order they were chosen, see `dbpkit.data.in_order`.
    """
    count, classes = len(data), len(data.class_names)
    present = set(data.labels.tolist())
    if len(present) >= min(count, classes):
        return []
    if order != "balanced" and at_most(len(present), count, classes) >= CHANCE:
        return []
    missing = [name for k, name in enumerate(data.class_names) if k not in present]
    named = ", ".join(f"'{name}'" for name in missing[:SHOWN])
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    remedy = (
        "The data have no image of them: look at its labels, or leave these classes out of the data."
        if order == "balanced"
        else 'examples.order = "balanced" takes every class in turn.'
    )
    message = (
        f"None of the {count} examples is of {len(missing)} of the {classes} classes ({named}{more}), so the"
        f" numbers say nothing of them. {remedy}"
    )
    return [Flag("missing_classes", "warning", message)]


def tell_first(data: Dataset) -> None:
    """Logs the file and the class of the first examples, so that a wrong order of classes is seen."""
    if data.origins:
        pairs = zip(data.origins[:SHOWN], data.labels[:SHOWN].tolist(), strict=True)
        said = "; ".join(f"{origin} is class {k}, '{data.class_names[k]}'" for origin, k in pairs)
        _tell_once(f"data '{data.name}': {said}")


@lru_cache(maxsize=64)
def _tell_once(said: str) -> None:
    EXAMPLES_LOG.info("%s", said)


def at_most(present: int, count: int, classes: int) -> float:
    """Returns the probability that ``count`` random examples of equal classes show at most so many."""
    shown = np.zeros(classes + 1)  # probability of every number of classes shown so far
    shown[0] = 1.0
    number = np.arange(classes + 1)
    for _ in range(min(count, 64 * classes)):  # beyond that every class is shown
        again = shown * number / classes
        again[1:] += shown[:-1] * (classes - number[:-1]) / classes
        shown = again
    return float(shown[: present + 1].sum())
