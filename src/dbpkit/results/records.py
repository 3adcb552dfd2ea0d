"""A record: one line of ``records.jsonl``, made, written and read by what is here.

`judged` and `failed` make records, `RunDirectory.append` writes them, `read` gives those of a file back. A
damaged record does not cost the run: it counts as failed, is said to be so, and is made again. What a
key means belongs to the version of the layout, ``schema`` in ``spec.json``.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Required, TypedDict, cast

SCHEMA = 2
"""Layout that is written. Layout 1 had no digests and is read too."""

MEASURES = ("excess", "distance", "forward_passes", "gradient_passes", "network_calls")
"""Numbers that an attack leaves."""

PATHS = ("loss", "grad_norm")
"""Lists of numbers that an attack leaves, one for each iteration; null for what is not finite."""

QUERIES = ("queries", "failed_at", "control_failed_at")
"""What judging every iterate leaves; see `dbpkit.evaluation.watch.Watch`."""

MOST = 2**31
"""Classes, tapes and counts lie below this."""


_NUMBERS = {int, float}
_FILE = re.compile(r"[\w.-]{1,250}\.safetensors")


class Watched(TypedDict, total=False):
    """What judging every iterate of an attack leaves.

    Attributes:
        queries: how often the example was submitted.
        failed_at: number of the first query that was answered wrongly, from 1 on; None where none was.
        control_failed_at: the same of the unattacked image.
    """

    queries: int
    failed_at: int | None
    control_failed_at: int | None


class Attacked(Watched, total=False):
    """What an attack leaves of one example, beside the predictions.

    Attributes:
        attack: the attack that was worst.
        excess: by how much its image left the budget before it was projected.
        loss: of each iteration.
        grad_norm: of each iteration.
        claimed_success: what another library says of its own image.
        distance: of the judged image from the clean one.
        forward_passes: calls of what was attacked.
        gradient_passes: those of them that were differentiated.
        network_calls: forward calls of the network that the passes mean.
        images: file in ``x_adv/`` that holds the judged image.
    """

    attack: str
    excess: float
    loss: list[float | None]
    grad_norm: list[float | None]
    claimed_success: bool
    distance: float
    forward_passes: int
    gradient_passes: int
    network_calls: int
    images: str


class Record(Attacked, total=False):
    """One example of a row; `docs/reference/run-directory.md` lists the keys too.

    Attributes:
        row: row of the table.
        tape: tape of the row.
        example: example id.
        label: true class; not in a failed record.
        predicted: class of each report draw; not in a failed record.
        ensembles: classes of groups of draws whose logits were averaged; under such a protocol only.
        error: why there is no result; in a failed record only.
    """

    row: Required[str]
    tape: Required[int]
    example: Required[int]
    label: int
    predicted: list[int]
    ensembles: list[int]
    error: str


class Key(NamedTuple):
    """What a record is about; no two good records share it."""

    row: str
    tape: int
    example: int


def judged(
    key: Key,
    label: int,
    predicted: list[int],
    attacked: Attacked | None = None,
    ensembles: list[int] | None = None,
) -> Record:
    """Makes the record of an example that has a result.

    Args:
        key: what it is about.
        label: true class.
        predicted: class of each report draw.
        attacked: what the attack left, for rows that ran one.
        ensembles: classes of groups of draws, under a protocol that averages their logits.
    """
    row, tape, example = key
    made: Record = {"row": row, "tape": tape, "example": example, "label": label, "predicted": predicted}
    if ensembles:
        made["ensembles"] = ensembles
    return {**made, **attacked} if attacked else made


def failed(key: Key, error: str) -> Record:
    """Makes the record of an example without a result, and says why there is none."""
    return {"row": key.row, "tape": key.tape, "example": key.example, "error": error}


def read(entry: Mapping[str, Any], line: int) -> Record:
    """Returns the record that a line of a file holds; a failed one in place of one that is damaged.

    Args:
        entry: what the line says.
        line: its number, for the error.

    Raises:
        ValueError: if the line does not say which record it is.
    """
    key = key_of(entry)
    if key is None:
        raise ValueError("row, tape or example cannot be read")
    if why := fault(entry):
        return failed(key, f"the record is damaged: {why} (line {line})")
    return cast(Record, entry)


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
        return "" if type(record["error"]) is str else "'error' is not text"
    label, predicted = record.get("label"), record.get("predicted")
    if type(label) is not int or not 0 <= label < MOST:
        return "'label' is not a class"
    if type(predicted) is not list or not predicted or set(map(type, predicted)) != {int}:
        return "'predicted' is not a list of classes"
    if min(predicted) < 0 or max(predicted) >= MOST:
        return "'predicted' is not a list of classes"
    if "ensembles" in record and not are_classes(record["ensembles"]):
        return "'ensembles' is not a list of classes"
    return _attack_fault(record) if len(record) > 5 else ""


def _attack_fault(record: Mapping[str, Any]) -> str:
    """What is wrong with the part of a record that an attack leaves, or nothing."""
    for name in MEASURES:
        if name in record and not _is_number(record[name]):
            return f"'{name}' is not a number"
    for name in PATHS:
        if name in record and not _are_numbers(record[name]):
            return f"'{name}' is not a list of numbers"
    if "queries" in record and not are_queries(*(record.get(name, "") for name in QUERIES)):
        return "'queries', 'failed_at' and 'control_failed_at' do not fit each other"
    if "claimed_success" in record and type(record["claimed_success"]) is not bool:
        return "'claimed_success' is neither true nor false"
    if "attack" in record and type(record["attack"]) is not str:
        return "'attack' is not text"
    if "images" in record and not is_shard(record["images"]):
        return "'images' is not the name of a file in x_adv"
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


def are_classes(values: Any) -> bool:
    """Whether a value is a list of classes, at least one."""
    return type(values) is list and bool(values) and all(type(v) is int and 0 <= v < MOST for v in values)


def is_shard(name: Any) -> bool:
    """Whether a name is that of a plain file of tensors, which cannot lead out of its folder."""
    return type(name) is str and _FILE.fullmatch(name) is not None and not name.startswith(".")
