"""The last handler: whatever happens, the program ends with one sentence and never with a traceback.

Exit statuses: 0 done; 1 the answer is no, or an unforeseen fault; 2 a mistake that the user can correct;
130 interrupted. What a fault leaves is a file with the traceback and the versions.
"""

import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import TracebackType

from dbpkit.foundation import console
from dbpkit.foundation.errors import UserError, one_line, shown

OK, NO, MISTAKE, INTERRUPTED = 0, 1, 2, 130

FOLDER = "DBPKIT_CRASH_DIR"
"""Environment variable: where reports of faults go; the temporary folder if it is not set."""

PACKAGES = ("dbpkit", "torch", "numpy", "safetensors", "pydantic", "typer", "rich")


def guarded(command: Callable[[], int]) -> int:
    """Runs a command and returns its exit status; every fault becomes a sentence on standard error."""
    try:
        status = command()
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        console.silence()  # the reader of our output has seen enough
        return OK
    except KeyboardInterrupt:
        console.fail("stopped.")
        return INTERRUPTED
    except UserError as error:
        console.fail(str(error))
        return MISTAKE
    except OSError as error:
        return _file_fault(error)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            return _fault(error)
        console.fail(
            "memory ran out. Lower --micro-batch, --batch-size or --memory; what was recorded is intact."
        )
        return NO
    except BaseException as error:  # the user's code may end the program, or raise what is no Exception
        return _fault(error)


def _file_fault(error: OSError) -> int:
    """A file that cannot be read or written is the user's to correct."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is None and error.errno is None:  # words of a library, or of a part
        where = _place(error.__traceback__)
        said = f"a file cannot be read or written ({one_line(reason)}; {where})"
    elif error.filename is None:
        console.silence()  # standard output may be what is full
        said = f"standard output or a file cannot be written ({reason})"
    else:
        names = [
            shown(os.fsdecode(f)) for f in (error.filename, error.filename2) if isinstance(f, str | bytes)
        ]
        said = f"cannot read or write {' or '.join(names) or 'a file'} ({reason})"
    console.fail(f"{said}. What was recorded is intact.")
    return MISTAKE


def _fault(error: BaseException) -> int:
    """An unforeseen fault: says where, and where its report lies."""
    if _is_of_interrupt(error):
        console.fail("stopped.")
        return INTERRUPTED
    said = one_line(str(error))[:300] or "no reason given"
    try:
        report = f"Report: {_write_report(error)}"
    except OSError as problem:
        report = f"Its report could not be written ({problem.strerror})"
    where = _place(error.__traceback__)
    console.fail(f"{type(error).__name__} in {where}: {said}. What was recorded is intact. {report}")
    return NO


def _is_of_interrupt(error: BaseException) -> bool:
    """Whether it came up while Ctrl-C was handled: what that cut short, such as an import, then failed."""
    earlier = error.__context__
    while earlier is not None and not isinstance(earlier, KeyboardInterrupt):
        earlier = earlier.__context__
    return earlier is not None


def _place(trace: TracebackType | None) -> str:
    """The innermost line outside installed packages, which is the user's if any is; else the innermost."""
    frames = traceback.extract_tb(trace)
    package = str(Path(__file__).parents[1])
    own = [
        f for f in frames if "site-packages" not in f.filename and not f.filename.startswith((package, "<"))
    ]
    frame = own[-1] if own else frames[-1] if frames else None
    return f"{frame.filename}, line {frame.lineno}" if frame else "the program"


def _write_report(error: BaseException) -> Path:
    """Writes traceback, command and versions into a new file that only the user reads."""
    folder = Path(os.environ.get(FOLDER) or tempfile.gettempdir())
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(".txt", time.strftime("dbpkit-crash-%Y%m%d-%H%M%S-"), folder)
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write("".join(traceback.format_exception(error)))
        file.write(
            f"\ncommand: {sys.argv!r}\nsystem: {platform.platform()}, Python {platform.python_version()}\n"
        )
        file.writelines(f"{package}: {_version(package)}\n" for package in PACKAGES)
    return Path(name)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _is_out_of_memory(error: BaseException) -> bool:
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or ("can't allocate memory" in str(error) or "not enough memory" in str(error))
    )
