r"""The only place that prints: all that the program says to a person or to another program.

Data stay data. A path may look like markup, a class name may hold an escape sequence that steers the
terminal, and not every terminal knows an en dash. So markup and emoji are never read, control characters are
shown as ``\x1b``, and what an encoding lacks is replaced by what it has.
"""

import codecs
import errno
import json
import logging
import os
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.logging import RichHandler
from rich.segment import Segment
from rich.text import Text

from dbpkit.foundation.errors import one_line

UNKNOWN_WIDTH = 160
"""Columns of a pipe or a log, which have no width of their own."""

EXAMPLES = "dbpkit.examples"
"""Name of the log that says which file has which label, which is for everyone to see."""

PICTURES = "dbpkit.pictures"
"""Name of the log that says how an image file was purified."""

OPENED = "dbpkit.opened"
"""Name of the log that says what a model's file was taken for, which is for everyone to see."""

ESTIMATES = "dbpkit.estimates"
"""Name of the log that says what a run will take; commands that show their progress show it."""

_SUBSTITUTES = {
    "–": "-", "—": "-", "−": "-", "‑": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "…": "...", "→": "->",
    "←": "<-", "≥": ">=", "≤": "<=", "≈": "~", "±": "+-", "×": "x", "·": ".", "∞": "inf", "ε": "eps",
    "σ": "sigma", "°": " deg", "•": "*", "✓": "yes", "✗": "no", "\xa0": " ", "─": "-", "━": "-", "│": "|",
    "╸": "-", "╺": "-", "╭": "+", "╮": "+", "╰": "+", "╯": "+", "┌": "+", "┐": "+", "└": "+", "┘": "+",
    "é": "e", "ö": "o", "ü": "u", "ä": "a",
}  # fmt: skip
"""What stands for a character that an encoding does not have."""


class _Printer(Console):
    """A console on which no text can steer the terminal."""

    def on_broken_pipe(self) -> None:
        """Lets the last handler decide, where rich would end the program with status 1."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Renders as usual, with control characters of data escaped."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.replace("\n", "").isprintable():
                yield segment
            else:
                lines = segment.text.split("\n")
                yield segment._replace(text="\n".join(_escaped(line) for line in lines))


def _escaped(line: str) -> str:
    return line if line.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def _width(stream: TextIO) -> int | None:
    return None if stream.isatty() or "COLUMNS" in os.environ else UNKNOWN_WIDTH


def _printer(stream: TextIO) -> _Printer:
    return _Printer(file=stream, width=_width(stream), markup=False, emoji=False, highlight=False)


def say(text: str = "", style: str = "", *, whole: bool = False) -> None:
    """Prints a text on standard output, broken between words unless ``whole``, as a path must stay."""
    _printer(sys.stdout).print(Text(text, style=style), soft_wrap=whole)


def entry(head: str, text: str, indent: int = 0, column: int = 18) -> None:
    """Prints a name and what it is beside it, or below it where the terminal is narrow."""
    width = _printer(sys.stdout).width if _width(sys.stdout) is None else 10**6
    margin, head = " " * indent, f"{head:{column - 1}} "
    if width >= indent + len(head) + 30:
        hanging = " " * (indent + column)
        say(textwrap.fill(head + text, width, initial_indent=margin, subsequent_indent=hanging), whole=True)
    else:
        say(margin + head.rstrip(), whole=True)
        below = margin + " " * 4
        say(textwrap.fill(text, max(width, 20), initial_indent=below, subsequent_indent=below), whole=True)


def show(renderable: RenderableType) -> None:
    """Prints a table or another rich renderable on standard output."""
    _printer(sys.stdout).print(renderable)


def as_json(content: Any) -> None:
    """Prints JSON, and nothing else, on standard output."""
    sys.stdout.write(json.dumps(content, indent=1) + "\n")


def warn(text: str) -> None:
    """Prints a warning on standard error."""
    _printer(sys.stderr).print(Text(one_line(text), style="yellow"), soft_wrap=True)


def fail(text: str) -> None:
    """Prints what went wrong on standard error, in one line."""
    _printer(sys.stderr).print(Text(f"error: {one_line(text)}", style="red"), soft_wrap=True)


def note(text: str) -> None:
    """Prints a line about the work on standard error, which may go to a log."""
    _printer(sys.stderr).print(Text(one_line(text)), soft_wrap=True)


def terminal() -> Console | None:
    """Returns a console on standard error if that is a terminal, for what moves."""
    return _printer(sys.stderr) if sys.stderr.isatty() else None


def prepare(level: int = logging.WARNING) -> None:
    """Makes standard streams safe to print on, and sends the library's log to standard error.

    A closed stream takes everything and says nothing; characters that the encoding lacks are substituted.
    """
    sys.stdout = _open(sys.stdout)
    sys.stderr = _open(sys.stderr)
    codecs.register_error("dbpkit", _substitute)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="dbpkit")
    handler = RichHandler(
        console=_printer(sys.stderr), show_path=False, show_time=False, rich_tracebacks=False
    )
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler], force=True)


def silence() -> None:
    """Sends what is still to be printed nowhere, once nobody reads it, so that leaving says nothing."""
    sys.stdout = _open(None)


def _open(stream: TextIO | None) -> TextIO:
    if stream is not None and not stream.closed:
        return stream
    return Path(os.devnull).open("w", encoding="utf-8")


def _substitute(error: UnicodeError) -> tuple[str, int]:
    """What is written in place of characters that an encoding does not have."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(
        _SUBSTITUTES.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text
    ), error.end
