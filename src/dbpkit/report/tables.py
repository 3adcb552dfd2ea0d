"""From a summary to rows of text: one pure function, shared by the page and the console.

The thing people get wrong: a number without its interval and its n is not the result.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dbpkit.results.estimates import Estimate
from dbpkit.results.flags import Flag
from dbpkit.results.summary import TITLES, Row, Summary

NOTHING = "–"
"""Stands where there is no number, such as a majority over a single draw."""

GROUPS = {
    "undefended_clean": "Classifier alone",
    "undefended": "Classifier alone",
    "clean": "Purified, no attack",
    "noise_control": "Purified, no attack",
}
"""Headings of rows that are not an attack on the purified classifier."""

ATTACKED = "Purified, attacked"

MEANINGS = {
    "white_box - dw_both": "robustness that rests on noise the attacker cannot foresee",
    "white_box - fixed": "the same, against purification with fixed noise",
    "clean - white_box": "what the white-box attack takes away",
}
"""What a paired difference says."""


class Cell(NamedTuple):
    """One estimate as text.

    Attributes:
        value: ``"71.9%"``.
        interval: ``"27.9 to 94.4%"``, the 95 % interval.
        share: the value as a number in [0, 1].
        low: lower end of the interval.
        high: upper end.
        over: ``"R = 8"`` or ``"T = 2"`` where the name of the estimand contains a count, else empty.
    """

    value: str
    interval: str
    share: float
    low: float
    high: float
    over: str


class TableRow(NamedTuple):
    """One line of the headline table.

    Attributes:
        name: row of the records, such as ``white_box``.
        title: the same for people.
        group: heading under which the row belongs.
        accuracy: accuracy per draw.
        majority: accuracy of a vote, or None with a single draw.
        every: right on all draws or on all tapes, or None with a single draw.
        examples: n.
        draws: draws behind every example.
        gradient_passes: purifications per image that the attack differentiated.
    """

    name: str
    title: str
    group: str
    accuracy: Cell
    majority: Cell | None
    every: Cell | None
    examples: int
    draws: int
    gradient_passes: str


class DifferenceRow(NamedTuple):
    """One line of the table of paired differences."""

    title: str
    meaning: str
    value: str
    interval: str
    examples: int
    method: str


def table_rows(summary: Summary) -> list[TableRow]:
    """Returns the lines of the headline table, in the order of the summary."""
    return [_table_row(row) for row in summary.rows]


def difference_rows(summary: Summary) -> list[DifferenceRow]:
    """Returns the lines of the table of paired differences."""
    return [difference_row(name, estimate) for name, estimate in summary.differences.items()]


def difference_row(name: str, estimate: Estimate, p_value: float | None = None) -> DifferenceRow:
    """Returns one line.

    Args:
        name: two rows as in ``"white_box - dw_both"``, or one row.
        estimate: the difference, in [-1, 1]; shown in percentage points.
        p_value: of McNemar's exact test, shown beside the method.
    """
    title = row_title(name)
    if name in MEANINGS:
        title = " − ".join(short_title(row_title(part)) for part in name.split(" - "))
    shown = difference_cell(estimate)
    method = estimate.method + ("" if p_value is None else f"; McNemar p {p_text(p_value)}")
    return DifferenceRow(
        title, MEANINGS.get(name, ""), shown.value, shown.interval, estimate.examples, method
    )


def difference_cell(estimate: Estimate) -> Cell:
    """Returns a difference in percentage points: ``"+8.6"`` and ``"+3.9 to +13.3"``."""
    interval = f"{points(estimate.low)} to {points(estimate.high)}"
    return Cell(points(estimate.value), interval, *estimate[1:4], "")


def p_text(p_value: float) -> str:
    """Returns ``"= 0.031"``, or ``"< 0.001"`` for what is smaller."""
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.3f}"


def interval_methods(summary: Summary) -> str:
    """Returns how the intervals of the headline table were made."""
    methods = dict.fromkeys(e.method for row in summary.rows for e in row.estimates)
    return ", ".join("Wilson score" if m == "wilson" else m for m in methods)


def console_table(summary: Summary) -> Table:
    """Returns the headline table for a terminal; it fits 80 columns."""
    methods = interval_methods(summary)
    caption = (
        f"Intervals: {methods}, over n images. R draws, T tapes." if methods else "Nothing recorded yet."
    )
    table = Table(
        title=Text(summary.name), caption=Text(caption), box=SIMPLE_HEAD, padding=0, show_edge=False
    )
    table.add_column("setting", overflow="fold")
    table.add_column("accuracy per draw\n(95 % interval)", no_wrap=True)
    table.add_column("majority", justify="right", no_wrap=True)
    table.add_column("all\ndraws@R", justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("draws", justify="right", no_wrap=True)
    table.add_column("gradient\npasses\nper image", justify="right", no_wrap=True)
    group = None
    for row in table_rows(summary):
        if row.group != group:
            table.add_row(Text(row.group, style="bold"))
            group = row.group
        every = f"{row.every.value} {row.every.over.replace(' ', '')}" if row.every else NOTHING
        cells = (
            short_title(row.title),
            f"{row.accuracy.value:>6} ({row.accuracy.interval})",
            row.majority.value if row.majority else NOTHING,
            every,
            str(row.examples),
            str(row.draws),
            row.gradient_passes,
        )
        title, *numbers = (Text(cell) for cell in cells)  # Text: a user's name is no markup
        table.add_row(Padding(title, (0, 0, 0, 1)), *numbers)
    return table


def console_flags(flags: Sequence[Flag]) -> Group:
    """Returns the flags for a terminal, errors first; one line says so if there is none."""
    if not flags:
        return Group(Text("No flag: every check that ran found nothing.", style="green"))
    lines = []
    for flag in sorted(flags, key=lambda f: f.severity != "error"):
        style = "bold red" if flag.severity == "error" else "bold yellow"
        where = f" [{flag.row}]" if flag.row else ""
        lines.append(Text.assemble((f"{flag.severity} {flag.name}", style), f"{where}: {flag.message}"))
    return Group(*lines, Text("docs/flags.md explains every flag.", style="dim"))


def percent(value: float) -> str:
    """Returns ``"71.9%"``."""
    return NOTHING if math.isnan(value) else f"{100 * value:.1f}%"


def interval(estimate: Estimate) -> str:
    """Returns ``"27.9 to 94.4%"``."""
    return NOTHING if math.isnan(estimate.low) else f"{100 * estimate.low:.1f} to {percent(estimate.high)}"


def points(value: float) -> str:
    """Returns a difference of accuracies in percentage points with its sign, ``"+71.9"``."""
    if math.isnan(value):
        return NOTHING
    shown = round(100 * value, 1)
    return f"{abs(shown):.1f}" if shown == 0 else f"{'+' if shown > 0 else '−'}{abs(shown):.1f}"


def row_title(name: str) -> str:
    """Returns what a row is called in tables."""
    return TITLES.get(name, f"purified, {name}")


def short_title(title: str) -> str:
    """Returns a row's title without the heading it stands under: ``"white box (EoT)"``."""
    return title.removeprefix("purified, ").removeprefix("undefended, ")


def accuracy_cell(estimate: Estimate) -> Cell:
    """Returns an accuracy: ``"71.9%"`` and ``"27.9 to 94.4%"``."""
    kind, _, count = estimate.estimand.partition("@")
    over = f"{'T' if kind == 'all_tapes' else 'R'} = {count}" if count else ""
    return Cell(percent(estimate.value), interval(estimate), *estimate[1:4], over)


def _table_row(row: Row) -> TableRow:
    estimates = {e.estimand.partition("@")[0]: e for e in row.estimates}
    accuracy = estimates["per_draw"]
    every = estimates.get("all_tapes") or estimates.get("all_draws")
    return TableRow(
        row.name,
        row.title,
        GROUPS.get(row.name, ATTACKED),
        accuracy_cell(accuracy),
        accuracy_cell(estimates["majority"]) if "majority" in estimates else None,
        accuracy_cell(every) if every else None,
        accuracy.examples,
        accuracy.draws,
        f"{row.gradient_passes:,.0f}" if row.gradient_passes % 1 < 0.05 else f"{row.gradient_passes:,.1f}",
    )
