"""CIFAR-10 and CIFAR-100 from their original python batches.

The files are pickles, which can run code when read. Only the four constructors that these files need
are admitted; anything else is refused before it runs.
"""

import codecs
import io
import pickle  # noqa: TID251 - the restricted reader below
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray

from dbpkit.data.dataset import Dataset, check_md5, data_root, datasets, existing
from dbpkit.errors import UserError

_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): multiarray._reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
}

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


class _Unpickler(pickle.Unpickler):
    """Reads arrays, byte strings and containers, and nothing else."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ADMITTED:
            raise UserError(
                f"refused to read '{module}.{name}' from a data file: it is no part of a CIFAR batch."
            )
        return _ADMITTED[module, name]


@datasets.register("cifar10")
def cifar10(root: str | None = None, split: str = "test", *, verify: bool = True) -> Dataset:
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
def cifar100(root: str | None = None, split: str = "test", *, verify: bool = True) -> Dataset:
    """CIFAR-100 (fine labels) from the folder ``cifar-100-python``; arguments and errors as `cifar10`."""
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
    split: str,
    label_key: str,
    meta: tuple[str, str],
    md5: dict[str, str],
) -> Dataset:
    """Joins the batches of a split and checks their shapes."""
    if split not in names:
        raise UserError(f"data '{name}': unknown split '{split}'. Available: {', '.join(sorted(names))}.")
    batches = [_read(folder / file, md5.get(file)) for file in names[split]]
    class_names = _read(folder / meta[0], md5.get(meta[0]))[meta[1].encode()]
    try:
        images = np.concatenate([np.asarray(b[b"data"], np.uint8).reshape(-1, 3, 32, 32) for b in batches])
        labels = torch.tensor([label for b in batches for label in b[label_key.encode()]])
    except (KeyError, ValueError) as error:
        raise UserError(f"data '{name}': '{folder}' does not hold {name} batches ({error}).") from error
    return Dataset(
        name,
        torch.from_numpy(images),
        labels,
        torch.arange(len(images)),
        tuple(n.decode() for n in class_names),
    )


def _read(path: Path, md5: str | None) -> dict[bytes, Any]:
    """One pickled dictionary, its MD5 sum checked first."""
    content = existing(path, "CIFAR").read_bytes()
    if md5:
        check_md5(content, md5, path)
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"'{path}' is no readable CIFAR batch ({error}). Download it again.") from error
    if not isinstance(batch, dict):
        raise UserError(f"'{path}' is no CIFAR batch: it holds a {type(batch).__name__}, not a dictionary.")
    return batch
