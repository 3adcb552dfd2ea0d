"""The one reader: every kind of pixel has the value it stands for, whoever reads it, or a sentence."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from dbpkit.data import load_dataset
from dbpkit.data.pictures import as_unit, read_picture, stacked
from dbpkit.evaluation.purify_files import read_image
from dbpkit.foundation.errors import UserError

RAMP = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
COLOUR = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=2)


def palette(transparent: bool = False) -> Image.Image:
    """Six colours in a palette; with a transparency table that leaves all of them opaque, if asked."""
    image = Image.fromarray(COLOUR).quantize(6)
    if transparent:
        image.info["transparency"] = bytes([255] * 6)
    return image


KINDS: dict[str, Callable[[], Image.Image]] = {
    "1": lambda: Image.fromarray(RAMP > 100),
    "L": lambda: Image.fromarray(RAMP),
    "LA": lambda: Image.merge("LA", (Image.fromarray(RAMP), Image.new("L", (6, 4), 255))),
    "P": palette,
    "P+": lambda: palette(transparent=True),
    "RGB": lambda: Image.fromarray(COLOUR),
    "RGBA": lambda: Image.fromarray(COLOUR).convert("RGBA"),
    "I;16": lambda: Image.fromarray(RAMP.astype(np.uint16) * 257),
}
"""Images of every mode that PNG has, 6 x 4, nothing transparent."""


def png(image: Image.Image, path: Path, **options: object) -> Path:
    """The image as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_reader_has_identical_pixels(tmp_path: Path, kind: str, mode: str) -> None:
    file = png(KINDS[kind](), tmp_path / "data" / "class" / "a.png")
    own = read_picture(file, mode=mode)
    assert own.shape == (3 if mode == "RGB" else 1, 4, 6)
    assert torch.equal(load_dataset("folder", {"path": str(tmp_path / "data"), "mode": mode}).images[0], own)
    assert torch.equal(read_image(file, mode), as_unit(own))
    assert torch.equal(read_picture(file.read_bytes(), mode=mode), own)


@pytest.mark.parametrize("kind", ["RGB", "RGBA"])
def test_colours_are_those_of_the_file(tmp_path: Path, kind: str) -> None:
    x = read_picture(png(KINDS[kind](), tmp_path / "a.png"))
    assert torch.equal(x, torch.from_numpy(COLOUR).permute(2, 0, 1))


@pytest.mark.parametrize("kind", ["L", "LA", "I;16"])
def test_grey_is_that_of_the_file(tmp_path: Path, kind: str) -> None:
    x = read_picture(png(KINDS[kind](), tmp_path / "a.png"))
    expected = torch.from_numpy(RAMP).float() / 255  # 257 v / 65535 = v / 255
    assert torch.allclose(as_unit(x), expected.expand(3, 4, 6), atol=1e-7)


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    x = read_picture(png(KINDS["1"](), tmp_path / "a.png"), mode="L")
    assert torch.equal(x[0], torch.from_numpy(RAMP > 100).to(torch.uint8) * 255)


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_16_bit_ramp_is_scaled_and_not_clipped_to_white(tmp_path: Path, ending: str) -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)[None]
    file = tmp_path / f"ramp.{ending}"
    if ending == "pgm":
        file.write_bytes(b"P5 256 1 65535\n" + ramp.astype(">u2").tobytes())
    else:
        Image.fromarray(ramp).save(file)
    x = read_picture(file, mode="L")
    assert x.dtype == torch.float32
    assert torch.allclose(x[0, 0], torch.linspace(0, 1, 256), atol=1 / 65535)
    assert float(x.mean()) == pytest.approx(0.5, abs=1e-4)


def tiff(path: Path, values: np.ndarray) -> Path:
    """A grey TIFF of 32 bits."""
    Image.fromarray(values).save(path)
    return path


