"""Data sets whose images stay in their files until they are asked for.

A run on 8 examples of 50,000 photographs reads 8 of them. Which are chosen, and their noise, follows from
labels and ids, which are known before any pixel is.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from dbpkit.data.dataset import Dataset
from dbpkit.data.pictures import as_unit, check_same_size, stacked
from dbpkit.foundation.errors import UserError

AT_ONCE = 2**26
"""Bytes of pixels up to which all is read at once, so that a damaged file is found at the start."""

KEPT = 2**30
"""Bytes of pixels up to which what has been read for a hash stays in memory."""


class DeferredDataset(Dataset):
    """A `Dataset` whose images are read one by one.

    ``x`` and ``data[i]`` read the examples they return. ``images`` reads all and keeps them. ``sha256`` reads
    all, and keeps them if they take at most `KEPT` bytes. The hash is that of the same examples in memory.

    Args:
        name: what it is, for reports.
        read: the picture (C, H, W) of an example, by its number among all, uint8 or floating point in [0, 1].
        labels: (N,) int64 in [0, K).
        ids: (N,) int64, unique, in [0, 2**44).
        class_names: K names.
        origins: N names of files, or none.
        called: what the picture of a number is called in an error.
        numbers: (N,) which of all examples these are; all, if not given.
        first: the first picture of all, which the others must agree with in size; read if not given.

    Raises:
        UserError: if labels or ids do not fit, or the first picture cannot be read.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[int], Tensor],
        labels: Tensor,
        ids: Tensor,
        class_names: tuple[str, ...],
        origins: tuple[str, ...] = (),
        *,
        called: Callable[[int], str] = "example {}".format,
        numbers: Tensor | None = None,
        first: Tensor | None = None,
    ) -> None:
        given = {"name": name, "labels": labels, "ids": ids, "class_names": class_names, "origins": origins}
        own = {
            "_read": read,
            "_called": called,
            "_numbers": torch.arange(len(labels)) if numbers is None else numbers,
            "_first": read(0) if first is None else first,
        }
        for key, value in (given | own).items():
            object.__setattr__(self, key, value)
        self._check_names()
        self._check_labels()

    _read: Callable[[int], Tensor]
    _called: Callable[[int], str]
    _numbers: Tensor
    _first: Tensor

    @cached_property
    def images(self) -> Tensor:
        """(N, C, H, W), all of them read and kept."""
        return self._pictures(self._numbers)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        c, h, w = self._first.shape
        return c, h, w

    @property
    def nbytes(self) -> int:
        """Bytes that all images take in memory."""
        return len(self) * self._first.nbytes

    @cached_property
    def sha256(self) -> str:
        """Hash of ids, labels and pixels in the order held, hexadecimal."""
        if self._in_memory or self.nbytes <= KEPT:
            return Dataset(self.name, self.images, self.labels, self.ids, self.class_names).sha256
        digest = hashlib.sha256()
        self._hash_labels(digest)
        digest.update(str((len(self), *self.shape)).encode() + str(self._first.dtype).encode())
        for k in range(len(self)):
            image = self._pictures(self._numbers[k : k + 1])
            if image.dtype != self._first.dtype:
                raise UserError(
                    f"data '{self.name}': '{self._called(int(self._numbers[k]))}' has another depth of pixels"
                    f" than '{self._called(0)}'. Convert all to 8 bits, or choose fewer examples."
                )
            digest.update(image.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def x(self, index: Tensor | slice | Sequence[int] | None = None) -> Tensor:
        """Returns images as float32 in [0, 1], all or those at positions ``index``."""
        if self._in_memory:
            return super().x(index)
        return as_unit(
            self._pictures(self._numbers if index is None else self._numbers[self._positions(index)])
        )

    def select(self, index: Tensor | slice | Sequence[int]) -> Dataset:
        """Returns the data set of the examples at positions ``index``, ids kept, without reading them."""
        index = self._positions(index)
        origins = self._origins_of(index)
        labels, ids = self.labels[index], self.ids[index]
        if self._in_memory:
            return Dataset(self.name, self.images[index], labels, ids, self.class_names, origins)
        return DeferredDataset(
            self.name,
            self._read,
            labels,
            ids,
            self.class_names,
            origins,
            called=self._called,
            numbers=self._numbers[index],
            first=self._first,
        )

    def in_memory(self) -> Dataset:
        """Returns the same examples with all images read."""
        return Dataset(self.name, self.images, self.labels, self.ids, self.class_names, self.origins)

    @property
    def _in_memory(self) -> bool:
        return "images" in self.__dict__

    def _pictures(self, numbers: Tensor) -> Tensor:
        """The pictures of these numbers among all, (n, C, H, W)."""
        if not len(numbers):
            return self._first.new_empty((0, *self.shape))
        found = {self._called(number): self._read(number) for number in numbers.tolist()}
        check_same_size({self._called(0): self._first, **found}, f"data '{self.name}'")
        return stacked(list(found.values()))


def from_files(
    name: str,
    read: Callable[[int], Tensor],
    labels: Tensor,
    ids: Tensor,
    class_names: tuple[str, ...],
    origins: tuple[str, ...] = (),
    called: Callable[[int], str] = "example {}".format,
) -> Dataset:
    """Returns a data set of pictures that ``read`` reads: at once if they are few, else when wanted.

    Arguments and errors are those of `DeferredDataset`; up to `AT_ONCE` bytes every picture is read here.
    """
    data = DeferredDataset(name, read, labels, ids, class_names, origins, called=called)
    return data.in_memory() if data.nbytes <= AT_ONCE else data
