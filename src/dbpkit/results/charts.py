"""Figures as data: what the page, the PNG and the CSV all show."""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from dbpkit.statistics.intervals import Interval


class Series(NamedTuple):
    """One line, set of bars or cloud of points.

    Attributes:
        name: its label.
        x: positions, or categories.
        y: values.
        low: lower ends of intervals, or nothing.
        high: upper ends, or nothing.
    """

    name: str
    x: Sequence[float | str]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()

    @classmethod
    def of(cls, name: str, x: Sequence[float | str], found: Iterable[Interval]) -> "Series":
        """Makes a series of intervals, one for each position."""
        value, low, high = (list(column) for column in zip(*(one.drawn for one in found), strict=True))
        return cls(name, x, value, low, high)


class Chart(NamedTuple):
    """A figure as data.

    Attributes:
        kind: ``line``, ``bar``, ``scatter`` or ``heat``. A heat map has one series a row: ``name`` is its
            label, ``x`` the column labels, ``y`` the values.
        title: what it shows.
        x_label: with unit.
        y_label: with unit.
        series: the data.
        description: text alternative: what a reader sees, in a sentence.
        x_log: whether the x axis is logarithmic.
        y_log: whether the y axis is.
        curves: names of series that a scatter chart shows as lines without points, such as a fit.
    """

    kind: Literal["line", "bar", "scatter", "heat"]
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    description: str
    x_log: bool = False
    y_log: bool = False
    curves: Sequence[str] = ()
