"""Data sets of the Hugging Face library, read from local files only."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dbpkit.data import Dataset, deferred, load_dataset
from dbpkit.foundation.errors import UserError


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library, with its cache in the test's own folder and no network."""
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    return library


def picture(value: int, size: tuple[int, int] = (6, 4)) -> Image.Image:
    """One image of a single grey; ``size`` is (width, height)."""
    return Image.new("RGB", size, (value, value, value))


def table(library: Any, **columns: Any) -> Any:
    """A table of three pictures and their classes, with columns replaced or added."""
    content = {"image": [picture(v) for v in (10, 20, 30)], "label": [1, 0, 1], **columns}
    features = {
        name: library.ClassLabel(names=["cat", "dog"])
        if name.endswith("label")
        else library.Image()
        if isinstance(values[0], Image.Image)
        else library.Value("string" if any(isinstance(v, str) for v in values) else "int64")
        for name, values in content.items()
    }
    return library.Dataset.from_dict(content, features=library.Features(features))


def load(path: Path, **options: object) -> Dataset:
    """The data set at ``path``."""
    return load_dataset("huggingface", {"path": str(path), **options})


def test_huggingface_saved_table_reads_rows_in_order(library: Any, tmp_path: Path) -> None:
    table(library).save_to_disk(tmp_path / "saved")
    data = load(tmp_path / "saved")
    assert data.ids.tolist() == [0, 1, 2]
    assert data.labels.tolist() == [1, 0, 1]
    assert data.class_names == ("cat", "dog")
    assert data.images[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert data.shape == (3, 4, 6)


def test_huggingface_saved_splits_are_told_apart(library: Any, tmp_path: Path) -> None:
    both = {"train": table(library), "test": table(library).select([2])}
    library.DatasetDict(both).save_to_disk(tmp_path / "saved")
    assert load(tmp_path / "saved").images[:, 0, 0, 0].tolist() == [30]
    assert len(load(tmp_path / "saved", split="train")) == 3
    with pytest.raises(
        UserError, match=r"unknown split .*'tests'\. Did you mean 'test'\? Available: test, train"
    ):
        load(tmp_path / "saved", split="tests")


def test_huggingface_image_folder_reads_without_network(library: Any, tmp_path: Path) -> None:
    for split, name, value in (
        ("train", "cat", 1),
        ("train", "dog", 2),
        ("test", "dog", 3),
        ("test", "cat", 4),
    ):
        path = tmp_path / "animals" / split / name / "1.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(value).save(path)
    data = load(tmp_path / "animals", mode="L")
    found = {
        data.class_names[label]: int(x[0, 0, 0]) for label, x in zip(data.labels, data.images, strict=True)
    }
    assert found == {"cat": 4, "dog": 3}
    assert data.shape == (1, 4, 6)


def test_huggingface_size_makes_different_images_agree(library: Any, tmp_path: Path) -> None:
    table(library, image=[picture(7), picture(7, (9, 5)), picture(7, (3, 8))]).save_to_disk(
        tmp_path / "saved"
    )
    assert load(tmp_path / "saved", size=4).images.unique().tolist() == [7]
    with pytest.raises(UserError, match=r"'row 1' is 5 x 9 pixels .* where 'row 0' is 4 x 6\. Set size"):
        load(tmp_path / "saved")


def test_huggingface_two_image_columns_ask_for_one(library: Any, tmp_path: Path) -> None:
    table(library, depth=[picture(v) for v in (1, 2, 3)]).save_to_disk(tmp_path / "saved")
    with pytest.raises(
        UserError, match=r"expected one column of kind Image, found 2 \(image, depth\).*Set image_column"
    ):
        load(tmp_path / "saved")
    assert load(tmp_path / "saved", image_column="depth").images[:, 0, 0, 0].tolist() == [1, 2, 3]


def test_huggingface_two_label_columns_ask_for_one(library: Any, tmp_path: Path) -> None:
    table(library, coarse_label=[0, 0, 1]).save_to_disk(tmp_path / "saved")
    with pytest.raises(
        UserError, match=r"expected one column of kind ClassLabel, found 2 \(label, coarse_label\)"
    ):
        load(tmp_path / "saved")
    assert load(tmp_path / "saved", label_column="coarse_label").labels.tolist() == [0, 0, 1]


def test_huggingface_text_labels_become_sorted_classes(library: Any, tmp_path: Path) -> None:
    table(library, kind=["owl", "ant", "owl"]).save_to_disk(tmp_path / "saved")
    data = load(tmp_path / "saved", label_column="kind")
    assert data.class_names == ("ant", "owl")
    assert data.labels.tolist() == [1, 0, 1]


def test_huggingface_integer_labels_become_numbered_classes(library: Any, tmp_path: Path) -> None:
    table(library, digit=[2, 0, 2]).save_to_disk(tmp_path / "saved")
    data = load(tmp_path / "saved", label_column="digit")
    assert data.class_names == ("0", "1", "2")
    assert data.labels.tolist() == [2, 0, 2]


def test_huggingface_unlabelled_rows_are_refused(library: Any, tmp_path: Path) -> None:
    table(library, label=[1, -1, 0]).save_to_disk(tmp_path / "unlabelled")  # -1 is the library's "no label"
    with pytest.raises(UserError, match=r"column 'label' has label -1 in row 1, which means"):
        load(tmp_path / "unlabelled")


@pytest.mark.parametrize("values", [["owl", None, "ant"], [None, 1, 2]])
def test_huggingface_row_without_label_is_named(library: Any, tmp_path: Path, values: list[object]) -> None:
    table(library, kind=values).save_to_disk(tmp_path / "saved")
    with pytest.raises(
        UserError, match=f"column 'kind' holds no class label in row {values.index(None)}: None"
    ):
        load(tmp_path / "saved", label_column="kind")


def test_huggingface_unknown_column_is_refused(library: Any, tmp_path: Path) -> None:
    table(library).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=r"unknown image_column .*'imge'\. Did you mean 'image'"):
        load(tmp_path / "saved", image_column="imge")


