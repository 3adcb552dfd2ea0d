"""How a result shows itself in a notebook: as HTML, as a table of pandas, as a figure.

Results know no room that draws. Whoever draws files a `Display` here under the name of the result's type,
and it is imported at the first look.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.registry import Registry


class Display(NamedTuple):
    """How results of one type are shown.

    Attributes:
        html: a result as HTML that needs nothing else, all its texts escaped.
        rows: its numbers, a dictionary for every line; the keys are the columns.
        plot: its figure of matplotlib; takes what ``.plot()`` is given.
    """

    html: Callable[[Any], str]
    rows: Callable[[Any], list[dict[str, Any]]]
    plot: Callable[..., Any]


displays: Registry[Display] = Registry("display", ["dbpkit.reporting.display"])
"""Displays by name of a type."""


def html(found: Any) -> str:
    """Returns a result as a notebook shows it: a piece of HTML with its style in it."""
    return displays.get(type(found).__name__).html(found)


def frame(found: Any) -> Any:
    """Returns the numbers of a result as a ``pandas.DataFrame``; UserError if pandas is not installed."""
    try:
        import pandas as pd
    except ImportError as error:
        raise UserError("to_frame needs pandas. Install it with: pip install 'dbpkit[notebook]'") from error
    return pd.DataFrame(displays.get(type(found).__name__).rows(found))


def plot(found: Any, *given: Any) -> Any:
    """Returns the figure of a result, a ``matplotlib.figure.Figure`` that notebooks show by itself."""
    return displays.get(type(found).__name__).plot(found, *given)
