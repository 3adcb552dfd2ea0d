"""Arrays of bytes in idx files, the format of MNIST and its kin: as published, or unpacked."""

import gzip
import io
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dbpkit.data.dataset import check_md5, existing
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.files import read_whole

MOST = 16 + 60_000 * 28 * 28
"""Bytes of the largest file, unpacked."""

PREFIXES = {"train": "train", "test": "t10k"}
"""What the files of a split begin with."""


def read_split(
    folder: Path, split: str, what: str, md5: Mapping[str, str], verify: bool
) -> tuple[Tensor, Tensor]:
    """Returns images (N, H, W) uint8 and labels (N,) int64 of a split, from files packed with gzip or not.

    Args:
        folder: where the files lie.
        split: ``"train"`` or ``"test"``.
        what: the data set, for errors.
        md5: published sums by name of packed file.
        verify: whether a packed file must have its sum; of an unpacked one none is published.

    Raises:
        UserError: if a file is missing, truncated or changed, or there are not as many images as labels.
    """
    images = _read(folder / f"{PREFIXES[split]}-images-idx3-ubyte.gz", 3, what, md5 if verify else {})
    labels = _read(folder / f"{PREFIXES[split]}-labels-idx1-ubyte.gz", 1, what, md5 if verify else {}).long()
    return images, labels


def _read(path: Path, ndim: int, what: str, md5: Mapping[str, str]) -> Tensor:
    """The uint8 array of one idx file, the sum of a packed one checked first."""
    unpacked = path.with_suffix("")
    if not path.is_file() and unpacked.is_file():
        return _array(_content(unpacked, what), ndim, unpacked)
    content = _content(path, what)
    if path.name in md5:
        check_md5(content, md5[path.name], path)
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            raw = file.read(MOST + 1)  # a small file can unpack to terabytes
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise UserError(
            f"'{path}' is not a readable gzip file ({error}). It is damaged; download it again."
        ) from error
    if len(raw) > MOST:
        raise UserError(
            f"'{path}' unpacks to more than {MOST:,} bytes, the most of {what}. Download it again."
        )
    return _array(raw, ndim, path)


def _content(path: Path, what: str) -> bytes:
    try:
        return read_whole(existing(path, what), MOST)
    except OSError as error:
        raise UserError(f"cannot read '{path}' ({error.strerror}). Download it again.") from error


def _array(raw: bytes, ndim: int, path: Path) -> Tensor:
    header = 4 + 4 * ndim
    shape = tuple(int(n) for n in np.frombuffer(raw[4:header], dtype=">u4")) if len(raw) >= header else ()
    if raw[:4] != bytes([0, 0, 8, ndim]) or len(raw) != header + math.prod(shape):  # 8 means unsigned bytes
        raise UserError(
            f"'{path}' is not an idx file of {ndim}-dimensional bytes: it starts with {raw[:4].hex()} and"
            f" holds {len(raw)} bytes for shape {shape}. Download it again."
        )
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy())
