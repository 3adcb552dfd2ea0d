"""The records of a run as columns: arrays by row, over which everything published is counted.

Ten thousand images leave a hundred megabytes of lines. As dictionaries they take seconds and gigabytes; what
the numbers need fits in arrays.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from dbpkit.results.records import QUERIES, Key, Record, judged

Integers = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]

ABSENT = -1
"""Stands in a column of whole numbers for a key that the record does not have."""


class Ragged(NamedTuple):
    """Lists of numbers of several lengths.

    Attributes:
        values: all of them, one list after the other, (sum of counts,); nan for null.
        counts: length of each list, (n,).
    """

    values: Floats
    counts: Integers

    def padded(self) -> Floats:
        """Returns them as (n, longest), filled up with nan."""
        return filled_up(self.values, self.counts, math.nan)

    def owner(self) -> Integers:
        """Returns for every value the position of its list."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def first(self) -> Floats:
        """Returns the first value of every list that has one."""
        starts = np.cumsum(self.counts) - self.counts
        return np.asarray(self.values[starts[self.counts > 0]])

    def select(self, index: Integers) -> "Ragged":
        """Returns the lists at positions ``index``."""
        if len(index) == len(self.counts) and bool((index == np.arange(len(self.counts))).all()):
            return self
        starts = np.cumsum(self.counts) - self.counts
        counts = self.counts[index]
        if len(index) == 0 or not counts.any():
            return Ragged(self.values[:0], counts)
        place = np.repeat(starts[index] - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        return Ragged(self.values[place], counts)


@dataclass(frozen=True)
class RowColumns:
    """The records of one row, n of them.

    Attributes:
        tape: tape of each, (n,).
        example: example id, (n,).
        label: true class, (n,).
        draws: how many predictions each has, (n,).
        predicted: classes by draw, (n, most draws); -1 where a record has fewer draws.
        measures: ``excess``, ``distance``, ``forward_passes``, ``gradient_passes`` and ``network_calls``,
            (n,) each; nan where a record has no such key.
        paths: ``loss`` and ``grad_norm``; no values where a record has no such key.
        ensembles: classes of groups of averaged draws; no values where a record has no such key.
        queries: ``queries``, ``failed_at`` and ``control_failed_at``, (n,) each; 0 for null, -1 where a
            record has no such key.
        claimed_success: 1, 0, or -1 where a record has no such key, (n,).
        line: where the record begins in ``records.jsonl``, (n,).
        append: which append wrote it, (n,).
    """

    tape: Integers
    example: Integers
    label: Integers
    draws: Integers
    predicted: Integers
    measures: dict[str, Floats]
    paths: dict[str, Ragged]
    ensembles: Ragged
    queries: dict[str, Integers]
    claimed_success: Integers
    line: Integers
    append: Integers

    def __len__(self) -> int:
        return len(self.example)

    @property
    def right(self) -> Floats:
        """Share of the draws of each record that are right, (n,)."""
        hits: Floats = (self.predicted == self.label[:, None]).sum(axis=1) / self.draws
        return hits

    def by_example(self) -> dict[int, float]:
        """Returns the mean of `right` over the tapes of every example, by example id."""
        ids, where = np.unique(self.example, return_inverse=True)
        means = np.bincount(where, self.right) / np.bincount(where)
        return dict(zip(ids.tolist(), means.tolist(), strict=True))

    def records(self, row: str) -> list[Record]:
        """Returns key, label, answers and queries as records again; one row at a time fits the memory."""
        columns = self.tape, self.example, self.label, self.predicted, self.draws
        lists, ends = self.ensembles.values.astype(np.int64).tolist(), np.cumsum(self.ensembles.counts)
        groups = [lists[end - count : end] for end, count in zip(ends, self.ensembles.counts, strict=True)]
        found = [
            judged(Key(row, tape, example), label, predicted[:draws], None, own)
            for (tape, example, label, predicted, draws), own in zip(
                zip(*(c.tolist() for c in columns), strict=True), groups, strict=True
            )
        ]
        asked = zip(*(self.queries[name].tolist() for name in QUERIES), strict=True)
        for record, (count, failed_at, control_failed_at) in zip(found, asked, strict=True):
            if count != ABSENT:
                record["queries"] = count
                record["failed_at"] = failed_at or None
                record["control_failed_at"] = control_failed_at or None
        return found

    def select(self, index: Integers) -> "RowColumns":
        """Returns the records at positions ``index``; these columns themselves if that is all of them."""
        if len(index) == len(self) and bool((index == np.arange(len(self))).all()):
            return self
        cut: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Ragged):
                cut[field.name] = value.select(index)
            elif isinstance(value, dict):
                cut[field.name] = {
                    k: v.select(index) if isinstance(v, Ragged) else v[index] for k, v in value.items()
                }
            else:
                cut[field.name] = value[index]
        return RowColumns(**cut)


@dataclass(frozen=True)
class Columns:
    """The newest record of every key of a run.

    Attributes:
        rows: the good records by row, rows and records in the order of their first appearance.
        failed: records without a result, in that order.
        seals: what every append said of the run it belongs to.
    """

    rows: dict[str, RowColumns]
    failed: list[Record]
    seals: list[Mapping[str, Any]]

    def keys(self) -> set[Key]:
        """Returns the keys of the good records."""
        return {
            Key(row, tape, example)
            for row, group in self.rows.items()
            for tape, example in zip(group.tape.tolist(), group.example.tolist(), strict=True)
        }


def network_calls(group: RowColumns) -> float | None:
    """Mean over examples of the network calls of their attacks, tapes added; None if not all are known."""
    calls, passes = group.measures["network_calls"], group.measures["forward_passes"]
    if np.any(np.isnan(calls) & (np.nan_to_num(passes) != 0)):
        return None
    return float(np.nansum(calls)) / len(np.unique(group.example))


def filled_up(values: np.ndarray[Any, Any], counts: Integers, fill: float) -> np.ndarray[Any, Any]:
    """Lists of several lengths as a matrix that is filled up."""
    width = int(counts.max()) if len(counts) else 0
    if len(values) == width * len(counts):
        return values.reshape(len(counts), width)
    matrix = np.full((len(counts), width), fill, dtype=values.dtype)
    matrix[np.arange(width) < counts[:, None]] = values
    return matrix
