"""Opens a checkpoint of any container, and says in one sentence why it does not."""

import contextlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dbpkit.foundation.checkpoints.archive import Archive
from dbpkit.foundation.checkpoints.legacy import MAGIC, read_legacy
from dbpkit.foundation.checkpoints.machine import Budget, Machine
from dbpkit.foundation.checkpoints.objects import Objects
from dbpkit.foundation.checkpoints.regions import AGAIN, RefusedError, Region, Source
from dbpkit.foundation.checkpoints.storages import ZipStorages
from dbpkit.foundation.checkpoints.values import DTYPES, Storage, Stored
from dbpkit.foundation.checkpoints.walking import check_content
from dbpkit.foundation.errors import UserError, excerpt, shown

LARGEST = 2**36
"""Bytes of the largest file that is opened."""

MOST_HEADER = 2**26
"""Bytes of the header of a safetensors file."""

MOST_PICKLE = 2**28
"""Bytes of the pickle in a zip file, beside which the numbers lie."""

_SAFETENSORS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
    "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "C64": "complex64",
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        container: ``"torch zip"``, ``"legacy torch"``, ``"pickle"`` or ``"safetensors"``.
        content: dictionaries, lists, tuples, numbers, texts, None, types of torch, `Stored` tensors and
            `Record` objects; sets are lists, and byte strings of more than a few kilobytes are a `Region`.
        metadata: texts beside the tensors of a safetensors file.
    """

    container: str
    content: Any
    metadata: dict[str, str] = field(default_factory=dict)


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a checkpoint without running, importing or writing anything that it names.

    Tensors are not read before `Stored.read` is called, and are not kept.

    Args:
        path: a file of torch.save (zip or legacy), a pickle, or a safetensors file.

    Raises:
        UserError: if it is missing, damaged, of another kind, too large, or would call something.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"a checkpoint is named by its path, not by {shown(path)}.")
    with _one_sentence(path):
        return _opened(Source(Path(os.fsdecode(path))).whole())


def kind_of_program(path: str | os.PathLike[str]) -> str | None:
    """Returns ``"TorchScript"`` or ``"torch.export"`` for a file that is such a program, and None for others.

    Raises:
        UserError: if the file cannot be read.
    """
    with _one_sentence(path):
        whole = Source(Path(os.fsdecode(path))).whole()
        if whole.part(0, min(whole.size, 4)).read(4) != b"PK\x03\x04":
            return None
        return _program(Archive(whole).names)


@contextlib.contextmanager
def _one_sentence(path: str | os.PathLike[str]) -> Iterator[None]:
    """Says whatever goes wrong with a file in one sentence."""
    name = excerpt(os.fsdecode(path), 300)
    try:
        yield
    except RefusedError as error:
        raise UserError(f"cannot read '{name}': {excerpt(error)}. {error.hint}") from error
    except OSError as error:
        said = error.strerror or excerpt(error)
        raise UserError(f"cannot read '{name}': {said}. Check the path and its rights.") from error
    except (ValueError, OverflowError, MemoryError, RecursionError) as error:
        said = excerpt(error) or "there is not enough memory"
        raise UserError(f"cannot read '{name}': {said}. {AGAIN}") from error


def _program(names: list[str]) -> str | None:
    """The kind of program whose archive has entries of these names."""
    inside = {name.split("/", 1)[-1] for name in names} | set(names)
    if any(name.startswith("code/") for name in inside) or "constants.pkl" in inside:
        return "TorchScript"
    if "archive_format" in inside or any(name.startswith("serialized_exported_program") for name in inside):
        return "torch.export"
    return None


def _opened(whole: Region) -> Checkpoint:
    """The content of a file, by what it begins with."""
    if not whole.size:
        raise RefusedError("it is empty", "Get the file again.")
    if whole.size > LARGEST:
        raise RefusedError(f"it has {whole.size:,} bytes, more than any checkpoint", "Name another file.")
    start = whole.part(0, min(whole.size, 512)).read(512)
    if start[:4] == b"PK\x03\x04":
        return _from_zip(whole)
    if start[8:9] == b"{" and (start[0] != 0x80 or int.from_bytes(start[:8], "little") <= whole.size):
        return _from_safetensors(whole)
    _refuse_others(start)
    try:
        return _from_pickle(whole)
    except RefusedError:
        raise
    except ValueError as error:
        if re.fullmatch(rb"[\t\n\r -~]+", start):  # its letters are steps of a pickle, which say nothing
            raise RefusedError(
                "it is text, and none that is a pickle", "Name the file of the weights."
            ) from error
        raise


def _refuse_others(start: bytes) -> None:
    """Raises RefusedError for the commonest files that are none, and says what they are."""
    again = "Get the file itself."
    lower = start.lstrip().lower()
    if start[257:262] == b"ustar":
        raise RefusedError("it is a tar archive", "Unpack it, and name the file in it.")
    if start[:2] == b"\x1f\x8b" or start[:3] == b"BZh" or start[:6] in (b"\xfd7zXZ\x00", b"7z\xbc\xaf'\x1c"):
        raise RefusedError("it is compressed", "Unpack it, and name the file in it.")
    if start[:8] == b"\x89HDF\r\n\x1a\n":
        raise RefusedError("it is an HDF5 file, such as Keras writes", "Store its weights as .safetensors.")
    if lower.startswith(b"version https://git-lfs"):
        raise RefusedError("it is a pointer of Git LFS", "Run 'git lfs pull' beside it.")
    if lower.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise RefusedError("it is a page of the web, not the file that was to be downloaded", again)
    if not start.strip(b"\x00"):
        raise RefusedError("it begins with zeros", "The download broke off; get the file again.")


def _from_zip(whole: Region) -> Checkpoint:
    archive = Archive(whole)
    pickles = [name for name in archive.names if name == "data.pkl" or name.endswith("/data.pkl")]
    if kind := _program(archive.names):
        raise RefusedError(
            f"it is a program ({kind}), which runs when it is used",
            "Give --trust if you trust it, or get its weights as a state dictionary.",
        )
    if len(pickles) != 1 or pickles[0].count("/") > 1:
        raise RefusedError("it is a zip file, but not of torch.save", "Unpack it, and name the file in it.")
    entries, prefix = archive.contents(), pickles[0].removesuffix("data.pkl")
    storages = ZipStorages({n.removeprefix(prefix): r for n, r in entries.items() if n.startswith(prefix)})
    pickle = entries[pickles[0]]
    if pickle.size > MOST_PICKLE:
        raise RefusedError(f"its description has {pickle.size:,} bytes, more than any checkpoint")
    budget = _budget_of(whole)
    objects = Objects(budget, storages, lambda content: _nested(content, budget))
    content, _ = Machine(objects, pickle, budget).run()
    return _checked("torch zip", content)


def _from_pickle(whole: Region) -> Checkpoint:
    budget = _budget_of(whole)

    def nothing(_: Any) -> Storage:
        raise RefusedError("it names numbers that lie beside it, and none do")

    objects = Objects(budget, nothing, lambda content: _nested(content, budget))
    content, end = Machine(objects, whole, budget).run()
    if type(content) is int and content == MAGIC:
        return _checked("legacy torch", read_legacy(whole, end, budget))
    return _checked("pickle", content)


def _budget_of(whole: Region) -> Budget:
    """What a file may ask for; tensors may share numbers, such as averages that begin as the weights."""
    return Budget(numbers=16 * whole.size + 2**28)


def _nested(content: Region | bytes, budget: Budget) -> Storage:
    """The storage in a file of legacy torch that is a byte string of another."""
    whole = content if isinstance(content, Region) else Source(content).whole()

    def none(_: Any) -> Storage:
        raise RefusedError("it holds files within files within files")

    magic, end = Machine(Objects(budget, none, none), whole, budget).run()
    if type(magic) is not int or magic != MAGIC:
        raise RefusedError("it holds a tensor whose numbers are another file")
    found = read_legacy(whole, end, budget)
    if not isinstance(found, Storage):
        raise RefusedError("it holds a tensor whose numbers are none")
    return found


def _checked(container: str, content: Any) -> Checkpoint:
    check_content(content)
    return Checkpoint(container, content)


def _from_safetensors(whole: Region) -> Checkpoint:
    length = int.from_bytes(whole.part(0, 8).read(8), "little")
    header = whole.part(8, length).read(MOST_HEADER)
    numbers = whole.part(8 + length, whole.size - 8 - length)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) != len(pairs):
            raise RefusedError("its header names something twice")
        return found

    try:
        table = json.loads(header, object_pairs_hook=once)
    except RefusedError:
        raise
    except (ValueError, RecursionError) as error:
        raise RefusedError("its header is damaged") from error
    metadata = table.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise RefusedError("its header is damaged: '__metadata__' are no texts")
    found, ends = {}, []
    for name, entry in table.items():
        found[name], place = _entry(name, entry, numbers)
        ends.append(place)
    ends.sort()
    if any(one[1] > other[0] for one, other in itertools.pairwise(ends)):
        raise RefusedError("it has tensors that lie over each other")
    return Checkpoint("safetensors", found, metadata)


def _entry(name: str, entry: Any, numbers: Region) -> tuple[Stored, tuple[int, int]]:
    """A tensor of a safetensors file, and where it begins and ends."""
    said = f"its tensor '{excerpt(name, 60)}'"
    if not isinstance(entry, dict):
        raise RefusedError(f"{said} is damaged")
    dtype, shape, place = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _SAFETENSORS:
        raise RefusedError(f"{said} is of a type that is not read")
    if not isinstance(place, list) or [type(n) for n in place] != [int, int] or place[0] > place[1]:
        raise RefusedError(f"{said} has no place")
    if not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in shape):
        raise RefusedError(f"{said} has no proper shape")
    kind: torch.dtype = DTYPES[_SAFETENSORS[dtype]]
    if len(shape) > 64 or math.prod(shape) * kind.itemsize != place[1] - place[0]:
        raise RefusedError(f"{said} has another size than its shape")
    region = numbers.part(place[0], place[1] - place[0])
    return Stored.of(Storage(kind, region), tuple(shape)), (place[0], place[1])
