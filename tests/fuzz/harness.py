"""What every fuzzer shares: seeded choices, and one judge of what a case did.

A case is a function without arguments. It may return, say one sentence (`UserError`) or end a command line
(`SystemExit`). Anything else is a defect: another exception, more than `SECONDS`, a program started, code
compiled from a file, or a file written outside the folders that the case was given.
"""

import contextlib
import os
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import matplotlib.font_manager  # noqa: F401 - asks the system for its fonts once: no case starts that program

from dbpkit.foundation.errors import UserError

SECONDS = 5.0
"""No case may take longer."""

_STARTS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "subprocess.Popen",
    "pty.spawn",
)
_WRITES = ("os.remove", "os.rename", "os.rmdir", "os.truncate", "shutil.rmtree", "shutil.move")


class Hang(BaseException):
    """A case ran out of time; not an Exception, so that no handler swallows it."""


@dataclass
class Outcome:
    """What a case did.

    Attributes:
        said: the sentence, or the exit status of a command line as text; empty if it returned.
        value: what it returned.
        defects: what it must not do, in words, with the traceback of an exception.
    """

    said: str = ""
    value: Any = None
    defects: list[str] = field(default_factory=list)


@dataclass
class _Watched:
    allowed: tuple[str, ...]
    defects: list[str]


_watched: _Watched | None = None
_thread = 0


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _watched is None or threading.get_ident() != _thread:
        return
    if event in _STARTS:
        _watched.defects.append(f"started a program: {event} {args[:2]!r}")
    elif event in _WRITES or (event == "open" and _opens_to_write(args)):
        _note_write(args[0])


def _opens_to_write(args: tuple[Any, ...]) -> bool:
    mode, flags = args[1], args[2]
    if isinstance(mode, str):
        return any(c in mode for c in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _note_write(path: Any) -> None:
    if _watched is None or isinstance(path, int) or path is None:
        return
    where = os.path.realpath(os.fsdecode(path))
    if where.startswith("/dev/") or where.endswith(".pyc") or "__pycache__" in where:
        return
    if not where.startswith(_watched.allowed):
        _watched.defects.append(f"wrote to {where}")


sys.addaudithook(_audit)


def run_case(
    case: Callable[[], Any],
    *,
    writes: Sequence[Path] = (),
    admitted: tuple[type[BaseException], ...] = (UserError, SystemExit),
    seconds: float = SECONDS,
) -> Outcome:
    """Runs one case in the main thread and judges it.

    Args:
        case: what is tried.
        writes: folders it may write to.
        admitted: exceptions that are a sentence, not a defect.
        seconds: time limit.
    """
    global _watched, _thread
    outcome = Outcome()
    allowed = tuple(os.path.realpath(p) for p in writes)
    _watched, _thread = _Watched(allowed, outcome.defects), threading.get_ident()
    try:
        with _time_limit(seconds):
            outcome.value = case()
    except Hang:
        outcome.defects.append(f"took more than {seconds:g} s")
    except admitted as said:
        outcome.said = str(said) or type(said).__name__
        if isinstance(said, UserError) and "\n" in outcome.said.strip():
            outcome.defects.append(f"more than one line: {outcome.said!r}")
        if isinstance(said, SystemExit) and said.code not in (None, 0, 1, 2, 130):
            outcome.defects.append(f"exit status {said.code!r}")
    except BaseException:  # the judge sees everything
        outcome.defects.append(traceback.format_exc())
    finally:
        _watched = None
    return outcome


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(signum: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def chooser(seed: int) -> random.Random:
    """A seeded source of choices for tests."""
    return random.Random(seed)


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the path of every value in nested dictionaries and lists, containers included, root left out."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from leaves(value, (*path, key))


def replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Returns a copy of a tree with the value at ``path`` replaced."""
    if not path:
        return value
    key, rest = path[0], path[1:]
    if isinstance(tree, dict):
        return {k: replaced(v, rest, value) if k == key else v for k, v in tree.items()}
    return [replaced(v, rest, value) if i == key else v for i, v in enumerate(tree)]


def dropped(tree: Any, path: tuple[Any, ...]) -> Any:
    """Returns a copy of a tree without the entry at ``path``."""
    key, rest = path[0], path[1:]
    if isinstance(tree, dict):
        return {k: dropped(v, rest) if k == key else v for k, v in tree.items() if rest or k != key}
    return [dropped(v, rest) if i == key else v for i, v in enumerate(tree) if rest or i != key]


ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**30), 0.5, -0.5, 1e-320, 1e308, float("nan"),
    float("inf"), float("-inf"), "", " ", "x", "nan", "8/255/2", "1e99999999", "-1", "os:system", "a:b", ":",
    "../../etc/passwd", "\x00", "\x1b[31m", "[/b]", ":a:", "é" * 3, "x" * 3000, [], [[]], [None], {},
    {"name": []}, {"": ""}, {"name": "pgd", "options": {"x": []}}, [1, "a", None], {"a": {"b": {"c": 1}}},
)  # fmt: skip
"""Values of every kind that a leaf may be replaced by."""
