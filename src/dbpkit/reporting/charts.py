"""Charts of analyses: data drawn as SVG for light and dark pages, and written as PNG and CSV.

The thing people get wrong: a logarithmic axis has no place for 0, and no axis has one for nan. Such values
are left out of the picture, counted below it, and kept in the CSV.
"""

import csv
import io
import math
import textwrap
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from dbpkit.foundation.errors import UserError
from dbpkit.reporting.figures import CSS_INCH, DARK, LIGHT, STYLE, Theme, png_bytes, svg_uri
from dbpkit.reporting.heat import FONT, heat_map
from dbpkit.reporting.lines import MARKERS
from dbpkit.results.analysis import Chart

WIDTH = 480
"""CSS pixels of every chart: two stand beside each other, and one is still readable on a phone."""

DASHES = ("-", "--", ":", "-.")


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


class Columns(NamedTuple):
    """A series as arrays of one length; nan where there is nothing or the axis cannot show it."""

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    is_curve: bool = False


class Scale(NamedTuple):
    """What charts beside each other share: names of categories (empty for numbers) and the axes' ends."""

    names: list[str]
    x: tuple[float, float]
    y: tuple[float, float]


def draw(chart: Chart, beside: Sequence[Chart] = ()) -> Drawn:
    """Draws a chart.

    Args:
        chart: the data.
        beside: the same chart of other runs: the axes have the range of all of them.

    Raises:
        UserError: if the columns of a series are not of one length.
    """
    charts = [chart, *(other for other in beside if other.kind == chart.kind)]
    scale = _scale([(c, _columns(c, _names(charts))) for c in charts], _names(charts))
    columns = _columns(chart, scale.names)
    light, dark = (svg_uri(_figure(chart, columns, scale, theme)) for theme in (LIGHT, DARK))
    png = png_bytes(_figure(chart, columns, scale, LIGHT, chart.title))
    left_out = sum(int(np.isnan(c.x + c.y).sum()) for c in columns)
    return Drawn(chart.title, chart.description, light, dark, png, chart_csv(chart), left_out)


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


def _names(charts: Sequence[Chart]) -> list[str]:
    """Categories of the x axis in the order of their first appearance; empty if x are numbers on a scale."""
    values = [x for chart in charts for series in chart.series for x in series.x]
    words = any(isinstance(x, str) for x in values)
    if charts[0].kind in ("line", "scatter") and not words:
        return []
    return list(dict.fromkeys(map(_label, values if words else sorted(values, key=float))))


def _label(x: float | str) -> str:
    return x if isinstance(x, str) else f"{x:g}"


def _columns(chart: Chart, names: Sequence[str]) -> list[Columns]:
    """Every series as arrays; categories become 0, 1, ..."""
    places = {name: place for place, name in enumerate(names)}
    found = []
    for series in chart.series:
        lengths = [len(series.x), len(series.y), *(len(end) for end in (series.low, series.high) if end)]
        if len(set(lengths)) > 1:
            raise UserError(
                f"chart '{chart.title}', series '{series.name}': its columns have lengths"
                f" {', '.join(map(str, lengths))}, but must have one. Mend the analysis that made it."
            )
        x = _numbers([places[_label(v)] for v in series.x] if names else series.x)
        y, nothing = _numbers(series.y), np.full(len(series.y), math.nan)
        low, high = (_numbers(end) if len(end) else nothing for end in (series.low, series.high))
        if chart.x_log and not names:
            x = np.where(x > 0, x, math.nan)
        if chart.y_log and chart.kind != "heat":
            y = np.where(y > 0, y, math.nan)
        found.append(Columns(series.name, x, y, low, high, series.name in chart.curves))
    return found


def _numbers(values: Sequence[Any]) -> np.ndarray:
    """Values as an array; nan for what is missing or infinite."""
    array = np.array([math.nan if v is None else v for v in values], dtype=float)
    return np.where(np.isfinite(array), array, math.nan)


def _scale(charts: Sequence[tuple[Chart, Sequence[Columns]]], names: list[str]) -> Scale:
    """The ends of the axes: all points and intervals of all charts; lines and bars have their 0."""
    chart = charts[0][0]
    columns = [column for _, found in charts for column in found]
    x = [v for c in columns for v in c.x]
    y = [v for c in columns for end in (c.y, c.low, c.high) for v in end]
    if chart.kind in ("line", "bar") and not chart.y_log:
        y.append(0.0)
    across = (-0.5, len(names) - 0.5) if names else _ends(x, is_log=chart.x_log, margin=0.04)
    if chart.kind == "heat":
        return Scale(names, across, _ends(y, is_log=False, margin=0.0))
    return Scale(names, across, _ends(y, is_log=chart.y_log, margin=0.06))


def _ends(values: Sequence[float], *, is_log: bool, margin: float) -> tuple[float, float]:
    """Smallest and largest value that the axis can show with some room; the room stops at 0."""
    shown = [v for v in values if math.isfinite(v) and (v > 0 or not is_log)]
    if not shown:
        return (0.1, 1.0) if is_log else (0.0, 1.0)
    low, high = min(shown), max(shown)
    if low == high == 0:
        return 0.0, 1.0
    if is_log:
        room = max(high / low, 2.0) ** margin
        return low / room, high * room
    room = margin * ((high - low) or abs(high) or 1.0)
    return (0.0 if low == 0 else low - room), (0.0 if high == 0 else high + room)


