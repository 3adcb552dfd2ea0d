"""The records of one append as a block of columns: at once where they are alike, one by one where not.

An append is one unit of work, so its records are of one row and have the same keys. If they do, and every
value is what it must be, the whole append becomes columns at once (`alike`); if anything is unusual, each
record is looked at by itself (`any_records`). Both give the same.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from dbpkit.results.columns import ABSENT
from dbpkit.results.records import (
    MEASURES,
    PATHS,
    QUERIES,
    Record,
    are_classes,
    are_queries,
    is_shard,
    key_of,
)

_FAILED: Mapping[str, Any] = {"label": ABSENT, "predicted": ()}
"""Stands in the columns for a record without a result."""

_HEAD = {"row", "tape", "example", "label", "predicted"}
_INTEGER: set[type] = {int}
_FLOAT: set[type] = {float}
_NUMBERS: set[type] = {int, float}


class Block(NamedTuple):
    """Records of one row as columns.

    Attributes:
        whole: whole numbers by key.
        predicted: the predictions of all, one after the other.
        ensembles: the classes of groups of draws of all, one after the other.
        measures: numbers by key.
        paths: the numbers of all lists, one after the other, by key.
        counts: how many each list has, by key.
        errors: of failed records, by position.
    """

    whole: Mapping[str, Sequence[int]]
    predicted: Sequence[int]
    ensembles: Sequence[int]
    measures: Mapping[str, Sequence[float]]
    paths: Mapping[str, Sequence[float]]
    counts: Mapping[str, Sequence[int]]
    errors: Mapping[int, str]


def alike(records: Sequence[Mapping[str, Any]]) -> Block | None:
    """Records that have the same keys and values of the right types; None if each must be looked at.

    How large the values are is looked at once they are all there; see `dbpkit.results.gathering`.
    """
    first = records[0]
    names = tuple(first)
    if not first.keys() >= _HEAD or "error" in first or any(tuple(r) != names for r in records):
        return None
    by_key = zip(*(record.values() for record in records), strict=True)
    columns: dict[str, Sequence[Any]] = dict(zip(names, by_key, strict=True))
    if key_of(first) is None or any(row != first["row"] for row in columns["row"]):
        return None
    if any(set(map(type, columns[name])) != _INTEGER for name in ("tape", "example", "label")):
        return None
    predicted = _flat(columns["predicted"])
    if predicted is None or not all(columns["predicted"]) or set(map(type, predicted)) != _INTEGER:
        return None
    measures = {name: columns[name] for name in MEASURES if name in first}
    paths = {name: _flat(columns[name]) for name in PATHS if name in first}
    if not _are_numbers(list(chain.from_iterable(measures.values())), _NUMBERS):
        return None
    if not all(path is not None and _are_numbers(path, _FLOAT) for path in paths.values()):
        return None
    if not _are_texts(columns) or not _are_answers(columns):
        return None
    ensembles = columns.get("ensembles", ())
    whole = {name: columns[name] for name in ("tape", "example", "label")}
    whole["draws"] = tuple(map(len, columns["predicted"]))
    if "claimed_success" in first:
        whole["claimed_success"] = tuple(map(int, columns["claimed_success"]))
    if "queries" in first:
        whole |= {name: tuple(at or 0 for at in columns[name]) for name in QUERIES}
    return Block(
        whole,
        predicted,
        list(chain.from_iterable(ensembles)),
        measures,
        {name: path for name, path in paths.items() if path},
        {name: tuple(map(len, columns[name])) for name in (*paths, *(("ensembles",) if ensembles else ()))},
        {},
    )


def _flat(lists: Sequence[Any]) -> list[Any] | None:
    """Lists one after the other; None if one is something else."""
    return list(chain.from_iterable(lists)) if set(map(type, lists)) == {list} else None


def _are_numbers(values: Sequence[Any], kinds: set[type]) -> bool:
    """Whether values are numbers and none of them is nan or infinite."""
    if not set(map(type, values)) <= kinds:
        return False
    try:
        return bool(-math.inf < sum(values) < math.inf)
    except OverflowError:  # a whole number that is not a float
        return False


def _are_texts(columns: Mapping[str, Sequence[Any]]) -> bool:
    """Whether names are names."""
    named = [columns[name] for name in ("attack", "images") if name in columns]
    if not all(set(map(type, values)) == {str} for values in named):
        return False
    return all(map(is_shard, set(columns.get("images", ()))))


def _are_answers(columns: Mapping[str, Sequence[Any]]) -> bool:
    """Whether groups of draws, and what was asked and claimed while the attack ran, are as they must be."""
    if not all(map(are_classes, columns.get("ensembles", ()))):
        return False
    if not set(map(type, columns.get("claimed_success", ()))) <= {bool}:
        return False
    if "queries" not in columns:
        return True
    return all(n in columns for n in QUERIES) and all(map(are_queries, *(columns[n] for n in QUERIES)))


def any_records(records: Sequence[Record]) -> Block:
    """Records that have been looked at, of one row and with any keys."""
    good: list[Mapping[str, Any]] = [record if "error" not in record else _FAILED for record in records]
    whole: dict[str, list[int]] = {
        "tape": [r["tape"] for r in records],
        "example": [r["example"] for r in records],
    }
    whole["label"] = [r["label"] for r in good]
    whole["draws"] = [len(r["predicted"]) for r in good]
    whole["claimed_success"] = [int(r.get("claimed_success", ABSENT)) for r in good]
    for name in QUERIES:
        whole[name] = [r[name] or 0 if "queries" in r else ABSENT for r in good]
    lists = {name: [r.get(name, ()) for r in good] for name in PATHS}
    return Block(
        whole,
        list(chain.from_iterable(r["predicted"] for r in good)),
        list(chain.from_iterable(r.get("ensembles", ()) for r in good)),
        {name: [r.get(name, math.nan) for r in good] for name in MEASURES},
        {n: [math.nan if v is None else v for v in chain.from_iterable(lists[n])] for n in PATHS},
        {name: list(map(len, lists[name])) for name in PATHS}
        | {"ensembles": [len(r.get("ensembles", ())) for r in good]},
        {k: r["error"] for k, r in enumerate(records) if "error" in r},
    )
