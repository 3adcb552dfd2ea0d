"""Pictures as data URIs: the chart of accuracies and small images.

The thing people get wrong: matplotlib reads ``$`` in a user's name as mathematics; every text here is plain.
"""

import base64
import io
import textwrap
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from dbpkit.reporting.tables import TableRow, short_title
from dbpkit.results.analysis import Chart, Series
from dbpkit.results.kinds import PURIFIED, PURIFIED_ATTACKED

if TYPE_CHECKING:
    from torch import Tensor

    from dbpkit.foundation.arrays import Array

    Pixels = Array | Tensor

GAIN = 8
"""Factor by which perturbations are amplified to be seen."""

LARGEST_SIDE = 160
"""Pixels; larger pictures are reduced to it, or the page would weigh megabytes."""

CSS_INCH = 96
"""CSS pixels per inch: the size of the figures is that of the page."""


STYLE: Any = {"font.family": "DejaVu Sans", "svg.hashsalt": "dbpkit", "svg.fonttype": "path"}
"""matplotlib's settings for every figure, while it is made and while it is written."""


class Theme(NamedTuple):
    """Colours of a chart: Okabe and Ito's palette, which colour-blind readers can tell apart.

    Source:
        Okabe & Ito 2008, Color Universal Design.
    """

    text: str
    muted: str
    line: str
    plain: str
    groups: dict[str, str]
    runs: tuple[str, ...]


LIGHT = Theme(
    text="#1b1f24",
    muted="#5a636e",
    line="#dfe3e8",
    plain="#8b949e",
    groups={PURIFIED: "#56B4E9", PURIFIED_ATTACKED: "#E69F00"},
    runs=("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#0072B2", "#D55E00"),
)
DARK = Theme(
    text="#e8ebef",
    muted="#a2acb8",
    line="#333b45",
    plain="#6e7884",
    groups={PURIFIED: "#0072B2", PURIFIED_ATTACKED: "#D55E00"},
    runs=("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"),
)


PALETTE = list(zip(LIGHT.runs, DARK.runs, strict=True))
"""Colours of run or model 0, 1, ... on light and dark pages; they begin anew after the last."""


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


class ResponsiveChart(NamedTuple):
    """The same chart for light and dark pages, wide and narrow, as a PNG file, as text and as data."""

    light: str
    dark: str
    narrow_light: str
    narrow_dark: str
    width: int
    alt: str
    png: bytes
    data: Chart


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
    figures = [_figure(lines, theme, shape) for shape in (WIDE, NARROW) for theme in (LIGHT, DARK)]
    return responsive(figures, WIDE.width, alt, _data(runs, alt))


def responsive(figures: Sequence[Figure], width: int, alt: str, data: Chart) -> ResponsiveChart:
    """Returns a chart from its figures: wide light and dark, narrow light and dark."""
    light, dark, narrow_light, narrow_dark = map(svg_uri, figures)
    return ResponsiveChart(light, dark, narrow_light, narrow_dark, width, alt, png_bytes(figures[0]), data)


def image_uri(image: "Pixels") -> str:
    """Returns an image (C, H, W) in [0, 1] as a PNG data URI."""
    picture = as_picture(image)
    if max(picture.size) > LARGEST_SIDE:
        picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return _uri("image/png", buffer.getvalue())


def svg_uri(figure: Figure) -> str:
    """Returns a figure as an SVG data URI without date and random ids: the same run gives the same page."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # an emoji in a user's name
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _uri("image/svg+xml", buffer.getvalue())


def png_bytes(figure: Figure) -> bytes:
    """Returns a figure as a PNG file on white, sharp in print."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(buffer, format="png", dpi=2 * CSS_INCH, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def as_picture(image: "Pixels") -> Image.Image:
    """Returns an image (C, H, W) in [0, 1] as grey or RGB; of other numbers of channels, their mean."""
    values = np.asarray(image)
    if len(values) not in (1, 3):
        values = values.mean(axis=0, keepdims=True)
    pixels = np.rint(values.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    return Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])


