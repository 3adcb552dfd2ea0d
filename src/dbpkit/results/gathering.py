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
    appends: Callable[[], Iterable[tuple[Sequence[Line], Mapping[str, Any]]]],
    looked_at: Callable[[Line], Record],
) -> Columns:
    """Returns records as columns, the newest of every key.

    Args:
        appends: gives the lines of every append, and what it says of the run it belongs to.
        looked_at: returns the record of a line, a failed one in place of one that is damaged.
    """
    rows, seals = _gathered(appends(), looked_at, _uniform)
    if not all(row.is_sound() for row in rows.values()):
        rows, seals = _gathered(appends(), looked_at, lambda _: None)
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


def _gathered(
    appends: Iterable[tuple[Sequence[Line], Mapping[str, Any]]],
    looked_at: Callable[[Line], Record],
    uniform: Callable[[Sequence[Record]], "_Block | None"],
) -> tuple[dict[str, "_Row"], list[Mapping[str, Any]]]:
    """Every record by row, and what every append says of the run."""
    rows: dict[str, _Row] = {}
    seals, order = [], 0
    for number, (lines, seal) in enumerate(appends):
        seals.append(seal)
        for name, block, places in _blocks(lines, looked_at, uniform):
            row = rows.get(name)
            if row is None:
                row = rows[name] = _Row()
            row.take(block, places, order, number)
            order += len(places)
    return rows, seals


def _blocks(
    lines: Sequence[Line],
    looked_at: Callable[[Line], Record],
    uniform: Callable[[Sequence[Record]], _Block | None],
) -> Iterable[tuple[str, _Block, Sequence[int]]]:
    """Name, records and places of the lines of each row in an append."""
    block = uniform([line.entry for line in lines])
    if block is not None:
        return [(lines[0].entry["row"], block, [line.offset for line in lines])]
    placed = [(line.offset, looked_at(line)) for line in lines]
    found = []
    for name, group in groupby(placed, key=lambda one: one[1]["row"]):
        places, records = zip(*group, strict=True)
        found.append((name, _any(records), places))
    return found


def _uniform(records: Sequence[Record]) -> _Block | None:
    """Records that have the same keys and values of the right types; None if each must be looked at.

    How large the values are is looked at once they are all there; see `_Row.is_sound`.
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
    whole = {name: columns[name] for name in ("tape", "example", "label")}
    whole["draws"] = tuple(map(len, columns["predicted"]))
    if "claimed_success" in first:
        whole["claimed_success"] = tuple(map(int, columns["claimed_success"]))
    if "queries" in first:
        whole |= {name: tuple(at or 0 for at in columns[name]) for name in QUERIES}
    return _Block(
        whole,
        predicted,
        measures,
        {name: path for name, path in paths.items() if path},
        {name: tuple(map(len, columns[name])) for name in paths},
        {},
    )


_INTEGER: set[type] = {int}
_FLOAT: set[type] = {float}
_NUMBERS: set[type] = {int, float}
_LARGEST = 1e290
"""Measured numbers lie below this, or each record is looked at."""


def _flat(lists: Sequence[Any]) -> list[Any] | None:
    """Lists one after the other; None if one is something else."""
    return list(chain.from_iterable(lists)) if set(map(type, lists)) == {list} else None


def _are_numbers(values: Sequence[Any], kinds: set[type]) -> bool:
    """Whether values are numbers and none of them is nan or infinite."""
    if not set(map(type, values)) <= kinds:
        return False
    try:
        return -math.inf < sum(values) < math.inf
    except OverflowError:  # a whole number that is no float
        return False


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
    """Gathers the records of one row; a key that no record has takes no room."""

    def __init__(self) -> None:
        self.count = 0
        self.whole = {name: array("q") for name in (*_WHOLE, "line")}
        self.measures = {name: array("d") for name in MEASURES}
        self.paths = {name: array("d") for name in PATHS}
        self.counts = {name: array("q") for name in PATHS}
        self.predicted = array("q")
        self.errors: dict[int, str] = {}
        self.units: list[tuple[int, int, int]] = []
        self.overflows = False

    def take(self, block: _Block, places: Sequence[int], order: int, append: int) -> None:
        """Takes records with the places of their lines, from one append."""
        if block.errors:
            self.errors |= {self.count + k: error for k, error in block.errors.items()}
        self.units.append((append, order, len(places)))
        try:
            self.whole["line"].extend(places)
            for name, values in block.whole.items():
                self._reach(self.whole[name], self.count, ABSENT).extend(values)
            for name, numbers in block.measures.items():
                self._reach(self.measures[name], self.count, math.nan).extend(numbers)
            for name, counts in block.counts.items():
                self._reach(self.counts[name], self.count, 0).extend(counts)
            for name, path in block.paths.items():
                self.paths[name] += array("d", path)
            self.predicted += array("q", block.predicted)
        except OverflowError:  # a whole number of more than 64 bits, or one that is no float
            self.overflows = True
        self.count += len(places)

    def is_sound(self) -> bool:
        """Whether all values lie where those of good records do."""
        if self.overflows:
            return False
        tape, example, label, predicted = (
            np.frombuffer(values, dtype=np.int64)
            for values in (self.whole["tape"], self.whole["example"], self.whole["label"], self.predicted)
        )
        own = (tape, 0), (example, 0), (predicted, 0), (label, ABSENT if self.errors else 0)
        if any(len(values) and values.min() < least for values, least in own):
            return False
        if any(len(values) and values.max() >= MOST for values in (tape, label, predicted)):
            return False
        measured = map(_floats, (*self.measures.values(), *self.paths.values()))
        return not any(
            max(np.nanmax(v, initial=0.0), -np.nanmin(v, initial=0.0)) >= _LARGEST for v in measured if len(v)
        )

    def columns(self) -> tuple[RowColumns, Integers, dict[int, str]]:
        """The records, the failed ones too, the order of their lines, and the errors."""
        append, order, count = np.array(self.units, dtype=np.int64).T
        starts = np.cumsum(count) - count
        whole = {name: self._whole(values, ABSENT) for name, values in self.whole.items()}
        predicted = np.frombuffer(self.predicted, dtype=np.int64) if self.predicted else np.zeros(0, np.int64)
        paths = {
            name: Ragged(_floats(values), self._whole(self.counts[name], 0))
            for name, values in self.paths.items()
        }
        found = RowColumns(
            predicted=filled_up(predicted, whole["draws"], ABSENT),
            measures={
                name: _floats(self._reach(values, self.count, math.nan))
                for name, values in self.measures.items()
            },
            paths=paths,
            queries={name: whole.pop(name) for name in QUERIES},
            append=np.repeat(append, count),
            **whole,
        )
        return found, np.repeat(order - starts, count) + np.arange(self.count), self.errors

    def _whole(self, values: array, fill: int) -> Integers:
        return np.frombuffer(self._reach(values, self.count, fill), dtype=np.int64)

    @staticmethod
    def _reach(values: array, count: int, fill: float) -> array:
        """A column with a value for each of the first so many records."""
        if len(values) < count:
            values.extend([fill] * (count - len(values)))
        return values


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
