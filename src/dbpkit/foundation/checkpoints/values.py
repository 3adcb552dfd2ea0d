"""What a checkpoint holds: tensors that are read when they are asked for, and records of objects."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dbpkit.foundation.checkpoints.regions import RefusedError, Region, Source
from dbpkit.foundation.errors import UserError, excerpt

DTYPES: dict[str, torch.dtype] = {
    name: found for name in dir(torch) if isinstance(found := getattr(torch, name), torch.dtype)
}
"""Types of tensors by their names in torch."""

LARGEST_SIDE = 2**40
"""Numbers along one axis."""

MOST_AXES = 25
"""Axes of a tensor: those that every operation of torch can handle."""


MOST_REPEATED = 2**24
"""Numbers of a tensor that has more of them than its storage, because a step along an axis is 0."""


class Record:
    """An object that a file holds: what it is called and what it is made of; no class is looked up.

    Attributes:
        name: class as ``"module.Class"``; of EDM's persistent objects, the class's name alone.
        state: what the object was given when it was restored, mostly its attributes by name; or None.
        arguments: what its class was called with.
    """

    __slots__ = ("_elements", "_items", "arguments", "name", "state")

    def __init__(self, name: str, state: Any = None, arguments: tuple[Any, ...] = ()) -> None:
        self.name, self.state, self.arguments = name, state, arguments
        self._items: dict[Any, Any] | None = None  # few objects have any, and a file may have a million
        self._elements: list[Any] | None = None

    @property
    def items(self) -> dict[Any, Any]:
        """Keys and values, of classes derived from dict."""
        if self._items is None:
            self._items = {}
        return self._items

    @property
    def elements(self) -> list[Any]:
        """Elements, of classes derived from list."""
        if self._elements is None:
            self._elements = []
        return self._elements

    @property
    def parts(self) -> list[Any]:
        """Whatever it holds: state, arguments, items and elements, as far as there are any."""
        return [part for part in (self.state, self.arguments, self._items, self._elements) if part]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class Name(Record):
    """A class or function that a file names and does not call."""

    __slots__ = ()


class Storage:
    """Numbers of one type, one after the other, in a file.

    Args:
        dtype: their type.
        region: where they are.
        swapped: whether their bytes are in the other order than this machine's.
    """

    __slots__ = ("dtype", "region", "swapped")

    def __init__(self, dtype: torch.dtype, region: Region, swapped: bool = False) -> None:
        self.dtype, self.region, self.swapped = dtype, region, swapped


class Stored:
    """A tensor in a file, which is read by `read` and not kept.

    Attributes:
        shape: its sides.
        dtype: its type; None for NumPy's arrays of other things than numbers, which cannot be read.
        strides: steps along its axes, in numbers.
        offset: its first number in the storage.
        storage: the numbers that it is a view of.
    """

    __slots__ = ("dtype", "offset", "shape", "storage", "strides")

    def __init__(self, shape: tuple[int, ...] = (), dtype: torch.dtype | None = None) -> None:
        self.shape, self.dtype = shape, dtype
        self.strides: tuple[int, ...] = ()
        self.offset, self.storage = 0, Storage(torch.uint8, _NOTHING)

    @classmethod
    def of(
        cls, storage: Storage, shape: Any, strides: Any = None, offset: Any = 0, dtype: Any = None
    ) -> "Stored":
        """A view of a storage.

        Raises:
            RefusedError: if it does not lie within it.
        """
        made = cls()
        made.fill(storage, shape, strides, offset, dtype)
        return made

    def fill(
        self, storage: Storage, shape: Any, strides: Any = None, offset: Any = 0, dtype: Any = None
    ) -> None:
        """Makes this a view of a storage, by another type if given.

        Raises:
            RefusedError: if it does not lie within it.
        """
        strides = plain_strides(shape) if strides is None else strides
        dtype = storage.dtype if dtype is None else dtype
        check_view(shape, strides, offset, storage.region.size // dtype.itemsize)
        self.shape, self.dtype, self.strides = shape, dtype, strides
        self.storage, self.offset = storage, offset

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes it takes in memory."""
        return self.numel * (self.dtype.itemsize if self.dtype else 0)

    def read(self) -> Tensor:
        """Reads the tensor: contiguous, on the CPU, and with memory of its own.

        Raises:
            UserError: if it cannot be read, the file has changed, or it holds no numbers.
        """
        if self.dtype is None:
            raise UserError("an array of this checkpoint holds no numbers. Choose another entry.")
        try:
            return self._read(self.dtype)
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            said = excerpt(error) or "there is not enough memory"
            raise UserError(
                f"a tensor of shape {self.shape} cannot be read ({said}). Get the file again, or free memory."
            ) from error

    def _read(self, dtype: torch.dtype) -> Tensor:
        if not self.numel:
            return torch.empty(self.shape, dtype=dtype)
        if self.strides == plain_strides(self.shape):
            return self._numbers(dtype, self.numel).reshape(self.shape)
        reach = 1 + sum((side - 1) * step for side, step in zip(self.shape, self.strides, strict=True))
        whole = self._numbers(dtype, reach)
        return whole.as_strided(self.shape, self.strides).clone(memory_format=torch.contiguous_format)

    def _numbers(self, dtype: torch.dtype, count: int) -> Tensor:
        """The next numbers of the storage from the tensor's first on."""
        made = torch.empty(count, dtype=dtype)
        content = made.view(torch.uint8).numpy()
        self.storage.region.fill(content, self.offset * dtype.itemsize)
        if self.storage.swapped:
            width = dtype.itemsize // (2 if dtype.is_complex else 1)
            content.reshape(-1, width)[:] = content.reshape(-1, width)[:, ::-1].copy()
        if dtype is torch.bool:  # another byte than 0 and 1 is no truth value
            np.not_equal(content, 0, out=content.view(np.bool_))
        return made

    def __repr__(self) -> str:
        return f"Stored({self.shape}, {self.dtype})"


def plain_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The steps along the axes of a contiguous tensor, as torch counts them."""
    strides, step = [], 1
    for side in reversed(shape):
        strides.append(step)
        step *= max(side, 1)
    return tuple(reversed(strides))


def check_view(shape: Any, strides: Any, offset: Any, length: int) -> None:
    """Refuses a view that does not lie within a storage of ``length`` numbers, or is absurd."""
    for values in (shape, strides, (offset,)):
        if not isinstance(values, tuple) or len(values) > MOST_AXES:
            raise RefusedError("it holds a tensor without a proper shape")
        if any(type(n) is not int or not 0 <= n <= LARGEST_SIDE for n in values):
            raise RefusedError("it holds a tensor with a side, step or offset that cannot be")
    if len(shape) != len(strides):
        raise RefusedError("it holds a tensor with another number of sides than of steps")
    if 0 in shape:
        return
    reach = offset + 1 + sum((side - 1) * step for side, step in zip(shape, strides, strict=True))
    if reach > length:
        raise RefusedError(f"it holds a tensor of {reach:,} numbers in a storage of {length:,}")
    if math.prod(shape) > max(length, MOST_REPEATED):
        raise RefusedError("it holds a tensor that repeats its numbers more often than any real one")


_NOTHING = Source(b"").whole()
