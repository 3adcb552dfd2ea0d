"""The figure of accuracy against eps: one panel per setting, one line per model, a band for its interval.

Bands that overlap do not mean that the models agree: the paired differences are in the table, not here.
"""

import textwrap
from functools import partial
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dbpkit.reporting.figures.engine import ResponsiveChart, bare, canvas, panel, plain_text, responsive
from dbpkit.reporting.figures.marks import line
from dbpkit.reporting.figures.themes import MARKERS, Theme
from dbpkit.reporting.tables import percent, row_title
from dbpkit.results.analysis import Chart, Series
from dbpkit.results.curves import EpsCurves
from dbpkit.statistics.estimates import Estimate


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
    draw, data = partial(_figure, curves, rows), _data(curves, rows, alt)
    return responsive(draw, (WIDE_GRID, NARROW_GRID), WIDE_GRID.width, alt, data)


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
    text = 1.55 * grid.font  # a line of it, CSS pixels
    head, foot = text * max(map(len, titles)) + 8, 2 * text + 14
    count = min(grid.columns, len(rows))
    width = (grid.width - grid.left - (grid.columns - 1) * grid.gap - 12) / grid.columns
    lines = -(-len(rows) // count)
    pitch = head + grid.height + foot
    height = lines * pitch
    with canvas(grid.width, height) as figure:
        for place, row in enumerate(rows):
            down, across = divmod(place, count)
            left, bottom = grid.left + across * (width + grid.gap), height - down * pitch - head - grid.height
            axes = panel(figure, left, bottom, width, grid.height)
            for number, model in enumerate(curves.models):
                _line(axes, number, model.rows.get(row, {}), theme)
            _scales(axes, curves, theme, grid, width, is_left=across == 0)
            title = plain_text(grid.font, theme.text, weight="bold", transform=axes.transAxes, va="bottom")
            axes.text(0, 1 + 6 / grid.height, "\n".join(titles[place]), **title)
    return figure


def _line(axes: Axes, number: int, at: dict[float, Estimate], theme: Theme) -> None:
    """One model's line."""
    if at:
        low, value, high = ([100 * getattr(e, end) for e in at.values()] for end in ("low", "value", "high"))
        marker, _ = MARKERS[number % len(MARKERS)]
        line(axes, list(at), value, (low, high), theme.ink(number), marker)


def _scales(axes: Axes, curves: EpsCurves, theme: Theme, grid: Grid, width: float, *, is_left: bool) -> None:
    """Accuracy from 0 to 100 %, eps from 0; signs of eps that would touch are left out."""
    largest = max(curves.eps)
    axes.set_xlim(0, 1.06 * largest or 1)
    axes.set_ylim(0, 100)
    names, unit = _ticks(curves)
    room, shown, last = 1.06 * largest / width, dict.fromkeys(curves.eps, ""), -1.0
    for eps, name in reversed(names.items()):  # from the largest down, which is always named
        half = 0.45 * grid.font * len(name) * room
        if last < 0 or eps + half < last:
            shown[eps], last = name, eps - half
    axes.set_xticks(list(shown), list(shown.values()), size=grid.font - 1, parse_math=False)
    axes.set_yticks(range(0, 101, 25), [f"{y}%" if is_left else "" for y in range(0, 101, 25)])
    axes.set_xlabel(unit, labelpad=2, **plain_text(grid.font - 1, theme.muted))
    bare(axes, theme, grid="both", labelsize=grid.font - 1)


def _ticks(curves: EpsCurves) -> tuple[dict[float, str], str]:
    """Signs below the axis and its name: ``8`` and ``eps · 255`` if every budget is so many 255ths."""
    norm = {"linf": "L∞", "l2": "L2"}.get(curves.norm, curves.norm)
    if all(text.replace(" ", "").endswith("/255") for text in curves.eps.values()):
        return {eps: text.partition("/")[0].strip() for eps, text in curves.eps.items()}, f"{norm} eps · 255"
    return dict(curves.eps), f"{norm} eps"
