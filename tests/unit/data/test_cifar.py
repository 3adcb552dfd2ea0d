"""CIFAR batches: the real ones where they are, small ones built here, and what a bad file does."""

import os
import pickle  # noqa: TID251 - to make the files that the reader must refuse
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dbpkit.data import load_dataset
from dbpkit.data.batches import read_batch
from dbpkit.foundation.errors import UserError

needs_data = pytest.mark.skipif(not os.environ.get("DBPKIT_DATA"), reason="DBPKIT_DATA is not set")
TINY = {"verify": False}
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
UINT8 = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"


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
    with pytest.raises(
        UserError, match=r"it would call 'posix\.mkdir', which is not part of a CIFAR batch and is refused"
    ):
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
    with pytest.raises(UserError, match="test_batch' is not a readable CIFAR batch"):
        load_dataset("cifar10", {"root": str(tmp_path), **TINY})


def test_cifar10_pickled_list_is_refused(tmp_path: Path) -> None:
    write_cifar10_test(tmp_path, [1, 2])
    with pytest.raises(UserError, match=r"not a readable CIFAR batch \(it holds a list, not a dictionary\)"):
        load_dataset("cifar10", {"root": str(tmp_path), **TINY})


@pytest.mark.parametrize("batch", [{b"data": pixels(2)}, {b"data": pixels(2)[:, :100], b"labels": [0, 1]}])
def test_cifar10_batch_of_other_form_is_refused(batch: dict[bytes, object], tmp_path: Path) -> None:
    write_cifar10_test(tmp_path, batch)
    with pytest.raises(
        UserError, match=r"test_batch' does not hold CIFAR (images|labels): '(data|labels)' must be"
    ):
        load_dataset("cifar10", {"root": str(tmp_path), **TINY})


def test_cifar10_label_beyond_class_names_is_refused(tmp_path: Path) -> None:
    write_cifar10_test(tmp_path, {b"data": pixels(2), b"labels": [0, 2]})
    with pytest.raises(UserError, match=r"labels must lie in \[0, 2\), they span 0 to 2"):
        load_dataset("cifar10", {"root": str(tmp_path), **TINY})


def read_test_batch(root: Path, pickled: bytes) -> Any:
    """What the reader makes of a test batch of these bytes."""
    write_cifar10_test(root, {}).write_bytes(pickled)
    return load_dataset("cifar10", {"root": str(root), **TINY})


@pytest.mark.data
@needs_data
@pytest.mark.parametrize("name", ["test_batch", "data_batch_3", "batches.meta"])
def test_read_batch_of_the_published_files_is_what_pickle_makes_of_them(name: str) -> None:
    content = (Path(os.environ["DBPKIT_DATA"]) / "cifar-10-batches-py" / name).read_bytes()
    found, expected = read_batch(content), pickle.loads(content, encoding="bytes")  # noqa: S301 - published
    assert list(found) == [key.decode() for key in expected]
    for key, value in expected.items():
        assert type(found[key.decode()]) is type(value)
        assert np.array_equal(found[key.decode()], value)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("as_array", [False, True])
def test_cifar10_file_written_by_this_numpy_is_read(
    protocol: int, order: Any, as_text: bool, as_array: bool, tmp_path: Path
) -> None:
    images, labels = np.array(pixels(5), order=order), [1, 0, 1, 1, 0]
    batch = {"data": images, "labels": np.array(labels) if as_array else labels, "filenames": ["a.png"] * 5}
    content = batch if as_text else {key.encode(): value for key, value in batch.items()}
    data = read_test_batch(tmp_path, pickle.dumps(content, protocol))
    assert data.labels.tolist() == labels
    assert np.array_equal(data.images.numpy(), pixels(5).reshape(5, 3, 32, 32))


