"""Reads the pickles that CIFAR is published in, without unpickling: nothing in the file is ever called.

A pickle is a program for a small stack machine. This is such a machine for what those files need: numbers,
texts, byte strings, containers, and arrays of whole numbers, which are built here from their bytes. To admit
harmless constructors would not be enough, because the file also chooses their arguments.
"""

import math
import pickletools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

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


_MARK = object()
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
    found = _Machine(len(content)).run(content)
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


class _Machine:
    """The stack and memo of one file.

    Args:
        size: bytes of the file, which bound what may be made from it.
    """

    def __init__(self, size: int) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.left = size

    def run(self, content: bytes) -> Any:
        """Executes a whole file and returns what it leaves."""
        for opcode, argument, _ in pickletools.genops(content):
            name = opcode.name
            if name in _READ:
                self.stack.append(_READ[name](argument))
            elif name in _CONSTANT:
                self.stack.append(_CONSTANT[name])
            elif name in _EMPTY:
                self.stack.append(_EMPTY[name]())
            elif name in _STEPS:
                _STEPS[name](self, argument)
            elif name == "STOP":
                return self.pop()
            elif name not in ("PROTO", "FRAME"):
                raise ValueError(f"it needs '{name}', which is not part of a CIFAR batch")
        raise ValueError("it does not end")

    def pop(self) -> Any:
        """Takes the newest value from the stack."""
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("it takes a value that is not there")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        """Returns the newest value, which must be of a kind."""
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise ValueError(f"it fills something that is not a {kind.__name__}")
        return self.stack[-1]

    def since_mark(self) -> list[Any]:
        """Takes everything since the last mark from the stack."""
        place = next((i for i in range(len(self.stack) - 1, -1, -1) if self.stack[i] is _MARK), None)
        if place is None:
            raise ValueError("it takes values that are not there")
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values

    def several(self, count: int) -> tuple[Any, ...]:
        """Takes the newest ``count`` values, oldest first."""
        return tuple(reversed([self.pop() for _ in range(count)]))

    def remember(self, place: int | None) -> None:
        """Stores the newest value under a number, the next free one if not given."""
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("it remembers a value that is not there")
        self.memo[len(self.memo) if place is None else int(place)] = self.stack[-1]

    def recall(self, place: int) -> None:
        """Puts a stored value on the stack again."""
        if int(place) not in self.memo:
            raise ValueError("it recalls a value that is not there")
        self.stack.append(self.memo[int(place)])

    def append(self, values: Iterable[Any]) -> None:
        """Appends to the list on the stack."""
        self.top(list).extend(values)

    def put_into(self, items: list[Any]) -> None:
        """Puts pairs into the dictionary on the stack."""
        table = self.top(dict)
        if len(items) % 2:
            raise ValueError("it has a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | bytes):
                raise ValueError(f"it names something by {_kind(key)}, not by a text")
            table[key] = value

    def make_dictionary(self) -> None:
        """Makes a dictionary of everything since the last mark."""
        items = self.since_mark()
        self.stack.append({})
        self.put_into(items)

    def name(self, module: Any, name: Any) -> None:
        """Puts the name of an admitted function on the stack."""
        path = f"{text_of(module)}.{text_of(name)}"
        if path not in _GLOBALS:
            said = excerpt(path)
            raise ValueError(f"it would call '{said}', which is not part of a CIFAR batch and is refused")
        self.stack.append(_GLOBALS[path])

    def make(self) -> None:
        """Makes what an admitted function would have returned."""
        function, arguments = self.several(2)
        if not isinstance(arguments, tuple):
            raise ValueError("it calls something without arguments")
        made: Any
        if function is _RECONSTRUCT and arguments and arguments[0] is _NDARRAY:
            made = _Array()
        elif function is _ENCODE and len(arguments) == 2:
            made = self._encoded(*arguments)
        elif function is _BYTES and not arguments:
            made = b""
        elif function is _DTYPE and arguments:
            made = _Type(self._type_name(arguments[0]))
        elif function is _FROM_BUFFER and len(arguments) == 4:
            made = _Array(self._array(*arguments[:3], is_fortran=arguments[3] == "F"))
        else:
            raise ValueError("it makes something that is not part of a CIFAR batch")
        self.stack.append(made)

    def complete(self) -> None:
        """Gives an array its bytes, or a type its details."""
        made, state = self.several(2)
        if isinstance(made, _Array) and isinstance(state, tuple) and len(state) in (4, 5):
            shape, dtype, is_fortran, data = state[-4:]
            made.value = self._array(data, dtype, shape, is_fortran is True)
        elif not (isinstance(made, _Type) and _is_plain(state, made.dtype)):
            raise ValueError("it holds an array that is not one of plain whole numbers")
        self.stack.append(made)

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

    @staticmethod
    def _type_name(value: Any) -> str:
        name = text_of(value)
        if name not in _WHOLE:
            raise ValueError(f"it holds an array of type '{excerpt(name, 20)}'; whole numbers were expected")
        return name

    @staticmethod
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


def _eight_bit(text: str) -> bytes:
    """Python 2's strings are bytes; pickletools shows them as Latin-1."""
    return text.encode("latin-1")


def _whole(value: int) -> int:
    if value.bit_length() > 64 and not isinstance(value, bool):
        raise ValueError(f"it holds a whole number of {value.bit_length()} bits")
    return value


_CONSTANT = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "MARK": _MARK}
"""Opcodes that put the same value on the stack whenever they occur."""

_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
"""Opcodes that put an empty container on the stack."""

_READ: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4"), _whole),
    **dict.fromkeys(("FLOAT", "BINFLOAT"), float),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _eight_bit),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), str),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), bytes),
    "BYTEARRAY8": bytearray,
}
"""Opcodes that put their argument on the stack."""

_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "TUPLE": lambda m, _: m.stack.append(tuple(m.since_mark())),
    "TUPLE1": lambda m, _: m.stack.append(m.several(1)),
    "TUPLE2": lambda m, _: m.stack.append(m.several(2)),
    "TUPLE3": lambda m, _: m.stack.append(m.several(3)),
    "LIST": lambda m, _: m.stack.append(m.since_mark()),
    "DICT": lambda m, _: m.make_dictionary(),
    "APPEND": lambda m, _: m.append(m.several(1)),
    "APPENDS": lambda m, _: m.append(m.since_mark()),
    "SETITEM": lambda m, _: m.put_into(list(m.several(2))),
    "SETITEMS": lambda m, _: m.put_into(m.since_mark()),
    "GLOBAL": lambda m, argument: m.name(*str(argument).split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.name(*m.several(2)),
    "REDUCE": lambda m, _: m.make(),
    "BUILD": lambda m, _: m.complete(),
    "MEMOIZE": lambda m, _: m.remember(None),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda m, place: m.remember(place)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, place: m.recall(place)),
}
"""Opcodes that rearrange the stack."""
