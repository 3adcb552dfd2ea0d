"""Files of tensors that records were made with: attacked images and logits, each known by its sha256.

Name and shape are not enough: a file of another run may have the same.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dbpkit.foundation.arrays import write_tensors
from dbpkit.foundation.files import sha256_of
from dbpkit.results.records import MOST, is_shard

if TYPE_CHECKING:
    from torch import Tensor

    from dbpkit.foundation.arrays import Array


READERS = 8
"""Files that are read at once: hashing and waiting for a disk or a server leave Python's lock alone."""


_TOGETHER = 64
"""Appends whose files one thread reads before it takes more: handing over costs as much as a small file."""


class Stored(NamedTuple):
    """A file that records were made with.

    Attributes:
        name: in its folder.
        path: in the run directory, with ``/``.
        sha256: of its content.
    """

    name: str
    path: str
    sha256: str


def write_shard(
    folder: Path, path: str, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str]
) -> Stored:
    """Writes a file at ``path`` in a run directory and returns how records name it."""
    return Stored(Path(path).name, path, write_tensors(folder / path, tensors, metadata))


def as_tensor(array: "Array") -> "Tensor":
    """Returns an array that was read as a tensor, for what computes with it."""
    import torch  # reading results needs none

    return torch.from_numpy(array)


def fault_of_file(folder: Path, path: str, expected: str | None) -> str:
    """Says that a file is missing or has another hash, if one is expected; nothing if it is as it was."""
    full = folder / path
    if full.is_symlink() or full.parent.is_symlink() or not full.is_file():
        return "is missing or no plain file"
    try:
        found = sha256_of(full) if expected is not None else None
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "is not the file its records were made with" if found != expected else ""


def lost(folder: Path, seals: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Says of every append whether a file that it was made with is missing or another; all are read."""

    def are_lost(some: Sequence[Mapping[str, Any]]) -> list[bool]:
        files = (seal.get("files", {}).items() for seal in some)
        return [any(fault_of_file(folder, path, sha256) for path, sha256 in names) for names in files]

    parts = [seals[k : k + _TOGETHER] for k in range(0, len(seals), _TOGETHER)]
    with ThreadPoolExecutor(READERS) as pool:
        return [gone for part in pool.map(are_lost, parts) for gone in part]


def is_seal(seal: Any) -> bool:
    """Whether something names files of this directory, with hashes, and no others; and a turn, if any."""
    files = seal.get("files", {}) if isinstance(seal, dict) else None
    turn = seal.get("turn", 0) if isinstance(seal, dict) else None
    if not isinstance(files, dict) or type(turn) is not int or not 0 <= turn < MOST:
        return False
    return all(
        path.startswith(("x_adv/", "logits/"))
        and is_shard(path.partition("/")[2])
        and isinstance(sha256, str)
        for path, sha256 in files.items()
    )
