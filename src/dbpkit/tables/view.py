"""What a page and a terminal show of a reproduced table: the numbers as text, and sentences about them."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
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
    labels = {c.placed.name: f"{c.placed.row.label}, {c.placed.column.title}" for c in found.cells}
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
        [_claim(one, labels) for one in found.claims],
        list(_notes(found)),
        images,
        f"{100 * LEVEL:g} %",
    )


def counted(verdicts: Sequence[str], where: str = "") -> str:
    """Returns how many verdicts are which, in a sentence.

    Example:
        >>> counted(["holds", "undecided", "undecided"])
        'Of 3 claims, 1 holds and 2 are undecided.'
        >>> counted(["not testable"])
        'Of 1 claim, 1 is not testable here.'
    """
    if not verdicts:
        return f"No claim is made{where}."
    said = []
    for verdict, (one, several) in _SAID.items():
        if count := list(verdicts).count(verdict):
            said.append(f"{count} {one if count == 1 else several}")
    parts = " and ".join(filter(None, [", ".join(said[:-1]), said[-1]]))
    return f"Of {len(verdicts)} claim{'' if len(verdicts) == 1 else 's'}{where}, {parts}."


_SAID = {
    "holds": ("holds", "hold"),
    "does not hold": ("does not hold", "do not hold"),
    "undecided": ("is undecided", "are undecided"),
    "not testable": ("is not testable here", "are not testable here"),
    "not measured": ("is not measured yet", "are not measured yet"),
}
"""Verdicts as predicates."""


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


def _same(name: str, labels: Mapping[str, str]) -> str:
    """What a cell says that is no measurement of its own."""
    return f"The same measurement as {labels[name]}: what tells them apart is not embedded."


def _claim(judged: Judged, labels: Mapping[str, str]) -> ClaimView:
    """One claim as text, its cells under their headings."""
    tests = []
    for test in judged.tests:
        low, high = test.found.low, test.found.high
        tests.append(
            TestView(
                _in_words(test.words, labels),
                _signed(test.found.value),
                "" if math.isnan(low) else f"{_signed(low)} to {_signed(high)}",
                test.found.examples,
                "" if math.isnan(test.adjusted) else f"{test.adjusted:.2g}",
            )
        )
    return ClaimView(judged.claim.words, judged.verdict, _in_words(judged.reason, labels), tests)


def _in_words(text: str, labels: Mapping[str, str]) -> str:
    """A text with cells' headings in the place of their names."""
    named = re.sub(r"[a-z0-9-]+/[a-z0-9-]+", lambda found: labels.get(found[0], found[0]), text)
    return named.replace(" - ", " − ")


def _signed(value: float) -> str:
    """A difference with its sign, a minus being one."""
    return f"{value:+.3g}".replace("-", "−")


def _notes(found: ReproducedTable) -> Iterator[tuple[str, str]]:
    """Sentences about rows and cells, each once: what stands in, what is not certain, what is left out."""
    told: set[tuple[str, str]] = set()
    labels = {c.placed.name: f"{c.placed.row.label}, {c.placed.column.title}" for c in found.cells}
    for cell in found.cells:
        placed = cell.placed
        where, row = labels[placed.name], placed.row.label
        lack = found.lacks.get(placed.name)
        said = [(row, s) for s in placed.notes]
        if found.scale == "mini":
            said += [(row, s) for s in placed.stands_in]
        said += [(where, f"Not measured at this scale: {placed.skipped}")] if placed.skipped else []
        said += [(where, cell.fault)] if cell.fault else []
        if cell.same:
            said.append((where, _same(cell.same, labels)))
        if placed.cell.unconfirmed:
            said.append((where, f"Not certain: {placed.cell.unconfirmed}"))
        if lack is not None:
            said += [(row, lack.sentence)] if lack.missing else []
            said += [(_columns(found, cell), lack.cost.sentence)] if lack.cost else []
        for one in said:
            if one not in told:
                told.add(one)
                yield one[0], one[1] if one[1].endswith((".", "?")) else f"{one[1]}."


def _columns(found: ReproducedTable, cell: ShownCell) -> str:
    """A row and all of its columns that are read from the same run."""
    job, row = cell.placed.job, cell.placed.row
    own = [c.placed for c in found.cells if c.placed.row.name == row.name and c.placed.job]
    return f"{row.label}: {', '.join(p.column.title for p in own if job and p.job and p.job.key == job.key)}"