def test_float_tiff_in_the_unit_is_taken_as_it_is(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    assert torch.equal(read_picture(tiff(tmp_path / "a.tif", values), mode="L")[0], torch.from_numpy(values))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.array([[0.0, 255.0]], np.float32), r"floating point outside \[0, 1\] \(0 to 255\)"),
        (np.array([[-0.1, 0.5]], np.float32), r"floating point outside \[0, 1\] \(-0.1 to 0.5\)"),
        (np.array([[0.1, np.nan]], np.float32), r"floating point outside \[0, 1\]"),
        (np.array([[0, 70000]], np.int32), r"whole numbers of 32 bits or with a sign \(0 to 70000\)"),
    ],
)
def test_pixels_whose_white_is_not_known_are_refused(tmp_path: Path, values: np.ndarray, said: str) -> None:
    with pytest.raises(UserError, match=f"image '.*a.tif' has .*{said}"):
        read_picture(tiff(tmp_path / "a.tif", values))


def see_through(kind: str) -> tuple[Image.Image, dict[str, object]]:
    """An image with one pixel that is not opaque, and how it is saved."""
    if kind == "RGBA":
        image = Image.fromarray(COLOUR).convert("RGBA")
        image.putpixel((2, 1), (1, 2, 3, 254))
        return image, {}
    if kind == "LA":
        image = KINDS["LA"]()
        image.putpixel((2, 1), (9, 0))
        return image, {}
    if kind == "P":
        return palette(), {"transparency": 0}
    if kind == "L":
        return Image.fromarray(RAMP), {"transparency": int(RAMP[1, 1])}
    return Image.fromarray(COLOUR), {"transparency": tuple(int(v) for v in COLOUR[1, 1])}


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "L", "RGB"])
def test_transparent_pixels_are_refused(tmp_path: Path, kind: str) -> None:
    image, options = see_through(kind)
    with pytest.raises(UserError, match="has transparent pixels"):
        read_picture(png(image, tmp_path / "a.png", **options))


