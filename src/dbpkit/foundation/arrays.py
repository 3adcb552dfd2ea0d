"""Reading safetensors files as NumPy arrays, for what shows results and computes none.

The thing people get wrong: torch, only to read a picture. It takes a second and 200 MB to import.
"""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from dbpkit.foundation.errors import UserError, excerpt

Array = np.ndarray[Any, Any]


def read_arrays(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Returns the arrays and the metadata of a safetensors file; UserError if it is unreadable."""
    return read_safetensors(path, "np")


def read_safetensors(path: Path, framework: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns what a safetensors file holds as arrays (``np``) or tensors (``pt``), and its metadata.

    Raises:
        UserError: if it is unreadable.
    """
    try:
        if not path.is_file():  # opening a pipe would wait for its writer
            raise OSError("it is no file")
        with safe_open(path, framework=framework) as file:
            return {name: file.get_tensor(name) for name in list(file.keys())}, dict(file.metadata() or {})
    except Exception as error:  # the library passes on whatever a header's words make others raise
        raise UserError(
            f"'{path}' is not a readable safetensors file ({excerpt(error)}). It is truncated or of"
            " another kind."
        ) from error
