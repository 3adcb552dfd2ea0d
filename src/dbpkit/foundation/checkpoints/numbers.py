"""NumPy's arrays, numbers and types in a pickle, put together here from their bytes."""

from typing import Any

import numpy as np
import torch

from dbpkit.foundation.checkpoints.regions import RefusedError, Region, Source
from dbpkit.foundation.checkpoints.values import MOST_AXES, Record, Storage, Stored, plain_strides

_TYPES: dict[str, torch.dtype] = {
    "f2": torch.float16, "f4": torch.float32, "f8": torch.float64, "b1": torch.bool,
    "i1": torch.int8, "i2": torch.int16, "i4": torch.int32, "i8": torch.int64,
    "u1": torch.uint8, "u2": torch.uint16, "u4": torch.uint32, "u8": torch.uint64,
    "c8": torch.complex64, "c16": torch.complex128,
}  # fmt: skip
"""Types of numbers in NumPy's short form."""


def numpy_encoded(text: Any, encoding: Any = "latin1") -> Any:
    """Bytes as protocols below 3 write them: a text of as many characters."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", b"latin1"):
        raise RefusedError("it holds a byte string that is none")
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise RefusedError("it holds a byte string that is none") from error


def _type_of(dtype: Any) -> tuple[torch.dtype | None, bool]:
    """The type that a `numpy.dtype` names, None if it is none of numbers; whether its bytes are swapped."""
    if not isinstance(dtype, Record) or dtype.name != "numpy.dtype" or not dtype.arguments:
        raise RefusedError("it holds an array without a type")
    name, state = dtype.arguments[0], dtype.state
    if not isinstance(name, str) or len(name) > 8:
        return None, False
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else "<"
    if isinstance(state, tuple) and any(part is not None for part in state[2:5]):
        return None, False  # fields and arrays within arrays
    return _TYPES.get(name.lstrip("<>=|")), order in (">", b">") or name.startswith(">")


def number_of(dtype: Any, content: Any) -> Any:
    """A number as NumPy pickles one; a record if it is no number."""
    found, swapped = _type_of(dtype)
    if found is None or not isinstance(content, bytes):
        return Record("numpy.generic", content, (dtype,))
    if len(content) != found.itemsize:
        raise RefusedError("it holds a number of another size than its type")
    order = ">" if swapped else "<"
    return np.frombuffer(content, np.dtype(dtype.arguments[0].lstrip("<>=|")).newbyteorder(order))[0].item()


def numpy_array(made: Stored, state: Any) -> None:
    """Gives an array its state: shape, type and bytes."""
    if not isinstance(state, tuple) or len(state) not in (4, 5):
        raise RefusedError("it holds an array without a state")
    shape, dtype, is_fortran, content = state[-4:]
    _fill(made, content, dtype, shape, is_fortran is True or is_fortran == 1)


def numpy_buffer(content: Any, dtype: Any, shape: Any, order: Any = "C", *_: Any) -> Stored:
    """An array as protocol 5 writes it."""
    made = Stored()
    _fill(made, content, dtype, shape, order == "F")
    return made


def _fill(made: Stored, content: Any, dtype: Any, shape: Any, is_fortran: bool) -> None:
    """Makes an array a view of its bytes; one of other things than numbers keeps its shape only."""
    if (
        not isinstance(shape, tuple)
        or len(shape) > MOST_AXES
        or any(type(n) is not int or n < 0 for n in shape)
    ):
        raise RefusedError("it holds an array without a proper shape")
    found, swapped = _type_of(dtype)
    if found is None:
        made.shape = shape
        return
    if isinstance(content, str):  # a string of Python 2 that could be read as a text
        content = content.encode("utf-8")
    if not isinstance(content, bytes | bytearray | Region):
        raise RefusedError("it holds an array without bytes")
    region = content if isinstance(content, Region) else Source(bytes(content)).whole()
    strides = tuple(reversed(plain_strides(shape[::-1]))) if is_fortran else plain_strides(shape)
    made.fill(Storage(found, region, swapped), shape, strides)
    if made.nbytes != region.size:
        raise RefusedError(f"it holds an array of shape {shape} with {region.size:,} bytes")
