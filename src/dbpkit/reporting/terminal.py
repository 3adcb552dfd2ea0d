"""What commands print: tables and lists that fit the width of the terminal.

Every text is a `Text`, which takes a user's name as it is written and not as markup.
"""

from collections.abc import Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dbpkit.reporting.analyses import SIGNS, findings_sentence, number_cell
from dbpkit.reporting.tables import (
    NOTHING,
    Cell,
    TableRow,
    ensemble_table,
    headline_title,
    interval_methods,
    precision_note,
    short_title,
    table_rows,
)
from dbpkit.results.analysis import AnalysisResult
from dbpkit.results.findings import Finding, Verdict
from dbpkit.results.flags import Flag
from dbpkit.results.summary import Summary


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
    counts = "N draws averaged, as many of unattacked images" if ensemble_table(summary) else counts
    caption = f"Intervals: {methods}, over n images. {counts}." if methods else "Nothing recorded yet."
    caption = f"{caption} {precision_note(summary)}".rstrip()
    caption += f" Computed {summary.executed}." if methods and summary.executed else ""
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
        numbers = (Text(cells[k]) for cells in columns.values())  # Text: a user's name is not markup
        table.add_row(Padding(Text(short_title(row.title)), (0, 0, 0, 1)), *numbers)
        said = [
            f"{' '.join(c.split())} {cells[k].strip()}" for c, cells in columns.items() if cells[k] != NOTHING
        ]
        listed.append(Text(f" {short_title(row.title)}"))
        listed.append(
            Padding(Text(", ".join(said).replace(" (95 % interval)", "")), (0, 0, 0, 4), expand=False)
        )
    return Fitting(table, Group(*listed, Text(caption, style="dim")))


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


def console_flags(flags: Sequence[Flag]) -> Group:
    """Returns the flags for a terminal, errors first; one line says so if there is none."""
    if not flags:
        return Group(Text("No flags: every check that ran found nothing.", style="green"))
    lines = []
    for flag in sorted(flags, key=lambda f: f.severity != "error"):
        style = "bold red" if flag.severity == "error" else "bold yellow"
        where = f" [{flag.row}]" if flag.row else ""
        lines.append(Text.assemble((f"{flag.severity} {flag.name}", style), f"{where}: {flag.message}"))
    return Group(*lines, Text("docs/reference/flags.md explains every flag.", style="dim"))


def console_findings(found: Sequence[Finding]) -> Group:
    """Returns the findings for a terminal, by analysis, and how many hold."""
    if not found:
        return Group(Text("No claim has been tested yet: run 'dbpkit analyse SPEC --out DIR' first."))
    styles: dict[Verdict, str] = {"holds": "green", "undecided": "yellow", "does not hold": "red"}
    lines: list[Text] = []
    heading = None
    for f in found:
        if f.analysis != heading:
            lines.append(Text(f.analysis, style="bold"))
            heading = f.analysis
        cell = number_cell(f.number)
        inside = [f"95 % interval {cell.interval}"] if cell.interval else []
        inside += [f"n = {cell.examples}"] if cell.examples else []
        measured = f"{f.number.name}: {cell.value}" + (f" ({', '.join(inside)})" if inside else "")
        lines.append(Text.assemble((f"  {SIGNS[f.verdict]} {f.verdict:14}", styles[f.verdict]), measured))
        lines.append(Text(f"{'':18}claim: {f.number.claim}", style="dim"))
        if cell.published:
            source = f" ({cell.source})" if cell.source else ""
            lines.append(Text(f"{'':18}published: {cell.published}{source}", style="dim"))
    return Group(*lines, Text(findings_sentence(found)))


def console_analysis(result: AnalysisResult) -> Group:
    """Returns an analysis for a terminal: its sentences, then every number."""
    lines = [Text(result.title, style="bold"), *(Text(f"  {sentence}") for sentence in result.sentences)]
    for number in result.numbers:
        cell = number_cell(number)
        inside = f" (95 % interval {cell.interval}, n = {cell.examples})" if cell.interval else ""
        lines.append(Text(f"  {number.name}: {cell.value}{inside}", style="dim"))
    return Group(*lines)


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
