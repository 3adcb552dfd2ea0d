"""Tiny-ImageNet: annotations, both orders of classes, and damage."""

from pathlib import Path

import pytest
from PIL import Image

from dbpkit.data import Dataset, load_dataset
from dbpkit.foundation.errors import UserError

WNIDS = ("n03000000", "n01000000", "n02000000")
"""In the order of ``wnids.txt``, which is none."""

VAL = {0: WNIDS[1], 1: WNIDS[0], 10: WNIDS[2], 2: WNIDS[1]}


def picture(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (grey,) * 3).save(path, "PNG")


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """Three classes, four validation images and two training images of each class."""
    (tmp_path / "wnids.txt").write_text("\n".join(WNIDS))
    (tmp_path / "words.txt").write_text("n01000000\tcat, house cat\nn02000000\tdog\nn09999999\tother\n")
    for number in VAL:
        picture(tmp_path / "val" / "images" / f"val_{number}.JPEG", number)
    lines = [f"val_{n}.JPEG\t{wnid}\t0\t0\t62\t62" for n, wnid in VAL.items()]
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(lines))
    for k, wnid in enumerate(WNIDS):
        for number in (0, 499):
            picture(tmp_path / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", 50 * k + number % 7)
    return tmp_path


def load(path: Path, **options: object) -> Dataset:
    return load_dataset("tiny_imagenet", {"path": str(path), **options})


def test_tiny_imagenet_val_is_in_the_order_of_numbers(top: Path) -> None:
    data = load(top)
    assert data.ids.tolist() == [0, 1, 2, 10]
    assert data.images[:, 0, 0, 0].tolist() == [0, 1, 2, 10]
    assert data.labels.tolist() == [0, 2, 0, 1]
    assert data.class_names == ("cat", "dog", "n03000000")


def test_tiny_imagenet_classes_in_the_order_of_the_file(top: Path) -> None:
    data = load(top, order="file")
    assert data.labels.tolist() == [1, 0, 1, 2]
    assert data.class_names == ("n03000000", "cat", "dog")


def test_tiny_imagenet_order_of_classes_leaves_ids(top: Path) -> None:
    text, file = load(top, split="train"), load(top, split="train", order="file")
    assert text.ids.tolist() == file.ids.tolist() == [0, 499, 500, 999, 1000, 1499]
    assert text.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert file.labels.tolist() == [1, 1, 2, 2, 0, 0]
    assert text.images[:, 0, 0, 0].tolist() == [50, 52, 100, 102, 0, 2]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("wnids.txt", "", "is empty"),
        ("wnids.txt", "cat\n", "line 1 of '.*' is 'cat'; a synset"),
        ("wnids.txt", "n01000000\nn01000000\n", "not there before"),
        ("val/val_annotations.txt", "val_0.JPEG\tn09000000\n", "a synset of wnids.txt was expected"),
        ("val/val_annotations.txt", "../../x.JPEG\tn01000000\n", "'val_0.JPEG' and a synset"),
        ("val/val_annotations.txt", "val_0.JPEG\tn01000000\nval_0.JPEG\tn01000000\n", "not there before"),
        ("val/val_annotations.txt", "", "names no images"),
        ("val/images/val_2.JPEG", "", "image '.*val_2.JPEG' cannot be read"),
    ],
)
def test_tiny_imagenet_damage_is_one_sentence(top: Path, file: str, content: str, said: str) -> None:
    (top / file).write_text(content)
    with pytest.raises(UserError, match=said) as raised:
        load(top)
    assert "\n" not in str(raised.value)


def test_tiny_imagenet_missing_parts_are_named(top: Path) -> None:
    (top / "train" / WNIDS[0]).rename(top / "away")
    with pytest.raises(UserError, match=r"folder '.*n03000000/images' is missing"):
        load(top, split="train")
    (top / "wnids.txt").unlink()
    with pytest.raises(UserError, match=r"file '.*wnids\.txt' is missing"):
        load(top)
