"""From a summary to rows of text: one pure function, shared by the page and the console.

The thing people get wrong: a number without its interval and its n is not the result.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dbpkit.results.flags import Flag
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


class Fitting(NamedTuple):
    """A table for a terminal, or the same in another form where the terminal is too narrow for it."""

    table: Table
    narrow: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Gives the table, if no column of it is cut at this width."""
        unbounded = options.update_width(10**4)
        needed = len(self.table.columns) - 1
        for column in self.table.columns:
            sizes = [Measurement.get(console, unbounded, cell) for cell in (column.header, *column.cells)]
            least = max(size.maximum if column.no_wrap else size.minimum for size in sizes)
            needed += max(least, column.min_width or 0)
        yield self.table if needed <= options.max_width else self.narrow


def console_table(summary: Summary) -> Fitting:
    """Returns the headline table for a terminal: it fits 80 columns, and is a list where there are fewer."""
    methods = interval_methods(summary)
    counts = "N queries, unattacked images asked as often" if headline_title(summary) else "R draws, T tapes"
    caption = f"Intervals: {methods}, over n images. {counts}." if methods else "Nothing recorded yet."
    table = Table(
        title=Text(summary.name), caption=Text(caption), box=SIMPLE_HEAD, padding=0, show_edge=False
    )
    rows = table_rows(summary)
    columns = _protocol_columns(summary, rows) or _columns(rows)
    table.add_column("setting", overflow="fold", min_width=16)
    listed: list[Text | Padding] = [Text(summary.name, style="bold")]
    for number, title in enumerate(columns):
        table.add_column(title, justify="right" if number else "left", no_wrap=True)
    group = None
    for k, row in enumerate(rows):
        if row.group != group:
            table.add_row(Text(row.group, style="bold"))
            listed.append(Text(row.group, style="bold"))
            group = row.group
        numbers = (Text(cells[k]) for cells in columns.values())  # Text: a user's name is no markup
        table.add_row(Padding(Text(short_title(row.title)), (0, 0, 0, 1)), *numbers)
        said = [
            f"{' '.join(c.split())} {cells[k].strip()}" for c, cells in columns.items() if cells[k] != NOTHING
        ]
        listed.append(Text(f" {short_title(row.title)}"))
        listed.append(
            Padding(Text(", ".join(said).replace(" (95 % interval)", "")), (0, 0, 0, 4), expand=False)
        )
    return Fitting(table, Group(*listed, Text(caption, style="dim")))


def _columns(rows: Sequence[TableRow]) -> dict[str, list[str]]:
    """Title and cells of every column but the first."""
    return {
        "accuracy per draw\n(95 % interval)": [_with_interval(r.accuracy) for r in rows],
        "majority": [r.majority.value if r.majority else NOTHING for r in rows],
        "all\ndraws@R": [_with_count(r.every) for r in rows],
        "n": [str(r.examples) for r in rows],
        "draws": [str(r.draws) for r in rows],
        **_cost_column(rows),
    }


def _protocol_columns(summary: Summary, rows: Sequence[TableRow]) -> dict[str, list[str]]:
    """The same for a protocol other than one shot: its estimate beside its control; empty for one shot."""
    title = headline_title(summary)
    if not title:
        return {}
    return {
        f"{title}\n(95 % interval)": [_with_interval(r.headline) for r in rows],
        "N": [r.headline.over.partition("= ")[2] or NOTHING for r in rows],
        "un-\nattacked": [r.control.value if r.control else NOTHING for r in rows],
        "per\ndraw": [r.accuracy.value for r in rows],
        "n": [str(r.examples) for r in rows],
        **_cost_column(rows),
    }


def _cost_column(rows: Sequence[TableRow]) -> dict[str, list[str]]:
    """Network calls, or gradient passes for runs that did not record those."""
    if all(r.network_calls for r in rows):
        return {"network\ncalls\nper image": [r.network_calls for r in rows]}
    return {"gradient\npasses\nper image": [r.gradient_passes for r in rows]}


def _with_interval(cell: Cell) -> str:
    return f"{cell.value:>6} ({cell.interval})"


def _with_count(cell: Cell | None) -> str:
    return f"{cell.value} {cell.over.replace(' ', '')}" if cell else NOTHING


def replay_table(logits: Sequence[Sequence[float]], recorded: Sequence[int], names: Sequence[str]) -> Fitting:
    """Returns the logits of one example for a terminal: a column per class and a line per draw.

    Args:
        logits: of R draws, K each; of more than 12 classes, or in a narrow terminal, the largest three are
            shown.
        recorded: predictions of the record, R of them.
        names: of the K classes; a class without a name has its number.
    """
    named = {k: names[k] if k < len(names) else str(k) for k in {*range(len(logits[0])), *recorded}}
    few = len(logits[0]) <= 12
    largest = _replay_table(logits, recorded, named, every=False)
    return Fitting(_replay_table(logits, recorded, named, every=True) if few else largest, largest)


def _replay_table(
    logits: Sequence[Sequence[float]], recorded: Sequence[int], named: dict[int, str], *, every: bool
) -> Table:
    """One form of the table: a column for every class, or one with the largest three."""
    classes = [named[k] for k in range(len(logits[0]))]
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False)
    for title in ("draw", *([name[:6] for name in classes] if every else ["largest logits"])):
        table.add_column(Text(title), justify="right", no_wrap=every or title == "draw")
    table.add_column("predicted", no_wrap=True)
    table.add_column("recorded", no_wrap=True)
    for draw, (values, before) in enumerate(zip(logits, recorded, strict=False)):
        order = sorted(range(len(values)), key=values.__getitem__, reverse=True)
        top = ", ".join(f"{named[k]} {values[k]:.3f}" for k in order[:3])
        cells = [f"{v:.3f}" for v in values] if every else [top]
        said = [named[order[0]], named[before]]
        table.add_row(*(Text(cell) for cell in (str(draw), *cells, *said)))
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
    """Returns ``"1,234"``, or one decimal where it is no whole number."""
    return f"{value:,.0f}" if value % 1 < 0.05 else f"{value:,.1f}"
