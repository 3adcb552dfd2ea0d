"""CIFAR batches: the real ones where they are, small ones built here, and what a bad file does."""

import os
import pickle  # noqa: TID251 - to make the files that the reader must refuse
from pathlib import Path

import numpy as np
import pytest

from dbpkit.data import load_dataset
from dbpkit.errors import UserError

needs_data = pytest.mark.skipif(not os.environ.get("DBPKIT_DATA"), reason="DBPKIT_DATA is not set")
TINY = {"verify": False}


def write_batch(path: Path, content: object) -> None:
    """Pickles as the published files are: protocol 2, with numpy's module name of that time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pickled = pickle.dumps(content, protocol=2)
    path.write_bytes(pickled.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))


def pixels(count: int) -> np.ndarray:
    """(count, 3072) bytes, all rows different."""
    return (np.arange(count * 3072) * 7 % 251).astype(np.uint8).reshape(count, 3072)


def write_cifar10_test(root: Path, batch: object) -> Path:
    """A CIFAR-10 folder with a test batch; returns the batch's path."""
    folder = root / "cifar-10-batches-py"
    write_batch(folder / "batches.meta", {b"label_names": [b"cat", b"dog"]})
    write_batch(folder / "test_batch", batch)
    return folder / "test_batch"


@pytest.mark.data
@needs_data
def test_cifar10_real_test_split_is_the_published_one() -> None:
    data = load_dataset("cifar10")
    assert data.images.shape == (10_000, 3, 32, 32)
    assert data.ids.tolist() == list(range(10_000))
    assert data.labels.bincount().tolist() == [1000] * 10  # Krizhevsky 2009: 1,000 test images per class
    assert data.class_names[3] == "cat"
    assert data.labels[0] == 3  # the well-known first test image is a cat


@pytest.mark.data
@needs_data
def test_cifar10_real_train_split_joins_five_batches() -> None:
    data = load_dataset("cifar10", {"split": "train"})
    assert data.images.shape == (50_000, 3, 32, 32)
    assert data.labels.bincount().tolist() == [5000] * 10
    assert data.ids[-1] == 49_999


def test_cifar100_built_here_reads_fine_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    write_batch(folder / "test", {b"data": pixels(3), b"fine_labels": [1, 0, 2], b"coarse_labels": [0, 0, 1]})
    write_batch(folder / "meta", {b"fine_label_names": [b"apple", b"aquarium_fish", b"baby"]})
    data = load_dataset("cifar100", {"root": str(tmp_path), **TINY})
    assert data.class_names == ("apple", "aquarium_fish", "baby")
    assert data.labels.tolist() == [1, 0, 2]
    assert data.ids.tolist() == [0, 1, 2]
    # planes R G B, rows first: pixel (channel 2, row 1, column 5) is byte 2 * 1024 + 32 + 5
    assert data.images[1, 2, 1, 5] == pixels(3)[1, 2 * 1024 + 32 + 5]


def test_cifar100_unpublished_file_fails_its_checksum(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    write_batch(folder / "test", {b"data": pixels(3), b"fine_labels": [1, 0, 2]})
    write_batch(folder / "meta", {b"fine_label_names": [b"a", b"b", b"c"]})
    with pytest.raises(
        UserError, match=r"is not the published file: MD5 .* where f0ef6b0ae62326f3e7ffdfab6717acfc"
    ):
        load_dataset("cifar100", {"root": str(tmp_path)})


def test_cifar10_missing_folder_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"file '.*/cifar-10-batches-py/test_batch' is missing"):
        load_dataset("cifar10", {"root": str(tmp_path)})


class _Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = str(victim)

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.victim,)


def test_cifar10_malicious_pickle_is_refused_before_it_runs(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    path = write_cifar10_test(tmp_path, {b"data": _Malicious(victim), b"labels": [0]})
    with pytest.raises(UserError, match=r"refused to read 'posix.mkdir' from a data file"):
        load_dataset("cifar10", {"root": str(tmp_path), **TINY})
    assert not victim.exists()
    with path.open("rb") as file:
        pickle.load(file)  # noqa: S301 - its own file, harmless
    assert victim.exists()  # the file was dangerous indeed


def test_cifar10_truncated_file_fails_its_checksum(tmp_path: Path) -> None:
    path = write_cifar10_test(tmp_path, {b"data": pixels(2), b"labels": [0, 1]})
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"MD5 .* \(1000 bytes read\)\. It is truncated or changed"):
        load_dataset("cifar10", {"root": str(tmp_path)})


def test_cifar10_truncated_file_unverified_is_unreadable(tmp_path: Path) -> None:
    path = write_cifar10_test(tmp_path, {b"data": pixels(2), b"labels": [0, 1]})
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="test_batch' is no readable CIFAR batch"):
        load_dataset("cifar10", {"root": str(tmp_path), **TINY})


def test_cifar10_pickled_list_is_refused(tmp_path: Path) -> None:
    write_cifar10_test(tmp_path, [1, 2])
    with pytest.raises(UserError, match="is no CIFAR batch: it holds a list, not a dictionary"):
        load_dataset("cifar10", {"root": str(tmp_path), **TINY})


@pytest.mark.parametrize("batch", [{b"data": pixels(2)}, {b"data": pixels(2)[:, :100], b"labels": [0, 1]}])
def test_cifar10_batch_of_other_form_is_refused(batch: dict[bytes, object], tmp_path: Path) -> None:
    write_cifar10_test(tmp_path, batch)
    with pytest.raises(UserError, match=r"data 'cifar10': .* does not hold cifar10 batches"):
        load_dataset("cifar10", {"root": str(tmp_path), **TINY})


def test_cifar10_label_beyond_class_names_is_refused(tmp_path: Path) -> None:
    write_cifar10_test(tmp_path, {b"data": pixels(2), b"labels": [0, 2]})
    with pytest.raises(UserError, match=r"labels must lie in \[0, 2\), they span 0 to 2"):
        load_dataset("cifar10", {"root": str(tmp_path), **TINY})
