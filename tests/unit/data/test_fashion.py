"""Fashion-MNIST: the real files where they are, small ones built here, padding, and what a bad file does."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from dbpkit.data import load_dataset
from dbpkit.data.fashion import pad_to
from dbpkit.foundation.errors import UserError

needs_data = pytest.mark.skipif(not os.environ.get("DBPKIT_DATA"), reason="DBPKIT_DATA is not set")
IMAGES, LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"


def idx(array: np.ndarray) -> bytes:
    """An idx file of bytes: two zeros, type 8, the number of axes, their lengths, the values."""
    return (
        bytes([0, 0, 8, array.ndim])
        + np.array(array.shape, ">u4").tobytes()
        + array.astype(np.uint8).tobytes()
    )


def write_fashion(root: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    """A test split in the published layout; returns its folder."""
    folder = root / "fashion-mnist"
    folder.mkdir()
    (folder / IMAGES).write_bytes(gzip.compress(idx(images)))
    (folder / LABELS).write_bytes(gzip.compress(idx(labels)))
    return folder


def load(root: Path, **options: object) -> object:
    """The small split without checksums."""
    return load_dataset("fashion_mnist", {"root": str(root), "verify": False, **options})


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A root with three images whose pixels are all different from image to image."""
    write_fashion(tmp_path, np.arange(3 * 28 * 28).reshape(3, 28, 28) % 251, np.array([9, 0, 4]))
    return tmp_path


@pytest.mark.data
@needs_data
def test_fashion_mnist_real_test_split_is_the_published_one() -> None:
    data = load_dataset("fashion_mnist")
    assert data.images.shape == (10_000, 1, 28, 28)
    assert data.images.dtype == torch.uint8
    assert data.labels.bincount().tolist() == [1000] * 10  # Xiao et al. 2017: 1,000 test images per class
    assert data.class_names[int(data.labels[0])] == "ankle boot"  # the well-known first test image
    assert data.ids.tolist() == list(range(10_000))


@pytest.mark.data
@needs_data
def test_fashion_mnist_real_train_split_is_padded_to_32() -> None:
    data = load_dataset("fashion_mnist", {"split": "train", "size": 32})
    assert data.images.shape == (60_000, 1, 32, 32)
    assert data.labels.bincount().tolist() == [6000] * 10
    assert int(data.images[:, :, :2].max()) == int(data.images[..., -2:].max()) == 0


def test_fashion_mnist_small_split_keeps_order_and_pixels(small: Path) -> None:
    data = load(small)
    assert data.labels.tolist() == [9, 0, 4]
    assert data.ids.tolist() == [0, 1, 2]
    assert data.images[2, 0, 3, 5] == (2 * 784 + 3 * 28 + 5) % 251


def test_fashion_mnist_size_32_puts_two_black_pixels_on_each_side(small: Path) -> None:
    padded, plain = load(small, size=32).images, load(small).images
    assert torch.equal(padded[:, :, 2:30, 2:30], plain)
    assert int(padded.sum()) == int(plain.sum())


@pytest.mark.parametrize("size", [24, 31])
def test_fashion_mnist_size_not_reachable_is_refused(small: Path, size: object) -> None:
    with pytest.raises(
        UserError, match=f"data 'fashion_mnist': size {size!r} cannot be reached by padding 28 x 28"
    ):
        load(small, size=size)


def test_pad_to_oblong_images_become_square() -> None:
    assert pad_to(torch.ones(1, 1, 2, 4), 6, "tiny")[0, 0].sum(dim=1).tolist() == [0, 0, 4, 4, 0, 0]


def test_fashion_mnist_changed_file_fails_its_checksum(small: Path) -> None:
    with pytest.raises(
        UserError, match=f"{IMAGES}' is not the published file: MD5 .* bef4ecab320f06d8554ea6380940ec79"
    ):
        load_dataset("fashion_mnist", {"root": str(small)})


def test_fashion_mnist_missing_file_is_named(small: Path) -> None:
    (small / "fashion-mnist" / LABELS).unlink()
    with pytest.raises(UserError, match=f"Fashion-MNIST: file '.*{LABELS}' is missing"):
        load(small)


def test_fashion_mnist_truncated_gzip_is_refused(small: Path) -> None:
    path = small / "fashion-mnist" / IMAGES
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=f"{IMAGES}' is not a readable gzip file .*download it again"):
        load(small)


def test_fashion_mnist_corrupt_gzip_is_refused(small: Path) -> None:
    path = small / "fashion-mnist" / IMAGES
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=f"{IMAGES}' is not a readable gzip file"):
        load(small)


def test_fashion_mnist_plain_text_is_refused(small: Path) -> None:
    (small / "fashion-mnist" / LABELS).write_text("<html>404</html>")
    with pytest.raises(UserError, match=f"{LABELS}' is not a readable gzip file"):
        load(small)


@pytest.mark.parametrize(
    "raw", [b"", idx(np.zeros((3, 28), np.uint8)), idx(np.zeros((3, 28, 28), np.uint8))[:-1]]
)
def test_fashion_mnist_other_idx_content_is_refused(small: Path, raw: bytes) -> None:
    (small / "fashion-mnist" / IMAGES).write_bytes(gzip.compress(raw))
    with pytest.raises(
        UserError, match=f"'.*{IMAGES}' is not an idx file of 3-dimensional bytes.*{len(raw)} bytes"
    ):
        load(small)


def test_fashion_mnist_fewer_labels_than_images_is_refused(small: Path) -> None:
    (small / "fashion-mnist" / LABELS).write_bytes(gzip.compress(idx(np.array([1, 2]))))
    with pytest.raises(UserError, match=r"expected images \(N, C, H, W\) with N labels"):
        load(small)
