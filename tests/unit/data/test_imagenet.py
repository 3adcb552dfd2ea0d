"""ImageNet's validation images: both layouts, every list of labels, the order of classes and of files."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import io

from dbpkit.data import Dataset, deferred, load_dataset
from dbpkit.foundation.errors import UserError

WNIDS = [f"n{k:08d}" for k in range(1, 1001)]
"""A thousand synsets, in order."""

LABELS = {1: WNIDS[700], 2: WNIDS[3], 3: WNIDS[700], 4: WNIDS[999], 12: WNIDS[0]}
"""The synset of some images by number."""


def name_of(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def picture(path: Path, number: int, size: tuple[int, int] = (40, 30)) -> None:
    """An image whose grey value is its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10 * number,) * 3).save(path, "PNG")


def mapping(folder: Path) -> None:
    lines = [f"{wnid} name {k}, other name" for k, wnid in enumerate(WNIDS)]
    (folder / "LOC_synset_mapping.txt").write_text("\n".join(lines))


@pytest.fixture
def by_synset(tmp_path: Path) -> Path:
    """A folder per synset that has an image, and the list of all."""
    for number, wnid in LABELS.items():
        picture(tmp_path / "val" / wnid / name_of(number), number)
    mapping(tmp_path)
    return tmp_path


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """One folder, as Kaggle unpacks it, without labels."""
    for number in LABELS:
        picture(tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "val" / name_of(number), number)
    mapping(tmp_path)
    return tmp_path


def solution(folder: Path) -> None:
    lines = [f"{name_of(n)[:-5]},{wnid} 1 2 3 4 {wnid} 5 6 7 8" for n, wnid in LABELS.items()]
    (folder / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "\n".join(lines))


def load(path: Path, **options: object) -> Dataset:
    return load_dataset("imagenet", {"path": str(path), "size": 8, "resize": 10, **options})


def check(data: Dataset) -> None:
    """By number: ids, labels and pixels belong together."""
    assert data.ids.tolist() == [n - 1 for n in LABELS]
    assert [WNIDS[k] for k in data.labels] == list(LABELS.values())
    assert data.images[:, 0, 0, 0].tolist() == [10 * n for n in LABELS]
    assert data.class_names[3] == "name 3"
    assert len(data.class_names) == 1000


def test_imagenet_folder_per_synset_has_classes_in_order(by_synset: Path) -> None:
    check(load(by_synset))
    assert load(by_synset / "val").sha256 == load(by_synset).sha256


def test_imagenet_listed_by_class_is_the_order_of_an_image_folder(by_synset: Path) -> None:
    data = load(by_synset, listed="class")
    folder = load_dataset("folder", {"path": str(by_synset / "val")})
    assert data.origins == folder.origins
    assert data.labels.tolist() == [0, 3, 700, 700, 999]


def test_imagenet_solution_of_kaggle(flat: Path) -> None:
    solution(flat)
    check(load(flat))


@pytest.mark.parametrize("as_wnid", [True, False])
def test_imagenet_val_list(flat: Path, as_wnid: bool) -> None:
    said = {n: wnid if as_wnid else WNIDS.index(wnid) for n, wnid in LABELS.items()}
    (flat / "val.txt").write_text("".join(f"{name_of(n)} {k}\n" for n, k in said.items()))
    check(load(flat))


def test_imagenet_development_kit_has_its_own_order(flat: Path) -> None:
    kit = flat / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    own = {wnid: 1 + (7 * k) % 1000 for k, wnid in enumerate(WNIDS)}  # the kit's number of a synset
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")]
    table = np.empty((1001, 1), kinds)
    for k, (wnid, number) in enumerate([*own.items(), ("n99999999", 1001)]):
        table[k, 0] = (number, wnid, 0)
    io.savemat(kit / "meta.mat", {"synsets": table})
    lines = [str(own[LABELS.get(n, WNIDS[5])]) for n in range(1, 13)]
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(lines))
    check(load(flat))
    (kit / "meta.mat").unlink()
    with pytest.raises(UserError, match="counts classes in its own order"):
        load(flat)


