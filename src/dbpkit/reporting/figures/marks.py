"""What stands for data in a figure: lines with bands, points and bars, each with its 95 % interval."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from dbpkit.reporting.figures.themes import Theme

Values = Sequence[float] | np.ndarray


def line(
    axes: Axes,
    x: Values,
    y: Values,
    interval: tuple[Values, Values],
    colour: str,
    marker: str = "",
    dash: str = "-",
) -> list[Any]:
    """Draws a line with a band for its interval.

    With a marker every point has a whisker too, which is all that a single point has.
    """
    low, high = interval
    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0, zorder=2)
    if marker:
        whiskers(axes, x, interval, colour)
    style: dict[str, Any] = {"linewidth": 1.8, "markersize": 5, "markeredgewidth": 0}
    return axes.plot(x, y, color=colour, marker=marker, linestyle=dash, clip_on=False, zorder=3, **style)


def whiskers(axes: Axes, x: Values, interval: tuple[Values, Values], colour: str) -> None:
    """Draws a thin upright line for the interval of every point."""
    axes.vlines(x, *interval, color=colour, linewidth=1, alpha=0.6, zorder=2)


def points(
    axes: Axes, x: Values, y: Values, interval: tuple[Values, Values], colour: str, marker: str
) -> Any:
    """Draws points, with whiskers where they have an interval."""
    whiskers(axes, x, interval, colour)
    style: dict[str, Any] = {"s": 26, "alpha": 0.75, "linewidths": 0, "zorder": 3, "clip_on": False}
    return axes.scatter(x, y, color=colour, marker=marker, **style)


def fitted_curve(axes: Axes, x: Values, y: Values, theme: Theme) -> list[Any]:
    """Draws a dashed line behind the points, for a law that was fitted to them."""
    return axes.plot(x, y, color=theme.muted, linewidth=1.3, linestyle=(0, (5, 3)), zorder=2)


def bars(
    axes: Axes,
    at: np.ndarray,
    ends: tuple[float, np.ndarray],
    interval: tuple[np.ndarray, np.ndarray],
    width: float,
    colours: tuple[str, str],
    *,
    sideways: bool,
) -> Any:
    """Draws bars with whiskers.

    Args:
        axes: where.
        at: middles of the bars.
        ends: where all of them start, and where each of them ends.
        interval: ends of the whiskers.
        width: of a bar.
        colours: of the bars, and of the whiskers.
        sideways: whether they lie on their side.
    """
    start, end = ends
    style: dict[str, Any] = {"color": colours[0], "linewidth": 0, "zorder": 2}
    whisker: dict[str, Any] = {"color": colours[1], "linewidth": 1.3, "zorder": 3}
    if sideways:
        drawn = axes.barh(at, end - start, width, left=start, **style)
        axes.hlines(at, *interval, **whisker)
    else:
        drawn = axes.bar(at, end - start, width, bottom=start, **style)
        axes.vlines(at, *interval, **whisker)
    return drawn
