"""The one reader and writer of safetensors files, as NumPy arrays or as tensors.

What only shows results reads arrays: torch takes a second and 200 MB to import, and is imported by who has
tensors.
"""

from collections.abc import Mapping
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
        tensors: contiguous, and none a view of another.
        metadata: one entry at most: several are written in random order, and the file's hash would vary.

    Raises:
        UserError: if it cannot be written.
    """
    from safetensors.torch import save

    if len(metadata) > 1:
        raise ValueError(f"one entry of metadata, not {len(metadata)}: {', '.join(metadata)}")
    return write_atomically(path, save(dict(tensors), dict(metadata)))


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