def test_imagenet_layouts_have_the_same_hash(
    by_synset: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("flat")
    for number in LABELS:
        picture(other / name_of(number), number)
    mapping(other)
    solution(other)
    assert load(other).sha256 == load(by_synset).sha256


def test_imagenet_all_synsets_need_no_list(tmp_path: Path) -> None:
    picture(tmp_path / "first.png", 1)
    for k, wnid in enumerate(WNIDS):
        (tmp_path / "val" / wnid).mkdir(parents=True)
        os.link(tmp_path / "first.png", tmp_path / "val" / wnid / name_of(1000 - k))
    data = load(tmp_path)
    assert data.labels.tolist() == list(range(999, -1, -1))
    assert data.class_names == tuple(WNIDS)


def test_imagenet_some_synsets_without_a_list_are_refused(by_synset: Path) -> None:
    (by_synset / "LOC_synset_mapping.txt").unlink()
    with pytest.raises(UserError, match="has images of 4 synsets, so their places among 1000 are not known"):
        load(by_synset)


def test_imagenet_files_of_a_list_are_taken_in_its_order(by_synset: Path) -> None:
    chosen = by_synset / "ids.txt"
    chosen.write_text("".join(f"{LABELS[n]}/{name_of(n)}\n" for n in (4, 12, 2)))
    data = load(by_synset, files=str(chosen))
    assert data.ids.tolist() == [3, 11, 1]
    assert data.labels.tolist() == [999, 0, 3]
    chosen.write_text(f"{WNIDS[0]}/{name_of(5)}\n")
    with pytest.raises(UserError, match=r"line 1 of '.*ids\.txt' is .*; one of the validation images"):
        load(by_synset, files=str(chosen))


@pytest.mark.parametrize(
    ("size", "high", "wide"), [((50, 35), 10, 14), ((35, 50), 14, 10), ((37, 23), 10, 16)]
)
def test_imagenet_cut_is_that_of_resize_and_centre_crop(
    by_synset: Path, size: tuple[int, int], high: int, wide: int
) -> None:
    """Resize(10), whose longer side is rounded down, and CenterCrop(8), as torchvision documents them."""
    values = (np.arange(size[0] * size[1] * 3) * 7 % 256).astype(np.uint8).reshape(size[1], size[0], 3)
    path = by_synset / "val" / WNIDS[700] / name_of(1)
    Image.fromarray(values).save(path, "PNG")
    expected = np.array(Image.fromarray(values).resize((wide, high), Image.Resampling.BILINEAR))
    top, left = (high - 8) // 2, (wide - 8) // 2
    found = load(by_synset).images[0].permute(1, 2, 0).numpy()
    assert np.array_equal(found, expected[top : top + 8, left : left + 8])


def test_imagenet_is_read_when_it_is_chosen(by_synset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred, "AT_ONCE", 0)
    (by_synset / "val" / WNIDS[999] / name_of(4)).write_bytes(b"damaged")
    data = load(by_synset)
    assert torch.equal(data.select([1]).images[0, 0], torch.full((8, 8), 20, dtype=torch.uint8))
    with pytest.raises(UserError, match=rf"image '.*{name_of(4)}' cannot be read"):
        data.select([3]).x()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda p: (p / "LOC_val_solution.csv").write_text("ImageId,x\nnonsense\n"),
            "line 2 of '.*' is 'nonsense'",
        ),
        (lambda p: (p / "LOC_val_solution.csv").write_bytes(b"\xff\xfe\0"), "is not a text"),
        (
            lambda p: (p / "LOC_val_solution.csv").write_text(""),
            "the list of labels '.*' is empty",
        ),
        (lambda p: (p / "LOC_val_solution.csv").unlink(), "no list of labels lies beside it or above"),
        (lambda p: (p / "LOC_synset_mapping.txt").write_text("n00000001 a\n"), "holds 1 synsets; 1000 were"),
        (lambda p: (p / "LOC_synset_mapping.txt").write_text("cat\n"), "line 1 of '.*' is 'cat'; a synset"),
    ],
)
def test_imagenet_damaged_lists_are_one_sentence(flat: Path, damage: object, said: str) -> None:
    solution(flat)
    damage(flat)  # type: ignore[operator]
    with pytest.raises(UserError, match=said) as raised:
        load(flat)
    assert "\n" not in str(raised.value)


def test_imagenet_kaggles_running_numbers_are_no_classes(flat: Path) -> None:
    (flat / "val.txt").write_text("".join(f"ILSVRC2012_val_{n:08d} {n}\n" for n in range(1, 1002)))
    with pytest.raises(UserError, match=r"line 1000 of '.*' is .*; a file and a class, 0 to 999"):
        load(flat)


def test_imagenet_nothing_there_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no validation images in '.*'. Set data.options.path"):
        load(tmp_path)


def test_imagenet_an_image_twice_is_refused(by_synset: Path) -> None:
    picture(by_synset / "val" / WNIDS[8] / name_of(2), 2)
    with pytest.raises(UserError, match="are the same image"):
        load(by_synset)


def test_imagenet_crop_larger_than_the_image_is_refused(by_synset: Path) -> None:
    with pytest.raises(UserError, match="resize = 7 is smaller than size = 8"):
        load(by_synset, resize=7)
