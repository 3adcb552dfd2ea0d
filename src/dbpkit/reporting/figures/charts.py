"""Charts of analyses: data drawn as SVG for light and dark pages, and written as PNG and CSV."""

import csv
import io
import math
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dbpkit.reporting.figures.engine import bare, both_themes, canvas, figure_png, measured_panel, plain_text
from dbpkit.reporting.figures.heat import heat_map
from dbpkit.reporting.figures.marks import bars, fitted_curve, line, points
from dbpkit.reporting.figures.scales import Columns, Scale, category_names, columns_of, log_ticks, scale_of
from dbpkit.reporting.figures.themes import DASHES, FONT, LIGHT, MARKERS, Theme
from dbpkit.results.analysis import Chart

WIDTH = 480
"""CSS pixels of every chart: two stand beside each other, and one is still readable on a phone."""


class Drawn(NamedTuple):
    """A chart, ready to be shown and written.

    Attributes:
        title: what it shows.
        description: what a reader sees.
        light: SVG data URI.
        dark: the same for dark pages.
        png: the light one with its title, as a file.
        csv: the data as text, every value that was measured.
        left_out: points that the axes cannot show.
    """

    title: str
    description: str
    light: str
    dark: str
    png: bytes
    csv: str
    left_out: int


def draw(chart: Chart, beside: Sequence[Chart] = ()) -> Drawn:
    """Draws a chart.

    Args:
        chart: the data.
        beside: the same chart of other runs: the axes have the range of all of them.

    Raises:
        UserError: if the columns of a series are not of one length.
    """
    charts = [chart, *(other for other in beside if other.kind == chart.kind)]
    names = category_names(charts)
    scale = scale_of([(c, columns_of(c, names)) for c in charts], names)
    columns = columns_of(chart, names)
    light, dark = both_themes(partial(_figure, chart, columns, scale))
    png = figure_png(_figure(chart, columns, scale, LIGHT, chart.title))
    left_out = sum(int(np.isnan(c.x + c.y).sum()) for c in columns)
    return Drawn(chart.title, chart.description, light, dark, png, chart_csv(chart), left_out)


def chart_figure(chart: Chart, theme: Theme = LIGHT) -> Figure:
    """Draws a chart alone, with its title; `draw` has every form that a page needs."""
    names = category_names([chart])
    columns = columns_of(chart, names)
    return _figure(chart, columns, scale_of([(chart, columns)], names), theme, chart.title)


