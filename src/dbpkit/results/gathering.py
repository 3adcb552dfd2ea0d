"""From the lines of records to columns, one append at a time.

No more than one append is ever held as dictionaries, for a hundred thousand of them fill the memory.
"""

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from dbpkit.results.blocks import Block, alike, any_records
from dbpkit.results.columns import ABSENT, Columns, Floats, Integers, Ragged, RowColumns, filled_up
from dbpkit.results.journal import Line
from dbpkit.results.records import MEASURES, MOST, PATHS, QUERIES, Key, Record, failed

_WHOLE = ("tape", "example", "label", "draws", "claimed_success", *QUERIES)

_LARGEST = 1e290
"""Measured numbers lie below this, or each record is looked at."""


class Table(NamedTuple):
    """The order in which one process records.

    Attributes:
        rows: names of the rows.
        examples: ids of the examples.
    """

    rows: Sequence[str]
    examples: Sequence[int]

    def place(self, row: str) -> tuple[int, str]:
        """Returns by what rows are ordered: as listed, and then those that are not."""
        return (self.rows.index(row) if row in self.rows else len(self.rows)), row

    def order(self, example: Integers, tape: Integers) -> Integers:
        """Returns the positions of records (n,) of a row in this order; examples not listed come last."""
        ids = np.array(self.examples, dtype=np.int64)
        by_id = np.argsort(ids)
        at = np.searchsorted(ids, example, sorter=by_id)
        found = at < len(ids)
        found[found] = ids[by_id[at[found]]] == example[found]
        place = np.full(len(example), len(ids))
        place[found] = by_id[at[found]]
        return np.lexsort((tape, example, place))


def gather(
    appends: Callable[[], Iterable[tuple[Sequence[Line], Mapping[str, Any]]]],
    looked_at: Callable[[Line], Record],
    table: Table | None = None,
) -> Columns:
    """Returns records as columns, the newest of every key: of the last turn, and there the last line.

    Args:
        appends: gives the lines of every append, and what it says of the run it belongs to.
        looked_at: returns the record of a line, a failed one in place of one that is damaged.
        table: whose order the records are brought into, whoever wrote them; None keeps that of first
            appearance.
    """
    rows, seals = _gathered(appends(), looked_at, alike)
    if not all(row.is_sound() for row in rows.values()):
        rows, seals = _gathered(appends(), looked_at, lambda _: None)
    good: dict[str, RowColumns] = {}
    lost: list[tuple[int, Record]] = []
    turns = np.array([seal.get("turn", 0) for seal in seals], dtype=np.int64)
    for name in list(rows) if table is None else sorted(rows, key=table.place):
        columns, orders, errors = rows.pop(name).columns()
        newest, first = _newest(columns.tape, columns.example, turns[columns.append])
        if table is not None:
            order = table.order(columns.example[newest], columns.tape[newest])
            newest, first = newest[order], first[order]
            orders = np.full(len(orders), len(lost))  # the failed ones stay in the order of these
        whole = np.ones(len(columns), dtype=bool)
        whole[list(errors)] = False
        if whole[newest].any():
            good[name] = columns.select(newest[whole[newest]])
        without = ~whole[newest]
        for k, at in zip(newest[without].tolist(), orders[first[without]].tolist(), strict=True):
            lost.append((at, failed(Key(name, int(columns.tape[k]), int(columns.example[k])), errors[k])))
    return Columns(good, [record for _, record in sorted(lost, key=lambda one: one[0])], seals)


def _gathered(
    appends: Iterable[tuple[Sequence[Line], Mapping[str, Any]]],
    looked_at: Callable[[Line], Record],
    at_once: Callable[[Sequence[Mapping[str, Any]]], Block | None],
) -> tuple[dict[str, "_Row"], list[Mapping[str, Any]]]:
    """Every record by row, and what every append says of the run."""
    rows: dict[str, _Row] = {}
    seals, order = [], 0
    for number, (lines, seal) in enumerate(appends):
        seals.append(seal)
        for name, block, places in _blocks(lines, looked_at, at_once):
            row = rows.get(name)
            if row is None:
                row = rows[name] = _Row()
            row.take(block, places, order, number)
            order += len(places)
    return rows, seals


def _blocks(
    lines: Sequence[Line],
    looked_at: Callable[[Line], Record],
    at_once: Callable[[Sequence[Mapping[str, Any]]], Block | None],
) -> Iterable[tuple[str, Block, Sequence[int]]]:
    """Name, records and places of the lines of each row in an append."""
    block = at_once([line.entry for line in lines])
    if block is not None:
        return [(lines[0].entry["row"], block, [line.offset for line in lines])]
    placed = [(line.offset, looked_at(line)) for line in lines]
    found = []
    for name, group in groupby(placed, key=lambda one: one[1]["row"]):
        places, records = zip(*group, strict=True)
        found.append((name, any_records(records), places))
    return found


class _Row:
    """Gathers the records of one row; a key that no record has takes no room."""

    def __init__(self) -> None:
        self.count = 0
        self.whole = {name: array("q") for name in (*_WHOLE, "line")}
        self.measures = {name: array("d") for name in MEASURES}
        self.paths = {name: array("d") for name in PATHS}
        self.counts = {name: array("q") for name in (*PATHS, "ensembles")}
        self.predicted = array("q")
        self.ensembles = array("q")
        self.errors: dict[int, str] = {}
        self.units: list[tuple[int, int, int]] = []
        self.overflows = False

    def take(self, block: Block, places: Sequence[int], order: int, append: int) -> None:
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
            self.ensembles += array("q", block.ensembles)
        except OverflowError:  # a whole number of more than 64 bits, or one that is not a float
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
            ensembles=Ragged(_whole_floats(self.ensembles), self._whole(self.counts["ensembles"], 0)),
            queries={name: whole.pop(name) for name in QUERIES},
            append=np.repeat(append, count),
            **whole,
        )
        return found, np.repeat(order - starts, count) + np.arange(self.count), self.errors

    def _whole(self, values: "array[Any]", fill: int) -> Integers:
        return np.frombuffer(self._reach(values, self.count, fill), dtype=np.int64)

    @staticmethod
    def _reach(values: "array[Any]", count: int, fill: float) -> "array[Any]":
        """A column with a value for each of the first so many records."""
        if len(values) < count:
            values.extend([fill] * (count - len(values)))
        return values


def _newest(tape: Integers, example: Integers, turn: Integers) -> tuple[Integers, Integers]:
    """Position of the last record of every key and of the first, in the order of the first."""
    order = np.lexsort((turn, example, tape))  # stable: those of a turn stay in the order of their lines
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (np.diff(tape[order]) != 0) | (np.diff(example[order]) != 0)
    first, last = order[begins], order[np.append(begins[1:], True)]
    appeared = np.argsort(first)
    return last[appeared], first[appeared]


def _whole_floats(values: "array[Any]") -> Floats:
    return np.frombuffer(values, dtype=np.int64).astype(np.float64) if values else np.zeros(0)


def _floats(values: "array[Any]") -> Floats:
    return np.frombuffer(values, dtype=np.float64) if values else np.zeros(0)
