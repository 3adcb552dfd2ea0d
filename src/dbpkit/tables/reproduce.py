"""Published tables measured here, or with models that stand in: values, intervals and claims side by side."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dbpkit.evaluation.estimate import duration
from dbpkit.evaluation.timing import Timings
from dbpkit.experiment.execution import Execution
from dbpkit.foundation import display
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.files import check_folder
from dbpkit.foundation.inputs import whole
from dbpkit.tables.helping import helped
from dbpkit.tables.layers import Placed, Scale, resolve
from dbpkit.tables.missing import Cost, Lack, lacks
from dbpkit.tables.reading import Measured, read_cell
from dbpkit.tables.running import Planned, Progress, plan, run_jobs
from dbpkit.tables.table import Table, load_table, table_names
from dbpkit.tables.verdicts import NOT_YET, Judged, judge

OUT = Path("runs/reproduce")
"""Where runs are unless told otherwise, in a folder for each scale."""


class ShownCell(NamedTuple):
    """A published cell and what was measured for it.

    Attributes:
        placed: the cell and its setting.
        measured: None where there is nothing.
        why: why there is nothing; empty where there is something.
        same: the earlier cell that is the same measurement at this scale; empty if it is one of its own.
        folder: the run directory; None where nothing is run.
        fault: why the run directory cannot be read; empty where it can.
    """

    placed: Placed
    measured: Measured | None
    why: str
    same: str
    folder: Path | None
    fault: str = ""


class ReproducedTable(NamedTuple):
    """A table, what was measured for its cells, and what became of its claims.

    Attributes:
        table: as published.
        scale: ``mini`` or ``paper``.
        cells: in the table's order.
        claims: judged together.
        lacks: what is missing on this machine, at paper scale, by cell.
    """

    table: Table
    scale: Scale
    cells: list[ShownCell]
    claims: list[Judged]
    lacks: Mapping[str, Lack]

    def as_json(self) -> dict[str, Any]:
        """Returns plain dictionaries and lists."""
        return {
            "table": self.table.name,
            "title": self.table.title,
            "source": f"{self.table.paper}, {self.table.place}",
            "scale": self.scale,
            "setting": self.table.setting,
            "stands_in": self.table.stands_in,
            "cells": [_cell_json(cell, self.lacks.get(cell.placed.name)) for cell in self.cells],
            "claims": [_claim_json(claim) for claim in self.claims],
        }

    def rows(self) -> list[dict[str, Any]]:
        """Returns a row for every cell, with published and measured values."""
        cells = [_cell_json(cell, self.lacks.get(cell.placed.name)) for cell in self.cells]
        return [{"table": self.table.name, "scale": self.scale, **cell} for cell in cells]

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return display.html(self)


class Reproduction(NamedTuple):
    """Several tables; see `reproduce`.

    Attributes:
        tables: in the order that was asked for.
        seconds: of every run that was made now, by the name of its directory.
        left: runs that were left out because time was up, or were only planned.
        out: where the runs are.
    """

    tables: list[ReproducedTable]
    seconds: Mapping[str, float]
    left: int
    out: Path

    def as_json(self) -> dict[str, Any]:
        """Returns plain dictionaries and lists."""
        return {
            "tables": [table.as_json() for table in self.tables],
            "seconds": dict(self.seconds),
            "left": self.left,
            "out": str(self.out),
        }

    def rows(self) -> list[dict[str, Any]]:
        """Returns a row for every cell of every table, with published and measured values."""
        return [row for table in self.tables for row in table.rows()]

    def _repr_html_(self) -> str:
        """What a notebook shows: every table."""
        return display.html(self)

    def to_frame(self) -> Any:
        """Returns a ``pandas.DataFrame`` with a row for every cell; UserError if pandas is not installed."""
        return display.frame(self)

    def as_csv(self) -> str:
        """Returns the same as CSV."""
        rows, text = self.rows(), io.StringIO()
        if rows:
            writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        return text.getvalue()


def reproduce(
    tables: str | Sequence[str] | Sequence[Table] = "all",
    scale: Scale = "mini",
    out: str | Path | None = None,
    execution: Execution | None = None,
    progress: Progress = lambda *_: None,
    *,
    run: bool | None = None,
    limit: int | None = None,
    patience: float | None = None,
    processes: int = 1,
) -> Reproduction:
    """Measures published tables, or reads what was measured before.

    Args:
        tables: a name, several, or ``all``; or tables that were read already.
        scale: ``mini``, on the embedded models in minutes; ``paper``, the published settings.
        out: folder of the runs and pages; None takes ``runs/reproduce/SCALE``.
        execution: device and batch sizes; None takes a GPU if there is one.
        progress: called whenever work is done.
        run: whether runs are made; None makes them at mini scale only.
        limit: most images of every run; None leaves it to the tables.
        patience: seconds after which no further run is begun; None waits for all.
        processes: that make runs at once, with this one; they share its threads. A script that asks for more
            than one needs ``if __name__ == "__main__":`` around its call, as `multiprocessing` has it.

    Returns:
        Every cell with its published and its measured value, and what became of the claims.

    Raises:
        UserError: if there is no such table, or a run cannot be made.
    """
    if scale not in ("mini", "paper"):
        raise UserError(f"scale must be mini or paper, not {scale!r}.")
    limit, processes = None if limit is None else whole(limit, "limit", 1), whole(processes, "processes", 1)
    folder = Path(out) if out is not None else OUT / scale
    if (runs := scale == "mini" if run is None else run) or not folder.is_dir():
        check_folder(folder, "runs")
    wanted = [one if isinstance(one, Table) else load_table(one) for one in _asked(tables)]
    costs: dict[str, Cost | None] = {}
    timings: Timings = {}
    here = {table.name: lacks(table, costs, timings) for table in wanted} if scale == "paper" else {}
    found = {t.name: resolve(t, scale, here[t.name].paths if t.name in here else None) for t in wanted}
    missing = {name: looked.cells for name, looked in here.items()}
    can_run = [
        one.job
        for name, cells in found.items()
        for one in cells
        if one.job is not None and not is_lacking(missing.get(name, {}), one.name)
    ]
    planned = plan(can_run, folder / "runs", limit)
    if runs and scale == "paper":
        progress(0.0, _hours(found, missing, planned))
    seconds = _made(planned, execution or Execution(), progress, patience, processes) if runs else {}
    states = {key: one.state() for key, one in planned.items()}
    left = sum(not is_done for is_done, _ in states.values())
    faults = {key: fault for key, (_, fault) in states.items() if fault}
    shown = [_table(t, scale, found[t.name], planned, missing.get(t.name, {}), faults) for t in wanted]
    return Reproduction(shown, seconds, left, folder)


def _made(
    planned: Mapping[str, Planned],
    execution: Execution,
    progress: Progress,
    patience: float | None,
    processes: int,
) -> dict[str, float]:
    """Makes the runs with as many processes; returns the seconds of each that was made now."""
    left = sum(not one.is_done for one in planned.values())
    with helped(planned, execution, min(processes, left) - 1 if left else 0, patience) as helpers:
        seconds = run_jobs(planned, execution, progress, patience, elsewhere=lambda: len(helpers.made()))
        seconds |= helpers.wait(lambda: progress(1.0, "waiting for the last run of another process"))
    if patience is None and helpers.processes:  # what one of them began and did not end
        seconds |= run_jobs(planned, execution, progress)
    return seconds


def _hours(
    found: Mapping[str, Sequence[Placed]],
    missing: Mapping[str, Mapping[str, Lack]],
    planned: Mapping[str, Planned],
) -> str:
    """What all runs that can be made here will take, before the first begins."""
    costs = {
        one.job.key: missing[name][one.name].hours
        for name, cells in found.items()
        for one in cells
        if one.job is not None and one.job.key in planned and one.name in missing.get(name, {})
    }
    known = [hours for hours in costs.values() if hours is not None]
    return f"{len(planned)} runs, about {duration(sum(known))} on this machine for all images of the tables"


def is_lacking(missing: Mapping[str, Lack], name: str) -> bool:
    """Whether something is missing that a cell needs."""
    return name in missing and bool(missing[name].missing)


def _asked(tables: str | Sequence[str] | Sequence[Table]) -> Sequence[str | Table]:
    """The tables that are meant."""
    if isinstance(tables, str):
        return table_names() if tables == "all" else [tables]
    return tables


def _table(
    table: Table,
    scale: Scale,
    placed: Sequence[Placed],
    planned: Mapping[str, Planned],
    missing: Mapping[str, Lack],
    faults: Mapping[str, str],
) -> ReproducedTable:
    """One table with its cells read and its claims judged."""
    cells: list[ShownCell] = []
    first: dict[Any, str] = {}
    for one in placed:
        plan_of = planned.get(one.job.key) if one.job else None
        fault = faults.get(one.job.key, "") if one.job else ""
        measured = read_cell(one, plan_of.folder) if plan_of and not fault else None
        lack = missing.get(one.name)
        why = "" if measured else one.skipped or (lack.sentence if lack else "") or fault or NOT_YET
        same = one.name
        if one.job is not None and scale == "mini":
            what = (one.job.key, one.reads.row, one.reads.protocol, one.reads.number)
            same = first.setdefault(what, one.name)
        same = "" if same == one.name else same
        cells.append(ShownCell(one, measured, why, same, plan_of.folder if plan_of else None, fault))
    numbers = {c.placed.name: c.measured for c in cells if c.measured is not None}
    reasons = {c.placed.name: c.why for c in cells if c.why}
    alike = {c.placed.name: c.same for c in cells if c.same}
    claims = judge(table.claims, numbers, reasons, alike, mini=scale == "mini")
    return ReproducedTable(table, scale, cells, claims, missing)


def _cell_json(cell: ShownCell, lack: Lack | None) -> dict[str, Any]:
    """A cell for programs: published beside measured, in the column's unit."""
    placed, shown = cell.placed, cell.measured.shown if cell.measured else None
    return {
        "row": placed.row.name,
        "row_label": placed.row.label,
        "column": placed.column.name,
        "column_title": placed.column.title,
        "unit": placed.column.unit,
        "published": placed.cell.value,
        "published_sd": placed.cell.sd,
        "published_n": placed.cell.n,
        "unconfirmed": placed.cell.unconfirmed or "",
        "measured": _finite(shown.value) if shown else None,
        "low": _finite(shown.low) if shown else None,
        "high": _finite(shown.high) if shown else None,
        "images": shown.examples if shown else None,
        "method": shown.method if shown else "",
        "why_not": cell.why,
        "same_as": cell.same,
        "stands_in": " ".join(placed.stands_in),
        "note": " ".join(placed.notes),
        "run": str(cell.folder) if cell.folder else "",
        "hours": lack.hours if lack else None,
    }


def _claim_json(judged: Judged) -> dict[str, Any]:
    """A claim for programs."""
    return {
        "claim": judged.claim.words,
        "verdict": judged.verdict,
        "reason": judged.reason,
        "tests": [
            {
                "compares": test.words,
                "difference": test.found.value,
                "low": _finite(test.found.low),
                "high": _finite(test.found.high),
                "images": test.found.examples,
                "p": _finite(test.p),
                "p_adjusted": _finite(test.adjusted),
            }
            for test in judged.tests
        ],
    }


def _finite(value: float) -> float | None:
    """A number that JSON has."""
    return value if abs(value) < float("inf") else None
