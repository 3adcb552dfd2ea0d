"""Appends that become columns at once, against the same records looked at one by one."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from dbpkit.results import gathering
from dbpkit.results.columns import Columns
from dbpkit.results.gathering import gather
from dbpkit.results.journal import Line
from dbpkit.results.records import Record, fault, key_of

UNIT: list[Record] = [
    {
        "row": "white_box",
        "tape": 0,
        "example": example,
        "label": example % 3,
        "predicted": [0, 1, example],
        "ensembles": [1, example],
        "attack": "pgd",
        "excess": 0,
        "distance": 0.03,
        "loss": [0.5, 1.0 + example],
        "grad_norm": [1.5],
        "forward_passes": 20,
        "gradient_passes": 20,
        "network_calls": 200,
        "images": "white_box-0-0-2-3.safetensors",
        "queries": 6,
        "failed_at": None if example else 2,
        "control_failed_at": 6,
        "claimed_success": example == 1,
        "of a later version": {"any": "thing"},
    }
    for example in range(3)
]
"""An append in which every key occurs."""


def looked_at(line: Line) -> Record:
    if key_of(line.entry) is None:
        raise ValueError(f"line {line.number}")
    why = fault(line.entry)
    key = {name: line.entry[name] for name in ("row", "tape", "example")}
    return {**key, "error": why} if why else line.entry


def gathered(appends: Sequence[Sequence[Record]]) -> Columns:
    numbered = [
        ([Line(k, 100 * n + k, copy.deepcopy(record)) for k, record in enumerate(records)], {"append": n})
        for n, records in enumerate(appends)
    ]
    return gather(lambda: numbered, looked_at)


def plain(columns: Columns) -> Any:
    """Everything in columns, so that equal ones are equal; nan as text."""

    def shown(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return str(value.dtype), [
                "nan" if isinstance(v, float) and math.isnan(v) else v for v in value.ravel().tolist()
            ]
        if isinstance(value, Mapping):
            return {k: shown(v) for k, v in value.items()}
        return [shown(v) for v in value] if isinstance(value, tuple) else value

    return {row: shown(vars(group)) for row, group in columns.rows.items()}, columns.failed, columns.seals


def one_by_one(appends: Sequence[Sequence[Record]], monkeypatch: pytest.MonkeyPatch) -> Columns:
    with monkeypatch.context() as patched:
        patched.setattr(gathering, "alike", lambda _: None)
        return gathered(appends)


ODD = [
    ("tape", -1),
    ("example", -1),
    ("example", 2**63),
    ("excess", 10**400),
    ("loss", [1e295]),
    ("excess", -1e295),
    ("tape", True),
    ("tape", 2**31),
    ("label", "1"),
    ("label", -1),
    ("label", 1.0),
    ("label", 2**31),
    ("predicted", []),
    ("predicted", [0, -1]),
    ("predicted", [0, True]),
    ("predicted", None),
    ("predicted", [2**31]),
    ("excess", None),
    ("excess", math.nan),
    ("excess", True),
    ("excess", 1e300),
    ("distance", "0.1"),
    ("loss", [None, 1.0]),
    ("loss", [1, 2.5]),
    ("loss", []),
    ("loss", [math.inf]),
    ("loss", [1e308, 1e308]),
    ("loss", 3.0),
    ("loss", ["x"]),
    ("grad_norm", [math.nan]),
    ("grad_norm", [False]),
    ("attack", 3),
    ("images", "../spec.json"),
    ("images", 5),
    ("images", ["a"]),
    ("queries", -1),
    ("queries", None),
    ("failed_at", 0),
    ("failed_at", 7),
    ("control_failed_at", 1.0),
    ("claimed_success", None),
    ("claimed_success", 1),
    ("error", "it failed"),
    ("error", 3),
    ("row", "clean"),
    ("of a later version", None),
]
"""Values that a record may have by damage, by another version, or rightly."""


@pytest.mark.parametrize(("key", "value"), ODD)
@pytest.mark.parametrize("where", [0, 2])
def test_columns_of_odd_values_are_those_of_each_record(
    key: str, value: Any, where: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = copy.deepcopy(UNIT)
    unit[where][key] = value
    if key_of(unit[where]) is None:
        for gathers in (gathered, lambda appends: one_by_one(appends, monkeypatch)):
            with pytest.raises(ValueError, match=f"line {where}"):
                gathers([UNIT, unit])
        return
    appends = [UNIT, unit]
    assert plain(gathered(appends)) == plain(one_by_one(appends, monkeypatch))


@pytest.mark.parametrize("key", list(UNIT[0])[3:])
@pytest.mark.parametrize("everywhere", [True, False])
def test_columns_without_a_key_are_those_of_each_record(
    key: str, everywhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = copy.deepcopy(UNIT)
    for record in unit if everywhere else unit[1:2]:
        del record[key]
    appends = [unit, UNIT[:1], unit]
    assert plain(gathered(appends)) == plain(one_by_one(appends, monkeypatch))


def test_usual_append_becomes_columns_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The records are good, so whoever looked at each would be asked for nothing."""

    def refused(_: Line) -> Record:
        raise AssertionError("a usual append was looked at record by record")

    lines = [Line(k, k, record) for k, record in enumerate(UNIT)]
    found = gather(lambda: [(lines, {})], refused).rows["white_box"]
    assert found.predicted.tolist() == [[0, 1, 0], [0, 1, 1], [0, 1, 2]]
    assert found.paths["loss"].values.tolist() == [0.5, 1.0, 0.5, 2.0, 0.5, 3.0]
    assert found.queries["failed_at"].tolist() == [2, 0, 0]
    assert found.claimed_success.tolist() == [0, 1, 0]
    assert found.line.tolist() == [0, 1, 2]
