"""One writer for each directory: a lock that a killed process cannot leave behind, and what it did leave.

The operating system holds the lock and lets it go when its process ends. The file only says who holds it:
that it is there means nothing. Readers need no lock: every file but a journal is replaced as a whole, and a
journal is only appended to.
"""

import contextlib
import datetime
import json
import os
import re
import socket
from collections.abc import Collection, Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic_core import from_json

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.files import read_whole

LOCK = ".lock"
"""Name of the lock file, which is there while a command writes."""

_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")


@contextlib.contextmanager
def writing(path: str | Path, command: str) -> Iterator[None]:
    """Inside the block this process alone writes to a directory, which is made if it is not there.

    Temporary files of killed processes are removed first. A directory that is still empty at the end is
    removed too.

    Args:
        path: the directory.
        command: what is done, for the message to a writer that is refused.

    Raises:
        UserError: if another process writes to it, it cannot be made, or a link in it leads elsewhere.
    """
    path = Path(path)
    refuse_links(path)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"'{path}' is being written by {_holder(path)}. Wait for it, stop it, or use another --out."
        ) from error
    except (OSError, NotImplementedError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot write to '{path}' ({said}). Choose another --out.") from error
    try:
        _sign(path, command)
        remove_temporaries(path)
        yield
    finally:
        with contextlib.suppress(OSError):
            (path / LOCK).unlink()  # while it is held: who waits for this file sees that it is gone
        lock.release()
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()


def refuse_links(folder: Path) -> None:
    """Raises UserError if anything in a folder is a link: its maker would choose what is overwritten."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            refuse_link(Path(place) / name)


def refuse_link(path: Path) -> None:
    """Raises UserError if a path in a run directory is a link."""
    if path.is_symlink():
        raise UserError(
            f"'{path}' is a link, and a run is written in its own folder only. Put what it leads to in its"
            " place, or use another --out."
        )


def remove_temporaries(folder: Path, names: Collection[str] | None = None) -> None:
    """Removes the unfinished files of processes that no longer run, in a folder and those below it.

    Args:
        folder: where.
        names: of finished files; if given, only unfinished ones of these names go, and of this folder alone.
    """
    for path in folder.rglob(".*.tmp") if names is None else folder.glob(".*.tmp"):
        named = _TEMPORARY.fullmatch(path.name)
        if names is not None and path.name[1:].rsplit(".", 2)[0] not in names:
            continue
        if named and not _runs(int(named[1])) and path.is_file():
            with contextlib.suppress(OSError):
                path.unlink()


def is_trace(path: Path) -> bool:
    """Whether a file is one that a stopped writer leaves: its lock or an unfinished file."""
    return path.name == LOCK or _TEMPORARY.fullmatch(path.name) is not None


def _sign(path: Path, command: str) -> None:
    """Notes in the lock file who holds it."""
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    note = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "command": command}
    with contextlib.suppress(OSError):
        (path / LOCK).write_text(json.dumps(note))


def _holder(path: Path) -> str:
    """Who holds a lock, in words."""
    try:
        note = from_json(read_whole(path / LOCK, 10_000))
        pid, host, since, command = (str(note[k])[:200] for k in ("pid", "host", "since", "command"))
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
    said = f"process {pid} on {host} ({command}, since {since})"
    return said if said.isprintable() else "another process"


def _runs(pid: int) -> bool:
    """Whether a process of this machine is running."""
    if pid in (0, os.getpid()) or pid >= 2**31:
        return pid == os.getpid()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
