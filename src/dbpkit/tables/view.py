"""What a page and a terminal show of a reproduced table: the numbers as text, and sentences about them."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from dbpkit.statistics.intervals import Interval
from dbpkit.tables.reproduce import ReproducedTable, ShownCell
from dbpkit.tables.verdicts import LEVEL, Judged


class CellView(NamedTuple):
    """A cell as text.

    Attributes:
        value: measured, in the column's unit; empty where there is nothing.
        interval: its 95 % interval.
        published: as published.
        mark: a sign for what is not certain of the published value.
        sort: the measured number.
    """

    value: str
    interval: str
    published: str
    mark: str
    sort: str


class TestView(NamedTuple):
    """A comparison as text."""

    words: str
    difference: str
    interval: str
    images: int
    p: str


class ClaimView(NamedTuple):
    """A claim as text."""

    words: str
    verdict: str
    reason: str
    tests: list[TestView]


class TableView(NamedTuple):
    """A table as text, row by row."""

    name: str
    title: str
    source: str
    facts: list[str]
    stands_in: str
    columns: list[tuple[str, str]]
    rows: list[tuple[str, list[CellView | None]]]
    claims: list[ClaimView]
    notes: list[tuple[str, str]]
    images: str
    level: str


def table_view(found: ReproducedTable) -> TableView:
    """Returns a table as text."""
    table = found.table
    cells = {(c.placed.row.name, c.placed.column.name): c for c in found.cells}
    used = [c for c in table.columns if any((r.name, c.name) in cells for r in table.rows)]
    rows = [
        (r.label, [_cell(cells[r.name, c.name]) if (r.name, c.name) in cells else None for c in used])
        for r in table.rows
    ]
    counts = sorted({c.measured.found.examples for c in found.cells if c.measured})
    images = "" if not counts else f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    facts = [table.setting, *([table.note] if table.note else [])]
    if table.status == "draft":
        facts.append("Published values are those of a manuscript; the final version may differ.")
    stands_in = (table.stands_in or "") if found.scale == "mini" else ""
    return TableView(
        table.name,
        table.title,
        f"{table.paper}, {table.place}",
        facts,
        stands_in,
        [(c.title, c.unit) for c in used],
        rows,
        [_claim(one) for one in found.claims],
        list(_notes(found)),
        images,
        f"{LEVEL:.0%}",
    )


def tally(found: ReproducedTable) -> str:
    """Returns how many claims hold, in a sentence."""
    counts = {v: sum(c.verdict == v for c in found.claims) for v in ("holds", "does not hold", "undecided")}
    rest = len(found.claims) - sum(counts.values())
    said = [
        f"{counts['holds']} hold",
        f"{counts['does not hold']} do not",
        f"{counts['undecided']} undecided",
    ]
    return f"Of {len(found.claims)} claims {', '.join(said)}, {rest} not testable here."


def number(value: float, unit: str) -> str:
    """Returns a number as it is shown in a unit: a share to a tenth of a percent, others to three digits."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.1f}" if unit == "%" else f"{value:.3g}"


def _cell(cell: ShownCell) -> CellView:
    """One cell as text."""
    published, unit = cell.placed.cell, cell.placed.column.unit
    text = "" if published.value is None else f"{published.value:g}"
    text += "" if published.sd is None else f" ± {published.sd:g}"
    if published.value is None and published.low is not None and published.high is not None:
        text = f"{published.low:g} to {published.high:g}"
    mark = "?" if published.unconfirmed else ""
    if cell.measured is None:
        return CellView("", "", text, mark, "")
    shown = cell.measured.shown
    return CellView(number(shown.value, unit), ends(shown, unit), text, mark, f"{shown.value:.6g}")


def ends(found: Interval, unit: str) -> str:
    """Returns the ends of an interval as they are shown; nothing where it has none."""
    if not math.isfinite(found.low) or not math.isfinite(found.high):
        return ""
    return f"{number(found.low, unit)} to {number(found.high, unit)}"


def _claim(judged: Judged) -> ClaimView:
    tests = [
        TestView(
            test.words,
            f"{test.found.value:+.3g}",
            "" if math.isnan(test.found.low) else f"{test.found.low:+.3g} to {test.found.high:+.3g}",
            test.found.examples,
            "" if math.isnan(test.adjusted) else f"{test.adjusted:.2g}",
        )
        for test in judged.tests
    ]
    return ClaimView(judged.claim.words, judged.verdict, judged.reason, tests)


def _notes(found: ReproducedTable) -> Iterator[tuple[str, str]]:
    """Sentences about rows and cells, each once: what stands in, what is not certain, what is left out."""
    told: set[tuple[str, str]] = set()
    for cell in found.cells:
        placed = cell.placed
        where, row = f"{placed.row.label}, {placed.column.title}", placed.row.label
        lack = found.lacks.get(placed.name)
        said = [(row, s) for s in placed.notes] if placed.notes else []
        if found.scale == "mini":
            said += [(row, s) for s in placed.stands_in]
            said += [(where, f"Not measured at this scale: {placed.skipped}")] if placed.skipped else []
        if found.scale == "mini" and cell.same:
            said.append(
                (where, f"The same measurement as {cell.same}: what tells them apart is not embedded.")
            )
        if placed.cell.unconfirmed:
            said.append((where, f"Not certain: {placed.cell.unconfirmed}"))
        if lack is not None:
            said += [(row, lack.sentence)] if lack.missing else []
            said += [(where, lack.cost.sentence)] if lack.cost else []
        for one in said:
            if one not in told:
                told.add(one)
                yield one[0], one[1] if one[1].endswith((".", "?")) else f"{one[1]}."
