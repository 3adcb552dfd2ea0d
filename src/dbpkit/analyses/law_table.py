"""The law's records as a table: one line for each purifier."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dbpkit.analyses.configurations import predicted
from dbpkit.errors import UserError

CLASSIFIER = "classifier"
"""Units that measure the margin of the classifier at the images themselves."""

_PER_BUDGET = ("survived", "length", "attack_rate")


class Table(NamedTuple):
    """The records by configuration: N of them, E budgets.

    Attributes:
        labels: names.
        images: examples behind each.
        eps: budgets in pixel units, (E,).
        lengths: Euclidean length of a uniform perturbation of each budget, (N, E).
        rate: compression rate, (N,).
        right: accuracy at the anchors, (N,).
        attacked: accuracy under attack, (N, E).
        predicted: by the formula with ``rate``, (N, E).
        attack_rate: compression rate along the attack's perturbations, (N,); nan if none was made.
        informed: by the formula with ``attack_rate`` and the length of the attack's perturbations, (N, E).
        margins: all margins at the anchors, infinity for none found.
    """

    labels: list[str]
    images: int
    eps: list[float]
    lengths: np.ndarray
    rate: np.ndarray
    right: np.ndarray
    attacked: np.ndarray
    predicted: np.ndarray
    attack_rate: np.ndarray
    informed: np.ndarray
    margins: np.ndarray


def tabulate(measured: Mapping[str, Any]) -> Table:
    """Averages the records over tapes and images; UserError if the budgets of two records do not match."""
    groups: dict[str, list[Any]] = {}
    for unit, found in measured.items():
        if not _is_of_classifier(unit):
            groups.setdefault(unit.rpartition(" ")[0], []).append(found)
    eps = next(iter(groups.values()))[0]["eps"]
    if any(found["eps"] != eps for batch in groups.values() for found in batch):
        raise UserError("the records of the law have different budgets. Combine runs with dbpkit law.")
    lines = [_line(batch) for batch in groups.values()]
    *columns, margin = zip(*lines, strict=True)
    images = min(sum(len(found["tapes"][0]["right"]) for found in batch) for batch in groups.values())
    return Table._make([list(groups), images, eps, *map(np.array, columns), np.concatenate(margin)])


def at_shared_budgets(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The records at the budgets that all of them have; UserError if there is none."""
    budgets = [found["eps"] for unit, found in measured.items() if not _is_of_classifier(unit)]
    shared = [e for e in budgets[0] if all(any(_same(e, other) for other in own) for own in budgets)]
    if not shared:
        raise UserError("the runs have no budget in common. Give the analysis 'law' the same eps in each.")

    def cut(found: Mapping[str, Any]) -> dict[str, Any]:
        kept = [i for e in shared for i, own in enumerate(found["eps"]) if _same(e, own)]
        tapes = [
            {**tape, **{key: [[v[i] for i in kept] for v in tape[key]] for key in _PER_BUDGET}}
            for tape in found["tapes"]
        ]
        return {**found, "eps": shared, "lengths": [found["lengths"][i] for i in kept], "tapes": tapes}

    return {u: found if _is_of_classifier(u) else cut(found) for u, found in measured.items()}


def _is_of_classifier(unit: str) -> bool:
    return unit.rpartition(" ")[0].endswith(CLASSIFIER)


def _same(a: float, b: float) -> bool:
    return abs(a - b) < 1e-9


def _line(batch: list[Any]) -> tuple[Any, ...]:
    """One configuration of the table, its columns in order."""
    tapes = [tape for found in batch for tape in found["tapes"]]
    right, margin, rates, survived, length, attack = (
        [value for tape in tapes for value in tape[key]]
        for key in ("right", "margin", "rate", "survived", "length", "attack_rate")
    )
    reach = np.array(batch[0]["lengths"])
    rate = float(np.mean(rates))
    tried = [
        (a, n / r)
        for aa, nn in zip(attack, length, strict=True)
        for a, n, r in zip(aa, nn, reach, strict=True)
        if n
    ]
    attack_rate, stretch = np.mean(tried, axis=0) if tried else (np.nan, np.nan)

    def formula(rate: float, stretch: float) -> np.ndarray:
        return np.array([np.mean(predicted(right, margin, rate, stretch * r)) for r in reach])

    return (
        reach,
        rate,
        float(np.mean(right)),
        np.mean(survived, axis=0),
        formula(rate, 1.0),
        float(attack_rate),
        formula(float(attack_rate), float(stretch)),
        np.array([np.inf if m is None else m for m in margin]),
    )


def clean_margins(measured: Mapping[str, Any]) -> np.ndarray:
    """Margins at the images."""
    found = [m for u, f in measured.items() if u.rpartition(" ")[0].endswith(CLASSIFIER) for m in f["margin"]]
    return np.array([np.inf if m is None else m for m in found])
