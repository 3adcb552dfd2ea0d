"""The entries of a zip file as torch writes it: stored as they are, each in a place of its own.

Python's own reader believes what archives say of themselves: sizes of directories, entries that lie over each
other, and compressed ones that grow a thousandfold. None of that occurs in what torch writes.
"""

import struct
from typing import NamedTuple

from dbpkit.foundation.checkpoints.regions import RefusedError, Region
from dbpkit.foundation.errors import excerpt

MOST_ENTRIES = 200_000
MOST_DIRECTORY = 2**26
"""Entries of an archive and bytes of its directory; a model of 10,000 tensors needs 3 MB."""

_END, _END64, _PLACE64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_CENTRAL, _LOCAL = struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s5H3I2H")
_FULL = 0xFFFFFFFF


class _Entry(NamedTuple):
    name: str
    offset: int
    size: int
    is_plain: bool


class Archive:
    """The directory of a zip file.

    Args:
        whole: the file.

    Raises:
        RefusedError: if the directory is damaged, or longer than that of any checkpoint.
    """

    def __init__(self, whole: Region) -> None:
        self._whole = whole
        directory, count, self._start = _directory(whole)
        self._entries = _central(directory, count)

    @property
    def names(self) -> list[str]:
        """The names of all entries."""
        return [entry.name for entry in self._entries]

    def contents(self) -> dict[str, Region]:
        """Returns the content of every entry by its name.

        Raises:
            RefusedError: if the archive is not one that torch could have written.
        """
        found: dict[str, Region] = {}
        places: list[tuple[int, int]] = []
        for entry in self._entries:
            if entry.name in found:
                raise RefusedError(f"it has two entries '{excerpt(entry.name, 60)}'")
            if not entry.is_plain:
                raise RefusedError(
                    f"its entry '{excerpt(entry.name, 60)}' is compressed, which torch.save never does",
                    "Unpack it, or store the weights again with torch.save.",
                )
            region, header = _content(self._whole, entry)
            found[entry.name] = region
            places.append((entry.offset, entry.offset + header + entry.size))
        places.sort()
        ends = [0, *(end for _, end in places)]
        if ends[-1] > self._start or any(place[0] < end for place, end in zip(places, ends, strict=False)):
            raise RefusedError("it has entries that lie over each other")
        return found


def _directory(whole: Region) -> tuple[bytes, int, int]:
    """The bytes of the directory, its number of entries, and where it begins."""
    tail = whole.part(max(0, whole.size - 2**16 - 22), min(whole.size, 2**16 + 22)).read(2**17)
    place = tail.rfind(_END)
    if place < 0 or len(tail) < place + 22:
        raise RefusedError("it is truncated: the directory at its end is missing")
    disk, _, _, count, size, start = struct.unpack_from("<HHHHII", tail, place + 4)
    locator = place - 20
    if locator >= 0 and tail[locator : locator + 4] == _PLACE64:
        where = struct.unpack_from("<Q", tail, locator + 8)[0]
        record = whole.part(where, 56).read(56)
        if record[:4] != _END64:
            raise RefusedError("it is damaged: its directory is not where it should be")
        count, size, start = struct.unpack_from("<QQQ", record, 32)
    if disk or count > MOST_ENTRIES or size > MOST_DIRECTORY:
        raise RefusedError(f"it is an archive of {count:,} entries, more than any checkpoint has")
    return whole.part(start, size).read(MOST_DIRECTORY), count, start


def _central(directory: bytes, count: int) -> list[_Entry]:
    """The entries that a directory lists."""
    entries, at = [], 0
    for _ in range(count):
        if len(directory) < at + _CENTRAL.size:
            raise RefusedError("it is damaged: its directory ends too early")
        fields = _CENTRAL.unpack_from(directory, at)
        flags, method, packed, size, lengths = fields[3], fields[4], fields[8], fields[9], fields[10:13]
        offset, begin = fields[16], at + _CENTRAL.size
        if fields[0] != b"PK\x01\x02":
            raise RefusedError("it is damaged: its directory lists something that is no entry")
        raw = directory[begin : begin + lengths[0]]
        extra = directory[begin + lengths[0] : begin + lengths[0] + lengths[1]]
        name = raw.decode("utf-8", "replace")
        if "\x00" in name or name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise RefusedError(f"it has an entry of the name '{excerpt(name, 60)}', which leads outside")
        size, packed, offset = _long_sizes(extra, size, packed, offset)
        is_plain = not flags & 1 and method == 0 and packed == size
        entries.append(_Entry(name, offset, size, is_plain))
        at = begin + sum(lengths)
    return entries


def _long_sizes(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """Sizes and place of an entry, from its extra field where they have more than 32 bits."""
    values = [size, packed, offset]
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            content = extra[at + 4 : at + 4 + length]
            wanted = [i for i, value in enumerate(values) if value == _FULL]
            if len(content) < 8 * len(wanted):
                raise RefusedError("it is damaged: an entry has no size")
            for number, i in enumerate(wanted):
                values[i] = struct.unpack_from("<Q", content, 8 * number)[0]
        at += 4 + length
    return values[0], values[1], values[2]


def _content(whole: Region, entry: _Entry) -> tuple[Region, int]:
    """Where an entry's content lies, and the size of the header before it."""
    header = whole.part(entry.offset, _LOCAL.size).read(_LOCAL.size)
    fields = _LOCAL.unpack(header)
    if fields[0] != b"PK\x03\x04" or fields[3] != 0:
        raise RefusedError(f"it is damaged: entry '{excerpt(entry.name, 60)}' is not where it should be")
    name = whole.part(entry.offset + _LOCAL.size, fields[9]).read(2**16)
    if name.decode("utf-8", "replace") != entry.name:
        raise RefusedError(f"it is damaged: entry '{excerpt(entry.name, 60)}' has two names")
    size = _LOCAL.size + fields[9] + fields[10]
    return whole.part(entry.offset + size, entry.size), size
