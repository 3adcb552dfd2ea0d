"""A folder of images: classes, stable ids, sizes, and files that cannot be used."""

import hashlib
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dbpkit.data import Dataset, load_dataset
from dbpkit.data.folder import path_id
from dbpkit.foundation.errors import UserError


def write_image(path: Path, value: object = 100, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> None:
    """One image of a single colour; ``size`` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def load(path: Path, **options: object) -> Dataset:
    """The folder at ``path``."""
    return load_dataset("folder", {"path": str(path), **options})


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """Two classes with three images."""
    write_image(tmp_path / "dog" / "b.png", (30, 20, 10))
    write_image(tmp_path / "cat" / "z.png", (1, 2, 3))
    write_image(tmp_path / "cat" / "a.png", (4, 5, 6))
    return tmp_path


def test_folder_classes_are_sorted_sub_folders(animals: Path) -> None:
    data = load(animals)
    assert data.class_names == ("cat", "dog")
    assert data.labels.tolist() == [0, 0, 1]
    assert data.images[:, :, 0, 0].tolist() == [[4, 5, 6], [1, 2, 3], [30, 20, 10]]
    assert data.images.dtype == torch.uint8
    assert data.shape == (3, 4, 6)


def test_folder_ids_are_hashes_of_relative_paths(animals: Path) -> None:
    names = ["cat/a.png", "cat/z.png", "dog/b.png"]
    assert load(animals).ids.tolist() == [int(hashlib.sha256(n.encode()).hexdigest()[:11], 16) for n in names]


def test_folder_file_added_leaves_other_ids(animals: Path) -> None:
    before = load(animals)
    write_image(animals / "cat" / "aa.png", (7, 7, 7))
    write_image(animals / "ant" / "first.png", (8, 8, 8))
    after = load(animals)
    kept = dict(zip(after.ids.tolist(), after.images, strict=True))
    assert len(after) == 5
    assert all(torch.equal(kept[i], x) for i, x in zip(before.ids.tolist(), before.images, strict=True))


def test_folder_moved_elsewhere_keeps_ids(animals: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = load(animals).sha256
    assert load(animals.rename(tmp_path_factory.mktemp("other") / "place")).sha256 == before


def test_folder_nested_images_belong_to_their_class(animals: Path) -> None:
    write_image(animals / "dog" / "small" / "c.PNG", (9, 9, 9))
    data = load(animals)
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert data.ids[3] == path_id("dog/small/c.PNG")


def test_folder_hidden_and_foreign_files_are_ignored(animals: Path) -> None:
    before = load(animals).sha256
    (animals / "cat" / "notes.txt").write_text("no image")
    (animals / "cat" / ".hidden.png").write_text("no image")
    (animals / ".git").mkdir()
    (animals / "cat" / ".thumbnails").mkdir()
    write_image(animals / "cat" / ".thumbnails" / "a.png")
    (animals / "README.md").write_text("no image")
    assert load(animals).sha256 == before


def test_folder_mode_l_weighs_the_channels(tmp_path: Path) -> None:
    write_image(tmp_path / "red" / "a.png", (255, 0, 0))
    data = load(tmp_path, mode="L")
    assert data.shape == (1, 4, 6)
    assert data.images.unique().tolist() == [76]  # ITU-R 601: 0.299 * 255 = 76.2


def test_folder_grey_file_in_mode_rgb_repeats_the_channel(tmp_path: Path) -> None:
    write_image(tmp_path / "grey" / "a.png", 50, mode="L")
    assert load(tmp_path).images.unique().tolist() == [50]
    assert load(tmp_path).shape == (3, 4, 6)


def test_folder_size_crops_the_centre(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 4:12] = 200  # the centre square
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "wide.png")
    Image.fromarray(pixels.transpose(1, 0, 2).copy()).save(tmp_path / "a" / "tall.png")
    data = load(tmp_path, size=8)  # the shorter side is 8 already, so nothing is interpolated
    assert data.shape == (3, 8, 8)
    assert data.images.unique().tolist() == [200]


@pytest.mark.parametrize("size", [3, 4, 50])
def test_folder_size_resizes_different_images_to_one(tmp_path: Path, size: int) -> None:
    write_image(tmp_path / "a" / "1.png", (77, 77, 77), (10, 7))
    write_image(tmp_path / "a" / "2.png", (77, 77, 77), (9, 31))
    data = load(tmp_path, size=size)
    assert data.images.shape == (2, 3, size, size)
    assert data.images.unique().tolist() == [77]  # bicubic weights add up to one


def test_folder_rotated_by_metadata_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate 90 degrees clockwise to display"
    (tmp_path / "a").mkdir()
    Image.new("RGB", (6, 4)).save(tmp_path / "a" / "1.png", exif=exif)
    assert load(tmp_path).shape == (3, 6, 4)


def test_folder_sizes_differ_names_the_first_that_does(animals: Path) -> None:
    write_image(animals / "cat" / "b.png", 0, (5, 5))
    write_image(animals / "cat" / "c.png", 0, (2, 2))
    with pytest.raises(
        UserError, match=r"'.*/cat/b\.png' is 5 x 5 pixels .* where '.*/cat/a\.png' is 4 x 6\. Set size"
    ):
        load(animals)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "dangling"])
def test_folder_unreadable_image_is_named(animals: Path, damage: str) -> None:
    damaged(animals / "cat" / "m.png", damage)
    with pytest.raises(
        UserError, match=r"image '.*/cat/m\.png' (cannot be read|does not exist).*set unreadable = \"skip\""
    ) as raised:
        load(animals)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "dangling"])
def test_folder_unreadable_skip_warns_and_keeps_the_others(
    animals: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = load(animals)
    damaged(animals / "cat" / "m.png", damage)
    with caplog.at_level(logging.WARNING, logger="dbpkit.data.folder"):
        after = load(animals, unreadable="skip")
    assert after.sha256 == before.sha256
    assert len(caplog.records) == 1
    assert "cat/m.png" in caplog.text


def damaged(path: Path, damage: str) -> None:
    """A file that has an image's name only."""
    if damage == "dangling":
        path.symlink_to(path.parent / "nowhere.png")
    elif damage == "truncated":
        pixels = (np.arange(64 * 64 * 3) * 31 % 256).astype(np.uint8).reshape(64, 64, 3)
        Image.fromarray(pixels).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_text("<html>404</html>" if damage == "text" else "")


def test_folder_all_unreadable_is_refused_despite_skip(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    damaged(tmp_path / "a" / "m.jpg", "text")
    with pytest.raises(UserError, match=r"none of the 1 images in '.*' is readable"):
        load(tmp_path, unreadable="skip")


def test_folder_colliding_ids_name_both_files(tmp_path: Path) -> None:
    pair = ("cat/2873655.png", "cat/5412496.png")  # found by search: both hashes start with fda778518b6
    assert path_id(pair[0]) == path_id(pair[1])
    for name in pair:
        write_image(tmp_path / name)
    with pytest.raises(
        UserError, match=r"'.*/cat/2873655\.png' and '.*/cat/5412496\.png' have the same id 17430982498486"
    ):
        load(tmp_path)


def test_folder_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data 'folder': '.*/nowhere' is not a folder"):
        load(tmp_path / "nowhere")


def test_folder_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no sub-folders"):
        load(tmp_path)


def test_folder_empty_classes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    with pytest.raises(UserError, match="has 2 class folders but no images"):
        load(tmp_path)


def test_folder_without_classes_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"has no sub-folders. Put the images of each class into one"):
        load(tmp_path)


def test_folder_image_outside_classes_is_refused(animals: Path) -> None:
    write_image(animals / "stray.png")
    with pytest.raises(UserError, match=r"image '.*/stray\.png' lies in no class"):
        load(animals)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be a whole number of at least 1, not 0"),
        ({"size": "32"}, "size must be a whole number of at least 1, not '32'"),
        ({"mode": "RBG"}, "mode must be 'L' or 'RGB', not 'RBG'"),
        ({"unreadable": "skp"}, "unreadable must be 'error' or 'skip', not 'skp'"),
    ],
)
def test_folder_wrong_option_is_refused(animals: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(animals, **options)
