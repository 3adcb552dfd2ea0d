"""What ``python -m dbpkit`` settles before anything else is imported.

``python -m`` puts the current folder first among the places where modules are looked for, so a ``numpy.py``
that lies in a downloaded run would run as NumPy.
"""

import os  # with sys, the only module that Python itself has loaded already
import sys


def _is_run_as_a_module() -> bool:
    """Whether this package is being started by ``python -m dbpkit...``, rather than imported by a program."""
    if sys.argv[:1] != ["-m"]:  # what argv[0] is while Python looks for the module it was told to run
        return False
    named = sys.orig_argv[-len(sys.argv)].removeprefix("-m")
    return named.partition(".")[0] == "dbpkit"


def _leave_the_current_folder() -> None:
    """Takes the current folder from the front of the search path, where ``-m`` has put it."""
    first = sys.path[0] if sys.path and not sys.flags.safe_path else None
    if first is not None and os.path.realpath(first or ".") == os.path.realpath("."):
        del sys.path[0]


def _is_program() -> bool:
    """Whether this process is the command line, rather than a program that imports this package."""
    name = sys.argv[0].replace("\\", "/").rpartition("/")[2]
    return _is_run_as_a_module() or name.partition(".")[0] == "dbpkit"


def _stop(_signal: int, _frame: object) -> None:
    """Ends a program that is interrupted while it is still being imported: nothing can be lost yet."""
    os.write(2, b"error: stopped before it began.\n")
    os._exit(130)


if _is_run_as_a_module():
    _leave_the_current_folder()

import signal  # noqa: E402 - only now: a signal.py may lie in the current folder

if _is_program() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _stop)


def started() -> None:
    """Says that a command has imported what it needs: from now on an interrupt is an exception, as usual."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)
