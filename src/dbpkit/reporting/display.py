"""How results show themselves in notebooks: what `dbpkit.foundation.display` finds by the name of a type."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from dbpkit.foundation.display import Display, displays
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.inputs import whole
from dbpkit.reporting.analyses import number_cell
from dbpkit.reporting.tables import (
    difference_row,
    headline_title,
    interval_methods,
    row_title,
    table_rows,
)
from dbpkit.results.analysis import AnalysisResult
from dbpkit.results.charts import Chart, Series
from dbpkit.results.compare import RunComparison
from dbpkit.results.summary import Summary
from dbpkit.statistics.estimates import Estimate

NOTHING = "–"


def html_table(
    title: str = "",
    sentences: Sequence[str] = (),
    heads: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
    notes: Sequence[tuple[str, str]] = (),
    small: str = "",
    left: Sequence[int] = (0,),
) -> str:
    """Returns a table for a notebook; every text is escaped.

    Args:
        title: in bold.
        sentences: above the table.
        heads: of its columns.
        rows: cells of every line.
        notes: severity (``error``, ``warning`` or empty) and text of what stands below.
        small: how it was made, in small letters.
        left: columns of text, which begin on the left; numbers end on the right.
    """
    from dbpkit.reporting.page import rendered

    given = {"title": title, "sentences": sentences, "heads": heads, "rows": rows, "notes": notes}
    return rendered("display.html", **given, small=small, left=left)


def shown_figure(chart: Chart) -> Any:
    """Returns a chart as a figure of matplotlib, on white, that a notebook shows by itself."""
    from dbpkit.reporting.figures.charts import chart_figure

    return _shows_itself(chart_figure(chart))


def _shows_itself(figure: Any) -> Any:
    """A figure that notebooks draw although pyplot, which would tell them how, was not imported."""
    from dbpkit.reporting.figures.engine import figure_png

    figure._repr_png_ = partial(figure_png, figure)
    return figure


# ------------------------------------------------------------------ evaluations


def _summary_html(summary: Summary) -> str:
    rows, title = table_rows(summary), headline_title(summary)
    heads = [
        "Setting",
        *([title[:1].upper() + title[1:]] if title else []),
        "Accuracy per draw",
        "95 % interval",
    ]
    cells = [
        [
            r.title,
            *([r.headline.value] if title else []),
            r.accuracy.value,
            r.accuracy.interval,
            r.majority.value if r.majority else NOTHING,
            f"{r.every.value} {r.every.over}" if r.every else NOTHING,
            str(r.examples),
        ]
        for r in rows
    ]
    notes = [
        (f.severity, f"{f.name}{f' ({row_title(f.row)})' if f.row else ''}: {f.message}")
        for f in summary.flags
    ]
    small = (
        f"Accuracy: share of images classified right. Intervals: {interval_methods(summary)}, over n images."
    )
    heads += ["Majority of draws", "All draws or tapes", "Images (n)"]
    return html_table(summary.name, [summary.sentence], heads, cells, notes, small if rows else "")


def _summary_rows(summary: Summary) -> list[dict[str, Any]]:
    """One line for every estimate of every row."""
    costs = ("tapes", "forward_passes", "gradient_passes", "network_calls", "failed")
    return [
        {"row": r.name, "title": r.title, **e._asdict(), **{name: getattr(r, name) for name in costs}}
        for r in summary.rows
        for e in r.estimates
    ]


def _summary_plot(summary: Summary) -> Any:
    from dbpkit.reporting.figures.accuracy import accuracy_figure

    if not summary.rows:
        raise UserError("there is nothing to plot: no result has been recorded yet.")
    return _shows_itself(accuracy_figure(table_rows(summary)))


displays.register("Summary")(Display(_summary_html, _summary_rows, _summary_plot))
displays.register("Benchmark")(
    Display(
        lambda found: _summary_html(found.summary),
        lambda found: _summary_rows(found.summary),
        lambda found: _summary_plot(found.summary),
    )
)

# ------------------------------------------------------------------ analyses


def _analysis_html(result: AnalysisResult) -> str:
    cells = [number_cell(number) for number in result.numbers]
    rows = [
        [
            n.name,
            c.value,
            c.interval or NOTHING,
            c.verdict or NOTHING,
            n.claim or NOTHING,
            c.published or NOTHING,
        ]
        for n, c in zip(result.numbers, cells, strict=True)
    ]
    heads = ["Number", "Value", "95 % interval", "Here", "Claim", "Published"]
    count = len(result.charts)
    charts = {0: "", 1: " One chart: .plot()."}.get(
        count, f" {count} charts: .plot(0) to .plot({count - 1})."
    )
    small = f"Undecided: the interval contains the boundary of the claim.{charts}"
    return html_table(
        result.title, result.sentences, heads, rows, small=small if rows else charts.strip(), left=(0, 3, 4)
    )


def _analysis_rows(result: AnalysisResult) -> list[dict[str, Any]]:
    """One line for every number."""
    return [{**n._asdict(), "holds": n.holds} for n in result.numbers]


def _analysis_plot(result: AnalysisResult, chart: int = 0) -> Any:
    if not result.charts:
        raise UserError(f"analysis '{result.name}' has no chart to plot; .to_frame() has its numbers.")
    whole(chart, "chart", 0, len(result.charts))
    return shown_figure(result.charts[chart])


displays.register("AnalysisResult")(Display(_analysis_html, _analysis_rows, _analysis_plot))

# ------------------------------------------------------------------ comparisons


def _comparison_html(found: RunComparison) -> str:
    shown = [difference_row(name, e, found.p_values.get(name)) for name, e in found.differences.items()]
    rows = [[r.title, r.value, r.interval, str(r.examples), r.method] for r in shown]
    heads = ["Setting", "A − B, points", "95 % interval", "Images (n)", "Method"]
    changed = f"What differs: {', '.join(found.changed)}." if found.changed else "The settings are the same."
    notes = [("warning", sentence) for sentence in found.warnings]
    small = "Accuracy per draw of run A less that of run B on the same images, in percentage points."
    return html_table("Run A − run B", [changed], heads, rows, notes, small, (0, 4))


def _comparison_rows(found: RunComparison) -> list[dict[str, Any]]:
    """One line for every row that both runs have; differences in [-1, 1]."""
    lines = []
    for name, estimate in found.differences.items():
        a, b = found.network_calls.get(name, (None, None))
        costs = {"p_value": found.p_values.get(name), "network_calls_a": a, "network_calls_b": b}
        lines.append({"row": name, "title": row_title(name), **estimate._asdict(), **costs})
    return lines


def _comparison_plot(found: RunComparison) -> Any:
    titles = [row_title(name) for name in found.differences]
    ends = list(zip(*map(_points, found.differences.values()), strict=True))
    series = Series("A − B", titles, *(list(column) for column in ends))
    said = "; ".join(f"{t}: {v:+.1f}" for t, v in zip(titles, ends[0], strict=True))
    title = "Run A − run B, percentage points"
    return shown_figure(Chart("bar", title, "", "accuracy per draw, A − B", [series], f"{said}."))


def _points(estimate: Estimate) -> tuple[float, float, float]:
    """Value and interval in percentage points."""
    value, low, high = (100 * part for part in (estimate.value, estimate.low, estimate.high))
    return value, low if math.isfinite(low) else value, high if math.isfinite(high) else value


displays.register("RunComparison")(Display(_comparison_html, _comparison_rows, _comparison_plot))
