"""The figure of accuracy against eps: one panel per setting, one line per model, a band for its interval.

The thing people get wrong: bands that overlap do not mean that the models do not differ. The pairs are in
the table of differences, not in the figure.
"""

import textwrap
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dbpkit.reporting.figures import (
    CSS_INCH,
    DARK,
    LIGHT,
    STYLE,
    ResponsiveChart,
    Theme,
    responsive,
)
from dbpkit.reporting.tables import percent, row_title
from dbpkit.results.analysis import Chart, Series
from dbpkit.results.curves import EpsCurves
from dbpkit.statistics.estimates import Estimate

MARKERS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"))
"""Marker of model 0, 1, ... in the figure, and the sign for it in the legend."""


class Grid(NamedTuple):
    """Layout of the panels, in CSS pixels but for the font.

    Attributes:
        width: of the figure.
        columns: panels beside each other.
        height: of one panel's axes.
        left: room for the scale of accuracies.
        gap: room between panels.
        font: size in points.
        wrap: characters of a panel's title in one line.
    """

    width: int
    columns: int
    height: int
    left: int
    gap: int
    font: float
    wrap: int


WIDE_GRID = Grid(width=1040, columns=4, height=150, left=46, gap=26, font=9.5, wrap=30)
NARROW_GRID = Grid(width=360, columns=2, height=120, left=40, gap=16, font=8.5, wrap=21)


def curve_chart(curves: EpsCurves) -> ResponsiveChart:
    """Draws accuracy per draw against eps with 95 % intervals, a panel for every row of any model.

    Args:
        curves: the models, as `dbpkit.results.curves.eps_curves` groups them.

    Returns:
        Four data URIs, a PNG, the text that stands for them, and the data; eps is in [0, 1] pixel units.
    """
    rows = list(dict.fromkeys(row for model in curves.models for row in model.rows))
    said = []
    for row in rows:
        for number, model in enumerate(curves.models, 1):
            at = model.rows.get(row, {})
            values = ", ".join(f"{percent(e.value)} at {curves.eps[eps]}" for eps, e in at.items())
            said += [f"{row_title(row)}, model {number}: {values}"] if values else []
    alt = f"Line charts of accuracy per draw against eps with 95 % intervals. {'; '.join(said)}."
    grids = [(theme, grid) for grid in (WIDE_GRID, NARROW_GRID) for theme in (LIGHT, DARK)]
    figures = [_figure(curves, rows, theme, grid) for theme, grid in grids]
    return responsive(figures, WIDE_GRID.width, alt, _data(curves, rows, alt))


def _data(curves: EpsCurves, rows: list[str], alt: str) -> Chart:
    """The figure's values: a series for every row and model."""
    series = []
    for row in rows:
        for number, model in enumerate(curves.models, 1):
            at = model.rows.get(row, {})
            values = ([getattr(e, end) for e in at.values()] for end in ("value", "low", "high"))
            series.append(Series(f"{row_title(row)}, model {number}", list(at), *values))
    return Chart("line", "Accuracy per draw against eps", "eps", "accuracy per draw", series, alt)


def _figure(curves: EpsCurves, rows: list[str], theme: Theme, grid: Grid) -> Figure:
    """All panels as one figure."""
    titles = [textwrap.wrap(row_title(row)[:1].upper() + row_title(row)[1:], grid.wrap) for row in rows]
    line = 1.55 * grid.font  # of text, CSS pixels
    head, foot = line * max(map(len, titles)) + 8, 2 * line + 14
    count = min(grid.columns, len(rows))
    panel = (grid.width - grid.left - (grid.columns - 1) * grid.gap - 12) / grid.columns
    lines = -(-len(rows) // count)
    pitch = head + grid.height + foot
    height = lines * pitch
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(grid.width / CSS_INCH, height / CSS_INCH))
        for place, row in enumerate(rows):
            down, across = divmod(place, count)
            left, bottom = grid.left + across * (panel + grid.gap), height - down * pitch - head - grid.height
            box = left / grid.width, bottom / height, panel / grid.width, grid.height / height
            axes = figure.add_axes(box)
            for number, model in enumerate(curves.models):
                _line(axes, number, model.rows.get(row, {}), theme)
            _scales(axes, curves, theme, grid, panel, is_left=across == 0)
            title: dict[str, Any] = {
                "size": grid.font,
                "color": theme.text,
                "weight": "bold",
                "parse_math": False,
            }
            up = 1 + 6 / grid.height
            axes.text(0, up, "\n".join(titles[place]), transform=axes.transAxes, va="bottom", **title)
    return figure


def _line(axes: Axes, number: int, at: dict[float, Estimate], theme: Theme) -> None:
    """One model's line, its band, and a whisker at every point, which is all that a single point has."""
    if not at:
        return
    colour, (marker, _) = theme.runs[number % len(theme.runs)], MARKERS[number % len(MARKERS)]
    eps = list(at)
    low, value, high = ([100 * getattr(e, end) for e in at.values()] for end in ("low", "value", "high"))
    axes.fill_between(eps, low, high, color=colour, alpha=0.18, linewidth=0, zorder=2)
    axes.vlines(eps, low, high, color=colour, linewidth=1, alpha=0.6, zorder=2)
    size: dict[str, Any] = {"linewidth": 1.8, "markersize": 5, "markeredgewidth": 0}
    axes.plot(eps, value, color=colour, marker=marker, clip_on=False, zorder=3, **size)


def _scales(axes: Axes, curves: EpsCurves, theme: Theme, grid: Grid, panel: float, *, is_left: bool) -> None:
    """Accuracy from 0 to 100 %, eps from 0; signs of eps that would touch are left out."""
    largest = max(curves.eps)
    axes.set_xlim(0, 1.06 * largest or 1)
    axes.set_ylim(0, 100)
    names, unit = _ticks(curves)
    room, shown, last = 1.06 * largest / panel, dict.fromkeys(curves.eps, ""), -1.0
    for eps, name in reversed(names.items()):  # from the largest down, which is always named
        half = 0.45 * grid.font * len(name) * room
        if last < 0 or eps + half < last:
            shown[eps], last = name, eps - half
    axes.set_xticks(list(shown), list(shown.values()), size=grid.font - 1, parse_math=False)
    axes.set_yticks(range(0, 101, 25), [f"{y}%" if is_left else "" for y in range(0, 101, 25)])
    axes.tick_params(length=0, colors=theme.muted, labelsize=grid.font - 1, pad=5)
    axes.set_xlabel(unit, size=grid.font - 1, color=theme.muted, labelpad=2, parse_math=False)
    axes.grid(color=theme.line, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _ticks(curves: EpsCurves) -> tuple[dict[float, str], str]:
    """Signs below the axis and its name: ``8`` and ``eps · 255`` if every budget is so many 255ths."""
    norm = {"linf": "L∞", "l2": "L2"}.get(curves.norm, curves.norm)
    if all(text.replace(" ", "").endswith("/255") for text in curves.eps.values()):
        return {eps: text.partition("/")[0].strip() for eps, text in curves.eps.items()}, f"{norm} eps · 255"
    return dict(curves.eps), f"{norm} eps"
