"""Run directories become tables, figures and one self-contained HTML page; nothing here runs a network.

Names are imported when they are used: a table needs no library that draws.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dbpkit.reporting.analyses import write_charts
    from dbpkit.reporting.page import write_report
    from dbpkit.reporting.picture import write_replay_png, write_strip_png
    from dbpkit.reporting.terminal import (
        console_analysis,
        console_findings,
        console_flags,
        console_table,
        replay_table,
    )

_PLACES = {
    "console_analysis": "terminal",
    "console_findings": "terminal",
    "console_flags": "terminal",
    "console_table": "terminal",
    "replay_table": "terminal",
    "write_charts": "analyses",
    "write_replay_png": "picture",
    "write_report": "page",
    "write_strip_png": "picture",
}
"""Which module each name is of."""

__all__ = [
    "console_analysis",
    "console_findings",
    "console_flags",
    "console_table",
    "replay_table",
    "write_charts",
    "write_replay_png",
    "write_report",
    "write_strip_png",
]


def __getattr__(name: str) -> Any:
    """Imports a name of `__all__`."""
    if name not in _PLACES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
