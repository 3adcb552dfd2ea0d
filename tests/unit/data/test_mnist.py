"""MNIST and Fashion-MNIST: packed and unpacked files, where they are looked for, and what a bad file does."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from dbpkit.data import Dataset, load_dataset
from dbpkit.foundation.errors import UserError

IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
PIXELS = (np.arange(3 * 28 * 28).reshape(3, 28, 28) % 251).astype(np.uint8)


def idx(array: np.ndarray) -> bytes:
    """An idx file of bytes: two zeros, type 8, the number of axes, their lengths, the values."""
    lengths = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + lengths + array.astype(np.uint8).tobytes()


def written(folder: Path, packed: bool) -> Path:
    """Three test images of the labels 7, 2, 1."""
    folder.mkdir(parents=True)
    for name, array in ((IMAGES, PIXELS), (LABELS, np.array([7, 2, 1]))):
        content = idx(array)
        (folder / f"{name}{'.gz' * packed}").write_bytes(gzip.compress(content) if packed else content)
    return folder


def load(root: Path, name: str = "mnist", **options: object) -> Dataset:
    return load_dataset(name, {"root": str(root), "verify": False, **options})


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "mnist"), ("mnist", "MNIST/raw"), ("fashion_mnist", "fashion-mnist")]
)
def test_mnist_packed_or_not_is_read(tmp_path: Path, name: str, folder: str, packed: bool) -> None:
    written(tmp_path / folder, packed)
    data = load(tmp_path, name)
    assert data.labels.tolist() == [7, 2, 1]
    assert data.ids.tolist() == [0, 1, 2]
    assert torch.equal(data.images[:, 0], torch.from_numpy(PIXELS))


def test_mnist_pads_to_size(tmp_path: Path) -> None:
    written(tmp_path / "mnist", packed=False)
    padded = load(tmp_path, size=32).images
    assert padded.shape == (3, 1, 32, 32)
    assert torch.equal(padded[:, 0, 2:30, 2:30], torch.from_numpy(PIXELS))
    assert int(padded.sum()) == int(PIXELS.sum())


def test_mnist_published_sum_is_asked_for(tmp_path: Path) -> None:
    written(tmp_path / "mnist", packed=True)
    with pytest.raises(
        UserError, match=r"is not the published file: MD5 .* 9fb629c4189551a2d022fa330f9573f3"
    ):
        load(tmp_path, verify=True)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", idx(PIXELS)[:-1], idx(np.array([1, 2, 3]))])
def test_mnist_other_content_unpacked_is_refused(tmp_path: Path, content: bytes) -> None:
    (written(tmp_path / "mnist", packed=False) / IMAGES).write_bytes(content)
    with pytest.raises(UserError, match=f"{IMAGES}' is not an idx file of 3-dimensional bytes"):
        load(tmp_path)


def test_mnist_missing_file_is_named(tmp_path: Path) -> None:
    (written(tmp_path / "mnist", packed=False) / LABELS).unlink()
    with pytest.raises(UserError, match=f"MNIST: file '.*{LABELS}.gz' is missing"):
        load(tmp_path)
