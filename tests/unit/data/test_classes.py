"""Which label a class gets: numbers as numbers, no junk, a sentence where the order is not clear."""

from pathlib import Path

import pytest

from dbpkit.data import Dataset, load_dataset
from dbpkit.data.classes import in_class_order
from dbpkit.foundation.errors import UserError
from tests.unit.data.test_folder import load, write_image

TWELVE = [str(k) for k in range(12)]


def folders(root: Path, names: list[str]) -> Path:
    """A folder with a class of one picture for each name."""
    for name in names:
        write_image(root / name / "a.png")
    return root


def labels(data: Dataset) -> dict[str, int]:
    """The label of every file."""
    return dict(zip(data.origins, data.labels.tolist(), strict=True))


def test_folders_of_numbers_have_the_label_they_say(tmp_path: Path) -> None:
    data = load(folders(tmp_path, TWELVE))
    assert data.class_names == tuple(TWELVE)
    assert labels(data) == {f"{k}/a.png": k for k in range(12)}


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["1", "10", "2", "3", "4", "5", "6", "7", "8", "9"], [str(k) for k in range(1, 11)]),
        (["00", "01", "10", "02", "03", "04", "05", "06", "07", "08", "09"], [f"{k:02}" for k in range(11)]),
        (["b", "a", "c"], ["a", "b", "c"]),
        (["1", "0", "other"], ["0", "1", "other"]),  # both orders agree
        (["n02", "n01", "n10"], ["n01", "n02", "n10"]),
        (["²", "١", "a"], ["a", "²", "١"]),  # digits of other scripts are words
        (["7"], ["7"]),
        (["-1", "-2"], ["-1", "-2"]),  # words: text order
    ],
)
def test_in_class_order(names: list[str], ordered: list[str]) -> None:
    assert list(in_class_order(names, "x")) == ordered


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([*TWELVE, "other"], r"classes are numbers and words \('0', 'other'\), whose order is not known"),
        (["0", "1", "3"], r"numbers from 0 to 3 and 2 is not among them"),
        (["0", "00", "1"], r"classes '0' and '00' are the same but for spelling"),
        (["Cat", "cat"], r"classes 'Cat' and 'cat' are the same but for spelling"),
        (["caf\u00e9", "cafe\u0301"], r"are the same but for spelling"),
    ],
)
def test_an_order_that_is_not_clear_is_a_sentence(names: list[str], said: str) -> None:
    with pytest.raises(UserError, match=rf"x: .*{said}.*classes = \[\.\.\.\]"):
        in_class_order(names, "x")
    assert in_class_order(names, "x", names) == tuple(names)  # the user's order settles it


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (["a"], r"class 'b' is not among classes \(a\)"),
        (["a", "b", "c"], r"there is no class 'c', which classes has; found: a, b"),
        (["a", "b", "a"], r"classes has 'a' twice"),
        ("ab", r"classes must be a list of names, not 'ab'"),
        ([1, 2], r"classes must be a list of names"),
    ],
)
def test_given_classes_must_be_those_found(classes: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        in_class_order(["a", "b"], "x", classes)


def test_folder_given_classes_fix_the_order(tmp_path: Path) -> None:
    data = load(folders(tmp_path, ["a", "b", "c"]), classes=["c", "a", "b"])
    assert data.class_names == ("c", "a", "b")
    assert labels(data) == {"a/a.png": 1, "b/a.png": 2, "c/a.png": 0}


@pytest.mark.parametrize(
    "junk", ["__MACOSX", ".hidden", "@eaDir", "lost+found", "$RECYCLE.BIN", ".ipynb_checkpoints"]
)
def test_folder_junk_of_systems_is_no_class(tmp_path: Path, junk: str) -> None:
    folders(tmp_path, ["a", "b", junk])
    write_image(tmp_path / "a" / junk / "thumbnail.png")
    (tmp_path / "a" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "a" / "._a.png").write_bytes(b"x")
    data = load(tmp_path)
    assert data.class_names == ("a", "b")
    assert data.origins == ("a/a.png", "b/a.png")


def test_folder_class_without_images_is_named(tmp_path: Path) -> None:
    (folders(tmp_path, ["a", "c"]) / "b").mkdir()
    with pytest.raises(
        UserError, match=r"class folder '.*/b' has no images\. Remove it, or name every class"
    ):
        load(tmp_path)
    data = load(tmp_path, classes=["a", "b", "c"])
    assert labels(data) == {"a/a.png": 0, "c/a.png": 2}


def test_folder_class_with_unreadable_images_alone_is_named_despite_skip(tmp_path: Path) -> None:
    (folders(tmp_path, ["a", "b"]) / "b" / "a.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no image of class 'b' in '.*' is readable"):
        load(tmp_path, unreadable="skip")


@pytest.mark.parametrize(
    "parts", [["train", "test"], ["train", "val"], ["Train", "valid", "labels"], ["test"]]
)
def test_folder_of_parts_is_no_folder_of_classes(tmp_path: Path, parts: list[str]) -> None:
    for part in parts:
        folders(tmp_path / part, ["a", "b"])
    with pytest.raises(UserError, match=r"are parts of the data and no classes\. Set split = "):
        load(tmp_path)
    chosen = load(tmp_path, split=parts[0])
    assert chosen.class_names == ("a", "b")
    assert chosen.ids.tolist() == load(tmp_path / parts[0]).ids.tolist()
    with pytest.raises(UserError, match=r"unknown split of '.*' 'tset'"):
        load(tmp_path, split="tset")


def test_folder_of_parts_that_are_classes_is_read_if_the_user_says_so(tmp_path: Path) -> None:
    folders(tmp_path, ["train", "test"])
    assert load(tmp_path, classes=["train", "test"]).class_names == ("train", "test")


def test_folder_one_class_called_like_a_part_is_a_class(tmp_path: Path) -> None:
    assert load(folders(tmp_path, ["plane", "train"])).class_names == ("plane", "train")


def test_folder_that_cannot_be_looked_into_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    folders(tmp_path, ["a", "b"])
    listed = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refusing)  # root may read everything, so that a mode would not do
    with pytest.raises(UserError, match=r"folder '.*/b' cannot be read \(Permission denied\)"):
        load(tmp_path)


def test_load_dataset_classes_that_are_no_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="classes"):
        load_dataset("folder", {"path": str(folders(tmp_path, ["a"])), "classes": 3})
