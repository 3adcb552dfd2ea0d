"""SVHN: the digit 0, the order of axes, and files that are none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import io

from dbpkit.data import Dataset, load_dataset
from dbpkit.foundation.errors import UserError

PIXELS = (np.arange(32 * 32 * 3 * 4).reshape(32, 32, 3, 4) % 255).astype(np.uint8)
LABELS = np.array([[1], [10], [3], [9]], np.uint8)


def written(root: Path, **arrays: object) -> Path:
    """A file of these arrays, in the published place."""
    (root / "svhn").mkdir(exist_ok=True)
    io.savemat(root / "svhn" / "test_32x32.mat", arrays, do_compression=True)
    return root / "svhn" / "test_32x32.mat"


def load(root: Path, **options: object) -> Dataset:
    return load_dataset("svhn", {"root": str(root), "verify": False, **options})


def test_svhn_ten_is_the_digit_zero(tmp_path: Path) -> None:
    written(tmp_path, X=PIXELS, y=LABELS)
    data = load(tmp_path)
    assert data.labels.tolist() == [1, 0, 3, 9]
    assert [data.class_names[k] for k in data.labels] == ["1", "0", "3", "9"]


def test_svhn_axes_are_in_order(tmp_path: Path) -> None:
    written(tmp_path, X=PIXELS, y=LABELS)
    data = load(tmp_path)
    assert data.images.shape == (4, 3, 32, 32)
    for n, c, h, w in [(0, 0, 0, 0), (3, 2, 5, 7), (1, 1, 31, 0)]:
        assert data.images[n, c, h, w] == PIXELS[h, w, c, n]
    assert data.images.is_contiguous()


def test_svhn_published_sum_is_asked_for(tmp_path: Path) -> None:
    written(tmp_path, X=PIXELS, y=LABELS)
    with pytest.raises(
        UserError, match=r"is not the published file: MD5 .* eb5a983be6a315427106f1b164d9cef3"
    ):
        load(tmp_path, verify=True)


def test_svhn_missing_part_is_named(tmp_path: Path) -> None:
    written(tmp_path, X=PIXELS, y=LABELS)
    with pytest.raises(UserError, match=r"SVHN: file '.*extra_32x32\.mat' is missing"):
        load(tmp_path, split="extra")


OBJECT = np.full((32, 32, 3, 1), "", object)
"""An array of anything, which no image is."""


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"X": PIXELS}, "'y' must be 4 numbers; found nothing"),
        ({"y": LABELS}, "'X' must be uint8 .* found nothing"),
        ({"X": PIXELS.astype(float), "y": LABELS}, "'X' must be uint8 .* found double"),
        ({"X": OBJECT, "y": LABELS}, "'X' must be uint8 .* found cell"),
        ({"X": PIXELS[:16], "y": LABELS}, r"found uint8 \(16, 32, 3, 4\)"),
        ({"X": PIXELS, "y": LABELS[:3]}, r"'y' must be 4 numbers; found uint8 \(3, 1\)"),
        ({"X": PIXELS, "y": np.array([[0], [1], [2], [3]])}, "whole numbers from 1 to 10"),
        ({"X": PIXELS, "y": np.array([[1.0], [2.5], [2], [np.nan]])}, "whole numbers from 1 to 10"),
        ({"X": PIXELS, "y": np.array([["a"], ["b"], ["c"], ["d"]])}, "'y' must be 4 numbers; found char"),
    ],
)
def test_svhn_other_arrays_are_one_sentence(tmp_path: Path, arrays: dict[str, object], said: str) -> None:
    written(tmp_path, **arrays)
    with pytest.raises(UserError, match=said) as raised:
        load(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not a readable MATLAB file"),
        (b"<html>404</html>" * 20, "is not a readable MATLAB file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "it is of version 7.3, which is HDF5"),
        (b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n", "it is of version 7.3, which is HDF5"),
    ],
)
def test_svhn_other_files_are_one_sentence(tmp_path: Path, content: bytes, said: str) -> None:
    written(tmp_path, X=PIXELS, y=LABELS).write_bytes(content)
    with pytest.raises(UserError, match=said) as raised:
        load(tmp_path)
    assert "\n" not in str(raised.value)


def test_svhn_damage_anywhere_is_one_sentence_or_harmless(tmp_path: Path) -> None:
    path = written(tmp_path, X=PIXELS, y=LABELS)
    whole, same = path.read_bytes(), load(tmp_path)
    refused = 0
    for cut in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError):
            load(tmp_path)
        damaged = bytearray(whole)
        damaged[cut] ^= 0xFF
        path.write_bytes(bytes(damaged))
        said, found = outcome(tmp_path)
        assert "\n" not in said
        assert found is None or torch.equal(found.images, same.images)
        refused += found is None
    assert refused > 20


def outcome(root: Path) -> tuple[str, Dataset | None]:
    """The error, or the data set."""
    try:
        return "", load(root)
    except UserError as error:
        return str(error), None


def test_svhn_that_unpacks_to_more_than_there_can_be_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, X=PIXELS, y=LABELS, more=np.zeros(2**27, np.uint8))
    assert path.stat().st_size < 2**18  # of 128 MB
    with pytest.raises(UserError, match="unpacks to more than 81,2"):
        load(tmp_path)