def test_cmyk_is_the_complement_times_the_key(tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    Image.new("CMYK", (2, 2), (255, 0, 0, 0)).save(file)  # all cyan, so no red
    assert read_picture(file)[:, 0, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_honoured(tmp_path: Path, orientation: int) -> None:
    upright = torch.from_numpy(RAMP)[None]
    turned = {  # what a camera stores: the inverse of what a viewer does
        1: upright,
        2: upright.flip(2),
        3: upright.flip(1, 2),
        4: upright.flip(1),
        5: upright.transpose(1, 2),
        6: upright.rot90(1, (1, 2)),
        7: upright.flip(1, 2).transpose(1, 2),
        8: upright.rot90(-1, (1, 2)),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = png(Image.fromarray(turned[0].numpy()), tmp_path / "a.png", exif=exif)
    assert torch.equal(read_picture(file, mode="L"), upright)
    assert torch.equal(read_image(file, "L"), upright.float() / 255)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\xff\x01\x12", b"\xff" * 40])
def test_damaged_metadata_leave_the_picture_as_it_is(tmp_path: Path, exif: bytes) -> None:
    file = png(Image.fromarray(COLOUR), tmp_path / "a.png", exif=exif)
    assert torch.equal(read_picture(file), torch.from_numpy(COLOUR).permute(2, 0, 1))


@pytest.mark.parametrize("size", [(1, 5), (5, 1), (1, 1)])
def test_one_pixel_wide_images_are_not_widened(tmp_path: Path, size: tuple[int, int]) -> None:
    for mode, channels in (("RGB", 3), ("L", 1)):
        file = png(Image.new(mode, size), tmp_path / f"{mode}.png")
        assert read_picture(file, mode=mode).shape == (channels, size[1], size[0])


def test_deep_pictures_are_resized_like_others(tmp_path: Path) -> None:
    values = np.full((10, 7), 12345, np.uint16)
    x = read_picture(png(Image.fromarray(values), tmp_path / "a.png"), size=4)
    assert x.shape == (3, 4, 4)
    assert torch.allclose(x, torch.tensor(12345 / 65535), atol=1e-6)


def test_stacked_pictures_of_both_depths_are_floats() -> None:
    pair = stacked([torch.full((1, 2, 2), 51, dtype=torch.uint8), torch.full((1, 2, 2), 0.25)])
    assert pair.dtype == torch.float32
    assert pair[:, 0, 0, 0].tolist() == [pytest.approx(0.2), 0.25]


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(width: int, height: int) -> bytes:
    """A small PNG that claims to be large."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def text_chunk() -> bytes:
    """A PNG whose text unpacks to more than Pillow admits."""
    about = PngImagePlugin.PngInfo()
    about.add_text("a", "x" * (2 << 20), zip=True)
    file = io.BytesIO()
    Image.fromarray(COLOUR).save(file, "PNG", pnginfo=about)
    return file.getvalue()


def cut(form: str, share: float, **options: object) -> bytes:
    """The first part of a file."""
    file = io.BytesIO()
    noise = (np.arange(64 * 64 * 3) * 31 % 256).astype(np.uint8).reshape(64, 64, 3)
    Image.fromarray(noise).save(file, form, **options)
    return file.getvalue()[: int(len(file.getvalue()) * share)]


HOSTILE: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"<html>404</html>",
    "bomb": lambda: bomb(12_000, 10_000),  # 120 million pixels: above Pillow's limit, below its double
    "large bomb": lambda: bomb(60_000, 60_000),
    "no width": lambda: bomb(0, 5),
    "text chunk": text_chunk,
    "cut png": lambda: cut("PNG", 0.5),
    "cut jpeg": lambda: cut("JPEG", 0.5),
    "cut progressive": lambda: cut("JPEG", 0.5, progressive=True),
    "cut webp": lambda: cut("WEBP", 0.5),
    "cut tiff": lambda: cut("TIFF", 0.9),
    "postscript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n",
    "no pixels": lambda: b"P6 0 0 255\n",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_picture_is_one_sentence(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "photo.png"
    file.write_bytes(HOSTILE[kind]())
    with pytest.raises(
        UserError, match=r"image '.*photo.png' cannot be read \(\w+: .*\)\. It is damaged"
    ) as raised:
        read_picture(file)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "TIFF", "PNG"])
def test_animations_and_pages_are_refused(form: str) -> None:
    file = io.BytesIO()
    frames = [Image.new("RGB", (4, 4), (v, 0, 0)) for v in (0, 90, 200)]
    frames[0].save(file, form, save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match="holds several pictures"):
        read_picture(file.getvalue(), "it")


def test_a_gif_of_one_picture_is_read() -> None:
    file = io.BytesIO()
    Image.fromarray(RAMP).save(file, "GIF")
    assert torch.equal(read_picture(file.getvalue(), mode="L")[0], torch.from_numpy(RAMP))


def test_a_camera_file_of_several_pictures_is_its_first(tmp_path: Path) -> None:
    file = io.BytesIO()
    first, second = Image.new("RGB", (8, 8), (200, 0, 0)), Image.new("RGB", (8, 8))
    first.save(file, "MPO", save_all=True, append_images=[second])
    assert int(read_picture(file.getvalue())[0].min()) > 190


def test_pipes_and_folders_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "folder.png"):
        with pytest.raises(UserError, match=f"{name}' is not a regular file"):
            read_picture(tmp_path / name)
    with pytest.raises(UserError, match=r"nowhere\.png' does not exist"):
        read_picture(tmp_path / "nowhere.png")


def test_resizing_a_thread_of_pixels_is_refused(tmp_path: Path) -> None:
    file = png(Image.new("L", (1, 60_000)), tmp_path / "a.png")
    with pytest.raises(UserError, match=r"1 x 60000 pixels would become 64 x 3840000"):
        read_picture(file, size=64)


def test_names_that_steer_a_terminal_are_escaped(tmp_path: Path) -> None:
    file = tmp_path / "a\x1b[31m\nb.png"
    file.write_bytes(b"no image")
    with pytest.raises(UserError) as raised:
        read_picture(file)
    assert str(raised.value).isprintable()


def test_unknown_mode_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown image mode 'RBG'\. Did you mean 'RGB'"):
        read_picture(png(Image.fromarray(RAMP), tmp_path / "a.png"), mode="RBG")
