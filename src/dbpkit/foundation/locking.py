"""Who may write to a directory: one process, or the ranks of one launch; and what killed ones left.

The operating system holds the locks and lets them go when their process ends. A lock file only says who
holds it: that it is there means nothing. Readers need no lock: every file but a journal is replaced as a
whole, and a journal is only appended to.
"""

import contextlib
import datetime
import json
import os
import re
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout
from pydantic_core import from_json

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.files import read_whole

LOCK = ".lock"
"""Name of the lock file, which is there while a command writes."""

_START = ".lock-start"
"""Held for an instant by whoever begins or ends, so that nobody else looks at the locks meanwhile."""

_SETUP = ".lock-setup"
"""Held by the rank that does what one does for all of them."""

_SHARD = re.compile(r"\.lock-(\d{1,6})-of-(\d{1,6})")
_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")


class BusyError(UserError):
    """Another process writes to the directory."""


class Shard(NamedTuple):
    """One of several processes that share the work of a directory.

    Attributes:
        rank: from 0 on.
        world: how many there are.
        launch: what must be the same for all that write at once, in words.
    """

    rank: int = 0
    world: int = 1
    launch: str = ""

    def __str__(self) -> str:
        """As people and options name it: ``3/16`` is the third."""
        return f"{self.rank + 1}/{self.world}"

    @property
    def lock(self) -> str:
        """Name of its lock file."""
        return LOCK if self.world == 1 else f"{LOCK}-{self.rank + 1}-of-{self.world}"


ALONE = Shard()
"""The one process that writes to a directory."""


@contextlib.contextmanager
def writing(path: str | Path, command: str, shard: Shard = ALONE) -> Iterator[None]:
    """Inside the block this process writes to a directory, alone or with the other ranks of its launch.

    The directory is made if it is not there. Temporary files of killed processes are removed first, if no
    other rank is at work. A directory that is still empty at the end is removed too.

    Args:
        path: the directory.
        command: what is done, for the message to a writer that is refused.
        shard: which rank this is.

    Raises:
        BusyError: if another process writes to it that is no rank of the same launch.
        UserError: if it cannot be made, or a link in it leads elsewhere.
    """
    path = Path(path)
    refuse_links(path)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        with _alone(path / _START):
            others = _others(path, shard)
            lock = FileLock(path / shard.lock, timeout=0)
            lock.acquire()
            _sign(path / shard.lock, command, shard)
            if not others:
                remove_temporaries(path)
    except (OSError, NotImplementedError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot write to '{path}' ({said}). Choose another --out.") from error
    try:
        yield
    finally:
        _leave(path, path / shard.lock, lock)
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()


@contextlib.contextmanager
def setting_up(path: Path, shard: Shard, waits: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Inside the block this rank alone does what one does for all; the others wait. Needs `writing`.

    Args:
        path: the directory.
        shard: which rank this is; one process alone waits for nobody.
        waits: called if another rank is at it.
    """
    if shard.world == 1:
        yield
        return
    with _alone(path / _SETUP, waits):
        yield


@contextlib.contextmanager
def _alone(path: Path, waits: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Waits for a lock and holds it."""
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        waits()
        lock.acquire(timeout=-1, poll_interval=0.05)
    try:
        yield
    finally:
        lock.release()


def _others(path: Path, own: Shard) -> int:
    """How many other ranks of this launch are writing; UserError if anybody else is. Needs the start lock."""
    held = [lock for lock in path.glob(f"{LOCK}*") if lock.name not in (_START, _SETUP) and _is_held(lock)]
    for lock in held:
        place, note = _SHARD.fullmatch(lock.name), _note(lock)
        if own.world == 1 or lock.name == own.lock or not place or int(place[2]) != own.world:
            said = "Wait for it, stop it, or use another --out."
        elif note.get("launch", own.launch) != own.launch:
            said = f"It was started with {note['launch']}, this one with {own.launch}: stop one of them."
        else:
            continue
        which = f"shard {place[1]}/{place[2]}, " if place else ""
        raise BusyError(f"'{path}' is being written by {which}{_holder(note)}. {said}")
    return len(held)


def _is_held(path: Path) -> bool:
    """Whether a running process holds a lock; the file of one that does not is removed."""
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    with contextlib.suppress(OSError):
        path.unlink()
    lock.release()
    return False


def _leave(path: Path, own: Path, lock: FileLock) -> None:
    """Lets a lock go; who is the last removes what the locks leave."""
    with contextlib.suppress(OSError), _alone(path / _START):
        with contextlib.suppress(OSError):
            own.unlink()  # while it is held: who waits for this file sees that it is gone
        lock.release()
        if not any(_is_held(other) for other in path.glob(f"{LOCK}-*-of-*")):
            for name in (_SETUP, _START):
                with contextlib.suppress(OSError):
                    (path / name).unlink()
    lock.release()


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
    """Whether a file is one that a stopped writer leaves: a lock or an unfinished file."""
    is_lock = path.name in (LOCK, _START, _SETUP) or _SHARD.fullmatch(path.name) is not None
    return is_lock or _TEMPORARY.fullmatch(path.name) is not None


def _sign(lock: Path, command: str, shard: Shard) -> None:
    """Notes in a lock file who holds it."""
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    note = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "command": command}
    if shard.launch:
        note["launch"] = shard.launch
    with contextlib.suppress(OSError):
        lock.write_text(json.dumps(note))


def _note(lock: Path) -> dict[str, str]:
    """What a lock file says of its holder; nothing if it cannot be read."""
    try:
        note = from_json(read_whole(lock, 10_000))
        return {k: v[:300] for k, v in ((k, str(v)) for k, v in note.items()) if v.isprintable()}
    except (OSError, ValueError, AttributeError):
        return {}


def _holder(note: Mapping[str, str]) -> str:
    """Who holds a lock, in words."""
    if not {"pid", "host", "since", "command"} <= note.keys():
        return "another process"
    return "process {pid} on {host} ({command}, since {since})".format_map(note)


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
