"""Parts of a file that are read when they are needed, and never beyond their own ends.

A file is opened anew for each reading, so that nothing stays open, and must be the one that was looked at
first. Nothing is mapped into memory: a file that shrinks would end the process, and mapped pages count as
memory that is held.
"""

import errno
import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PIECE = 2**30
"""Most bytes that one call of the system reads: some systems read no more than 2 GiB at once."""


AGAIN = "It is damaged or of another kind; get the file again."


class RefusedError(ValueError):
    """What is wrong with a file, in words that continue "cannot read FILE: ...".

    Attributes:
        hint: what to do, a sentence.
    """

    def __init__(self, said: str, hint: str = AGAIN) -> None:
        super().__init__(said)
        self.hint = hint


class _OpenFile:
    """An open file that must not have changed; closed with `close`."""

    def __init__(self, path: Path, stamp: tuple[int, ...] | None) -> None:
        # A pipe would wait for its writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        self.number = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
        found = os.fstat(self.number)
        self.size, self.stamp = found.st_size, (found.st_ino, found.st_size, found.st_mtime_ns)
        if not stat.S_ISREG(found.st_mode):
            self.close()
            raise OSError(errno.EINVAL, "it is not a file", str(path))
        if stamp is not None and stamp != self.stamp:
            self.close()
            raise RefusedError("it changed while it was read", "Wait until it is written, and read it again.")

    def close(self) -> None:
        os.close(self.number)


class Source:
    """Bytes that do not change: those of a file or those in memory.

    Attributes:
        size: how many there are.
    """

    def __init__(self, origin: Path | bytes) -> None:
        self._origin, self._stamp = origin, None
        self.size = len(origin) if isinstance(origin, bytes) else 0
        if isinstance(origin, Path):
            file = _OpenFile(origin, None)
            self.size, self._stamp = file.size, file.stamp
            file.close()

    def whole(self) -> "Region":
        """Returns all of it."""
        return Region(self, 0, self.size)

    def fill(self, buffer: Any, offset: int) -> None:
        """Fills a writable buffer with the bytes from ``offset`` on.

        Raises:
            RefusedError: if the file has changed or ends before.
            OSError: if it cannot be read.
        """
        room = memoryview(buffer).cast("B")
        if isinstance(self._origin, bytes):
            room[:] = self._origin[offset : offset + len(room)]
            return
        file = _OpenFile(self._origin, self._stamp)
        try:
            _fill(file.number, room, offset)
        finally:
            file.close()

    def stream(self, offset: int, size: int) -> io.BufferedIOBase:
        """Opens a part for reading from its beginning; to be closed."""
        if isinstance(self._origin, bytes):
            return io.BytesIO(self._origin[offset : offset + size])
        return io.BufferedReader(_Part(_OpenFile(self._origin, self._stamp), offset, size))


def _fill(number: int, room: memoryview, offset: int) -> None:
    """Fills a buffer from an open file."""
    done = 0
    while done < len(room):
        os.lseek(number, offset + done, os.SEEK_SET)
        content = _read_into(number, room[done : done + _PIECE])
        if not content:
            raise RefusedError("it ends too early")
        done += content


def _read_into(number: int, room: memoryview) -> int:
    """Reads once; the number of bytes."""
    if hasattr(os, "readv"):
        return os.readv(number, [room])
    content = os.read(number, min(len(room), 2**24))
    room[: len(content)] = content
    return len(content)


class _Part(io.RawIOBase):
    """The bytes of a part of an open file, from its beginning."""

    def __init__(self, file: _OpenFile, offset: int, size: int) -> None:
        super().__init__()
        self._file, self._offset, self._size, self._at = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        room = memoryview(buffer).cast("B")
        room = room[: max(0, min(len(room), self._size - self._at))]
        if room:
            _fill(self._file.number, room, self._offset + self._at)
            self._at += len(room)
        return len(room)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@dataclass(frozen=True, eq=False)
class Region:
    """A part of a source that lies within it.

    Attributes:
        source: what it is a part of.
        offset: its first byte there.
        size: its bytes.
    """

    source: Source
    offset: int
    size: int

    def part(self, offset: int, size: int) -> "Region":
        """Returns a part of this part.

        Raises:
            RefusedError: if it does not lie within this one.
        """
        if offset < 0 or size < 0 or offset + size > self.size:
            raise RefusedError("it is truncated: a part of it lies beyond its end")
        return Region(self.source, self.offset + offset, size)

    def read(self, most: int) -> bytes:
        """Returns the bytes; RefusedError if there are more than ``most``."""
        if self.size > most:
            raise RefusedError(f"a part of it that must be small has {self.size:,} bytes")
        content = bytearray(self.size)
        self.fill(content)
        return bytes(content)

    def fill(self, buffer: Any, offset: int = 0) -> None:
        """Fills a writable buffer with the bytes from ``offset`` on."""
        length = memoryview(buffer).nbytes
        if length:
            self.source.fill(buffer, self.part(offset, length).offset)

    def stream(self, offset: int = 0) -> io.BufferedIOBase:
        """Opens the bytes from ``offset`` on; to be closed."""
        part = self.part(offset, self.size - offset)
        return self.source.stream(part.offset, part.size)
