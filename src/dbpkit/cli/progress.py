"""How far a long command is: a bar on a terminal, a line now and then in a log.

The thing people get wrong: a log without a terminal. A bar writes nothing there, and a run of a day looks
like one that hangs. Here a clock writes a line every half minute whatever the work does.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dbpkit.cli.crash import INTERRUPTED
from dbpkit.foundation import console

Report = Callable[[float, str], None]
"""Called with the share of the work that is done, in [0, 1], and what is being done."""

EVERY_SECONDS = 30.0
"""Least time between two lines of a log."""


class Lines:
    """Writes lines about the work, at most one in `EVERY_SECONDS`, or one for every new thing if verbose.

    Args:
        write: takes a line.
        clock: seconds, from any start.
        verbose: whether every new thing that is done gets a line.
    """

    def __init__(
        self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic, verbose: bool = False
    ) -> None:
        self._write = write
        self._clock = clock
        self._verbose = verbose
        self._start = self._last = clock()
        self._first: tuple[float, float] | None = None  # when and from what share on the share grows
        self._share, self._what = 0.0, "starting"
        self._lock = threading.Lock()

    def report(self, share: float, what: str) -> None:
        """Notes how far the work is."""
        with self._lock:
            is_new = what != self._what
            self._share, self._what = share, what
            if what != "starting" and (self._first is None or share <= self._first[1]):
                self._first = self._clock(), share  # checks come before, and take a time of their own
            if self._verbose and is_new:
                self._say()
        self.tick()

    def tick(self) -> None:
        """Writes a line if it is time for one."""
        with self._lock:
            if self._clock() - self._last >= EVERY_SECONDS:
                self._say()

    def _say(self) -> None:
        self._last = now = self._clock()
        left = ""
        if self._first is not None:
            began, before = self._first
            done = self._share - before
            if done > 0 and now > began:
                left = f", about {duration((1 - self._share) * (now - began) / done)} left"
        elapsed = duration(now - self._start)
        self._write(f"{self._what}: {100 * self._share:.1f} % done after {elapsed}{left}")


def duration(seconds: float) -> str:
    """Returns a time in words.

    Example:
        >>> duration(42), duration(600), duration(90000)
        ('42 s', '10 min', '25.0 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def progress(quiet: bool = False, verbose: bool = False) -> Iterator[Report]:
    """Yields a function that takes share and work; shows them on standard error unless ``quiet``."""
    if quiet:
        yield lambda *_: None
        return
    terminal = None if verbose else console.terminal()
    with _bar(terminal) if terminal is not None else _lines(verbose) as report:
        yield report


@contextlib.contextmanager
def working(as_json: bool, talk: bool | None = None, *, continues: bool = True) -> Iterator[Report]:
    """Progress of a command's work; says how to go on if it is stopped, and leaves with status 130.

    Args:
        as_json: whether a program reads the result, so that nothing else is said.
        talk: what ``--verbose/--quiet`` says; None if neither was given.
        continues: whether the same command goes on where it stopped.
    """
    silent = as_json or talk is False
    logging.getLogger(console.ESTIMATES).setLevel(logging.WARNING if silent else logging.INFO)
    try:
        with progress(silent, talk is True) as report:
            yield report
    except KeyboardInterrupt:
        again = "; run the same command again to continue where it left off" if continues else ""
        console.note(f"stopped{again}.")
        raise typer.Exit(INTERRUPTED) from None


@contextlib.contextmanager
def _bar(terminal: Console) -> Iterator[Report]:
    """A bar with the time left."""
    columns = (
        TextColumn("{task.description:28}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=terminal, refresh_per_second=2, speed_estimate_period=600) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda share, what: bar.update(task, completed=share, description=what)


@contextlib.contextmanager
def _lines(verbose: bool) -> Iterator[Report]:
    """Lines, also while one piece of work takes long."""
    lines, stop = Lines(console.note, verbose=verbose), threading.Event()

    def watch() -> None:
        while not stop.wait(1.0):
            lines.tick()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lines.report
    finally:
        stop.set()
        thread.join()
