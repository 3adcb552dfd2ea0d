"""Photographs through `purify_files`: size, orientation, opacity, depth; tiles that nobody sees."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from dbpkit import NoisePlan, Purifier, UserError
from dbpkit.data.dataset import path_id
from dbpkit.data.pictures import ORIENTATION
from dbpkit.evaluation.purify_files import purify_files
from dbpkit.experiment.spec import PurifierSpec
from dbpkit.foundation.console import PICTURES
from dbpkit.purification.tiles import PlaneNoise, starts
from tests import parts

ONE_STEP = PurifierSpec(sampler="one_step")
NEARLY = PurifierSpec(sampler="one_step", t_star=0.001, steps=1000)
"""Hardly any noise, so that a result is its image to 6 % of white."""

GAUSSIAN = "tests.parts:gaussian_denoiser"


def scene(height: int, width: int, channels: int = 3) -> np.ndarray:
    """A picture with slopes and edges, uint8 (H, W, C)."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(9 * x + 4 * y + k) * np.cos(7 * y * (k + 1)) for k in range(channels)]
    hill = ((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.07)[..., None]
    return (127 + 70 * np.stack(waves, axis=2) + 40 * hill).clip(0, 255).astype(np.uint8)


def purify(
    *paths: Path, out: Path, spec: PurifierSpec = ONE_STEP, denoiser: str = GAUSSIAN, **words: Any
) -> list[Path]:
    return purify_files(list(paths), out, spec, denoiser, **words)


def test_photographs_keep_size_orientation_opacity_and_depth(tmp_path: Path) -> None:
    """A JPEG held upright, 16 bits of grey and an opacity, with the embedded network, in tiles and whole."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    colour = scene(60, 80)
    alpha = np.linspace(0, 255, 60 * 80).astype(np.uint8).reshape(60, 80)
    Image.fromarray(colour).save(tmp_path / "held.jpg", exif=exif, quality=95)
    Image.fromarray(scene(60, 80, 1)[..., 0].astype(np.uint16) * 251).save(tmp_path / "deep.png")
    Image.fromarray(np.dstack([colour, alpha])).save(tmp_path / "clear.png")
    files = [tmp_path / name for name in ("held.jpg", "deep.png", "clear.png")]
    for tile in ("auto", "whole"):
        held, deep, clear = (
            Image.open(path)
            for path in purify(*files, out=tmp_path / "out", denoiser="embedded", tile=tile, overwrite=True)
        )
        assert [(i.mode, i.size) for i in (held, deep, clear)] == [
            ("RGB", (60, 80)), ("I;16", (80, 60)), ("RGBA", (80, 60))
        ]  # fmt: skip
        assert not held.getexif()
        assert np.array_equal(np.asarray(clear)[..., 3], alpha)
        for made, path in ((held, files[0]), (clear, files[2])):
            given = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB")).astype(float)
            assert np.abs(np.asarray(made).astype(float)[..., :3] - given).mean() < 25
        values = np.asarray(deep).astype(float)
        assert np.abs(values - np.asarray(Image.open(files[1])).astype(float)).mean() < 25 * 257
        assert (values % 257 != 0).mean() > 0.9


def test_tiles_are_the_whole_image_where_a_pixel_is_purified_by_itself(tmp_path: Path) -> None:
    Image.fromarray(scene(70, 90)).save(tmp_path / "a.png")
    (written,) = purify(tmp_path / "a.png", out=tmp_path / "out", tile=32, overlap=8)
    x = torch.from_numpy(scene(70, 90)).permute(2, 0, 1)[None] / 255
    noise = PlaneNoise.over(NoisePlan.of(0, [path_id("a")]), [(0, 0)])
    expected = Purifier(parts.gaussian_denoiser(), "one_step")(x, noise=noise)[0]
    pixels = (255 * expected).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(Image.open(written)), pixels)


def test_small_images_have_the_noise_that_they_always_had(tmp_path: Path) -> None:
    Image.fromarray(scene(20, 30)).save(tmp_path / "a.png")
    (written,) = purify(tmp_path / "a.png", out=tmp_path / "out")
    x = torch.from_numpy(scene(20, 30)).permute(2, 0, 1)[None] / 255
    expected = Purifier(parts.gaussian_denoiser(), "one_step")(x, noise=NoisePlan.of(0, [path_id("a")]))[0]
    pixels = (255 * expected).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(Image.open(written)), pixels)


def test_borders_of_tiles_are_no_steeper_than_other_places(tmp_path: Path) -> None:
    """Mean squared steps of what purification changed, where tiles begin and end and on shifted lines.

    Tiles that only touch are steeper there than on any other lines, so the measure sees seams.
    """
    given = scene(144, 144)
    Image.fromarray(given).save(tmp_path / "a.png")
    ratio = {}
    for overlap in (0, 12):
        (written,) = purify(
            tmp_path / "a.png", out=tmp_path / "out", denoiser="embedded", tile=48, overlap=overlap
        )
        change = np.asarray(Image.open(written)).astype(float) - given
        for axis in (0, 1):
            begins = starts(given.shape[axis], 48, overlap)
            borders = np.array(sorted({*begins[1:], *(b + 48 for b in begins[:-1])})) - 1
            steps = (np.diff(change, axis=axis) ** 2).mean(axis=(1 - axis, 2))
            shifted = [steps[(borders + s) % len(steps)].mean() for s in range(-9, 10) if s]
            ratio[overlap, axis] = steps[borders].mean() / max(shifted)
    assert max(ratio[12, 0], ratio[12, 1]) < 1, ratio
    assert min(ratio[0, 0], ratio[0, 1]) > 2, ratio


def test_what_was_done_is_said_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.fromarray(scene(70, 90)).save(tmp_path / "a.png")
    Image.fromarray(scene(20, 20)).save(tmp_path / "b.png")
    said_when_done: list[int] = []

    def progress(_share: float, _what: str) -> None:
        said_when_done.append(len(caplog.messages))

    with caplog.at_level(logging.INFO, logger=PICTURES):
        purify(tmp_path / "a.png", tmp_path / "b.png", out=tmp_path / "out", tile=40, progress=progress)
    assert caplog.messages == ["a.png: 90 x 70 pixels in 6 tiles of 40 x 40 that overlap by 10."]
    assert said_when_done[0] == 1  # before the first rows of tiles are done, not after the last


@pytest.mark.parametrize(
    ("size", "spec", "said"),
    [
        ((70, 70), ONE_STEP, "4 tiles of 64 x 64"),  # made for 32 x 32, and 64 is the least
        ((64, 64), ONE_STEP, ""),
        ((70, 70), PurifierSpec.model_validate({"sampler": "one_step", "resize": 32}), ""),
    ],
)
def test_auto_goes_by_the_networks_size(
    size: tuple[int, int], spec: PurifierSpec, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.fromarray(scene(*size)).save(tmp_path / "a.png")
    with caplog.at_level(logging.INFO, logger=PICTURES):
        (written,) = purify(tmp_path / "a.png", out=tmp_path / "out", denoiser="embedded", spec=spec)
    assert (said in caplog.text) if said else not caplog.text
    assert Image.open(written).size == size


def test_a_filter_sees_the_image_whole_and_odd_sides_are_padded_for_a_network(tmp_path: Path) -> None:
    Image.fromarray(scene(613, 50)).save(tmp_path / "a.png")
    Image.fromarray(scene(13, 9)).save(tmp_path / "b.png")
    spec = PurifierSpec(name=f"{__name__}:Sizes")
    Sizes.seen.clear()
    purify(tmp_path / "a.png", out=tmp_path / "out", spec=spec, denoiser="none")
    assert set(Sizes.seen) == {(613, 50)}
    (written,) = purify(tmp_path / "b.png", out=tmp_path / "out", denoiser="embedded")
    assert Image.open(written).size == (9, 13)


class Sizes(nn.Module):
    """A filter that notes the sizes of what it sees."""

    seen: list[tuple[int, ...]] = []  # noqa: RUF012 - of all objects

    def forward(self, x: Tensor) -> Tensor:
        """Returns the image as it is."""
        Sizes.seen.append(tuple(x.shape[-2:]))
        return x


def test_wrong_overlap_is_refused_before_the_first_image(tmp_path: Path) -> None:
    Image.fromarray(scene(8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="tiles of 32 cannot overlap by 32"):
        purify(tmp_path / "a.png", out=tmp_path / "out", tile=32, overlap=32)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tile", [16, "whole"])
@pytest.mark.parametrize(
    ("mode", "written", "suffix"),
    [("L", "L", "png"), ("LA", "LA", "png"), ("1", "L", "png"), ("P", "RGB", "png"), ("RGBA", "RGBA", "tif"),
     ("CMYK", "RGB", "jpg"), ("I;16", "I;16", "tif"), ("RGB", "RGB", "webp")],
)  # fmt: skip
def test_every_kind_of_file_has_its_kind_of_result(
    mode: str, written: str, suffix: str, tile: Any, tmp_path: Path
) -> None:
    picture = Image.fromarray(scene(21, 30))
    if mode == "I;16":
        picture = Image.fromarray(scene(21, 30, 1)[..., 0].astype(np.uint16) * 257)
    (path := tmp_path / f"a.{suffix}").touch()
    (picture if mode == "I;16" else picture.convert(mode)).save(path)
    given = np.asarray(Image.open(path).convert("RGB" if mode != "I;16" else "I;16")).astype(float)
    (result,) = purify(path, out=tmp_path / "out", tile=tile, spec=NEARLY)
    made = Image.open(result)
    assert (made.mode, made.size) == (written, (30, 21))
    white = 65535 if mode == "I;16" else 255
    values = np.asarray(made if mode == "I;16" else made.convert("RGB")).astype(float)
    assert np.abs(values - given).max() < 0.06 * white
