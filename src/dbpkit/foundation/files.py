"""Reading of files that may be anything, and writing that leaves the old file or the new one.

Kind and size are looked at before a file is read. Opening a pipe would wait for its writer, and a link to a
device, or a file of a terabyte that takes no space, would be read until the memory is full.
"""

import contextlib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dbpkit.foundation.errors import UserError, excerpt

LARGEST = 2**28
"""Bytes of the largest file that is read as a whole, if nothing else is said."""

_PIECE = 2**20
"""Bytes of a file that are hashed at once."""

LONGEST_LINE = 2**26
"""Bytes of the longest line of a file that is read line by line."""


def read_whole(path: Path, most: int = LARGEST) -> bytes:
    """Returns the content of a file.

    Raises:
        OSError: if it cannot be read, is not a file, or has more than ``most`` bytes.
    """
    size = regular_size(path)
    if size > most:
        raise OSError(
            errno.EFBIG, f"it has {size:,} bytes, and no such file has more than {most:,}", str(path)
        )
    return path.read_bytes()


def regular_size(path: Path) -> int:
    """Returns the size of a file in bytes; OSError if it is none, such as a pipe or a device."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    return status.st_size


def bounded_lines(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yields the lines of the first ``size`` bytes of an open file, which may be growing.

    Raises:
        OSError: if one is longer than any that is written.
    """
    while size > 0 and (line := file.readline(min(size, LONGEST_LINE))):
        if len(line) == LONGEST_LINE:
            raise OSError(errno.EFBIG, f"a line has more than {LONGEST_LINE:,} bytes")
        size -= len(line)
        yield line


def write_atomically(path: Path, content: bytes | Iterable[bytes | memoryview]) -> str:
    """Writes a file so that a reader sees the old one or the new one, never a part; returns the sha256.

    Args:
        path: the file.
        content: its bytes, or pieces of it one after another: gigabytes need not be held twice.

    Raises:
        UserError: if the disk is full or the folder cannot be written; the old file is untouched.
    """
    temporary = _temporary(path)
    digest = hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # a link that lies there is not written through
        with temporary.open("xb") as file:
            for piece in (content,) if isinstance(content, bytes) else content:
                file.write(piece)
                digest.update(piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):  # whoever makes the pieces may fail
            raise
        raise UserError(
            f"cannot write '{path}' ({error.strerror}). Free space or choose another place; earlier"
            " files are intact."
        ) from error
    return digest.hexdigest()


class OwnFile(NamedTuple):
    """A kind of file that users name to be written, and how one that this package wrote is known again.

    Attributes:
        what: it is, with an article: "a page".
        suffix: of such files.
        begins: what the first bytes of every such file match.
    """

    what: str
    suffix: str
    begins: re.Pattern[bytes]


PAGE = OwnFile("a page", ".html", re.compile(rb"<!DOCTYPE html>.*?<title>[^<]* dbpkit ", re.DOTALL))
"""A page of this package: its title says so."""


_HEAD = 2**16
"""Bytes in which a file of this package is known."""


def check_place(out: str | Path, kind: OwnFile) -> Path:
    """Returns where a user wants a file, if it can lie there; asked before the work, not after it.

    A name that was mistyped must not cost a file of the user's. An empty file is no loss.

    Args:
        out: the file.
        kind: what it will be; another of its kind is replaced, and nothing else.

    Raises:
        UserError: if something else has that name, such as a folder, a link, a pipe or a file that this
            package did not write, or if something on the way there is no folder that can be written.
    """
    path = Path(out)
    try:
        if path.is_dir():
            name = path / f"{kind.what.split()[-1]}{kind.suffix}"
            raise UserError(f"'{path}' is a folder. Give the name of {kind.what}, such as --out {name}.")
        if path.is_symlink():
            raise UserError(f"'{path}' is a link. Name the file that it leads to, or use a new --out.")
        if path.exists() and regular_size(path):
            with path.open("rb") as file:
                start = file.read(_HEAD)
            if not kind.begins.match(start):
                raise UserError(f"'{path}' exists and is not {kind.what} of dbpkit. Use a new --out.")
        check_room(path)
    except UserError:
        raise
    except (OSError, ValueError) as error:  # a byte of zero is a ValueError
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot write '{excerpt(path, 300)}' ({why}). Choose another place.") from error
    return path


def check_room(path: Path) -> None:
    """Raises UserError if no new file or folder of this name can be made where it is to lie."""
    try:
        there = next(parent for parent in path.absolute().parents if parent.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            why = "cannot be written" if there.is_dir() else "is a file, not a folder"
            raise UserError(f"cannot write '{path}': '{there}' {why}. Choose another place.")
        for part in (*path.absolute().relative_to(there).parts, _temporary(path).name):
            with contextlib.suppress(FileNotFoundError):
                (there / part).lstat()  # is no name of a file where it is too long, or has a byte of zero
    except UserError:
        raise
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot write '{excerpt(path, 300)}' ({why}). Choose another place.") from error


def check_folder(out: Path, within: str = "") -> None:
    """Raises UserError if a user's folder of results is something else, or cannot be written.

    Args:
        out: the folder.
        within: the folder in it that shows that it is one of ours; any other one has to be empty. Pages and
            tables beside it are ours too. Empty takes every folder.
    """
    if out.is_dir():
        check_room(out / "results")
        pages = (".html", ".csv")
        others = [p.name for p in out.iterdir() if p.suffix not in pages and not p.name.startswith(".")]
        if within and others and within not in others:
            raise UserError(f"--out '{out}' holds something else, '{min(others)}'. Name a new folder.")
        return
    if os.path.lexists(out):
        raise UserError(f"--out '{out}' is a file. Name a folder.")
    check_room(out)


def _temporary(path: Path) -> Path:
    """Where a file lies until it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def stamp_of(path: Path) -> tuple[int, int, int] | None:
    """Returns what changes when a file changes: time, size and number; None if it is not there."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def sha256_of(path: Path) -> str:
    """Returns the hexadecimal sha256 of a file; OSError if it is none, such as a pipe or a device."""
    # A pipe would wait for its writer. The file's object and its buffer would cost more than a small file.
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "it is not a file", str(path))
        digest = hashlib.sha256()
        while content := os.read(file, _PIECE):
            digest.update(content)
    finally:
        os.close(file)
    return digest.hexdigest()
