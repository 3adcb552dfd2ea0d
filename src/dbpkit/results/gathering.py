"""From the lines of ``records.jsonl`` to columns.

An append is one unit of work, so its records are of one row and have the same keys. If they do, and every
value is what it must be, the whole append becomes columns at once; if anything is unusual, each record is
looked at by itself. Both give the same. The thing people get wrong: holding a hundred thousand dictionaries.
"""

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, groupby
from typing import Any, NamedTuple

import numpy as np

from dbpkit.results.journal import Line
from dbpkit.results.records import (
    ABSENT,
    MEASURES,
    MOST,
    PATHS,
    QUERIES,
    Columns,
    Floats,
    Integers,
    Ragged,
    Record,
    RowColumns,
    are_queries,
    filled_up,
    is_shard,
    key_of,
)

_FAILED: Record = {"label": ABSENT, "predicted": ()}
"""Stands in the columns for a record without a result."""

_WHOLE = ("tape", "example", "label", "draws", "claimed_success", *QUERIES)
_HEAD = {"row", "tape", "example", "label", "predicted"}


class _Block(NamedTuple):
    """Records of one row as columns.

    Attributes:
        whole: whole numbers by key.
        predicted: the predictions of all, one after the other.
        measures: numbers by key.
        paths: the numbers of all lists, one after the other, by key.
        counts: how many each list has, by key.
        errors: of failed records, by position.
    """

    whole: Mapping[str, Sequence[int]]
    predicted: Sequence[int]
    measures: Mapping[str, Sequence[float]]
    paths: Mapping[str, Sequence[float]]
    counts: Mapping[str, Sequence[int]]
    errors: Mapping[int, str]


def gather(
    appends: Iterable[tuple[Sequence[Line], Mapping[str, Any]]], looked_at: Callable[[Line], Record]
) -> Columns:
    """Returns records as columns, the newest of every key.

    Args:
        appends: the lines of every append, and what it says of the run it belongs to.
        looked_at: returns the record of a line, a failed one in place of one that is damaged.
    """
    rows: dict[str, _Row] = {}
    seals, order = [], 0
    for number, (lines, seal) in enumerate(appends):
        seals.append(seal)
        for name, block, places in _blocks(lines, looked_at):
            rows.setdefault(name, _Row()).take(block, places, order, number)
            order += len(places)
    good: dict[str, RowColumns] = {}
    failed: list[tuple[int, Record]] = []
    for name in list(rows):
        columns, orders, errors = rows.pop(name).columns()
        newest, first = _newest(columns.tape, columns.example)
        whole = np.ones(len(columns), dtype=bool)
        whole[list(errors)] = False
        if whole[newest].any():
            good[name] = columns.select(newest[whole[newest]])
        lost = ~whole[newest]
        for k, at in zip(newest[lost].tolist(), orders[first[lost]].tolist(), strict=True):
            about = {"row": name, "tape": int(columns.tape[k]), "example": int(columns.example[k])}
            failed.append((at, {**about, "error": errors[k]}))
    return Columns(good, [record for _, record in sorted(failed, key=lambda f: f[0])], seals)


def _blocks(
    lines: Sequence[Line], looked_at: Callable[[Line], Record]
) -> Iterable[tuple[str, _Block, Sequence[int]]]:
    """Name, records and places of the lines of each row in an append."""
    block = _uniform([line.entry for line in lines])
    if block is not None:
        yield lines[0].entry["row"], block, [line.offset for line in lines]
        return
    placed = [(line.offset, looked_at(line)) for line in lines]
    for name, group in groupby(placed, key=lambda one: one[1]["row"]):
        places, records = zip(*group, strict=True)
        yield name, _any(records), places


def _uniform(records: Sequence[Record]) -> _Block | None:
    """Records that have the same keys and are good; None if each must be looked at by itself."""
    first = records[0]
    names = tuple(first)
    if not first.keys() >= _HEAD or "error" in first or any(tuple(r) != names for r in records):
        return None
    columns = dict(zip(names, zip(*(r.values() for r in records), strict=True), strict=True))
    if key_of(first) is None or any(row != first["row"] for row in columns["row"]):
        return None
    predicted = _flat(columns["predicted"])
    if predicted is None or not all(columns["predicted"]) or not _are_whole(predicted, MOST):
        return None
    if not all(_are_whole(columns[name], most) for name, most in _LIMITS.items()):
        return None
    paths = {name: _flat(columns[name]) for name in PATHS if name in columns}
    if not all(path is not None and _are_finite(path, {float}) for path in paths.values()):
        return None
    if not all(_are_finite(columns[name], _NUMBERS) for name in MEASURES if name in columns):
        return None
    if not _are_texts(columns) or not _are_answers(columns):
        return None
    absent = (ABSENT,) * len(records)
    whole = {name: columns[name] for name in _LIMITS}
    whole["draws"] = tuple(map(len, columns["predicted"]))
    whole["claimed_success"] = tuple(map(int, columns.get("claimed_success", absent)))
    for name in QUERIES:
        whole[name] = tuple(at or 0 for at in columns[name]) if "queries" in columns else absent
    return _Block(
        whole,
        predicted,
        {name: columns[name] for name in MEASURES if name in columns},
        {name: path for name, path in paths.items() if path is not None},
        {name: tuple(map(len, columns[name])) for name in paths},
        {},
    )


