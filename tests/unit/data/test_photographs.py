"""Files that are written again: orientation, opacity, depth and profile come through, or it is said."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from dbpkit import UserError
from dbpkit.data.photographs import read_photograph
from dbpkit.data.pictures import ORIENTATION
from dbpkit.foundation.png import png_bytes, whole_numbers

GREY = (np.arange(24, dtype=np.uint8) * 10).reshape(4, 6)
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=2)
ALPHA = np.linspace(0, 255, 24).astype(np.uint8).reshape(4, 6)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def deep_png(path: Path, kind: int, values: np.ndarray) -> Path:
    """A PNG file of 16 bits, which Pillow does not write in colour: header, one block of plain rows, end."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_to_pixels_and_opacity(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.fromarray(np.dstack([COLOUR, ALPHA]))
    photo = read_photograph(saved(image, tmp_path / "a.png", exif=exif))
    with Image.open(tmp_path / "a.png") as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored))
    assert photo.alpha is not None
    assert np.array_equal(np.dstack([photo.pixels.transpose(1, 2, 0), photo.alpha]), expected)


@pytest.mark.parametrize(
    ("image", "channels", "alpha"),
    [
        (Image.fromarray(GREY), 1, False),
        (Image.fromarray(GREY > 100), 1, False),
        (Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(ALPHA))), 1, True),
        (Image.fromarray(COLOUR), 3, False),
        (Image.fromarray(np.dstack([COLOUR, ALPHA])), 3, True),
        (Image.fromarray(COLOUR).quantize(6), 3, False),
    ],
    ids=lambda v: v.mode if isinstance(v, Image.Image) else "",
)
def test_grey_stays_grey_and_opacity_is_kept(
    tmp_path: Path, image: Image.Image, channels: int, alpha: bool
) -> None:
    photo = read_photograph(saved(image, tmp_path / "a.png"))
    assert photo.pixels.shape == (channels, 4, 6)
    assert (photo.alpha is not None) == alpha
    if alpha:
        assert np.array_equal(photo.alpha, ALPHA)
    assert (photo.bits, photo.profile, photo.notes) == (8, None, ())


def test_a_transparent_colour_becomes_opacity(tmp_path: Path) -> None:
    photo = read_photograph(saved(Image.fromarray(GREY), tmp_path / "a.png", transparency=50))
    assert photo.pixels.shape[0] == 1
    assert np.array_equal(photo.alpha, np.where(GREY == 50, 0, 255))
    indexed = Image.fromarray(COLOUR).quantize(6)
    photo = read_photograph(saved(indexed, tmp_path / "p.png", transparency=2))
    assert np.array_equal(photo.alpha == 0, np.asarray(indexed) == 2)


def test_sixteen_bits_of_grey_stay_and_of_colour_are_said_to_be_lost(tmp_path: Path) -> None:
    values = (np.arange(24) * 2741).astype(np.uint16).reshape(4, 6)
    photo = read_photograph(saved(Image.fromarray(values), tmp_path / "a.png"))
    assert photo.bits == 16
    assert np.array_equal(np.rint(photo.pixels[0] * 65535).astype(np.uint16), values)
    for kind, channels in ((2, 3), (6, 3), (4, 1)):
        stacked = np.dstack([values] * {2: 3, 6: 4, 4: 2}[kind])
        photo = read_photograph(deep_png(tmp_path / "c.png", kind, stacked))
        assert photo.notes == ("its 16 bits are read as 8, as of everything but plain grey",)
        assert photo.pixels.shape[0] == channels
        assert np.array_equal(photo.pixels[0], values >> 8)
        assert (photo.alpha is not None) == (kind != 2)


def test_profiles_are_kept_but_not_those_of_inks(tmp_path: Path) -> None:
    assert (
        read_photograph(saved(Image.fromarray(COLOUR), tmp_path / "a.jpg", icc_profile=PROFILE)).profile
        == PROFILE
    )
    inks = Image.fromarray(COLOUR).convert("CMYK")
    photo = read_photograph(saved(inks, tmp_path / "b.jpg", icc_profile=PROFILE))
    assert photo.profile is None
    assert photo.notes == ("the colour profile, of CMYK colours, is left out",)
    assert photo.pixels.shape[0] == 3


def test_what_is_no_picture_is_refused_as_for_data(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"text")
    frames = [Image.fromarray(GREY), Image.fromarray(GREY + 1)]
    frames[0].save(tmp_path / "b.gif", save_all=True, append_images=frames[1:])
    for name, said in (
        ("a.png", "cannot be read"),
        ("b.gif", "holds several pictures"),
        ("c.png", "not exist"),
    ):
        with pytest.raises(UserError, match=f"image '.*{name}'.*{said}"):
            read_photograph(tmp_path / name)


def test_a_file_written_again_opens_as_what_it_was() -> None:
    deep = whole_numbers(np.linspace(0, 1, 24).reshape(1, 4, 6), 16)
    for pixels, mode in ((deep, "I;16"), (np.dstack([GREY, ALPHA]), "LA"), (COLOUR, "RGB"),
                         (np.dstack([COLOUR, ALPHA]), "RGBA")):  # fmt: skip
        with Image.open(io.BytesIO(png_bytes(pixels, profile=PROFILE))) as image:
            assert (image.mode, image.info["icc_profile"]) == (mode, PROFILE)
            assert np.array_equal(np.asarray(image), pixels)
    assert deep[0, 1] == round(65535 / 23)
