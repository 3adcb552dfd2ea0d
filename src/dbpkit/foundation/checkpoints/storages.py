"""The numbers of tensors as torch names them: by a class of storage, a key and a count."""

from typing import Any

import torch

from dbpkit.foundation.checkpoints.regions import RefusedError, Region
from dbpkit.foundation.checkpoints.values import Name, Storage
from dbpkit.foundation.errors import excerpt

_KINDS: dict[str, torch.dtype] = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
    "Untyped": torch.uint8,
}  # fmt: skip
_MODULES = ("torch", "torch.cuda", "torch.storage")


def identity_of(identity: Any) -> tuple[torch.dtype, str, int, Any]:
    """Returns type, key, count and view of the storage that a persistent identity names.

    Raises:
        RefusedError: if it names something else.
    """
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise RefusedError("it names something beside itself that is no tensor")
    kind, key, count = identity[1], identity[2], identity[4]
    if not isinstance(kind, Name):
        raise RefusedError("it holds a tensor without a type")
    module, _, name = kind.name.rpartition(".")
    word = name.removesuffix("Storage")
    if word.startswith("Q") and module in _MODULES:
        raise RefusedError("it holds quantised tensors", "Store them as float32, with tensor.dequantize().")
    if module not in _MODULES or word not in _KINDS or not name.endswith("Storage"):
        raise RefusedError(f"it holds numbers of the type '{excerpt(kind.name, 60)}', which is not known")
    if isinstance(key, int) and not isinstance(key, bool):
        key = str(key)
    if not isinstance(key, str) or len(key) > 100:
        raise RefusedError("it holds a tensor whose numbers have no name")
    if type(count) is not int or not 0 <= count <= 2**40:
        raise RefusedError("it holds a tensor of a number of numbers that cannot be")
    return _KINDS[word], key, count, identity[5] if len(identity) == 6 else None


class ZipStorages:
    """The storages of a zip file: one entry each.

    Args:
        entries: by their names below the archive's folder.
    """

    def __init__(self, entries: dict[str, Region]) -> None:
        self._entries = entries
        order = entries["byteorder"].read(16) if "byteorder" in entries else b"little"
        if order not in (b"little", b"big"):
            raise RefusedError("it does not say in which order its bytes are")
        self._swapped = order == b"big"

    def __call__(self, identity: Any) -> Storage:
        """The storage that a persistent identity names."""
        dtype, key, count, view = identity_of(identity)
        region = self._entries.get(f"data/{key}")
        if region is None or view is not None:
            raise RefusedError(f"it is truncated: the numbers '{excerpt(key, 40)}' are missing")
        if region.size != count * dtype.itemsize:
            raise RefusedError(f"it holds {count:,} numbers in {region.size:,} bytes, which is another count")
        return Storage(dtype, region, self._swapped)
