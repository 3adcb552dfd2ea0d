"""What a record must look like, and the records of a run as columns.

Ten thousand images leave a hundred megabytes of lines. As dictionaries they take seconds and gigabytes; what
the numbers need fits in arrays. The thing people get wrong: a damaged record is no reason to give up a
run. It counts as failed, is said to be so, and is made again.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

Record = dict[str, Any]
"""One line of ``records.jsonl``; `docs/run-directory.md` lists its keys."""

Integers = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]

ABSENT = -1
"""Stands in a column of whole numbers for a key that the record does not have."""

MEASURES = ("excess", "distance", "forward_passes", "gradient_passes", "network_calls")
PATHS = ("loss", "grad_norm")
QUERIES = ("queries", "failed_at", "control_failed_at")

_FILE = re.compile(r"[\w.-]{1,250}\.safetensors")
MOST = 2**31
"""Classes, tapes and counts lie below this."""

_NUMBERS = {int, float}


class Key(NamedTuple):
    """What a record is about; no two good records share it."""

    row: str
    tape: int
    example: int


def key_of(record: Mapping[str, Any]) -> Key | None:
    """Returns the key of a record, or None if it has none that can be read."""
    row, tape, example = record.get("row"), record.get("tape"), record.get("example")
    if type(row) is not str or type(tape) is not int or type(example) is not int:
        return None
    if not (0 <= tape < MOST and 0 <= example < 2**63 and 0 < len(row) <= 200 and row.isprintable()):
        return None
    return Key(row, tape, example)


def fault(record: Mapping[str, Any]) -> str:
    """Returns what is wrong with a record that has a key, or nothing."""
    if "error" in record:
        return "" if type(record["error"]) is str else "'error' is no text"
    label, predicted = record.get("label"), record.get("predicted")
    if type(label) is not int or not 0 <= label < MOST:
        return "'label' is no class"
    if type(predicted) is not list or not predicted or set(map(type, predicted)) != {int}:
        return "'predicted' is no list of classes"
    if min(predicted) < 0 or max(predicted) >= MOST:
        return "'predicted' is no list of classes"
    return _attack_fault(record) if len(record) > 5 else ""


def _attack_fault(record: Mapping[str, Any]) -> str:
    """What is wrong with the part of a record that an attack leaves, or nothing."""
    for name in MEASURES:
        if name in record and not _is_number(record[name]):
            return f"'{name}' is no number"
    for name in PATHS:
        if name in record and not _are_numbers(record[name]):
            return f"'{name}' is no list of numbers"
    if "queries" in record and not are_queries(*(record.get(name, "") for name in QUERIES)):
        return "'queries', 'failed_at' and 'control_failed_at' do not fit each other"
    if "claimed_success" in record and type(record["claimed_success"]) is not bool:
        return "'claimed_success' is neither true nor false"
    if "attack" in record and type(record["attack"]) is not str:
        return "'attack' is no text"
    if "images" in record and not is_shard(record["images"]):
        return "'images' is no name of a file in x_adv"
    return ""


def _is_number(value: Any) -> bool:
    return type(value) in _NUMBERS and -1e300 < value < 1e300


def _are_numbers(values: Any) -> bool:
    """Whether a value is a list of numbers and nulls."""
    if type(values) is not list:
        return False
    if set(map(type, values)) <= {float}:
        return math.isfinite(sum(values))
    return all(v is None or _is_number(v) for v in values)


def are_queries(asked: Any, failed: Any, control: Any) -> bool:
    """Whether a count of queries and the first failed ones, from 1 on or None, fit each other."""
    if type(asked) is not int or not 0 <= asked < MOST:
        return False
    return all(at is None or (type(at) is int and 1 <= at <= asked) for at in (failed, control))


def is_shard(name: Any) -> bool:
    """Whether a name is that of a plain file of tensors, which cannot lead out of its folder."""
    return type(name) is str and _FILE.fullmatch(name) is not None and not name.startswith(".")


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
        return self.values[starts[self.counts > 0]]

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
        """Returns key, label, predictions and queries as records again; one row at a time fits the memory."""
        columns: dict[str, list[Any]] = {
            "tape": self.tape.tolist(),
            "example": self.example.tolist(),
            "label": self.label.tolist(),
        }
        found: list[Record] = [
            {"row": row, **dict(zip(columns, values, strict=True)), "predicted": predicted[:draws]}
            for *values, predicted, draws in zip(
                *columns.values(), self.predicted.tolist(), self.draws.tolist(), strict=True
            )
        ]
        for name, counts in self.queries.items():
            if (counts != ABSENT).any():
                for record, value in zip(found, counts.tolist(), strict=True):
                    if value != ABSENT:
                        record[name] = value if value or name == "queries" else None
        return found

    def select(self, index: Integers) -> "RowColumns":
        """Returns the records at positions ``index``; these columns themselves if that is all of them."""
        if len(index) == len(self) and bool((index == np.arange(len(self))).all()):
            return self
        cut: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, dict):
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