def _figure(chart: Chart, columns: Sequence[Columns], scale: Scale, theme: Theme, title: str = "") -> Figure:
    """One chart; matplotlib lays out its labels, and the legend stands below where there is more than one."""
    sideways = chart.kind == "bar" and any(isinstance(x, str) for s in chart.series for x in s.x)
    height = _height(chart, scale, sideways=sideways)
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(WIDTH / CSS_INCH, height / CSS_INCH), layout="constrained")
        axes = figure.add_subplot()
        if not any(np.isfinite(c.x + c.y).any() for c in columns):
            axes.set_axis_off()
            middle: dict[str, Any] = {"ha": "center", "va": "center", "transform": axes.transAxes}
            axes.text(0.5, 0.5, "nothing to show", color=theme.muted, size=FONT, **middle)
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
        _log_ticks(axes.xaxis, sorted({v for c in columns for v in c.x if v > 0}), scale.x)
    if chart.y_log:
        (axes.set_xscale if sideways else axes.set_yscale)("log")
        _log_ticks(up, [], scale.y)
    set_across(*(reversed(scale.x) if sideways else scale.x))
    set_up(*scale.y)
    if scale.names:
        each = 1 if sideways else math.ceil(len(scale.names) / 12)
        room = 24 if sideways else max(6, 56 // min(len(scale.names), 12))
        shown = range(0, len(scale.names), each)
        across.set_ticks(list(shown), [textwrap.fill(scale.names[k], room) for k in shown], parse_math=False)
    axes.tick_params(length=0, colors=theme.muted, labelsize=FONT - 1, pad=5)
    label: dict[str, Any] = {"size": FONT - 1, "color": theme.muted, "parse_math": False}
    below, above = (chart.y_label, chart.x_label) if sideways else (chart.x_label, chart.y_label)
    axes.set_xlabel(textwrap.fill(below, 60), **label)
    axes.set_title(textwrap.fill(above, 66), loc="left", **label)
    axes.grid(axis="both" if not scale.names else "x" if sideways else "y", color=theme.line, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _log_ticks(axis: Any, at: Sequence[float], ends: tuple[float, float]) -> None:
    """Plain numbers: at the points themselves if these are few, else at powers of ten."""
    if 1 < len(at) <= 8 and all(b / a > 1.4 for a, b in pairwise(at)):
        axis.set_ticks(at)
    else:
        narrow = ends[1] / ends[0] < 300
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,), numticks=8))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _ink(number: int, theme: Theme) -> str:
    return theme.runs[number % len(theme.runs)]


def _lines(axes: Axes, columns: Sequence[Columns], scale: Scale, theme: Theme) -> list[Any]:
    """Lines with a band for their interval, and whiskers at every point, which is all that one point has."""
    drawn: list[Any] = []
    for number, c in enumerate(columns):
        colour, low = _ink(number, theme), np.maximum(c.low, scale.y[0])
        axes.fill_between(c.x, low, c.high, color=colour, alpha=0.18, linewidth=0, zorder=2)
        many = len(c.x) > 30
        if not many:
            axes.vlines(c.x, low, c.high, color=colour, linewidth=1, alpha=0.6, zorder=2)
        style: dict[str, Any] = {"linewidth": 1.8, "markersize": 5, "markeredgewidth": 0}
        marker = "" if many else MARKERS[number % len(MARKERS)][0]
        dash = DASHES[number // len(theme.runs) % len(DASHES)]
        drawn += axes.plot(
            c.x, c.y, color=colour, marker=marker, linestyle=dash, clip_on=False, zorder=3, **style
        )
    return drawn


def _points(axes: Axes, columns: Sequence[Columns], scale: Scale, theme: Theme) -> list[Any]:
    """Points, with whiskers where they have an interval."""
    drawn: list[Any] = []
    for number, c in enumerate(columns):
        colour = _ink(number, theme)
        if c.is_curve:
            drawn += axes.plot(c.x, c.y, color=theme.muted, linewidth=1.3, linestyle=(0, (5, 3)), zorder=2)
            continue
        axes.vlines(
            c.x, np.maximum(c.low, scale.y[0]), c.high, color=colour, linewidth=1, alpha=0.6, zorder=2
        )
        rounds = number // len(theme.runs)  # where colours begin anew, markers are moved on by one
        marker = MARKERS[(number + rounds) % len(MARKERS)][0]
        style: dict[str, Any] = {"s": 26, "alpha": 0.75, "linewidths": 0, "zorder": 3, "clip_on": False}
        drawn.append(axes.scatter(c.x, c.y, color=colour, marker=marker, **style))
    return drawn


def _bars(
    axes: Axes, columns: Sequence[Columns], scale: Scale, theme: Theme, *, sideways: bool = False
) -> list[Any]:
    """Bars of the series beside each other in every category, with whiskers."""
    width, drawn = 0.78 / len(columns), []
    start = scale.y[0] if min(scale.y) > 0 else 0.0
    for number, c in enumerate(columns):
        at = c.x + width * (number - (len(columns) - 1) / 2)
        low = np.maximum(c.low, scale.y[0])
        style: dict[str, Any] = {"color": _ink(number, theme), "linewidth": 0, "zorder": 2}
        whisker: dict[str, Any] = {"color": theme.text, "linewidth": 1.3, "zorder": 3}
        if sideways:
            drawn.append(axes.barh(at, c.y - start, 0.92 * width, left=start, **style))
            axes.hlines(at, low, c.high, **whisker)
        else:
            drawn.append(axes.bar(at, c.y - start, 0.92 * width, bottom=start, **style))
            axes.vlines(at, low, c.high, **whisker)
    return drawn


def _sideways(axes: Axes, columns: Sequence[Columns], scale: Scale, theme: Theme) -> list[Any]:
    return _bars(axes, columns, scale, theme, sideways=True)


PAINTERS: dict[str, Callable[[Axes, Sequence[Columns], Scale, Theme], list[Any]]] = {
    "line": _lines,
    "scatter": _points,
    "bar": _bars,
    "sideways": _sideways,
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
