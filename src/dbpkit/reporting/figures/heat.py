"""Heat maps: one row a series, one column a category.

Values of both signs are drawn on a scale around 0: with its middle elsewhere, small values of one sign
would look like those of the other.
"""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from dbpkit.reporting.figures.engine import bare, plain_text
from dbpkit.reporting.figures.themes import FONT, Theme
from dbpkit.results.analysis import Chart

MOST_CELLS = 144
"""Cells that are labelled with their values; more would be too small to read."""


def heat_map(
    axes: Axes,
    chart: Chart,
    table: np.ndarray,
    names: Sequence[str],
    ends: tuple[float, float],
    theme: Theme,
) -> None:
    """Draws a heat map with its scale of colours.

    Args:
        axes: where.
        chart: its labels and the names of its rows.
        table: values (rows, columns); nan leaves a cell empty.
        names: of the columns.
        ends: smallest and largest value on the scale of colours.
        theme: colours of the text.
    """
    low, high = ends
    both = low < 0 < high
    low, high = (-max(-low, high), max(-low, high)) if both else (low, high)
    mesh: Any = axes.pcolormesh(table, cmap="PuOr" if both else "cividis", vmin=low, vmax=high, linewidth=0.2)
    mesh.set_edgecolor("face")  # no hairline between cells
    axes.set_ylim(len(table), 0)
    if table.size <= MOST_CELLS:
        _values(axes, table, mesh)
    columns = [name if len(name) < 15 else f"{name[:13]}…" for name in names]
    rows = [textwrap.fill(series.name, 20) for series in chart.series]
    _ticks(axes.xaxis, columns, each=math.ceil(len(columns) * (max(map(len, columns)) + 1) / 52))
    _ticks(axes.yaxis, rows, each=math.ceil(len(rows) / 18))
    label = plain_text(FONT - 1, theme.muted)
    axes.set_xlabel(textwrap.fill(chart.x_label, 60), **label)
    axes.set_title(textwrap.fill(chart.y_label, 66), loc="left", **label)
    bare(axes, theme, pad=3.5, labelsize=FONT - 1)
    bar: Any = axes.figure.colorbar(mesh, ax=axes, shrink=0.9, pad=0.02)
    bar.ax.tick_params(length=0, colors=theme.muted, labelsize=FONT - 1)
    bar.outline.set_visible(False)


def _ticks(axis: Any, labels: Sequence[str], *, each: int) -> None:
    """Names in the middle of their cells."""
    shown = range(0, len(labels), each)
    axis.set_ticks([k + 0.5 for k in shown], [labels[k] for k in shown], parse_math=False)


def _values(axes: Axes, table: np.ndarray, mesh: Any) -> None:
    """Every cell's value, black or white by what it stands on; a dash where there is none."""
    size = FONT - 1.5 if table.shape[1] <= 8 else FONT - 3
    for (row, column), value in np.ndenumerate(table):
        text, colour = "–", "0.5"
        if math.isfinite(value):
            red, green, blue, _ = mesh.to_rgba(value)
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            text, colour = f"{value:.2g}", "white" if dark else "black"
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", size=size, color=colour)
