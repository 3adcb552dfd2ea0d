"""CIFAR-10 and CIFAR-100 from their original python batches.

The files are pickles, which can run code when they are unpickled; `dbpkit.data.batches` reads them as data
instead.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dbpkit.data.batches import LARGEST, read_batch, text_of
from dbpkit.data.dataset import Dataset, Split, check_md5, data_root, datasets, existing
from dbpkit.foundation.errors import UserError, excerpt

_CIFAR10_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
_CIFAR100_MD5 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}


@datasets.register("cifar10")
def cifar10(root: str | None = None, split: Split = "test", *, verify: bool = True) -> Dataset:
    """CIFAR-10 from the folder ``cifar-10-batches-py``.

    Args:
        root: folder that holds it; the environment's DBPKIT_DATA if not given.
        split: ``"test"`` (10,000 images, ids 0 to 9,999) or ``"train"`` (50,000, ids 0 to 49,999).
        verify: whether files must have their published MD5 sums.

    Raises:
        UserError: if a file is missing, truncated or changed.

    Source:
        Krizhevsky 2009, "Learning multiple layers of features from tiny images".
    """
    names = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    folder = data_root(root) / "cifar-10-batches-py"
    return _load(
        "cifar10",
        folder,
        names,
        split,
        "labels",
        ("batches.meta", "label_names"),
        _CIFAR10_MD5 if verify else {},
    )


@datasets.register("cifar100")
def cifar100(root: str | None = None, split: Split = "test", *, verify: bool = True) -> Dataset:
    """CIFAR-100 (fine labels) from the folder ``cifar-100-python``; errors as `cifar10`.

    Args:
        root: folder that holds it; the environment's DBPKIT_DATA if not given.
        split: ``"test"`` (10,000 images, ids 0 to 9,999) or ``"train"`` (50,000, ids 0 to 49,999).
        verify: whether files must have their published MD5 sums.
    """
    folder = data_root(root) / "cifar-100-python"
    names = {"train": ["train"], "test": ["test"]}
    return _load(
        "cifar100",
        folder,
        names,
        split,
        "fine_labels",
        ("meta", "fine_label_names"),
        _CIFAR100_MD5 if verify else {},
    )


def _load(
    name: str,
    folder: Path,
    names: dict[str, list[str]],
    split: Split,
    label_key: str,
    meta: tuple[str, str],
    md5: dict[str, str],
) -> Dataset:
    """Joins the batches of a split and checks their shapes."""
    images, labels = [], []
    for file in names[split]:
        batch = _read(folder / file, md5)
        images.append(_images(batch.get("data"), folder / file))
        labels += _labels(batch.get(label_key), label_key, len(images[-1]), folder / file)
    class_names = _class_names(folder / meta[0], meta[1], md5)
    joined = torch.from_numpy(np.concatenate(images))
    return Dataset(
        name, joined, torch.tensor(labels, dtype=torch.int64), torch.arange(len(joined)), class_names
    )


def _read(path: Path, md5: dict[str, str]) -> dict[str, Any]:
    """One batch, its MD5 sum checked first."""
    if existing(path, "CIFAR").stat().st_size > LARGEST:
        raise UserError(f"'{path}' is not a readable CIFAR batch (it is larger than any). Download it again.")
    content = path.read_bytes()
    if path.name in md5:
        check_md5(content, md5[path.name], path)
    try:
        return read_batch(content)
    except (ValueError, OverflowError) as error:
        said = excerpt(error)
        raise UserError(f"'{path}' is not a readable CIFAR batch ({said}). Download it again.") from error


def _images(data: Any, path: Path) -> np.ndarray:
    """The images (N, 3, 32, 32) of a batch."""
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        came = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else _kind(data)
        raise UserError(f"'{path}' does not hold CIFAR images: 'data' must be uint8 (N, 3072); found {came}.")
    return data.reshape(-1, 3, 32, 32)


def _labels(labels: Any, key: str, count: int, path: Path) -> list[int]:
    """The labels of a batch of ``count`` images; their range is that of the class names."""
    if isinstance(labels, np.ndarray) and labels.ndim == 1:
        labels = labels.tolist()
    if not isinstance(labels, list | tuple) or len(labels) != count:
        came = f"{len(labels)} of them" if isinstance(labels, list | tuple) else _kind(labels)
        raise UserError(
            f"'{path}' does not hold CIFAR labels: '{key}' must be {count} numbers; found {came}."
        )
    for place, label in enumerate(labels):
        if type(label) is not int or abs(label) >= 2**31:
            came = "a number of too many digits" if type(label) is int else _kind(label)
            raise UserError(f"'{path}': '{key}' {place} must be a whole number, the class; found {came}.")
    return list(labels)


def _class_names(path: Path, key: str, md5: dict[str, str]) -> tuple[str, ...]:
    names = _read(path, md5).get(key)
    if not isinstance(names, Sequence) or isinstance(names, str | bytes):
        raise UserError(
            f"'{path}' does not hold class names: '{key}' must be a list of texts; found {_kind(names)}."
        )
    try:
        return tuple(text_of(name) for name in names)
    except ValueError as error:
        raise UserError(f"'{path}' does not hold class names: {error}.") from error


def _kind(value: Any) -> str:
    """What came instead, in words; contents of unknown size are not shown."""
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else f"a {type(value).__name__}"
