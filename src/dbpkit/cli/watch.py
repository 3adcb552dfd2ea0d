"""``--watch``: the page of a run, written again and again while the run goes on; a browser loads it again.

There is no server: the page is a file that loads itself again until it is finished.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dbpkit.foundation import console

log = logging.getLogger(__name__)

Report = Callable[[float, str], None]

EVERY_SECONDS = 20.0
"""Least time between two pages."""

COST = 0.05
"""Largest share of the time that pages may take."""


class Pages:
    """Writes the page of a run while it is told how far the run is.

    Args:
        run: run directory.
        clock: seconds, from any start.
    """

    def __init__(self, run: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.run = run
        self._clock = clock
        self._next = clock()
        self._told = False

    def __call__(self, share: float, what: str) -> None:
        """Writes the page if it is time for one and the run has begun."""
        began = self._clock()
        if began < self._next or not (self.run / "spec.json").is_file():
            return
        wait = self.write(share, what)
        took = self._clock() - began
        self._next = self._clock() + max(wait, took / COST)

    def write(self, share: float, what: str, *, live: bool = True) -> float:
        """Writes the page, for a run that goes on or has stopped; returns the seconds until the next one."""
        from dbpkit.reporting.page import Live, write_report

        try:
            seconds = round(EVERY_SECONDS)
            path = write_report([self.run], live=Live(seconds, share, what) if live else None)
        except Exception as error:  # a page that cannot be written stops no run
            log.warning("The page could not be written: %s", error)
            return 10 * EVERY_SECONDS
        if not self._told:
            console.note(f"Page: {path.resolve()}")
            self._told = True
        return EVERY_SECONDS


@contextlib.contextmanager
def watching(run: Path, report: Report, *, watch: bool) -> Iterator[Report]:
    """Yields ``report``, which also writes the run's page if ``watch``; the last one loads no more."""
    if not watch:
        yield report
        return
    pages, last = Pages(run), [0.0]

    def both(share: float, what: str) -> None:
        last[0] = share
        report(share, what)
        pages(share, what)

    try:
        yield both
    except BaseException:
        if (run / "spec.json").is_file():
            pages.write(last[0], "stopped", live=False)
        raise
