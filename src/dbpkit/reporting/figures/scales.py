"""Data on its way to an axis: categories get places, and charts beside each other the same ends.

The thing people get wrong: a logarithmic axis has no place for 0, and no axis has one for nan. Such values
become nan here: they are left out of the picture, counted below it, and kept in the CSV.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from dbpkit.foundation.errors import UserError
from dbpkit.results.analysis import Chart


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


def category_names(charts: Sequence[Chart]) -> list[str]:
    """Categories of the x axis in the order of their first appearance; empty if x are numbers on a scale."""
    values = [x for chart in charts for series in chart.series for x in series.x]
    words = any(isinstance(x, str) for x in values)
    if charts[0].kind in ("line", "scatter") and not words:
        return []
    return list(dict.fromkeys(map(_label, values if words else sorted(values, key=float))))


def _label(x: float | str) -> str:
    return x if isinstance(x, str) else f"{x:g}"


def columns_of(chart: Chart, names: Sequence[str]) -> list[Columns]:
    """Every series as arrays; categories become 0, 1, ..."""
    places = {name: place for place, name in enumerate(names)}
    found = []
    for series in chart.series:
        lengths = [len(series.x), len(series.y), *(len(end) for end in (series.low, series.high) if end)]
        if len(set(lengths)) > 1:
            raise UserError(
                f"chart '{chart.title}', series '{series.name}': its columns have lengths"
                f" {', '.join(map(str, lengths))}, but must have one. Correct the analysis that made it."
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


def scale_of(charts: Sequence[tuple[Chart, Sequence[Columns]]], names: list[str]) -> Scale:
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


def log_ticks(axis: Any, at: Sequence[float], ends: tuple[float, float]) -> None:
    """Plain numbers: at the points themselves if these are few, else at powers of ten."""
    if 1 < len(at) <= 8 and all(b / a > 1.4 for a, b in pairwise(at)):
        axis.set_ticks(at)
    else:
        narrow = ends[1] / ends[0] < 300
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,), numticks=8))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
