"""`dbpkit.progress_bar`: how far a long call is, in a notebook, on a terminal or in a log.

In a notebook one output is replaced in place, so a cell never fills with lines.
"""

import html
import importlib
import sys
import time
from typing import Any

from dbpkit.foundation import console

EVERY_SECONDS = 0.5
"""Least time between two updates of a bar."""

LINE_SECONDS = 30.0
"""The same of lines in a log."""


class ProgressBar:
    """Shows the share of the work that is done, and what is being done; pass it as ``progress``.

    It is used again by the next call: a bar that is full begins anew.

    Args:
        clock: seconds, from any start.

    Example:
        >>> bar = ProgressBar()
        >>> bar(1.0, "done")
    """

    def __init__(self, clock: Any = time.monotonic) -> None:
        self._clock = clock
        self._handle: Any = None
        self._began = self._last = clock()
        self._is_full = True

    def __call__(self, share: float, what: str) -> None:
        """Shows a share in [0, 1] and what is being done."""
        now, starts = self._clock(), self._is_full
        if starts:
            self._began, self._handle = now, None
        least = EVERY_SECONDS if in_notebook() else LINE_SECONDS
        if not starts and share < 1 and now - self._last < least:
            return
        self._last, self._is_full = now, share >= 1
        if in_notebook():
            self._show(_bar(share, what, now - self._began))
        elif not (starts and share >= 1):
            console.note(f"{what}: {100 * share:.1f} % done after {now - self._began:.0f} s")

    def _show(self, bar: str) -> None:
        """Replaces the output of this bar, or makes one."""
        shown = importlib.import_module("IPython.display")  # only a notebook has it
        if self._handle is None:
            self._handle = shown.display(shown.HTML(bar), display_id=True)
        else:
            self._handle.update(shown.HTML(bar))


progress_bar = ProgressBar
"""Its public name."""


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def _bar(share: float, what: str, seconds: float) -> str:
    """A bar as HTML, in the colours of the page around it."""
    left = f", about {seconds * (1 - share) / share:.0f} s left" if 0 < share < 1 and seconds > 5 else ""
    said = f"{html.escape(what)}: {100 * share:.0f} % after {seconds:.0f} s{left}"
    return f'<progress value="{share:.4f}" max="1" style="width: 20em"></progress> <span>{said}</span>'
