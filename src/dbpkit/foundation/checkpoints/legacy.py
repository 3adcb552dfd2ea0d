"""Files that torch.save wrote before its version 1.6, and still writes within pickles of tensors.

Five pickles follow each other (a magic number, a version, the machine, the content, the keys of storages);
then the numbers of each storage, their count before them.
"""

from typing import Any

from dbpkit.foundation.checkpoints.machine import Budget, Machine
from dbpkit.foundation.checkpoints.objects import Objects
from dbpkit.foundation.checkpoints.regions import RefusedError, Region
from dbpkit.foundation.checkpoints.storages import identity_of
from dbpkit.foundation.checkpoints.values import Name, Storage

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001


class _LegacyStorages:
    """The storages of a legacy file, whose places are known after its pickles.

    Args:
        whole: the file.
    """

    def __init__(self, whole: Region) -> None:
        self._whole = whole
        self.found: dict[str, tuple[Any, int, int]] = {}
        self.views: list[tuple[Storage, str, int]] = []

    def __call__(self, identity: Any) -> Any:
        """The storage that a persistent identity names; of a class, the name."""
        if isinstance(identity, tuple) and len(identity) == 4 and identity[0] in ("module", b"module"):
            if not isinstance(identity[1], Name):
                raise RefusedError("it names something beside itself that is no tensor")
            return identity[1]  # beside it lies the source of its class, which is of no use here
        dtype, key, count, view = identity_of(identity)
        place, length = 0, count
        if view is not None:
            if not isinstance(view, tuple) or len(view) != 3 or any(type(n) is not int for n in view[1:]):
                raise RefusedError("it holds a part of numbers without a place")
            place, length = view[1], view[2]
        if place < 0 or length < 0 or place + length > count or count * dtype.itemsize > self._whole.size:
            raise RefusedError("it is truncated: it has fewer numbers than it names")
        if self.found.setdefault(key, (dtype, count, dtype.itemsize)) != (dtype, count, dtype.itemsize):
            raise RefusedError("it names the same numbers by two types or counts")
        storage = Storage(dtype, self._whole.part(0, length * dtype.itemsize))  # its place comes later
        self.views.append((storage, key, place * dtype.itemsize))
        return storage

    def place(self, keys: Any, at: int, swapped: bool) -> None:
        """Finds the numbers that follow the pickles, from ``at`` on."""
        if not isinstance(keys, list) or any(not isinstance(key, str | int) for key in keys):
            raise RefusedError("it does not say where its numbers are")
        regions: dict[str, Region] = {}
        for key in map(str, keys):
            count = int.from_bytes(self._whole.part(at, 8).read(8), "big" if swapped else "little")
            if key not in self.found or key in regions or count != self.found[key][1]:
                raise RefusedError("it holds numbers that it does not name, or another count of them")
            size = count * self.found[key][2]
            regions[key] = self._whole.part(at + 8, size)
            at += 8 + size
        for storage, key, offset in self.views:
            if key not in regions:
                raise RefusedError("it is truncated: some numbers are missing")
            storage.region = regions[key].part(offset, storage.region.size)
            storage.swapped = swapped


def read_legacy(whole: Region, at: int, budget: Budget) -> Any:
    """Returns the content of a legacy file whose magic number ends at ``at``.

    Raises:
        ValueError: if it is damaged, truncated or of another version; in words.
    """
    storages = _LegacyStorages(whole)

    def nested(_: Any) -> Storage:
        raise RefusedError("it holds files within files")

    objects = Objects(budget, storages, nested)
    version, at = Machine(objects, whole, budget).run(at)
    about, at = Machine(objects, whole, budget).run(at)
    if version != VERSION or not isinstance(about, dict):
        raise RefusedError("it is of a version of torch's old format that is not known")
    content, at = Machine(objects, whole, budget).run(at)
    keys, at = Machine(objects, whole, budget).run(at)
    storages.place(keys, at, about.get("little_endian") is False)
    return content
