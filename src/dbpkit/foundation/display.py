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
        plot: its figure of matplotlib; takes what ``.plot()`` is given. None of a result without one.
    """

    html: Callable[[Any], str]
    rows: Callable[[Any], list[dict[str, Any]]]
    plot: Callable[..., Any] | None = None


displays: Registry[Display] = Registry("display", ["dbpkit.reporting.display"])
"""Displays by name of a type; whoever draws is imported at the first look, and nobody else."""

bundle_displays: Registry[Display] = Registry("display", ["dbpkit.bundles.display"])
table_displays: Registry[Display] = Registry("display", ["dbpkit.tables.display"])
"""Those of rooms that draw their own results."""


def display_of(found: Any) -> Display:
    """Returns how a result is shown; UserError if nobody shows its type."""
    room = type(found).__module__.removeprefix("dbpkit.").partition(".")[0]
    own = {"bundles": bundle_displays, "tables": table_displays}
    return own.get(room, displays).get(type(found).__name__)


def html(found: Any) -> str:
    """Returns a result as a notebook shows it: a piece of HTML with its style in it."""
    return display_of(found).html(found)


def frame(found: Any) -> Any:
    """Returns the numbers of a result as a ``pandas.DataFrame``; UserError if pandas is not installed."""
    try:
        import pandas as pd
    except ImportError as error:
        raise UserError("to_frame needs pandas. Install it with: pip install 'dbpkit[notebook]'") from error
    return pd.DataFrame(display_of(found).rows(found))


def plot(found: Any, *given: Any) -> Any:
    """Returns the figure of a result, a ``matplotlib.figure.Figure`` that notebooks show by itself."""
    draw = display_of(found).plot
    if draw is None:
        raise UserError(f"a {type(found).__name__} has no figure; .to_frame() has its numbers.")
    return draw(found, *given)
