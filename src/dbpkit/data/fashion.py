"""Fashion-MNIST from its original idx files, and the zero padding that small grey images need.

U-Nets halve the image two or three times, so 28 x 28 pixels have to become 32 x 32. Padding keeps every
original pixel; resizing does not.
"""

import gzip
import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dbpkit.data.dataset import Dataset, Split, check_md5, data_root, datasets, existing
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.files import read_whole
from dbpkit.foundation.options import Count

_PREFIXES = {"train": "train", "test": "t10k"}
_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
_MOST = 16 + 60_000 * 28 * 28
"""Bytes of the largest file, unpacked."""

_CLASS_NAMES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


@datasets.register("fashion_mnist")
def fashion_mnist(
    root: str | None = None, split: Split = "test", size: Count | None = None, *, verify: bool = True
) -> Dataset:
    """Fashion-MNIST from the folder ``fashion-mnist``, grey images (N, 1, 28, 28).

    Args:
        root: folder that holds it; the environment's DBPKIT_DATA if not given.
        split: ``"test"`` (10,000 images, ids 0 to 9,999) or ``"train"`` (60,000, ids 0 to 59,999).
        size: side to zero-pad to, such as 32; None leaves 28 pixels.
        verify: whether files must have their published MD5 sums.

    Raises:
        UserError: if a file is missing, truncated or changed, or an option is wrong.

    Source:
        Xiao, Rasul & Vollgraf 2017 (arXiv:1708.07747).
    """
    folder = data_root(root) / "fashion-mnist"
    images = _read_idx(folder / f"{_PREFIXES[split]}-images-idx3-ubyte.gz", 3, verify)
    labels = _read_idx(folder / f"{_PREFIXES[split]}-labels-idx1-ubyte.gz", 1, verify).long()
    padded = pad_to(images[:, None], size, "data 'fashion_mnist'")
    return Dataset("fashion_mnist", padded, labels, torch.arange(len(images)), _CLASS_NAMES)


def pad_to(images: Tensor, size: int | None, where: str) -> Tensor:
    """Zero-pads images (N, C, H, W) equally on opposite sides to (N, C, size, size).

    Args:
        images: of any type; the padding is the value 0, black.
        size: side to reach; None returns the images as they are.
        where: what the images are, for the error.

    Raises:
        UserError: if ``size`` is not a whole number, is smaller than an image, or leaves an odd margin.
    """
    if size is None:
        return images
    height, width = images.shape[-2:]
    fits = (
        isinstance(size, int)
        and size >= max(height, width)
        and not (size - height) % 2
        and not (size - width) % 2
    )
    if not fits:
        raise UserError(
            f"{where}: size {size!r} cannot be reached by padding {height} x {width} images equally "
            f"on all sides. Choose an integer such as {max(height, width) + 4}, or leave size out."
        )
    top, left = (size - height) // 2, (size - width) // 2
    return functional.pad(images, (left, left, top, top))


def _read_idx(path: Path, ndim: int, verify: bool) -> Tensor:
    """The uint8 array of one compressed idx file, its MD5 sum checked first."""
    try:
        content = read_whole(existing(path, "Fashion-MNIST"), _MOST)
    except OSError as error:
        raise UserError(f"cannot read '{path}' ({error.strerror}). Download it again.") from error
    if verify:
        check_md5(content, _MD5[path.name], path)
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            raw = file.read(_MOST + 1)  # a small file can unpack to terabytes
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise UserError(
            f"'{path}' is not a readable gzip file ({error}). It is damaged; download it again."
        ) from error
    if len(raw) > _MOST:
        raise UserError(
            f"'{path}' unpacks to more than {_MOST:,} bytes, the most of Fashion-MNIST. Download it again."
        )
    header = 4 + 4 * ndim
    shape = tuple(int(n) for n in np.frombuffer(raw[4:header], dtype=">u4")) if len(raw) >= header else ()
    if raw[:4] != bytes([0, 0, 8, ndim]) or len(raw) != header + math.prod(shape):  # 8 means unsigned bytes
        raise UserError(
            f"'{path}' is not an idx file of {ndim}-dimensional bytes: it starts with {raw[:4].hex()} and"
            f" holds {len(raw)} bytes for shape {shape}. Download it again."
        )
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy())
