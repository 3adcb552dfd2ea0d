"""Reads the pickles that CIFAR is published in, without unpickling: nothing in the file is ever called.

The machine of `dbpkit.foundation.checkpoints` follows them. Here is what it may make for these files:
numbers, texts, byte strings, containers, and arrays of whole numbers.
"""

import math
from typing import Any

import numpy as np

from dbpkit.foundation.checkpoints.machine import Budget, Machine
from dbpkit.foundation.checkpoints.regions import Source
from dbpkit.foundation.errors import excerpt

LARGEST = 2**30
"""Bytes of the largest file that is read; the published ones have at most 155 MB."""

_WHOLE = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}
"""Types of arrays that are admitted, in NumPy's short form."""


class _Global:
    """A function that the file would have called; it stands for itself and is never looked up."""


class _Type:
    """An array type under construction: one of `_WHOLE`."""

    def __init__(self, name: str) -> None:
        self.dtype = np.dtype(name)


class _Array:
    """An array under construction; ``value`` is set once its bytes have come."""

    def __init__(self, value: np.ndarray | None = None) -> None:
        self.value = value


_ENCODE, _BYTES, _NDARRAY, _DTYPE, _RECONSTRUCT, _FROM_BUFFER = (_Global() for _ in range(6))
_GLOBALS = {
    "_codecs.encode": _ENCODE,
    "__builtin__.bytes": _BYTES,
    "builtins.bytes": _BYTES,
    "numpy.ndarray": _NDARRAY,
    "numpy.dtype": _DTYPE,
    "numpy.core.multiarray._reconstruct": _RECONSTRUCT,
    "numpy._core.multiarray._reconstruct": _RECONSTRUCT,
    "numpy.core.numeric._frombuffer": _FROM_BUFFER,
    "numpy._core.numeric._frombuffer": _FROM_BUFFER,
}


def read_batch(content: bytes) -> dict[str, Any]:
    """Returns the dictionary that a pickle holds, with texts as keys.

    Values are numbers, texts, byte strings, lists, tuples, dictionaries and arrays of whole numbers, which
    are read-only views of the file's bytes.

    Raises:
        ValueError: if it is truncated, holds or would call anything else, or is not a dictionary; in words.
    """
    if len(content) > LARGEST:
        raise ValueError(f"it has {len(content)} bytes, and no such file has more than {LARGEST}")
    budget = Budget(steps=len(content) + 1, text=len(content), bits=64, lazy=None)
    found, _ = Machine(_Batches(len(content)), Source(content).whole(), budget).run()
    if not isinstance(found, dict):
        raise ValueError(f"it holds {_kind(found)}, not a dictionary")
    return {text_of(key): _finished(value) for key, value in found.items()}


def text_of(value: Any) -> str:
    """Returns a text or byte string as text; ValueError for anything else."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, str):
        return value
    raise ValueError(f"it names something by {_kind(value)}, not by a text")


def _finished(value: Any) -> Any:
    if not isinstance(value, _Array):
        return value
    if value.value is None:
        raise ValueError("it holds an array without bytes")
    return value.value


def _kind(value: Any) -> str:
    """What a value is, in words; its content is never shown."""
    if isinstance(value, _Array):
        return "an array"
    return f"a {type(value).__name__.lstrip('_').lower()}"


class _Batches:
    """What stands for the objects of one file.

    Args:
        size: bytes of the file, which bound what may be made from it.
    """

    subject = "a CIFAR batch"
    more: frozenset[str] = frozenset()

    def __init__(self, size: int) -> None:
        self.left = size

    def named(self, module: Any, name: Any) -> _Global:
        """What stands for an admitted function."""
        path = f"{text_of(module)}.{text_of(name)}"
        if path not in _GLOBALS:
            said = excerpt(path)
            raise ValueError(f"it would call '{said}', which is not part of a CIFAR batch and is refused")
        return _GLOBALS[path]

    def made(self, function: Any, arguments: Any) -> Any:
        """Makes what an admitted function would have returned."""
        if not isinstance(arguments, tuple):
            raise ValueError("it calls something without arguments")
        if function is _RECONSTRUCT and arguments and arguments[0] is _NDARRAY:
            return _Array()
        if function is _ENCODE and len(arguments) == 2:
            return self._encoded(*arguments)
        if function is _BYTES and not arguments:
            return b""
        if function is _DTYPE and arguments:
            return _Type(_type_name(arguments[0]))
        if function is _FROM_BUFFER and len(arguments) == 4:
            return _Array(_array(*arguments[:3], is_fortran=arguments[3] == "F"))
        raise ValueError("it makes something that is not part of a CIFAR batch")

    def completed(self, made: Any, state: Any) -> Any:
        """Gives an array its bytes, or a type its details."""
        if isinstance(made, _Array) and isinstance(state, tuple) and len(state) in (4, 5):
            shape, dtype, is_fortran, data = state[-4:]
            made.value = _array(data, dtype, shape, is_fortran is True)
        elif not (isinstance(made, _Type) and _is_plain(state, made.dtype)):
            raise ValueError("it holds an array that is not one of plain whole numbers")
        return made

    def key(self, key: Any) -> str | bytes:
        """A dictionary's key, which must be a text."""
        if not isinstance(key, str | bytes):
            raise ValueError(f"it names something by {_kind(key)}, not by a text")
        return key

    def eight_bit(self, value: bytes) -> bytes:
        """Python 2's strings are bytes."""
        return value

    def new(self, *_: Any) -> Any:
        """No instance is part of a batch."""
        raise ValueError("it makes something that is not part of a CIFAR batch")

    def stored(self, _identity: Any) -> Any:
        """Nothing lies beside a batch."""
        raise ValueError("it names something that is not part of a CIFAR batch")

    def inside(self, *_: Any) -> Any:
        """No object of a batch holds another."""

    def _encoded(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise ValueError("it holds a byte string that is none")
        self.left -= len(text)
        if self.left < 0:  # no file names more bytes than it has: this one names the same ones many times
            raise ValueError("it would grow to more bytes than it has")
        try:
            return text.encode("latin-1")
        except UnicodeEncodeError as error:
            raise ValueError("it holds a byte string that is none") from error


def _type_name(value: Any) -> str:
    name = text_of(value)
    if name not in _WHOLE:
        raise ValueError(f"it holds an array of type '{excerpt(name, 20)}'; whole numbers were expected")
    return name


def _array(data: Any, dtype: Any, shape: Any, is_fortran: bool) -> np.ndarray:
    """An array made of its bytes, none of which are copied."""
    if not isinstance(dtype, _Type) or not isinstance(data, bytes | bytearray):
        raise ValueError("it holds an array that is not one of plain whole numbers")
    sides = shape if isinstance(shape, tuple) and len(shape) <= 4 else (None,)
    if any(type(side) is not int or not 0 <= side <= LARGEST for side in sides):
        raise ValueError("it holds an array without a proper shape")
    if math.prod(sides) * dtype.dtype.itemsize != len(data):
        raise ValueError(f"it holds an array of shape {sides} with {len(data)} bytes")
    return np.frombuffer(data, dtype.dtype).reshape(sides, order="F" if is_fortran else "C")


def _is_plain(state: Any, dtype: np.dtype) -> bool:
    """Whether a type's details are those of numbers in this machine's usual order, without fields."""
    if not isinstance(state, tuple) or not 5 <= len(state) <= 9:
        return False
    order = "|" if dtype.itemsize == 1 else "<"
    return state[1] in (order, order.encode()) and all(part is None for part in state[2:5])
