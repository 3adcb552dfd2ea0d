"""From a summary to rows of text, each number with its interval and its n, for the page and the terminal."""

import math
from typing import NamedTuple

from dbpkit.results.kinds import DIFFERENCES, kind_of
from dbpkit.results.protocols import DEFAULT, recorded_protocol
from dbpkit.results.summary import Row, Summary, has_purifier
from dbpkit.statistics.estimates import Estimate

NOTHING = "–"
"""Stands where there is no number, such as a majority over a single draw."""

COUNTS = {"all_tapes": "T", "any_iterate": "N"}
"""Letter of the count in the name of an estimand, if it is not R."""


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
        network_calls: forward calls of the network per image by the attack, or empty if not recorded.
        headline: what the run's protocol publishes.
        control: the same of unattacked images at the same number of queries, or None.
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
    network_calls: str
    headline: Cell
    control: Cell | None


class EnsembleTable(NamedTuple):
    """Accuracy by number of averaged draws.

    Attributes:
        sizes: the numbers, ascending; 1 is a single draw.
        rows: title and an estimate for each size, None where there is none.
    """

    sizes: list[int]
    rows: list[tuple[str, list[Cell | None]]]


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
    purified = has_purifier(summary.spec)
    return [_table_row(row, purified) for row in summary.rows]


def headline_title(summary: Summary) -> str:
    """Returns what the headline is called, ``"right on all N draws"``; empty if it is per draw."""
    protocol = recorded_protocol(summary.protocol)
    return "" if summary.protocol == DEFAULT or protocol is None else protocol.title


def ensemble_table(summary: Summary) -> EnsembleTable | None:
    """Returns accuracy by number of averaged draws; None unless the run's protocol averages."""
    protocol = recorded_protocol(summary.protocol)
    if protocol is None or not protocol.averages:
        return None
    rows: list[tuple[str, dict[int, Cell]]] = []
    for row in summary.rows:
        named = [(e.estimand.partition("@"), e) for e in row.estimates]
        found = {int(count): accuracy_cell(e) for (name, _, count), e in named if name == protocol.estimand}
        if found:
            single = next(e for e in row.estimates if e.estimand == "per_draw")
            rows.append((row.title, {1: accuracy_cell(single), **found}))
    sizes = sorted({size for _, found in rows for size in found})
    return (
        EnsembleTable(sizes, [(title, [f.get(size) for size in sizes]) for title, f in rows])
        if rows
        else None
    )


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
    first, _, second = name.partition(" - ")
    meaning = DIFFERENCES.get((first, second), "")
    pair = f"{short_title(row_title(first))} − {short_title(row_title(second))}"
    shown = difference_cell(estimate)
    method = estimate.method + ("" if p_value is None else f"; McNemar p {p_text(p_value)}")
    title = pair if meaning else row_title(name)
    return DifferenceRow(title, meaning, shown.value, shown.interval, estimate.examples, method)


def difference_cell(estimate: Estimate) -> Cell:
    """Returns a difference in percentage points: ``"+8.6"`` and ``"+3.9 to +13.3"``."""
    interval = f"{points(estimate.low)} to {points(estimate.high)}"
    return Cell(points(estimate.value), interval, *estimate[1:4], "")


def p_text(p_value: float) -> str:
    """Returns ``"= 0.031"``, or ``"< 0.001"`` for what is smaller."""
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.3f}"


def cost_text(a: float | None, b: float | None) -> str:
    """Returns ``"   network calls per image 2,420, 220"`` for two runs, or nothing where neither attacked."""
    if not a and not b:
        return ""
    shown = ["not recorded" if calls is None else _count(calls) for calls in (a, b)]
    return f"   network calls per image {', '.join(shown)}"


def interval_methods(summary: Summary) -> str:
    """Returns how the intervals of the headline table were made."""
    methods = dict.fromkeys(e.method for row in summary.rows for e in row.estimates)
    return ", ".join("Wilson score, Student's t" if m == "wilson" else m for m in methods)


def precision_note(summary: Summary) -> str:
    """Returns ``"Networks in bfloat16."``, or nothing where they computed in float32."""
    precision = summary.spec.precision
    return "" if precision == "float32" else f"Networks in {precision}."


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
    return kind_of(name).title


def short_title(title: str) -> str:
    """Returns a row's title without the heading it stands under: ``"white box (EoT)"``."""
    return title.removeprefix("purified, ").removeprefix("undefended, ")


def accuracy_cell(estimate: Estimate) -> Cell:
    """Returns an accuracy: ``"71.9%"`` and ``"27.9 to 94.4%"``."""
    kind, _, count = estimate.estimand.partition("@")
    over = f"{COUNTS.get(kind, 'R')} = {count}" if count else ""
    return Cell(percent(estimate.value), interval(estimate), *estimate[1:4], over)


def _table_row(row: Row, purified: bool) -> TableRow:
    estimates = {e.estimand.partition("@")[0]: e for e in row.estimates}
    accuracy = estimates["per_draw"]
    every = estimates.get("all_tapes") or estimates.get("all_draws")
    return TableRow(
        row.name,
        row.title,
        kind_of(row.name).heading_in(purified),
        accuracy_cell(accuracy),
        accuracy_cell(estimates["majority"]) if "majority" in estimates else None,
        accuracy_cell(every) if every else None,
        accuracy.examples,
        accuracy.draws,
        _count(row.gradient_passes),
        "" if row.network_calls is None else _count(row.network_calls),
        accuracy_cell(row.headline),
        accuracy_cell(row.control) if row.control else None,
    )


def _count(value: float) -> str:
    """Returns ``"1,234"``, or one decimal where it is not a whole number."""
    return f"{value:,.0f}" if value % 1 < 0.05 else f"{value:,.1f}"