_NUMBERS = {int, float}
_LIMITS = {"tape": MOST, "example": 2**63, "label": MOST}


def _flat(lists: Sequence[Any]) -> list[Any] | None:
    """Lists one after the other; None if one is something else."""
    return list(chain.from_iterable(lists)) if set(map(type, lists)) == {list} else None


def _are_whole(values: Sequence[Any], most: int) -> bool:
    return set(map(type, values)) == {int} and min(values) >= 0 and max(values) < most


def _are_finite(values: Sequence[Any], kinds: set[type]) -> bool:
    """Whether values are numbers, none of them nan, and so small that no sum of them overflows."""
    if not set(map(type, values)) <= kinds or not math.isfinite(sum(values)):
        return False
    return not values or -1e290 < min(values) <= max(values) < 1e290


def _are_texts(columns: Mapping[str, Sequence[Any]]) -> bool:
    """Whether names are names."""
    named = [columns[name] for name in ("attack", "images") if name in columns]
    if not all(set(map(type, values)) == {str} for values in named):
        return False
    return all(map(is_shard, set(columns.get("images", ()))))


def _are_answers(columns: Mapping[str, Sequence[Any]]) -> bool:
    """Whether what was asked and claimed while the attack ran is as it must be."""
    if not set(map(type, columns.get("claimed_success", ()))) <= {bool}:
        return False
    if "queries" not in columns:
        return True
    return all(n in columns for n in QUERIES) and all(map(are_queries, *(columns[n] for n in QUERIES)))


def _any(records: Sequence[Record]) -> _Block:
    """Records that have been looked at, of one row and with any keys."""
    good = [record if "error" not in record else _FAILED for record in records]
    whole: dict[str, list[int]] = {name: [r[name] for r in records] for name in ("tape", "example")}
    whole["label"] = [r["label"] for r in good]
    whole["draws"] = [len(r["predicted"]) for r in good]
    whole["claimed_success"] = [int(r.get("claimed_success", ABSENT)) for r in good]
    for name in QUERIES:
        whole[name] = [r[name] or 0 if "queries" in r else ABSENT for r in good]
    lists = {name: [r.get(name, ()) for r in good] for name in PATHS}
    return _Block(
        whole,
        list(chain.from_iterable(r["predicted"] for r in good)),
        {name: [r.get(name, math.nan) for r in good] for name in MEASURES},
        {n: [math.nan if v is None else v for v in chain.from_iterable(lists[n])] for n in PATHS},
        {name: list(map(len, lists[name])) for name in PATHS},
        {k: r["error"] for k, r in enumerate(records) if "error" in r},
    )


class _Row:
    """Gathers the records of one row."""

    def __init__(self) -> None:
        self.whole = {name: array("q") for name in (*_WHOLE, "line", "append", "order")}
        self.measures = {name: array("d") for name in MEASURES}
        self.paths = {name: array("d") for name in PATHS}
        self.counts = {name: array("q") for name in PATHS}
        self.predicted = array("q")
        self.errors: dict[int, str] = {}

    def take(self, block: _Block, places: Sequence[int], order: int, append: int) -> None:
        """Takes records with the places of their lines, from one append."""
        count, whole = len(places), self.whole
        if block.errors:
            self.errors |= {len(whole["tape"]) + k: error for k, error in block.errors.items()}
        for name in _WHOLE:
            whole[name].extend(block.whole[name])
        whole["line"].extend(places)
        whole["append"].extend([append] * count)
        whole["order"].extend(range(order, order + count))
        self.predicted += array("q", block.predicted)
        for name, numbers in self.measures.items():
            numbers.extend(block.measures.get(name) or [math.nan] * count)
        for name, numbers in self.paths.items():
            self.counts[name].extend(block.counts.get(name) or [0] * count)
            numbers += array("d", block.paths.get(name, ()))

    def columns(self) -> tuple[RowColumns, Integers, dict[int, str]]:
        """The records, the failed ones too, the order of their lines, and the errors."""
        whole = {name: np.frombuffer(column, dtype=np.int64) for name, column in self.whole.items()}
        order = whole.pop("order")
        predicted = np.frombuffer(self.predicted, dtype=np.int64) if self.predicted else np.zeros(0, np.int64)
        paths = {
            name: Ragged(_floats(values), np.frombuffer(self.counts[name], dtype=np.int64))
            for name, values in self.paths.items()
        }
        found = RowColumns(
            predicted=filled_up(predicted, whole["draws"], ABSENT),
            measures={name: _floats(values) for name, values in self.measures.items()},
            paths=paths,
            queries={name: whole.pop(name) for name in QUERIES},
            **whole,
        )
        return found, order, self.errors


def _newest(tape: Integers, example: Integers) -> tuple[Integers, Integers]:
    """Position of the last record of every key and of the first, in the order of the first."""
    order = np.lexsort((example, tape))  # stable: the records of a key stay in the order of their lines
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (np.diff(tape[order]) != 0) | (np.diff(example[order]) != 0)
    first, last = order[begins], order[np.append(begins[1:], True)]
    appeared = np.argsort(first)
    return last[appeared], first[appeared]


def _floats(values: array) -> Floats:
    return np.frombuffer(values, dtype=np.float64) if values else np.zeros(0)
