"""The images inside the package: what they are, and that damage is noticed."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from dbpkit.data import Dataset, load_dataset
from dbpkit.data.embedded import NAME, read_embedded, write_embedded
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder with a copy of the embedded files."""
    write_embedded(load_dataset("embedded"), tmp_path / "assets")
    return tmp_path / "assets"


def test_embedded_holds_256_labelled_images() -> None:
    data = load_dataset("embedded")
    assert data.images.shape == (256, 3, 32, 32)
    assert data.images.dtype == torch.uint8
    assert data.ids.tolist() == list(range(256))
    assert data.class_names[0] == "airplane"
    assert data.labels[:4].tolist() == [3, 8, 8, 0]  # cat, ship, ship, airplane: the well-known first four


@pytest.mark.data
@pytest.mark.skipif(not os.environ.get("DBPKIT_DATA"), reason="DBPKIT_DATA is not set")
def test_embedded_equals_the_first_cifar10_test_images() -> None:
    original = load_dataset("cifar10").select(slice(0, 256))
    assert load_dataset("embedded").sha256 == original.sha256
    assert load_dataset("embedded").class_names == original.class_names


def test_write_embedded_then_read_returns_the_same(tmp_path: Path) -> None:
    uniform = NoisePlan.of(3, range(256)).uniform("probe", 0, torch.zeros(256, 3, 32, 32))
    images = (uniform * 256).to(torch.uint8)
    data = Dataset("mine", images, torch.arange(256) % 3, torch.arange(256) * 7 + 1, ("a", "b", "c"))
    write_embedded(data, tmp_path)
    assert read_embedded(tmp_path).sha256 == data.sha256
    assert read_embedded(tmp_path).class_names == ("a", "b", "c")


def test_write_embedded_tiles_run_row_by_row(written: Path) -> None:
    with Image.open(written / f"{NAME}.png") as mosaic:
        assert mosaic.size == (512, 512)
        # example 18 is tile (1, 2); its pixel (row 5, column 7) is at x = 2 * 32 + 7, y = 1 * 32 + 5
        assert list(mosaic.getpixel((71, 37))) == load_dataset("embedded").images[18, :, 5, 7].tolist()


@pytest.mark.parametrize("count", [255, 0])
def test_write_embedded_other_count_is_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(
        UserError, match=rf"embedded images must be uint8 \(256, 3, 32, 32\), not .*\({count}, 3"
    ):
        write_embedded(load_dataset("embedded").select(slice(0, count)), tmp_path)


def test_write_embedded_floats_are_refused(tmp_path: Path) -> None:
    data = load_dataset("embedded")
    with pytest.raises(UserError, match=r"embedded images must be uint8 .*, not torch\.float32"):
        write_embedded(replace(data, images=data.x()), tmp_path)


def test_read_embedded_changed_pixel_fails_its_checksum(written: Path) -> None:
    with Image.open(written / f"{NAME}.png") as image:
        red, green, blue = image.getpixel((100, 100))
        image.putpixel((100, 100), (red ^ 1, green, blue))
        image.save(written / f"{NAME}.png")
    with pytest.raises(UserError, match=r"are damaged: sha256 .* was expected. Reinstall dbpkit"):
        read_embedded(written)


@pytest.mark.parametrize("ending", ["png", "json"])
def test_read_embedded_missing_file_is_reported(written: Path, ending: str) -> None:
    (written / f"{NAME}.{ending}").unlink()
    with pytest.raises(UserError, match=f"cannot be read .*{NAME}.{ending}.*Reinstall dbpkit"):
        read_embedded(written)


@pytest.mark.parametrize("ending", ["png", "json"])
def test_read_embedded_truncated_file_is_reported(written: Path, ending: str) -> None:
    path = written / f"{NAME}.{ending}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"cannot be read .*Reinstall dbpkit"):
        read_embedded(written)


def test_read_embedded_other_image_is_reported(written: Path) -> None:
    Image.new("RGB", (64, 64)).save(written / f"{NAME}.png")
    with pytest.raises(UserError, match="cannot be read"):
        read_embedded(written)


def test_read_embedded_description_without_labels_is_reported(written: Path) -> None:
    path = written / f"{NAME}.json"
    described = json.loads(path.read_text())
    del described["labels"]
    path.write_text(json.dumps(described))
    with pytest.raises(UserError, match=r"cannot be read \('labels'\)"):
        read_embedded(written)
