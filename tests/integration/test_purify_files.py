"""Image files in, image files out: nothing else is overwritten, one bad image stops nothing."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dbpkit import UserError
from dbpkit.checks.levels import outside_trained_levels, suspicious_grid
from dbpkit.evaluation.purify_files import as_png, image_channels, purify_files
from dbpkit.experiment.spec import PurifierSpec
from dbpkit.foundation.image_folder import LIST
from dbpkit.models.sources import load_denoiser
from dbpkit.models.weights import Architecture, load_weights, save_weights
from dbpkit.purification.samplers import make_sampler
from tests import parts

ONE_STEP = PurifierSpec(sampler="one_step")
GAUSSIAN = "tests.parts:gaussian_denoiser"


def picture(path: Path, mode: str = "RGB", value: int = 90, size: tuple[int, int] = (8, 6)) -> Path:
    """One image of a single value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value,) * 3).save(path)
    return path


def purify(*paths: Path, out: Path, **words: object) -> list[Path]:
    """Purifies with the exact denoiser of Gaussian data, in one step."""
    return purify_files(
        list(paths), out, words.pop("spec", ONE_STEP), words.pop("denoiser", GAUSSIAN), **words
    )


def test_purify_does_not_overwrite_its_input(tmp_path: Path) -> None:
    photo = picture(tmp_path / "photo.png")
    before = photo.read_bytes()
    for overwrite in (False, True):
        with pytest.raises(
            UserError, match=r"would overwrite '.*photo\.png', which is one of the images given"
        ):
            purify(photo, out=tmp_path, overwrite=overwrite)
    assert photo.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["photo.png"]


def test_purify_does_not_overwrite_an_unrelated_file_before_the_first_image(tmp_path: Path) -> None:
    first, photo = picture(tmp_path / "a.jpg"), picture(tmp_path / "photo.jpg")
    other = picture(tmp_path / "photo.png", value=7)
    before = other.read_bytes()
    with pytest.raises(
        UserError, match=r"'.*photo\.png', which 'dbpkit purify' did not write, .* --overwrite"
    ):
        purify(first, photo, out=tmp_path)
    assert other.read_bytes() == before
    assert not (tmp_path / "a.png").exists()
    purify(first, photo, out=tmp_path, overwrite=True)
    assert other.read_bytes() != before


def test_purify_again_replaces_its_own_results_and_no_edited_one(tmp_path: Path) -> None:
    photo, out = picture(tmp_path / "photo.jpg"), tmp_path / "out"
    (written,) = purify(photo, out=out)
    first = written.read_bytes()
    purify(photo, out=out, seed=1)
    assert written.read_bytes() != first
    purify(photo, out=out)
    assert written.read_bytes() == first
    written.write_bytes(picture(tmp_path / "edited.png").read_bytes())
    with pytest.raises(UserError, match="or which was changed since"):
        purify(photo, out=out)


def test_purify_killed_between_note_and_file_goes_on(tmp_path: Path) -> None:
    photo, out = picture(tmp_path / "photo.jpg"), tmp_path / "out"
    (written,) = purify(photo, out=out)
    noted = json.loads((out / LIST).read_text())
    noted["photo.png"].append("f" * 64)  # what was to be written when it was killed
    (out / LIST).write_text(json.dumps(noted))
    assert purify(photo, out=out) == [written]


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"photo.png": 3}', b"[" * 100_000, b"\xff"])
def test_purify_with_a_damaged_list_overwrites_nothing(tmp_path: Path, damage: bytes) -> None:
    photo, out = picture(tmp_path / "photo.jpg"), tmp_path / "out"
    purify(photo, out=out)
    (out / LIST).write_bytes(damage)
    with pytest.raises(UserError, match="did not write"):
        purify(photo, out=out)


@pytest.mark.parametrize("kind", ["link", "dangling", "hard link", "folder", "own result as input"])
def test_purify_does_not_write_through_other_names_of_a_file(tmp_path: Path, kind: str) -> None:
    photo, out = picture(tmp_path / "photo.jpg"), tmp_path / "out"
    (written,) = purify(photo, out=out)
    precious = picture(tmp_path / "precious.png")
    before = precious.read_bytes()
    written.unlink()
    if kind == "link":
        written.symlink_to(precious)
    elif kind == "dangling":
        written.symlink_to(tmp_path / "new.png")
    elif kind == "hard link":
        os.link(precious, written)
    elif kind == "folder":
        written.mkdir()
    else:
        os.link(photo, written)
    with pytest.raises(UserError, match="would overwrite"):
        purify(photo, out=out)
    assert precious.read_bytes() == before
    assert not (tmp_path / "new.png").exists()


def test_purify_overwriting_a_hard_link_leaves_the_other_name_alone(tmp_path: Path) -> None:
    photo, precious = picture(tmp_path / "photo.jpg"), picture(tmp_path / "precious.png")
    before = precious.read_bytes()
    (tmp_path / "out").mkdir()
    os.link(precious, tmp_path / "out" / "photo.png")
    purify(photo, out=tmp_path / "out", overwrite=True)
    assert precious.read_bytes() == before