def test_huggingface_column_without_images_is_refused(library: Any, tmp_path: Path) -> None:
    table(library).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="column 'label' of row 0 holds a int, not an image"):
        load(tmp_path / "saved", image_column="label")


def test_huggingface_unreadable_image_names_the_row(library: Any, tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    picture(5).save(good)
    (tmp_path / "bad.png").write_text("no image")
    content = {"image": [str(good), str(tmp_path / "bad.png")], "label": [0, 1]}
    features = library.Features({"image": library.Image(), "label": library.ClassLabel(names=["a", "b"])})
    library.Dataset.from_dict(content, features=features).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="the image of row 1 cannot be read"):
        load(tmp_path / "saved")


def test_huggingface_other_recorded_split_is_refused(library: Any, tmp_path: Path) -> None:
    content = {"image": np.zeros((1, 4, 4, 3), np.uint8), "label": [0]}
    library.Dataset.from_dict(content, split="train").save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="the folder holds the split 'train', not 'test'"):
        load(tmp_path / "saved")


def test_huggingface_no_rows_is_refused(library: Any, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    table(library).select([]).to_parquet(tmp_path / "tables" / "test.parquet")
    with pytest.raises(UserError, match=r"split 'test' (has no rows|cannot be loaded)"):
        load(tmp_path / "tables")


@pytest.mark.parametrize("path", ["empty", "nobody/nothing"])
def test_huggingface_nothing_loadable_is_one_sentence(
    library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="split 'test' cannot be loaded") as raised:
        load(Path(path))
    assert "\n" not in str(raised.value)


def test_huggingface_missing_folder_is_refused_without_network(library: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.*there is no such folder"):
        load(tmp_path / "nowhere")


def test_huggingface_without_library_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        load(tmp_path)


def test_huggingface_wrong_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mode must be 'L' or 'RGB', not 'CMYK'"):
        load(tmp_path, mode="CMYK")


def test_huggingface_folder_with_a_program_is_refused_before_it_runs(library: Any, tmp_path: Path) -> None:
    """Versions of the library before 4 import a script that has its folder's name."""
    folder = tmp_path / "images"
    (folder / "test" / "cat").mkdir(parents=True)
    picture(3).save(folder / "test" / "cat" / "a.png")
    (folder / "images.py").write_text(f"open({str(tmp_path / 'EXECUTED')!r}, 'w')\n")
    for path in (folder, folder / "images.py"):
        with pytest.raises(UserError, match=r"images\.py' is a program, and data are read, not run"):
            load(path)
    assert not (tmp_path / "EXECUTED").exists()


def numbered(library: Any, labels: list[Any], kind: str) -> Any:
    """A table of one picture per label, which is of this kind."""
    features = library.Features({"image": library.Image(), "label": library.Value(kind)})
    pictures = [picture(k) for k in range(len(labels))]
    return library.Dataset.from_dict({"image": pictures, "label": labels}, features=features)


def test_huggingface_text_labels_of_numbers_are_ordered_as_numbers(library: Any, tmp_path: Path) -> None:
    texts = [str(k) for k in (1, 10, 2, 0, 3, 4, 5, 6, 7, 8, 9, 11)]
    numbered(library, texts, "string").save_to_disk(tmp_path / "saved")
    data = load(tmp_path / "saved", label_column="label")
    assert data.labels.tolist() == [int(t) for t in texts]
    assert data.class_names == tuple(str(k) for k in range(12))


def test_huggingface_folder_of_numbers_is_ordered_as_numbers(library: Any, tmp_path: Path) -> None:
    for k in range(12):
        path = tmp_path / "root" / "test" / str(k) / "a.png"
        path.parent.mkdir(parents=True)
        picture(20 * k).save(path)
    data = load(tmp_path / "root")
    assert [int(x) for x in data.images[:, 0, 0, 0]] == [20 * k for k in data.labels.tolist()]


def test_huggingface_given_classes_fix_the_order(library: Any, tmp_path: Path) -> None:
    table(library).save_to_disk(tmp_path / "saved")
    data = load(tmp_path / "saved", classes=["dog", "cat"])
    assert data.class_names == ("dog", "cat")
    assert data.labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("labels", "kind"), [([0.0, 1.0], "float64"), ([True, False], "bool"), ([0, None], "int64")]
)
def test_huggingface_labels_of_another_kind_are_a_sentence(
    library: Any, tmp_path: Path, labels: list[Any], kind: str
) -> None:
    numbered(library, labels, kind).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=r"column 'label' holds no class label in row [01]: "):
        load(tmp_path / "saved", label_column="label")


