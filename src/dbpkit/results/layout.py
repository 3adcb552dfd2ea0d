"""Reading the files of a run directory beside the records, each by one reader that checks its schema.

Any program may have written or edited them. A file that is damaged is one sentence with the file, the place
in it, and the remedy.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from dbpkit.foundation.arrays import Array, read_arrays
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.files import read_whole

RESTORE = "Restore it or delete the directory."


def checked(content: Any, schema: TypeAdapter[Any], where: str, remedy: str = RESTORE) -> Any:
    """Returns what was read if it fits its schema; UserError names the file and the first wrong place."""
    try:
        schema.validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part)[:100] for part in first["loc"]) or "the whole"
        raise damaged(where, f"{place}: {first['msg']}", remedy) from error
    except RecursionError as error:
        raise damaged(where, "it is nested too deeply", remedy) from error
    return content


def parsed(text: str | bytes, where: str, remedy: str = RESTORE) -> Any:
    """Returns the content of a JSON text; UserError if it is none."""
    try:
        return from_json(text, allow_inf_nan=True)
    except ValueError as error:
        raise damaged(where, str(error), remedy) from error


def read_json(path: Path, remedy: str = RESTORE) -> Any:
    """Returns the content of a JSON file, or None if it does not exist; UserError if it cannot be read."""
    try:
        content = read_whole(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"cannot read '{path}' ({error.strerror}). {remedy}") from error
    return parsed(content.removeprefix(b"\xef\xbb\xbf"), f"'{path}'", remedy)


def damaged(where: str, why: str, remedy: str = RESTORE) -> UserError:
    """The error of a file that is not as it was written."""
    said = "".join(c if c.isprintable() else " " for c in why)
    return UserError(f"{where} is damaged ({' '.join(said.split())[:300]}). {remedy}")


def canonical_hash(content: Any) -> str:
    """Returns the sha256 of the canonical JSON (keys sorted) of a value, hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_shard(path: Path, name: str, dimensions: int, remedy: str) -> tuple[Array, Array, dict[str, str]]:
    """Returns the ids (B,), the array called ``name`` (B, ...) as float32, and the metadata of a file.

    Args:
        path: a safetensors file.
        name: ``x_adv`` or ``logits``.
        dimensions: how many the tensor has.
        remedy: what to do if the file is missing or damaged.

    Raises:
        UserError: if it cannot be read, or ids and tensor are not of the right type and shape.
    """
    arrays, metadata = arrays_of(path, remedy)
    ids, values = arrays.get("ids"), arrays.get(name)
    if ids is None or values is None or ids.dtype != np.int64 or ids.ndim != 1 or not len(ids):
        raise damaged(f"'{path}'", f"it has no ids or no {name}", remedy)
    if values.dtype != np.float32 or values.ndim != dimensions or len(values) != len(ids):
        raise damaged(f"'{path}'", f"{name} is {values.dtype} {tuple(values.shape)}", remedy)
    if len(np.unique(ids)) != len(ids) or values.size == 0 or not np.isfinite(values).all():
        raise damaged(f"'{path}'", f"ids are not unique or {name} is not finite", remedy)
    return ids, values, metadata


def arrays_of(path: Path, remedy: str) -> tuple[dict[str, Array], dict[str, str]]:
    """Returns the arrays and metadata of a file that is not a link; UserError with the remedy."""
    if path.is_symlink() or not path.is_file():
        raise UserError(f"'{path}' is missing or no plain file. {remedy}")
    try:
        return read_arrays(path)
    except (UserError, RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise damaged(f"'{path}'", str(error), remedy) from error
