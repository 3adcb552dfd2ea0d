"""The one reader and writer of safetensors files, as NumPy arrays or as tensors.

What only shows results reads arrays: torch takes a second and 200 MB to import, and is imported by who has
tensors.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open

from dbpkit.foundation.errors import UserError, excerpt
from dbpkit.foundation.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

Array = np.ndarray[Any, Any]


def read_arrays(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Returns the arrays and the metadata of a safetensors file; UserError if it is unreadable."""
    return _read(path, "np")


def read_tensors(path: Path) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    """Returns the tensors and the metadata of a safetensors file; UserError if it is unreadable."""
    return _read(path, "pt")


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str]) -> str:
    """Writes a safetensors file atomically and returns its sha256.

    Args:
        path: the file.
        tensors: of any device; each is copied only if it is not contiguous in the CPU's memory.
        metadata: one entry at most: several are written in random order, and the file's hash would vary.

    Raises:
        UserError: if it cannot be written.
    """
    if len(metadata) > 1:
        raise ValueError(f"one entry of metadata, not {len(metadata)}: {', '.join(metadata)}")
    return write_atomically(path, _pieces(tensors, metadata))


def _pieces(tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """What safetensors' ``save`` returns, to the byte, in pieces; ``save`` holds everything twice more.

    The order of the tensors and the names of their types are the library's, asked with empty tensors.
    """
    import torch
    from safetensors.torch import save

    if not tensors:
        yield save({}, dict(metadata))
        return
    empty = save({n: torch.empty(0, dtype=t.dtype) for n, t in tensors.items()}, dict(metadata))
    header = json.loads(empty[8 : 8 + int.from_bytes(empty[:8], "little")])
    order, end = [n for n in header if n != "__metadata__"], 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        header[name] |= {"shape": list(tensors[name].shape), "data_offsets": [start, end]}
    words = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    words += b" " * (-len(words) % 8)
    yield len(words).to_bytes(8, "little") + words
    for name in order:
        yield tensors[name].detach().cpu().reshape(-1).view(torch.uint8).numpy().data


def _read(path: Path, framework: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What a file holds as arrays (``np``) or tensors (``pt``), and its metadata."""
    try:
        if not path.is_file():  # opening a pipe would wait for its writer
            raise OSError("it is not a file")
        with safe_open(path, framework=framework) as file:
            return {name: file.get_tensor(name) for name in list(file.keys())}, dict(file.metadata() or {})
    except Exception as error:  # the library passes on whatever a header's words make others raise
        raise UserError(
            f"'{path}' is not a readable safetensors file ({excerpt(error)}). It is truncated or of"
            " another kind."
        ) from error
