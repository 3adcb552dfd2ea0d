"""The one form of zip that a bundle has: members stored, in order, without gaps, times or rights of own.

Nothing is compressed: zlib's bytes differ from version to version, and what is not compressed cannot blow up.
The same members are the same bytes on every machine, and whatever is not in this form is refused, so no two
readers can see two things in one file.
"""

import contextlib
import errno
import hashlib
import os
import stat
import struct
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from dbpkit.foundation.errors import UserError, excerpt
from dbpkit.foundation.files import LARGEST, regular_size

MOST_MEMBERS = 1_000_000
"""Members of the largest bundle; one of 10,000 images in batches of one has 200,000."""

LONGEST_LIST = 2**27
"""Bytes of the longest list of members at the end of the file."""

_TIME = (1980, 1, 1, 0, 0, 0)
_RIGHTS = (stat.S_IFREG | 0o644) << 16
_UNIX = 3
_PIECE = 2**20
_LOCAL = 30
"""Bytes of a member's own header before its name."""

_END, _LOCATOR = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ZIP64 = b"\x01\x00"
"""The only extra field: sizes and places beyond 4 GiB."""


def write_archive(path: Path, members: Iterable[tuple[str, bytes | Path]]) -> str:
    """Writes members in their order and returns the sha256 of the file; an old file is replaced as a whole.

    Args:
        path: the file.
        members: name in the archive, and its content or the file that has it.

    Raises:
        UserError: if it cannot be written; an old file is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        with temporary.open("x+b") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name, content in members:
                    _add(archive, name, content)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise UserError(
            f"cannot write '{path}' ({error.strerror}). Free space or choose another place."
        ) from error
    return digest


def _add(archive: zipfile.ZipFile, name: str, content: bytes | Path) -> None:
    """Appends one member."""
    info = zipfile.ZipInfo(name, _TIME)
    info.create_system, info.external_attr = _UNIX, _RIGHTS
    info.file_size = len(content) if isinstance(content, bytes) else regular_size(content)
    with archive.open(info, "w") as target:
        if isinstance(content, bytes):
            target.write(content)
            return
        with content.open("rb") as source:
            while piece := source.read(_PIECE):
                target.write(piece)


class Archive:
    """An open bundle: its members by name, each read once it is asked for."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self._archive = archive
        self.sizes = {info.filename: info.file_size for info in archive.infolist()}

    def read(self, name: str, most: int = LARGEST) -> bytes:
        """Returns the content of a member; UserError if it has more bytes than ``most`` or is damaged."""
        if self.sizes[name] > most:
            raise refused(
                self.path, f"'{name}' has {self.sizes[name]:,} bytes, and none has more than {most:,}"
            )
        with self._reading(name) as file:
            return file.read()

    def copy(self, name: str, target: Path | None) -> str:
        """Writes a member to a new file, or nowhere, and returns its sha256; UserError if it is damaged."""
        digest = hashlib.sha256()
        opened = contextlib.nullcontext() if target is None else target.open("xb")
        with self._reading(name) as source, opened as file:
            while piece := source.read(_PIECE):
                digest.update(piece)
                if file is not None:
                    file.write(piece)
        return digest.hexdigest()

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[IO[bytes]]:
        try:
            with self._archive.open(name) as file:
                yield file
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
            raise refused(self.path, f"'{excerpt(name, 100)}' cannot be read: {excerpt(error)}") from error


@contextlib.contextmanager
def opened_archive(path: Path) -> Iterator[Archive]:
    """Opens a bundle for reading, after a look at its form.

    Raises:
        UserError: if it is no file, or not in the form that `write_archive` gives.
    """
    try:
        size = regular_size(path)
        with path.open("rb") as file:
            start, count = _list_of(path, file, size)
            try:
                archive = zipfile.ZipFile(file)
            except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, EOFError) as error:
                raise refused(path, excerpt(error)) from error
            with archive:
                if len(archive.infolist()) != count:
                    raise refused(path, f"it does not have the {count:,} members that it says")
                _check_form(path, file, archive.infolist(), start)
                yield Archive(path, archive)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(
                "there is no space left to open the bundle. Free space, or set TMPDIR."
            ) from error
        raise UserError(f"cannot read '{path}' ({error.strerror}). Give a file of dbpkit bundle.") from error


class BundleError(UserError):
    """A file that is no bundle, or not the one that was made."""


def refused(path: Path, why: str) -> BundleError:
    """The error of a file that is no bundle, or not the one that was made."""
    said = "".join(c if c.isprintable() else " " for c in why)
    return BundleError(f"'{path}' is no bundle as dbpkit writes them ({said[:300]}). Ask for the file again.")


def _list_of(path: Path, file: IO[bytes], size: int) -> tuple[int, int]:
    """Where the list of members begins, and how many it has, both looked at before a library reads it."""
    tail = min(size, _END.size + _LOCATOR.size + _END64.size)
    file.seek(size - tail)
    last = file.read(tail)
    if tail < _END.size:
        raise refused(path, "it is too short for an archive")
    mark, disk, first, here, count, length, start, comment = _END.unpack(last[-_END.size :])
    if mark != b"PK\5\6" or comment or disk or first or here != count:
        raise refused(path, "it does not end as an archive does")
    end = size - _END.size
    if last[-_END.size - _LOCATOR.size :][:4] == b"PK\6\7":  # as the library decides whether there is one
        if tail < _END.size + _LOCATOR.size + _END64.size:
            raise refused(path, "its list of members is not there")
        found = _END64.unpack(last[: _END64.size])
        located = _LOCATOR.unpack(last[_END64.size : _END64.size + _LOCATOR.size])
        end = size - tail
        if found[0] != b"PK\6\6" or located != (b"PK\6\7", 0, end, 1):
            raise refused(path, "its list of members is not there")
        count, length, start = found[7:]
    if count > MOST_MEMBERS or length > LONGEST_LIST:
        raise refused(path, f"it has {count:,} members in a list of {length:,} bytes")
    if start + length != end:
        raise refused(path, "its list of members does not end where the file does")
    file.seek(0)
    return start, count


def _check_form(path: Path, file: IO[bytes], infos: list[zipfile.ZipInfo], start: int) -> None:
    """Refuses members that are not stored one after another, twice there, or other than plain files."""
    place, seen = 0, set[str]()
    for info in infos:
        name = excerpt(info.orig_filename, 100)
        plain = (info.compress_type, info.flag_bits, info.create_system, info.external_attr)
        if plain != (zipfile.ZIP_STORED, 0, _UNIX, _RIGHTS) or info.date_time != _TIME or info.comment:
            raise refused(path, f"member '{name}' is compressed, encrypted, a link, or has a time or comment")
        if info.orig_filename != info.filename or info.compress_size != info.file_size:
            raise refused(path, f"member '{name}' is not what its entry says")
        if info.filename.casefold() in seen:
            raise refused(path, f"member '{name}' is there twice")
        seen.add(info.filename.casefold())
        if info.header_offset != place or (info.extra and info.extra[:2] != _ZIP64):
            raise refused(path, f"member '{name}' does not begin where the one before it ends")
        place += _LOCAL + len(info.filename.encode()) + _local_extra(file, place) + info.file_size
        if place > start:
            raise refused(path, f"member '{name}' ends beyond the list of members")
    if place != start:
        raise refused(path, "there are bytes that belong to no member")


def _local_extra(file: IO[bytes], place: int) -> int:
    """Bytes of the extra field of the header at a place."""
    file.seek(place)
    header = file.read(_LOCAL)
    return int.from_bytes(header[28:30], "little") if len(header) == _LOCAL else 0
