"""The chart of accuracies: a bar for every setting and run, with its interval and its value as text."""

import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dbpkit.reporting.figures.engine import ResponsiveChart, bare, canvas, panel, plain_text, responsive
from dbpkit.reporting.figures.themes import LIGHT, Theme
from dbpkit.reporting.tables import TableRow, short_title
from dbpkit.results.analysis import Chart, Series


class Shape(NamedTuple):
    """A chart's layout.

    Attributes:
        width: CSS pixels.
        left: left edge of the axes as a share of the width; names stand before it, or above their bars if 0.
        right: right edge of the axes; values stand behind it.
        unit: height of a bar with its gap, CSS pixels.
        font: size in points.
        wrap: characters of a name in one line.
        with_intervals: whether intervals are written out.
    """

    width: int
    left: float
    right: float
    unit: int
    font: float
    wrap: int
    with_intervals: bool


WIDE = Shape(width=1040, left=0.28, right=0.78, unit=26, font=10.5, wrap=36, with_intervals=True)
NARROW = Shape(width=360, left=0.0, right=0.76, unit=22, font=9.5, wrap=44, with_intervals=False)


class Bar(NamedTuple):
    """One run's bar of a setting: the run's number and letter (empty if it is the only run), and its row."""

    number: int
    letter: str
    row: TableRow


class Line(NamedTuple):
    """One setting in the chart, with a bar for every run that has it."""

    group: str
    label: str
    bars: list[Bar]


def accuracy_chart(runs: Sequence[tuple[str, Sequence[TableRow]]]) -> ResponsiveChart:
    """Draws the accuracy per draw of every row with its 95 % interval.

    Args:
        runs: a letter (empty for a single run) and the rows of the headline table, for every run.

    Returns:
        Four data URIs, a PNG, the text that stands for them, and the data.
    """
    lines = _lines(runs)
    values = [
        f"{bar.row.title}{f', run {bar.letter}' if bar.letter else ''}: {bar.row.accuracy.value}"
        f" ({bar.row.accuracy.interval})"
        for line in lines
        for bar in line.bars
    ]
    alt = f"Bar chart of accuracy per draw with 95 % intervals. {'; '.join(values)}."
    return responsive(partial(_figure, lines), (WIDE, NARROW), WIDE.width, alt, _data(runs, alt))


def accuracy_figure(rows: Sequence[TableRow], theme: Theme = LIGHT) -> Figure:
    """Draws the accuracy per draw of one run, for screens; `accuracy_chart` is for pages."""
    return _figure(_lines([("", rows)]), theme, WIDE)


def _lines(runs: Sequence[tuple[str, Sequence[TableRow]]]) -> list[Line]:
    """Gathers the bars of every setting; groups and settings keep the order of their first appearance."""
    lines: dict[str, Line] = {}
    for number, (letter, rows) in enumerate(runs):
        for row in rows:
            title = short_title(row.title)
            line = lines.setdefault(row.name, Line(row.group, title[:1].upper() + title[1:], []))
            line.bars.append(Bar(number, letter, row))
    groups = list(dict.fromkeys(line.group for line in lines.values()))
    return sorted(lines.values(), key=lambda line: groups.index(line.group))


def _data(runs: Sequence[tuple[str, Sequence[TableRow]]], alt: str) -> Chart:
    """The chart's values: a series for every run."""
    series = []
    for letter, rows in runs:
        cells = [row.accuracy for row in rows]
        ends = [c.low for c in cells], [c.high for c in cells]
        name = f"run {letter}" if letter else "accuracy"
        series.append(Series(name, [row.title for row in rows], [c.share for c in cells], *ends))
    return Chart("bar", "Accuracy per draw", "setting", "accuracy per draw", series, alt)


def _figure(lines: Sequence[Line], theme: Theme, shape: Shape) -> Figure:
    """Lays the lines out from top to bottom, one unit of y per bar, and draws them."""
    names_edge = -shape.left / (shape.right - shape.left)  # of the figure, as a share of the axes
    elements: list[Callable[[Axes], None]] = []
    y, group = 0.0, None
    for line in lines:
        if line.group != group:
            y += 0.4 if group else 0.0
            heading = plain_text(shape.font - 0.5, theme.muted, weight="bold")
            elements.append(partial(_text, names_edge, y + 0.45, line.group, heading))
            y, group = y + 1.0, line.group
        name = textwrap.fill(line.label, shape.wrap)
        height = 0.78 * (1 + name.count("\n"))
        middle = height / 2 if shape.left == 0 else max(len(line.bars), height) / 2
        elements.append(partial(_text, names_edge, y + middle, name, plain_text(shape.font, theme.text)))
        y += height if shape.left == 0 else 0.0
        elements += [
            partial(_bar, bar, line.group, y + row + 0.5, shape, theme) for row, bar in enumerate(line.bars)
        ]
        y += len(line.bars) if shape.left == 0 else max(len(line.bars), height)
        y += 0.35 if line.bars[0].letter else 0.0
    return _render(elements, y, shape, theme)


def _text(x: float, y: float, text: str, style: dict[str, Any], axes: Axes) -> None:
    """Plain text at a share x of the axes' width and a data y."""
    axes.text(x, y, text, transform=axes.get_yaxis_transform(), va="center", **style)


def _bar(bar: Bar, group: str, y: float, shape: Shape, theme: Theme, axes: Axes) -> None:
    """A bar, its whisker and its value."""
    accuracy = bar.row.accuracy
    colour = theme.ink(bar.number) if bar.letter else theme.groups.get(group, theme.plain)
    axes.barh(y, 100 * accuracy.share, height=0.7, color=colour, linewidth=0, zorder=2)
    whisker: dict[str, Any] = {"color": theme.text, "linewidth": 1.3, "zorder": 3, "solid_capstyle": "butt"}
    axes.plot([100 * accuracy.low, 100 * accuracy.high], [y, y], clip_on=False, **whisker)
    for end in (accuracy.low, accuracy.high):
        axes.plot([100 * end] * 2, [y - 0.18, y + 0.18], clip_on=False, **whisker)
    value = plain_text(shape.font, theme.text, weight="bold", ha="right")
    value_edge, interval_edge = (0.18, 0.41) if shape.with_intervals else (0.305, 0.0)
    if bar.letter:
        _text(1.015, y, bar.letter, {**value, "ha": "left"}, axes)
    _text(1 + value_edge, y, accuracy.value, value, axes)
    if shape.with_intervals:
        style = plain_text(shape.font - 1, theme.muted, ha="right")
        _text(1 + interval_edge, y, accuracy.interval, style, axes)


def _render(elements: Sequence[Callable[[Axes], None]], rows: float, shape: Shape, theme: Theme) -> Figure:
    """Draws into a figure."""
    margin = 30  # CSS pixels for the scale below
    height = rows * shape.unit + margin
    with canvas(shape.width, height) as figure:
        left, right = (shape.left + 0.005) * shape.width, (shape.right + 0.005) * shape.width
        axes = panel(figure, left, margin, right - left, height - margin)
        axes.set_xlim(0, 100)
        axes.set_ylim(rows, 0)
        for element in elements:
            element(axes)
        axes.set_yticks([])
        axes.set_xticks(range(0, 101, 25), [f"{tick}%" for tick in range(0, 101, 25)], size=shape.font - 1)
        bare(axes, theme, grid="x", axis="x")
        if shape.left == 0:
            axes.get_xticklabels()[0].set_horizontalalignment("left")
    return figure
