"""Street View House Numbers from its MATLAB files.

The thing people get wrong: the files write the digit 0 as class 10. Here every digit is its own class.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from dbpkit.data.dataset import Dataset, check_md5, data_root, datasets, existing
from dbpkit.data.matlab import headers, variables
from dbpkit.foundation.errors import UserError, excerpt
from dbpkit.foundation.files import read_whole

_MD5 = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    "extra_32x32.mat": "a93ce644f1a588dc4d68dda5feec44a7",
}

_LARGEST = 2**31
"""Bytes of the largest file that is read; the published ones have at most 1.33 GB."""

_MOST = {"test": 26_032, "train": 73_257, "extra": 531_131}
"""Images of every part."""


@datasets.register("svhn")
def svhn(
    root: str | None = None, split: Literal["test", "train", "extra"] = "test", *, verify: bool = True
) -> Dataset:
    """SVHN, cropped digits, from ``svhn/test_32x32.mat`` and its kin: uint8 (N, 3, 32, 32).

    Args:
        root: folder that holds ``svhn``; the environment's DBPKIT_DATA if not given.
        split: ``"test"`` (26,032 images, ids 0 on), ``"train"`` (73,257) or ``"extra"`` (531,131).
        verify: whether the file must have its published MD5 sum.

    Raises:
        UserError: if the file is missing, truncated, changed, of MATLAB 7.3, or holds anything else.

    Source:
        Netzer et al. 2011, "Reading digits in natural images with unsupervised feature learning".
    """
    folder = data_root(root) / "svhn"
    path = folder / f"{split}_32x32.mat"
    try:
        content = read_whole(existing(path, "SVHN"), _LARGEST)
    except OSError as error:
        raise UserError(f"cannot read '{path}' ({error.strerror}). Download it again.") from error
    if verify:
        check_md5(content, _MD5[path.name], path)
    x, y = _arrays(content, path, _MOST[split])
    images = torch.from_numpy(
        np.ascontiguousarray(x.transpose(3, 2, 0, 1))
    )  # (32, 32, 3, N) -> (N, 3, 32, 32)
    labels = torch.from_numpy(y.reshape(-1).astype(np.int64)) % 10
    return Dataset("svhn", images, labels, torch.arange(len(images)), tuple(str(k) for k in range(10)))


def _arrays(content: bytes, path: Path, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The arrays X (32, 32, 3, N) and y (N, 1) of a file, their sizes looked at before they are read."""
    try:
        _check(headers(content, most * (3072 + 8) + 2**20), path, most)
        held = variables(content, ["X", "y"])
    except UserError:
        raise
    except Exception as error:  # scipy raises nearly anything
        said = excerpt(error)
        raise UserError(f"'{path}' is not a readable MATLAB file ({said}). Download it again.") from error
    return _whole(held, path)


def _check(found: dict[str, tuple[Any, str]], path: Path, most: int) -> None:
    """Refuses a file whose arrays are not those of SVHN, by what its headers say."""
    shape, kind = found.get("X", ((), "nothing"))
    labels, label_kind = found.get("y", ((), "nothing"))
    count = shape[-1] if len(shape) == 4 else 0
    if kind != "uint8" or tuple(shape[:3]) != (32, 32, 3) or not 0 < count <= most:
        raise UserError(
            f"'{path}' does not hold SVHN images: 'X' must be uint8 (32, 32, 3, N), N at most {most}; found"
            f" {kind} {tuple(shape)}."
        )
    if label_kind not in ("uint8", "double", "int32", "int64") or tuple(labels) not in (
        (count, 1),
        (1, count),
    ):
        raise UserError(
            f"'{path}' does not hold SVHN labels: 'y' must be {count} numbers; found {label_kind}"
            f" {tuple(labels)}."
        )


def _whole(held: dict[str, Any], path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The arrays, if they are what the headers said and labels are the numbers 1 to 10."""
    x, y = held.get("X"), held.get("y")
    fits = isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.shape[:3] == (32, 32, 3) and x.ndim == 4
    if not fits or not isinstance(x, np.ndarray) or not isinstance(y, np.ndarray):
        raise UserError(f"'{path}' does not hold what its headers say. Download it again.")
    if y.dtype.kind not in "uif" or not np.isin(y, np.arange(1, 11)).all():
        raise UserError(f"'{path}' does not hold SVHN labels: 'y' must hold whole numbers from 1 to 10.")
    return x, y