def test_huggingface_deep_and_transparent_images_are_read_as_anywhere(library: Any, tmp_path: Path) -> None:
    deep = Image.fromarray(np.full((4, 6), 32768, np.uint16))
    features = library.Features({"image": library.Image(), "label": library.ClassLabel(names=["a"])})
    made = library.Dataset.from_dict({"image": [deep], "label": [0]}, features=features)
    made.save_to_disk(tmp_path / "deep")
    assert float(load(tmp_path / "deep").images[0].mean()) == pytest.approx(32768 / 65535)
    clear = Image.new("RGBA", (6, 4), (1, 2, 3, 100))
    made = library.Dataset.from_dict({"image": [clear], "label": [0]}, features=features)
    made.save_to_disk(tmp_path / "clear")
    with pytest.raises(UserError, match="the image of row 0 has transparent pixels"):
        load(tmp_path / "clear")


def test_huggingface_folder_of_parquet_has_declared_names(library: Any, tmp_path: Path) -> None:
    (tmp_path / "own" / "data").mkdir(parents=True)
    table(library).to_parquet(tmp_path / "own" / "data" / "test-00000-of-00001.parquet")
    data = load(tmp_path / "own")
    assert data.class_names == ("cat", "dog")
    assert data.labels.tolist() == [1, 0, 1]
    assert data.images[:, 0, 0, 0].tolist() == [10, 20, 30]


def test_huggingface_large_split_is_read_when_it_is_chosen(
    library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(library, image=[picture(v, (6, 4 + (v == 30))) for v in (10, 20, 30)]).save_to_disk(
        tmp_path / "saved"
    )
    monkeypatch.setattr(deferred, "AT_ONCE", 0)
    data = load(tmp_path / "saved")
    assert data.ids.tolist() == [0, 1, 2]
    assert data.select([1]).images[:, 0, 0, 0].tolist() == [20]
    with pytest.raises(UserError, match=r"'row 2' is 5 x 6 pixels .* where 'row 0' is 4 x 6"):
        data.select([2]).x()
