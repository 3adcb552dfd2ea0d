"""Append-only JSON lines: one grammar for all who write and all who read.

A line is a JSON object. The last line of every append ends in ``"digest"``: the sha256 of all lines up to it,
so that a changed line is noticed, and an append that a killed process left unfinished is told from a whole
one. Readers and writers pass over the same: blank lines, padding with zeros, carriage returns, and what comes
after the last whole append. So no writer builds on what a reader merely forgives.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import from_json

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.files import bounded_lines, regular_size, write_atomically

_KEY = b', "digest": "'
_HEX = 32
_TAIL = len(_KEY) + _HEX + 2

Entry = dict[str, Any]
"""One line, without its digest."""


class Line(NamedTuple):
    """One line of a journal.

    Attributes:
        number: from 1 on, as editors count.
        offset: of its first byte in the file.
        entry: what it says.
    """

    number: int
    offset: int
    entry: Entry


class _End(NamedTuple):
    """Where a journal ends: bytes that are kept, bytes that there are, and the hash of the kept lines."""

    kept: int
    size: int
    lines: Any
    has_digest: bool


class Journal:
    """A file of JSON lines that is only appended to.

    Args:
        path: the file; made by the first append.
        remedy: what to do about a damaged line, for error messages.
        digests: whether every append must have a digest; without, files of older versions are read too.
    """

    def __init__(self, path: Path, remedy: str = "Restore the file.", *, digests: bool = False) -> None:
        self.path = path
        self.remedy = remedy
        self.digests = digests
        self._end: _End | None = None

    @property
    def has_digest(self) -> bool:
        """Whether the lines can be verified; False for a file of an older version."""
        return self._known_end().has_digest

    @property
    def digest(self) -> str:
        """The digest of all lines, whether it is written or not."""
        return str(self._known_end().lines.hexdigest()[:_HEX])

    def appends(self) -> Iterator[list[Line]]:
        """Yields the lines of every whole append; lines of older versions one by one.

        Raises:
            UserError: if a line is damaged or was changed, or the file cannot be read.
        """
        scan = _Scan(self)
        if os.path.lexists(self.path):
            try:
                size = regular_size(self.path)  # what is appended meanwhile is for the next look
                with self.path.open("rb") as file:
                    for raw in bounded_lines(file, size):
                        if whole := scan.take(raw):
                            yield whole
            except OSError as error:
                raise UserError(f"cannot read '{self.path}' ({error.strerror}). {self.remedy}") from error
        self._end = scan.close()

    def entries(self) -> list[Entry]:
        """Returns what every line says, in the order of the file; errors as `appends`."""
        return [line.entry for lines in self.appends() for line in lines]

    def repair(self) -> None:
        """Cuts off what no reader sees, so that the next append follows the last whole one."""
        end = self._known_end()
        if end.kept < end.size:
            os.truncate(self.path, end.kept)
            self._end = end._replace(size=end.kept)

    def keep(self, count: int) -> None:
        """Cuts the file after its first ``count`` entries, which must be whole appends."""
        before, kept = 0, 0
        for lines in self.appends():
            if before + len(lines) > count:
                break
            before, kept = before + len(lines), lines[-1].offset
        if before < count:
            raise ValueError(f"'{self.path}' has no append that ends after {count} entries")
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(kept)
            end = kept + len(file.readline()) if count else 0
        os.truncate(self.path, end)
        self._end = None

    def append(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Appends entries in one write with their digest, flushed to the disk.

        Raises:
            UserError: if the disk is full; what was written before is intact.
        """
        texts = [json.dumps(entry, allow_nan=True).encode() for entry in entries]
        if not texts:
            return
        self.repair()
        end = self._known_end()
        lines = end.lines.copy()
        for text in texts:
            lines.update(text + b"\n")
        texts[-1] = texts[-1][:-1] + _KEY + lines.hexdigest()[:_HEX].encode() + b'"}'
        content = b"\n".join(texts) + b"\n"
        if end.size == 0:
            # Replaced as a whole: a first append is there or not, so lines without a digest were not torn.
            write_atomically(self.path, content)
        else:
            self._write(content, end.size)
        self._end = _End(end.size + len(content), end.size + len(content), lines, has_digest=True)

    def _write(self, content: bytes, before: int) -> None:
        try:
            with self.path.open("ab") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self.path, before)
            raise UserError(
                f"cannot write '{self.path}' ({error.strerror}). Free space and run the same command"
                " again; earlier records are intact."
            ) from error

    def _known_end(self) -> _End:
        """Where the file ends; read again if somebody else wrote to it."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        if self._end is None or self._end.size != size:
            for _ in self.appends():
                pass
        assert self._end is not None
        return self._end


class _Scan:
    """Reads a journal line by line and holds back what is not known to be whole."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.number = self.offset = 0
        self.held: list[Line] = []
        self.bodies: list[bytes] = []
        self.lines = hashlib.sha256()
        self.damaged: tuple[int, str] | None = None
        self.end = _End(0, 0, self.lines.copy(), has_digest=False)

    def take(self, raw: bytes) -> list[Line]:
        """Takes the next line of the file and returns the append that it completes, or nothing."""
        self.number, offset, self.offset = self.number + 1, self.offset, self.offset + len(raw)
        text = raw.strip(b" \t\r\n\0")
        if not text:
            return []
        if self.damaged is not None:
            self._refuse(*self.damaged)
        digest, body = None, text
        if text[-_TAIL : -_HEX - 2] == _KEY and text.endswith(b'"}'):
            digest, body = text[-_HEX - 2 : -2], text[:-_TAIL] + b"}"
        try:
            entry = from_json(body, allow_inf_nan=True)
            if not isinstance(entry, dict):
                raise ValueError("it is no JSON object")
        except ValueError as error:
            self.damaged = self.number, str(error)  # forgiven at the end of the file, where it is torn
            return []
        if not raw.endswith(b"\n"):
            return []
        self.bodies.append(body)
        self.held.append(Line(self.number, offset, entry))
        if digest is None and (self.journal.digests or self.end.has_digest):
            return []
        return self._whole(digest)

    def close(self) -> _End:
        """Returns where the journal ends; raises if there are lines, none has a digest, and one must be."""
        if self.journal.digests and not self.end.has_digest and (self.held or self.damaged):
            self._refuse(self.held[0].number if self.held else 1, "the digests of the lines are missing")
        self.end = self.end._replace(size=self.offset)
        return self.end

    def _whole(self, digest: bytes | None) -> list[Line]:
        """Returns the lines that are held back, once their digest is right or they have none."""
        self.lines.update(b"\n".join(self.bodies) + b"\n")
        if digest is not None and self.lines.hexdigest()[:_HEX].encode() != digest:
            self._refuse(self.held[0].number, "it or a line before it was changed after it was written")
        has_digest = self.end.has_digest or digest is not None
        self.end = _End(self.offset, self.offset, self.lines.copy(), has_digest)
        held, self.held, self.bodies = self.held, [], []
        return held

    def _refuse(self, number: int, why: str) -> None:
        raise UserError(
            f"'{self.journal.path}' line {number} is damaged ({' '.join(why.split())}). {self.journal.remedy}"
        )