@pytest.mark.parametrize(
    "names", [("a/x.png", "b/x.jpg"), ("a/x.png", "b/X.png"), ("caf\u00e9.png", "cafe\u0301.jpg")]
)
def test_purify_results_that_are_one_file_somewhere_are_refused(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    with pytest.raises(UserError, match="two images are called"):
        purify(*(picture(tmp_path / name) for name in names), out=tmp_path / "out")


def test_purify_into_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a folder\. Choose another --out"):
        purify(picture(tmp_path / "a.png"), out=picture(tmp_path / "b.png"))


def test_purify_removes_what_a_killed_run_left_and_nothing_else(tmp_path: Path) -> None:
    photo, out = picture(tmp_path / "photo.jpg"), tmp_path / "out"
    out.mkdir()
    dead = 2**22 + 1  # above the largest process number of Linux
    left, foreign = out / f".photo.png.{dead}.tmp", out / f".other.png.{dead}.tmp"
    for path in (left, foreign):
        path.write_bytes(b"x")
    purify(photo, out=out)
    assert not left.exists()
    assert foreign.exists()
    assert sorted(p.name for p in out.iterdir()) == sorted([LIST, foreign.name, "photo.png"])


class Moody(nn.Module):
    """Fails on bright images with an error of its choice, and returns NaN for dark ones."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns the image, or raises."""
        if x.mean() > 0.5:
            raise MemoryError("no memory for this")
        return x * (float("nan") if x.mean() < -0.5 else 1) + 0 * sigma


def test_purify_one_bad_image_of_any_kind_does_not_end_the_command(tmp_path: Path) -> None:
    good = [picture(tmp_path / f"{k}.png", value=120) for k in range(2)]
    bright, dark = picture(tmp_path / "bright.png", value=255), picture(tmp_path / "dark.png", value=0)
    text = tmp_path / "text.png"
    text.write_bytes(b"no image")
    missing = tmp_path / "missing.png"
    with pytest.raises(UserError) as raised:
        purify(
            text, bright, good[0], missing, dark, good[1], out=tmp_path / "out", denoiser=f"{__name__}:Moody"
        )
    said = str(raised.value)
    assert said.startswith(f"2 of 6 images were purified into '{tmp_path / 'out'}'; not: ")
    for part in (
        "text.png' cannot be read",
        "bright.png' failed (MemoryError: no memory for this)",
        "missing.png' does not exist",
        "dark.png': the purified image is not finite",
    ):
        assert part in said
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == ["0.png", "1.png"]
    assert not list((tmp_path / "out").glob(".*.tmp"))


class Square(nn.Module):
    """A network that takes one size only."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns the image as it is, or raises."""
        if x.shape[2:] != (12, 12):
            raise RuntimeError("12 x 12 only")
        return x + 0 * sigma


def test_purify_every_image_of_a_wrong_size_is_named(tmp_path: Path) -> None:
    odd = [picture(tmp_path / f"{k}.png", size=(k, 9)) for k in (15, 17)]
    with pytest.raises(
        UserError, match=r"0 of 2 .*15\.png': .* no images of 9 x 15 .*17\.png': .* no images of 9 x 17"
    ):
        purify(*odd, out=tmp_path / "out", denoiser=f"{__name__}:Square")
    spec = PurifierSpec(sampler="one_step", pad=1)
    with pytest.raises(
        UserError, match=r"0 of 2 .*15\.png'.*\(3, 9, 15\) does not fit the denoiser \(12 x 12"
    ):
        purify(*odd, out=tmp_path / "out", denoiser=f"{__name__}:Square", spec=spec)
    resizing = PurifierSpec.model_validate({"sampler": "one_step", "resize": [12, 12]})
    for path, size in zip(
        purify(*odd, out=tmp_path / "out", denoiser=f"{__name__}:Square", spec=resizing),
        (15, 17),
        strict=True,
    ):
        assert Image.open(path).size == (size, 9)


class Grey(nn.Module):
    """A network of the user's own that only takes images of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 1).requires_grad_(False)
        self.layer.weight.fill_(1.0)
        self.layer.bias.fill_(0.0)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns the image as it is."""
        if x.shape[2] % 2:
            raise ValueError("even heights only")
        return self.layer(x) + 0 * sigma


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_purify_takes_grey_files_with_a_one_channel_network_of_ones_own(tmp_path: Path, mode: str) -> None:
    odd, photo = picture(tmp_path / "odd.png", mode, size=(4, 5)), picture(tmp_path / "a.png", mode)
    purify(odd, photo, out=tmp_path / "out", denoiser=f"{__name__}:Grey")
    for name, size in (("a", (8, 6)), ("odd", (4, 5))):
        with Image.open(tmp_path / "out" / f"{name}.png") as image:
            assert (image.mode, image.size) == ("L", size)


def test_image_channels_are_found_by_asking() -> None:
    assert image_channels(parts.gaussian_denoiser(), (8, 8)) == 3
    assert image_channels(Grey(), (8, 8)) == 1
    assert image_channels(Grey(), (7, 8)) is None
    assert image_channels(lambda x, sigma: x + 0 * sigma, (8, 8)) == 3
    assert image_channels(lambda x, sigma: f"no image {x} {sigma}", (8, 8)) is None


@pytest.mark.parametrize("size", [(1, 5), (5, 1), (1, 1)])
def test_purify_one_pixel_wide_images_keep_their_size(tmp_path: Path, size: tuple[int, int]) -> None:
    (written,) = purify(picture(tmp_path / "a.png", size=size), out=tmp_path / "out")
    with Image.open(written) as image:
        assert (image.mode, image.size) == ("RGB", size)


def test_as_png_refuses_what_is_no_image() -> None:
    with pytest.raises(UserError, match=r"an image of 1 or 3 channels is expected, not \(2, 4, 4\)"):
        as_png(torch.zeros(2, 4, 4))


def test_purify_a_deep_ramp_keeps_its_grey_values(tmp_path: Path) -> None:
    """A network that returns the mean of what it is given."""
    ramp = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    (written,) = purify(tmp_path / "ramp.png", out=tmp_path / "out", denoiser=f"{__name__}:Level")
    with Image.open(written) as image:
        assert image.mode == "I;16"
        found = np.asarray(image).mean() / 257
    # The mean of 192 draws at sigma 0.34, halved for [0, 1]: deviation 0.012. Clipped to white it was 0.998.
    assert abs(found / 255 - 0.5) < 4 * 0.012


class Level(nn.Module):
    """Returns the mean of the image everywhere: for a ramp from black to white, middle grey."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns a constant image."""
        return x.mean(dim=(1, 2, 3), keepdim=True).expand_as(x) + 0 * sigma


def test_purify_beyond_the_trained_levels_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photo = picture(tmp_path / "a.png", size=(8, 8))
    with caplog.at_level(logging.WARNING, logger="dbpkit.evaluation.purify_files"):
        purify(
            photo, out=tmp_path / "1", denoiser="embedded", spec=PurifierSpec(sampler="one_step", t_star=0.95)
        )
    assert "trained on levels up to 1.24" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="dbpkit.evaluation.purify_files"):
        purify(
            photo, out=tmp_path / "2", denoiser="embedded", spec=PurifierSpec(sampler="one_step", t_star=0.3)
        )
        assert not caplog.text
        purify(photo, out=tmp_path / "3", spec=PurifierSpec(steps=20))
    assert "The chain has only 3 steps from t*" in caplog.text