def amplified(x: "Array", x_adv: "Array") -> "Array":
    """Returns the perturbation around grey, `GAIN` times its size."""
    return np.asarray((0.5 + GAIN * (x_adv - x)).clip(0, 1))


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
            heading = {"color": theme.muted, "size": shape.font - 0.5, "weight": "bold"}
            elements.append(partial(_text, names_edge, y + 0.45, line.group, heading))
            y, group = y + 1.0, line.group
        name = textwrap.fill(line.label, shape.wrap)
        height = 0.78 * (1 + name.count("\n"))
        middle = height / 2 if shape.left == 0 else max(len(line.bars), height) / 2
        style = {"color": theme.text, "size": shape.font}
        elements.append(partial(_text, names_edge, y + middle, name, style))
        y += height if shape.left == 0 else 0.0
        elements += [
            partial(_bar, bar, line.group, y + row + 0.5, shape, theme) for row, bar in enumerate(line.bars)
        ]
        y += len(line.bars) if shape.left == 0 else max(len(line.bars), height)
        y += 0.35 if line.bars[0].letter else 0.0
    return _render(elements, y, shape, theme)


def _text(x: float, y: float, text: str, style: dict[str, Any], axes: Axes) -> None:
    """Plain text at a share x of the axes' width and a data y."""
    axes.text(x, y, text, transform=axes.get_yaxis_transform(), va="center", parse_math=False, **style)


def _bar(bar: Bar, group: str, y: float, shape: Shape, theme: Theme, axes: Axes) -> None:
    """A bar, its whisker and its value."""
    accuracy = bar.row.accuracy
    colour = theme.runs[bar.number % len(theme.runs)] if bar.letter else theme.groups.get(group, theme.plain)
    axes.barh(y, 100 * accuracy.share, height=0.7, color=colour, linewidth=0, zorder=2)
    whisker: dict[str, Any] = {"color": theme.text, "linewidth": 1.3, "zorder": 3, "solid_capstyle": "butt"}
    axes.plot([100 * accuracy.low, 100 * accuracy.high], [y, y], clip_on=False, **whisker)
    for end in (accuracy.low, accuracy.high):
        axes.plot([100 * end] * 2, [y - 0.18, y + 0.18], clip_on=False, **whisker)
    value = {"color": theme.text, "size": shape.font, "weight": "bold", "ha": "right"}
    value_edge, interval_edge = (0.18, 0.41) if shape.with_intervals else (0.305, 0.0)
    if bar.letter:
        _text(1.015, y, bar.letter, {**value, "ha": "left"}, axes)
    _text(1 + value_edge, y, accuracy.value, value, axes)
    if shape.with_intervals:
        style = {"color": theme.muted, "size": shape.font - 1, "ha": "right"}
        _text(1 + interval_edge, y, accuracy.interval, style, axes)


def _render(elements: Sequence[Callable[[Axes], None]], rows: float, shape: Shape, theme: Theme) -> Figure:
    """Draws into a figure."""
    margin = 30  # CSS pixels for the scale below
    height = rows * shape.unit + margin
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(shape.width / CSS_INCH, height / CSS_INCH))
        box = (shape.left + 0.005, margin / height, shape.right - shape.left, 1 - margin / height)
        axes = figure.add_axes(box)
        axes.set_xlim(0, 100)
        axes.set_ylim(rows, 0)
        for element in elements:
            element(axes)
        axes.set_yticks([])
        axes.set_xticks(range(0, 101, 25), [f"{tick}%" for tick in range(0, 101, 25)], size=shape.font - 1)
        axes.tick_params(axis="x", length=0, colors=theme.muted, pad=5)
        if shape.left == 0:
            axes.get_xticklabels()[0].set_horizontalalignment("left")
        axes.grid(axis="x", color=theme.line, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
    return figure


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
