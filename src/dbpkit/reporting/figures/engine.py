"""The one engine of all figures: a size in CSS pixels and boxes for axes become a figure, an SVG and a PNG.

A chart says where its axes stand (`panel`) or leaves it to their labels (`measured_panel`), and fills
them with what `dbpkit.reporting.figures.marks` offers. matplotlib reads ``$`` in a user's name as
mathematics, so every text is made with `plain_text`, which turns that off.
"""

import base64
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dbpkit.foundation.png import png_bytes
from dbpkit.reporting.figures.themes import DARK, LIGHT, Theme
from dbpkit.results.analysis import Chart

Layout = TypeVar("Layout")

CSS_INCH = 96
"""CSS pixels per inch: the size of the figures is that of the page."""

PRINT_DPI = 2 * CSS_INCH
"""Dots per inch of a figure as a file."""

STYLE: Any = {"font.family": "DejaVu Sans", "svg.hashsalt": "dbpkit", "svg.fonttype": "path"}
"""matplotlib's settings for every figure, while it is made and while it is written."""


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


@contextmanager
def canvas(width: float, height: float, *, measured: bool = False) -> Iterator[Figure]:
    """Gives an empty figure to draw on, under the settings of all figures.

    Args:
        width: CSS pixels.
        height: CSS pixels.
        measured: whether axes shrink until their labels and legends fit (`measured_panel`).
    """
    with _style():
        size = width / CSS_INCH, height / CSS_INCH
        yield Figure(figsize=size, layout="constrained" if measured else None)


def panel(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Returns axes whose box stands there, in CSS pixels from the figure's lower left corner."""
    across, up = (CSS_INCH * side for side in figure.get_size_inches())
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def measured_panel(figure: Figure) -> Axes:
    """Returns axes that fill what their labels leave of a measured canvas."""
    return figure.add_subplot()


def plain_text(size: float, colour: str, **style: Any) -> dict[str, Any]:
    """Returns how a text looks that is shown as it is written."""
    return {"size": size, "color": colour, "parse_math": False, **style}


def bare(axes: Axes, theme: Theme, *, grid: str = "", pad: float = 5, **ticks: Any) -> None:
    """Takes frame and tick marks away, and puts a grid behind what is drawn.

    Args:
        axes: which.
        theme: colours.
        grid: lines at the ticks of ``x``, ``y`` or ``both``; none if empty.
        pad: points between axes and tick labels.
        ticks: more about the ticks, such as ``labelsize``.
    """
    axes.tick_params(length=0, colors=theme.muted, pad=pad, **ticks)
    if grid:
        axes.grid(axis=grid, color=theme.line, linewidth=0.8)  # type: ignore[arg-type]
        axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def both_themes(draw: Callable[[Theme], Figure]) -> tuple[str, str]:
    """Returns a figure as SVG data URIs for light and for dark pages."""
    return svg_uri(draw(LIGHT)), svg_uri(draw(DARK))


def responsive(
    draw: Callable[[Theme, Layout], Figure], layouts: Sequence[Layout], width: int, alt: str, data: Chart
) -> ResponsiveChart:
    """Returns a chart in every form.

    Args:
        draw: makes the figure in a theme and a layout.
        layouts: the wide and the narrow one.
        width: of the wide one, CSS pixels.
        alt: text that stands for it.
        data: its values.
    """
    wide, narrow = layouts
    light, dark = both_themes(lambda theme: draw(theme, wide))
    narrow_light, narrow_dark = both_themes(lambda theme: draw(theme, narrow))
    return ResponsiveChart(
        light, dark, narrow_light, narrow_dark, width, alt, figure_png(draw(LIGHT, wide)), data
    )


def svg_uri(figure: Figure) -> str:
    """Returns a figure as an SVG data URI without date and random ids: the same run gives the same page."""
    buffer = io.BytesIO()
    with _style():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return data_uri("image/svg+xml", buffer.getvalue())


def figure_png(figure: Figure) -> bytes:
    """Returns a figure as a PNG file on white, sharp in print."""
    with _style():
        figure.set_dpi(PRINT_DPI)
        drawn = FigureCanvasAgg(figure)
        drawn.draw()
    return png_bytes(np.asarray(drawn.buffer_rgba())[:, :, :3], dpi=PRINT_DPI)


def data_uri(kind: str, content: bytes) -> str:
    """Returns a file as a link that needs no file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


@contextmanager
def _style() -> Iterator[None]:
    """Matplotlib's settings; a character that the font lacks, such as an emoji in a name, is a box."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield
