"""CelebA and CelebA-HQ: attributes, parts, both forms of the lists, and damage."""

from pathlib import Path

import pytest
from PIL import Image

from dbpkit.data import Dataset, load_dataset
from dbpkit.foundation.errors import UserError

SMILING = {1: 1, 2: -1, 3: 1, 4: -1, 5: -1, 6: 1}
PART = {1: 0, 2: 2, 3: 1, 4: 2, 5: 0, 6: 2}
ORIGINAL = {0: 6, 1: 3, 2: 2}
"""The CelebA image of every CelebA-HQ image."""


def picture(path: Path, grey: int, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey,) * 3).save(path, "PNG")


def lists(folder: Path, form: str) -> None:
    """The lists of attributes and parts, as published (.txt) or on Kaggle (.csv)."""
    rows = [[f"{n:06d}.jpg", "-1", str(v), "1"] for n, v in SMILING.items()]
    names, parts = ["Bald", "Smiling", "Young"], [[f"{n:06d}.jpg", str(p)] for n, p in PART.items()]
    if form == "csv":
        attributes = [["image_id", *names], *rows]
        parts = [["image_id", "partition"], *parts]
        texts = ["\n".join(",".join(row) for row in table) for table in (attributes, parts)]
    else:
        attributes = "\n".join([str(len(rows)), " ".join(names) + " ", *("  ".join(row) for row in rows)])
        texts = [attributes, "\n".join(" ".join(row) for row in parts)]
    for name, text in zip(("list_attr_celeba", "list_eval_partition"), texts, strict=True):
        (folder / f"{name}.{form}").write_text(text)


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    for number in SMILING:
        picture(tmp_path / "img_align_celeba" / f"{number:06d}.jpg", number, (178, 218))
    lists(tmp_path, "txt")
    return tmp_path


@pytest.fixture
def faces_hq(tmp_path: Path) -> Path:
    for number in ORIGINAL:
        picture(tmp_path / "CelebA-HQ-img" / f"{number}.jpg", number, (16, 16))
    rows = [f"{n}.jpg  1 {SMILING[original]} -1" for n, original in ORIGINAL.items()]
    (tmp_path / "CelebAMask-HQ-attribute-anno.txt").write_text("\n".join(["3", "Bald Smiling Young", *rows]))
    rows = [f"{n}   {original - 1}   {original:06d}.jpg" for n, original in ORIGINAL.items()]
    (tmp_path / "CelebA-HQ-to-CelebA-mapping.txt").write_text("\n".join(["idx orig_idx orig_file", *rows]))
    lists(tmp_path, "txt")
    return tmp_path


def load(path: Path, attribute: str = "Smiling", name: str = "celeba", **options: object) -> Dataset:
    return load_dataset(name, {"path": str(path), "attribute": attribute, **options})


@pytest.mark.parametrize("form", ["txt", "csv"])
def test_celeba_test_part_with_an_attribute(faces: Path, form: str) -> None:
    for old in faces.glob("list_*"):
        old.unlink()
    lists(faces, form)
    data = load(faces)
    assert data.ids.tolist() == [1, 3, 5]
    assert data.labels.tolist() == [0, 0, 1]
    assert data.class_names == ("not Smiling", "Smiling")
    assert data.shape == (3, 218, 178)
    assert data.images[:, 0, 0, 0].tolist() == [2, 4, 6]


@pytest.mark.parametrize(("split", "ids"), [("train", [0, 4]), ("val", [2]), ("all", [0, 1, 2, 3, 4, 5])])
def test_celeba_parts(faces: Path, split: str, ids: list[int]) -> None:
    assert load(faces, split=split).ids.tolist() == ids


def test_celeba_size_and_other_attribute(faces: Path) -> None:
    data = load(faces, "Young", split="all", size=64)
    assert data.shape == (3, 64, 64)
    assert data.labels.tolist() == [1] * 6


def test_celeba_hq_has_its_own_numbers_and_celebas_parts(faces_hq: Path) -> None:
    every, test = (load(faces_hq, name="celeba_hq", size=8, split=split) for split in ("all", "test"))
    assert every.ids.tolist() == [0, 1, 2]
    assert every.labels.tolist() == [1, 1, 0]
    assert every.shape == (3, 8, 8)
    assert test.ids.tolist() == [0, 2]
    assert test.labels.tolist() == [1, 0]


def test_celeba_unknown_attribute_names_the_others(faces: Path) -> None:
    with pytest.raises(UserError, match=r"unknown attribute of '.*' 'Smilling'. Did you mean 'Smiling'"):
        load(faces, "Smilling")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("list_attr_celeba.txt", "", "unknown attribute"),
        (
            "list_attr_celeba.txt",
            "1\nBald Smiling\n000001.jpg -1\n",
            "a file and 2 times 1 or -1 was expected",
        ),
        ("list_attr_celeba.txt", "1\nBald Smiling\n../1.jpg -1 1\n", "a file and 2 times"),
        ("list_attr_celeba.txt", "1\nBald Smiling\n000001.jpg -1 0\n", "a file and 2 times"),
        ("list_eval_partition.txt", "000001.jpg 3\n", "a file and 0, 1 or 2 was expected"),
        ("list_eval_partition.txt", "000001.jpg 0\n", "no image of the list is in this part"),
        ("img_align_celeba/000004.jpg", "", "image '.*000004.jpg' cannot be read"),
    ],
)
def test_celeba_damage_is_one_sentence(faces: Path, file: str, content: str, said: str) -> None:
    (faces / file).write_text(content)
    with pytest.raises(UserError, match=said) as raised:
        load(faces)
    assert "\n" not in str(raised.value)


def test_celeba_missing_list_is_named(faces: Path) -> None:
    (faces / "list_eval_partition.txt").unlink()
    with pytest.raises(UserError, match=r"file '.*list_eval_partition\.txt' is missing"):
        load(faces)