@pytest.mark.parametrize(
    ("t_star", "variant", "flagged"),
    [(0.1, "vanilla", False), (0.3, "vanilla", False), (0.32, "vanilla", True), (0.12, "addt", False),
     (0.15, "addt", True)],
)  # fmt: skip
def test_embedded_denoisers_know_their_levels(t_star: float, variant: str, flagged: bool) -> None:
    network = load_denoiser("embedded", {"variant": variant})
    found = outside_trained_levels(network, make_sampler("ddpm", t_star).levels)
    assert [f.name for f in found] == ["outside_trained_levels"] * flagged


def test_weights_files_carry_the_levels_a_network_was_trained_on(tmp_path: Path) -> None:
    options = {"channels": [8, 8], "blocks": [1, 1], "embedding_size": 8}
    for levels in (None, (0.01, 1.25)):
        architecture = Architecture("denoiser", "unet", options, trained_levels=levels)
        save_weights(tmp_path / "w.safetensors", architecture.build(), architecture)
        model, found = load_weights(tmp_path / "w.safetensors")
        assert found.trained_levels == levels == model.trained_levels
        assert len(outside_trained_levels(model, torch.tensor([1.3, 0.0]))) == (levels is not None)
    assert "trained_levels" not in Architecture("denoiser", "unet").as_json()


def test_few_steps_are_said_of_ancestral_chains_only() -> None:
    assert [f.name for f in suspicious_grid("ddpm", 4)] == ["suspicious_grid"]
    assert not suspicious_grid("ddpm", 5)
    assert not suspicious_grid("one_step", 1)
    assert not suspicious_grid("likelihood", 3)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("config.json", r"net' is a folder\. Name the weights file\.$"),  # a network without its weights
        ("unet/config.json", r"net' is a folder\. Name the weights file\.$"),
        ("model.safetensors", r"Name the weights file in it: .*model\.safetensors"),
        ("note.txt", r"net' is a folder\. Name the weights file\.$"),
    ],
)
def test_folder_in_place_of_a_denoiser_is_told_how_to_name_it(file: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "net" / file
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(UserError, match=said):
        load_denoiser(str(tmp_path / "net"))


def test_folder_called_like_a_registered_denoiser_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    with pytest.raises(UserError, match="needs the option 'path'"):
        load_denoiser("weights")
