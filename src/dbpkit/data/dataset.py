"""What a data set is, where its files are found, and how it is loaded by name."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from dbpkit.foundation.errors import UserError, shown
from dbpkit.foundation.inputs import check_pixels, whole
from dbpkit.foundation.noise import MAX_ID
from dbpkit.foundation.registry import Registry, call_with_options

datasets: Registry[Callable[..., "Dataset"]] = Registry("data set")

Split = Literal["test", "train"]
"""Which part of a data set that comes in two."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with labels and stable ids.

    Attributes:
        name: what it is, for reports.
        images: (N, C, H, W), either uint8 in 0..255 or floating point in [0, 1].
        labels: (N,) int64 in [0, K).
        ids: (N,) int64, unique, in [0, 2**44).
        class_names: K names.
        origins: N names of files, or none.

    Raises:
        UserError: if shapes, types, ranges or ids do not fit, or a pixel is not finite.
    """

    name: str
    images: Tensor
    labels: Tensor
    ids: Tensor
    class_names: tuple[str, ...]
    origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_images()
        if self.images.ndim != 4 or not len(self.images) == len(self.labels) == len(self.ids):
            raise UserError(
                f"data '{self.name}': expected images (N, C, H, W) with N labels and ids, got "
                f"{tuple(self.images.shape)}, {tuple(self.labels.shape)}, {tuple(self.ids.shape)}."
            )
        if 0 in self.images.shape[1:]:
            raise UserError(
                f"data '{self.name}': there are no pixels in images of shape {tuple(self.images.shape)}."
            )
        self._check_labels()
        if self.images.dtype != torch.uint8:
            check_pixels(self.images, f"data '{self.name}'", self.ids)

    def _check_labels(self) -> None:
        """Refuses labels, ids and names that do not fit each other; nothing is asked of images."""
        if self.labels.ndim != 1 or self.ids.ndim != 1:
            raise UserError(
                f"data '{self.name}': labels and ids must have shape (N,), not {tuple(self.labels.shape)} and"
                f" {tuple(self.ids.shape)}."
            )
        if self.ids.dtype != torch.int64 or self.labels.dtype != torch.int64:
            raise UserError(
                f"data '{self.name}': labels and ids must be int64, not {self.labels.dtype} and"
                f" {self.ids.dtype}."
            )
        if len(self.ids) and not 0 <= int(self.ids.min()) <= int(self.ids.max()) < MAX_ID:
            raise UserError(f"data '{self.name}': example ids must lie in [0, 2**44).")
        if len(self.ids.unique()) != len(self.ids):
            raise UserError(f"data '{self.name}': example ids must be unique.")
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(
            self.class_names
        ):
            raise UserError(
                f"data '{self.name}': labels must lie in [0, {len(self.class_names)}), "
                f"they span {int(self.labels.min())} to {int(self.labels.max())}."
            )
        if self.origins and len(self.origins) != len(self.labels):
            raise UserError(
                f"data '{self.name}': {len(self.labels)} images came with {len(self.origins)} origins."
            )

    def _check_images(self) -> None:
        """Refuses anything but tensors in memory, and images of other types than pixels have."""
        if not isinstance(self.name, str):
            raise UserError(f"a data set's name must be text, not {shown(self.name)}.")
        for what in ("images", "labels", "ids"):
            self._check_tensor(what)
        if self.images.dtype != torch.uint8 and not self.images.is_floating_point():
            raise UserError(
                f"data '{self.name}': images must be uint8 in 0..255 or floating point in [0, 1], not"
                f" {str(self.images.dtype).removeprefix('torch.')}."
            )
        self._check_names()

    def _check_tensor(self, what: str) -> None:
        value = getattr(self, what)
        if not isinstance(value, Tensor):
            hint = "Use torch.as_tensor." if what != "images" else "Use torch.stack or torch.as_tensor."
            raise UserError(
                f"data '{self.name}': {what} must be a torch tensor, not {type(value).__name__}. {hint}"
            )
        if value.device.type != "cpu" or value.layout != torch.strided:
            raise UserError(
                f"data '{self.name}': {what} must lie in memory as a dense tensor on the CPU, not on"
                f" {value.device} as {value.layout}. Use .cpu(); batches are moved when they are used."
            )

    def _check_names(self) -> None:
        """Refuses anything but lists of texts, which become tuples."""
        for what in ("class_names", "origins"):
            names = getattr(self, what)
            if isinstance(names, str) or not isinstance(names, Sequence):
                raise UserError(f"data '{self.name}': {what} must be a list of texts, not {shown(names)}.")
            odd = [n for n in names if not isinstance(n, str)]
            if odd:
                raise UserError(
                    f"data '{self.name}': {what} must be a list of texts, and {shown(odd[0])} is none."
                )
            object.__setattr__(self, what, tuple(names))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Returns the image (C, H, W) in [0, 1] and the label at a position, as torch's loaders want them."""
        if not -len(self) <= whole(index, "position", low=-(1 << 62)) < len(self):
            raise IndexError(f"data '{self.name}' has {len(self)} examples, none at position {index}")
        return self.x(torch.tensor([index]))[0], int(self.labels[index])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, c, h, w = self.images.shape
        return c, h, w

    @cached_property
    def sha256(self) -> str:
        """Hash of ids, labels and pixels in the order held, hexadecimal."""
        digest = hashlib.sha256()
        self._hash_labels(digest)
        digest.update(str(tuple(self.images.shape)).encode() + str(self.images.dtype).encode())
        digest.update(self.images.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _hash_labels(self, digest: Any) -> None:
        for tensor in (self.ids, self.labels):
            digest.update(str(tuple(tensor.shape)).encode() + str(tensor.dtype).encode())
            digest.update(tensor.contiguous().numpy().tobytes())

    def x(self, index: Tensor | slice | Sequence[int] | None = None) -> Tensor:
        """Returns images as float32 in [0, 1], all or those at positions ``index``."""
        images = self.images if index is None else self.images[self._positions(index)]
        return images.float() / 255 if images.dtype == torch.uint8 else images.float()

    def select(self, index: Tensor | slice | Sequence[int]) -> "Dataset":
        """Returns the data set of the examples at positions ``index``, ids kept."""
        index = self._positions(index)
        return replace(
            self,
            images=self.images[index],
            labels=self.labels[index],
            ids=self.ids[index],
            origins=self._origins_of(index),
        )

    def _origins_of(self, index: Tensor | slice) -> tuple[str, ...]:
        if isinstance(index, slice):
            return self.origins[index]
        return tuple(self.origins[i] for i in index.tolist()) if self.origins else ()

    def _positions(self, index: Any) -> Tensor | slice:
        """An index as a slice or as positions (n,); UserError if it is none or leads outside."""
        where = f"data '{self.name}'"
        if isinstance(index, slice):
            try:
                return slice(*index.indices(len(self))) if (index.step or 1) > 0 else _refused(where, index)
            except (TypeError, ValueError):
                return _refused(where, index)
        positions = index
        if isinstance(index, (Sequence, range)) and not isinstance(index, str):
            positions = (
                torch.tensor(list(index), dtype=torch.int64) if all(type(i) is int for i in index) else None
            )
        if not isinstance(positions, Tensor) or positions.ndim != 1 or positions.is_floating_point():
            return _refused(where, index)
        if positions.dtype == torch.bool:
            if len(positions) != len(self):
                raise UserError(f"{where} has {len(self)} examples; a mask of {len(positions)} does not fit.")
            return positions.cpu().nonzero()[:, 0]
        positions = positions.long().cpu()
        if len(positions) and not -len(self) <= int(positions.min()) <= int(positions.max()) < len(self):
            raise UserError(
                f"{where} has {len(self)} examples; positions {int(positions.min())} to"
                f" {int(positions.max())} were asked for."
            )
        return positions


def _refused(where: str, index: Any) -> NoReturn:
    """Raises the error for an index that is none."""
    raise UserError(
        f"{where}: examples are chosen by a slice forwards, a mask or whole numbers, not {shown(index)}."
    )


def path_id(path: str) -> int:
    """Returns the example id of a file name or relative path: the first 44 bits of its sha256."""
    return int.from_bytes(hashlib.sha256(path.encode(errors="surrogateescape")).digest()[:6], "big") >> 4


def data_root(root: str | Path | None = None) -> Path:
    """Returns the folder that holds the data files: ``root``, else the environment's ``DBPKIT_DATA``.

    Raises:
        UserError: if neither is given or the folder does not exist.
    """
    chosen = root or os.environ.get("DBPKIT_DATA")
    if not chosen:
        raise UserError(
            "no data folder: set DBPKIT_DATA, or data.options.root (in the spec or by --set), to the folder"
            " with the files. The data set 'embedded' needs none."
        )
    if not Path(chosen).is_dir():
        raise UserError(
            f"data folder '{chosen}' does not exist. Set DBPKIT_DATA or data.options.root to the right one."
        )
    return Path(chosen)


def existing(path: Path, what: str) -> Path:
    """Returns ``path`` if it is a file; else raises UserError naming ``what`` was expected there."""
    if not path.is_file():
        raise UserError(
            f"{what}: file '{path}' is missing. Download the original archive and unpack it there."
        )
    return path


def check_md5(content: bytes, expected: str, path: Path) -> None:
    """Raises UserError if ``content`` of ``path`` does not have the published MD5 sum."""
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise UserError(
            f"'{path}' is not the published file: MD5 {found} where {expected} was expected "
            f"({len(content)} bytes read). It is truncated or changed; download it again."
        )


def load_dataset(name: str, options: Mapping[str, Any] | None = None) -> Dataset:
    """Loads a data set by registered name or import path.

    Args:
        name: such as ``"cifar10"`` or ``"my_module:load"``; the path of a folder stands for ``folder``.
        options: keyword arguments of its loader (``root``, ``split``, ...).

    Raises:
        UserError: if the name, an option or a file is wrong, or the loader returns something else.
    """
    name, options = _named(name, options or {})
    loaded = call_with_options(datasets.resolve(name), options, f"data '{name}'")
    if not isinstance(loaded, Dataset):
        raise UserError(f"data '{name}' must return a dbpkit.Dataset, not {type(loaded).__name__}.")
    return loaded


def _named(name: str, options: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """A folder's path as the data set ``folder`` with that path; any other name as it is."""
    if not isinstance(name, str) or not isinstance(options, Mapping) or ":" in name or name in datasets:
        return name, options
    if os.path.isdir(name):  # noqa: PTH112 - of any text
        return "folder", {"path": name, **options}
    if os.path.isfile(name):  # noqa: PTH113 - of any text
        raise UserError(
            f"data '{name}' is a file. Name a data set ('dbpkit list data'), a folder with one sub-folder per"
            " class, or your own module:function that returns a dbpkit.Dataset."
        )
    return name, options