def chart_csv(chart: Chart) -> str:
    """Returns the data, one line a point: series, x, y, ends of the interval; headed by the axes' labels."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["series", chart.x_label or "x", chart.y_label or "y", "low", "high"])
    for series in chart.series:
        empty = [""] * len(series.x)
        low, high = (end if len(end) else empty for end in (series.low, series.high))
        writer.writerows(zip([series.name] * len(empty), series.x, series.y, low, high, strict=True))
    return text.getvalue()


def _figure(chart: Chart, columns: Sequence[Columns], scale: Scale, theme: Theme, title: str = "") -> Figure:
    """One chart; the legend stands below where there is more than one series."""
    sideways = chart.kind == "bar" and any(isinstance(x, str) for s in chart.series for x in s.x)
    height = _height(chart, scale, sideways=sideways)
    with canvas(WIDTH, height, measured=True) as figure:
        axes = measured_panel(figure)
        if not any(np.isfinite(c.x + c.y).any() for c in columns):
            axes.set_axis_off()
            middle = plain_text(FONT, theme.muted, ha="center", va="center", transform=axes.transAxes)
            axes.text(0.5, 0.5, "nothing to show", **middle)
        elif chart.kind == "heat":
            table = np.full((len(columns), len(scale.names)), math.nan)
            for row, c in enumerate(columns):
                table[row, c.x.astype(int)] = c.y
            heat_map(axes, chart, table, scale.names, scale.y, theme)
        else:
            _axes(axes, chart, columns, scale, theme, sideways=sideways)
            drawn = PAINTERS["sideways" if sideways else chart.kind](axes, columns, scale, theme)
            if len(columns) > 1:
                _legend(figure, drawn, columns, theme)
        if title:
            figure.suptitle(textwrap.fill(title, 52), x=0.01, ha="left", size=FONT + 1.5, parse_math=False)
    return figure


def _height(chart: Chart, scale: Scale, *, sideways: bool) -> float:
    """CSS pixels."""
    if chart.kind == "heat":
        return 110 + max(120, min(26 * len(chart.series), 360))
    lines = sum(math.ceil((len(s.name) + 6) / 62) for s in chart.series) if len(chart.series) > 1 else 0
    if sideways:
        wrapped = sum(max(len(chart.series), textwrap.fill(n, 24).count("\n") + 1) for n in scale.names)
        return 80 + 22 * wrapped + 12 * len(scale.names) + 18 * lines
    return 290 + 18 * lines


def _axes(
    axes: Axes, chart: Chart, columns: Sequence[Columns], scale: Scale, theme: Theme, *, sideways: bool
) -> None:
    """Scales, ticks and labels; bars that lie on their side have their names at the left."""
    across, up = (axes.yaxis, axes.xaxis) if sideways else (axes.xaxis, axes.yaxis)
    set_across, set_up = (axes.set_ylim, axes.set_xlim) if sideways else (axes.set_xlim, axes.set_ylim)
    if chart.x_log and not scale.names:
        axes.set_xscale("log")
        log_ticks(axes.xaxis, sorted({v for c in columns for v in c.x if v > 0}), scale.x)
    if chart.y_log:
        (axes.set_xscale if sideways else axes.set_yscale)("log")
        log_ticks(up, [], scale.y)
    set_across(*(reversed(scale.x) if sideways else scale.x))
    set_up(*scale.y)
    if scale.names:
        each = 1 if sideways else math.ceil(len(scale.names) / 12)
        room = 24 if sideways else max(6, 56 // min(len(scale.names), 12))
        shown = range(0, len(scale.names), each)
        across.set_ticks(list(shown), [textwrap.fill(scale.names[k], room) for k in shown], parse_math=False)
    label = plain_text(FONT - 1, theme.muted)
    below, above = (chart.y_label, chart.x_label) if sideways else (chart.x_label, chart.y_label)
    axes.set_xlabel(textwrap.fill(below, 60), **label)
    axes.set_title(textwrap.fill(above, 66), loc="left", **label)
    bare(axes, theme, grid="both" if not scale.names else "x" if sideways else "y", labelsize=FONT - 1)


def _lines(axes: Axes, columns: Sequence[Columns], scale: Scale, theme: Theme) -> list[Any]:
    """Lines; many points have no markers."""
    drawn: list[Any] = []
    for number, c in enumerate(columns):
        marker = "" if len(c.x) > 30 else MARKERS[number % len(MARKERS)][0]
        dash = DASHES[number // len(theme.runs) % len(DASHES)]
        drawn += line(axes, c.x, c.y, _interval(c, scale), theme.ink(number), marker, dash)
    return drawn


def _points(axes: Axes, columns: Sequence[Columns], scale: Scale, theme: Theme) -> list[Any]:
    """Points, and the curves among the series."""
    drawn: list[Any] = []
    for number, c in enumerate(columns):
        if c.is_curve:
            drawn += fitted_curve(axes, c.x, c.y, theme)
            continue
        rounds = number // len(theme.runs)  # where colours begin anew, markers are moved on by one
        marker = MARKERS[(number + rounds) % len(MARKERS)][0]
        drawn.append(points(axes, c.x, c.y, _interval(c, scale), theme.ink(number), marker))
    return drawn


def _bars(
    axes: Axes, columns: Sequence[Columns], scale: Scale, theme: Theme, *, sideways: bool = False
) -> list[Any]:
    """Bars of the series beside each other in every category."""
    width, drawn = 0.78 / len(columns), []
    start = scale.y[0] if min(scale.y) > 0 else 0.0
    for number, c in enumerate(columns):
        at = c.x + width * (number - (len(columns) - 1) / 2)
        colours = theme.ink(number), theme.text
        drawn.append(
            bars(axes, at, (start, c.y), _interval(c, scale), 0.92 * width, colours, sideways=sideways)
        )
    return drawn


def _interval(c: Columns, scale: Scale) -> tuple[np.ndarray, np.ndarray]:
    """Ends of a series' intervals, cut where the axis ends below."""
    return np.maximum(c.low, scale.y[0]), c.high


PAINTERS: dict[str, Callable[[Axes, Sequence[Columns], Scale, Theme], list[Any]]] = {
    "line": _lines,
    "scatter": _points,
    "bar": _bars,
    "sideways": partial(_bars, sideways=True),
}


def _legend(figure: Figure, drawn: list[Any], columns: Sequence[Columns], theme: Theme) -> None:
    """Names of the series below the chart, each on a line of its own if they are long."""
    names = [textwrap.fill(c.name, 62) for c in columns]
    wide = max(map(len, names))
    style: dict[str, Any] = {"frameon": False, "fontsize": FONT - 1, "handlelength": 1.8}
    columns_of_names = max(1, min(len(names), 58 // (wide + 6)))
    place: Any = "outside lower left"
    legend = figure.legend(drawn, names, loc=place, labelcolor=theme.text, ncols=columns_of_names, **style)
    for text in legend.get_texts():
        text.set_parse_math(False)