def test_array_type_that_the_file_fills_is_refused(tmp_path: Path) -> None:
    """Admitted constructors alone can crash NumPy: here a type of one byte gets a field far outside of it."""
    field = b"(U\x01at}U\x01a(" + UINT8 + b"\x8a\x04\x00\x00\x00\x7fts"
    state = b"(K\x03U\x01|N" + field + b"K\x08K\x01K\x1btb"
    content = b"\x80\x02}(U\x04data" + ARRAY + b"(K\x01K\x01M\x00\x0c\x86" + UINT8 + state + b"\x89U\x00tbu."
    with pytest.raises(UserError, match="it holds an array that is not one of plain whole numbers"):
        read_test_batch(tmp_path, content)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1.0], r"'labels' 1 must be a whole number, the class; found 1\."),
        ([0, float("nan")], "'labels' 1 must be a whole number, the class; found nan"),
        ([True, 0], "'labels' 0 must be a whole number, the class; found a bool"),
        ([0, None], "'labels' 1 must be a whole number, the class; found none"),
        ([0, "1"], "'labels' 1 must be a whole number, the class; found a str"),
        ([0, [1]], "'labels' 1 must be a whole number, the class; found a list"),
        ([0, 2**60], "'labels' 1 must be a whole number, the class; found a number of too many digits"),
        ([0, 300], r"labels must lie in \[0, 2\), they span 0 to 300"),
        ([-1, 0], r"labels must lie in \[0, 2\), they span -1 to 0"),
        ([0], "'labels' must be 2 numbers; found 1 of them"),
        ([0, 1, 0], "'labels' must be 2 numbers; found 3 of them"),
        ("01", "'labels' must be 2 numbers; found a str"),
        (None, "'labels' must be 2 numbers; found none"),
        (0, "'labels' must be 2 numbers; found a int"),
        (np.array([0, 1.5]), "it holds an array of type 'f8'; whole numbers were expected"),
        (np.array([0, None]), "it holds an array of type 'O8'; whole numbers were expected"),
        (np.array([True, False]), "it holds an array of type 'b1'; whole numbers were expected"),
        (np.array([[0, 1]]), "'labels' must be 2 numbers; found a ndarray"),
        (np.array([0, 1], ">i4"), "not one of plain whole numbers"),
        (np.int64(1), "it would call 'numpy._core.multiarray.scalar'"),
        (2**200, "it holds a whole number of 201 bits"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_labels_that_are_none_are_refused(labels: Any, message: str, protocol: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as raised:
        read_test_batch(tmp_path, pickle.dumps({b"data": pixels(2), b"labels": labels}, protocol))
    assert len(str(raised.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize(
    "images",
    [
        pixels(2).astype(np.int64), pixels(2).astype(np.int8), pixels(2).reshape(2, 3, 32, 32), pixels(2)[0],
        pixels(2).tolist(), b"x" * 6144, np.zeros((2, 3072), "S1"), np.zeros((2, 3072), [("a", "u1")]), None,
    ],
    ids=lambda value: str(getattr(value, "dtype", type(value).__name__)),
)  # fmt: skip
def test_images_that_are_none_are_refused(images: Any, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"test_batch' (does not hold CIFAR images|is not a readable CIFAR batch)"
    ):
        read_test_batch(tmp_path, pickle.dumps({b"data": images, b"labels": [0, 1]}, 2))


def nested(depth: int) -> bytes:
    """Lists in lists."""
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


BOMBS = {
    "nothing": b"",
    "no end": b"\x80\x02}",
    "a number of 4 million digits": b"\x80\x02\x8b" + (10**6).to_bytes(4, "little") + b"\x7f" * 10**6 + b".",
    "a text number of 10,000 digits": b"L" + b"9" * 10_000 + b"L\n.",
    "many lists in each other": nested(10**5),
    "a list that holds itself": b"\x80\x02]q\x00h\x00a.",
    "a dictionary that holds itself": b"\x80\x02}q\x00(U\x04datah\x00U\x06labelsh\x00u.",
    "a key that is a tuple of tuples": b"})" + b"\x86" * 3 + b"]s.",
    "an array of 2**60 bytes": ARRAY + b"(K\x01(\x8a\x08" + bytes(7) + b"\x10t" + UINT8 + b"\x89U\x01atb.",
    "an array of many axes": ARRAY + b"(K\x01(" + b"K\x01" * 100 + b"t" + UINT8 + b"\x89U\x01atb.",
    "an array of negative length": ARRAY + b"(K\x01(J\xff\xff\xff\xfft" + UINT8 + b"\x89U\x01atb.",
    "an array without bytes": b"}U\x04data" + ARRAY + b"s.",
    "an array of objects": ARRAY + b"(K\x01(K\x01tcnumpy\ndtype\n(U\x02O8K\x00K\x01tR\x89(lNatb.",
    "a text that is said to be longer": b"\x80\x03B\xff\xff\xff\x7fab.",
    "one byte string many times": b"}c_codecs\nencode\nq\x00X\x88\x13\x00\x00" + b"a" * 5000 + b"q\x01"
    + b"h\x00(h\x01X\x06\x00\x00\x00latin1tR" * 1000 + b".",
    "a persistent name": b"Pname\n.",
    "an extension": b"\x82\x01.",
    "an instance": b"(ios\nsystem\n.",
    "an object": b"(cos\nsystem\nU\x02ido.",
    "a new object": b"\x80\x04\x8c\x02os\x8c\x06system\x93)\x81.",
    "a call by protocol 4": b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93\x8c\x02id\x85R.",
    "builtins": b"cbuiltins\neval\n(U\x01ptR.",
    "an attribute of an admitted module": b"cnumpy.core.multiarray\nfromfile\n(U\x0b/etc/passwdtR.",
    "a state for a type": UINT8 + b"(K\x03U\x01|N(U\x01atd}K\x08K\x01K\x1btb.",
    "a state for a list": b"](K\x01tb.",
    "marks": b"(" * 10**5 + b".",
    "a stack that is empty": b"a.",
    "names that are no ASCII": b"c\xff\xfe\nx\n.",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_hostile_pickle_is_one_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"test_batch' (is not a readable CIFAR batch|does not hold CIFAR)"
    ) as raised:
        read_test_batch(tmp_path, BOMBS[name])
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400 + len(str(tmp_path))


def test_hostile_pickles_need_no_memory(tmp_path: Path) -> None:
    """Every one of them in a process of its own that may not grow by more than 300 MiB."""
    files = []
    for number, content in enumerate(BOMBS.values()):
        files.append(tmp_path / f"{number}.pkl")
        files[-1].write_bytes(content)
    program = (
        "import resource, sys\nfrom pathlib import Path\nfrom dbpkit.data.batches import read_batch\n"
        "now = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (now + 300 * 2**20,) * 2)\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n        read_batch(Path(path).read_bytes())\n"
        "    except (ValueError, OverflowError):\n        pass\n"
        "print('alive')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *files], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")


def test_cifar10_file_of_a_terabyte_is_not_read(tmp_path: Path) -> None:
    path = write_cifar10_test(tmp_path, {})
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse: it takes no space
    with pytest.raises(UserError, match="is not a readable CIFAR batch \\(it is larger than any\\)"):
        load_dataset("cifar10", {"root": str(tmp_path), **TINY})


def test_cifar10_class_names_that_are_none_are_refused(tmp_path: Path) -> None:
    write_cifar10_test(tmp_path, {b"data": pixels(1), b"labels": [0]})
    for names in (None, b"cat", [1], [b"cat", None]):
        write_batch(tmp_path / "cifar-10-batches-py" / "batches.meta", {b"label_names": names})
        with pytest.raises(UserError, match=r"batches\.meta' does not hold class names"):
            load_dataset("cifar10", {"root": str(tmp_path), **TINY})
