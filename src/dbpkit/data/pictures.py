"""The one reader of image files: whatever a file holds becomes pixels (C, H, W), or one sentence.

`folder`, `huggingface` and `purify` all read here, so a file has the same pixels everywhere. Every kind of
pixel is told apart before anything is converted: Pillow's own conversions clip deep images to white, and put
what lay under transparency in the picture. PNG files are written by `dbpkit.foundation.png`.
"""

import stat
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np
import torch
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from torch import Tensor

from dbpkit.foundation.errors import UserError, shown, unknown_name
from dbpkit.foundation.options import Count

T = TypeVar("T")

_DECODERS = (
    PngImagePlugin,
    JpegImagePlugin,  # and a camera's MPO
    BmpImagePlugin,
    GifImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

FORMATS = tuple(plugin.__name__.split(".")[-1].removesuffix("ImagePlugin").upper() for plugin in _DECODERS)
"""What is decoded, whatever a file is called; Pillow would hand others to programs of the system."""

EXTENSIONS = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"])
"""Files with these endings, in either case, are images."""

Mode = Literal["L", "RGB"]
"""One grey channel, or three of colour."""

ORIENTATION = 0x0112
"""The EXIF tag that says how a camera was held."""

TRANSPARENT = {"LA", "La", "PA", "RGBA", "RGBa"}
_TURNS = {  # orientation: quarter turns anticlockwise, and whether it is mirrored left to right after them
    2: (0, True),
    3: (2, False),
    4: (2, True),
    5: (3, True),
    6: (3, False),
    7: (1, True),
    8: (1, False),
}


def read_picture(
    source: str | Path | bytes, where: str = "", *, size: Count | None = None, mode: Mode = "RGB"
) -> Tensor:
    """Reads an image file: uint8 (C, H, W), or float32 in [0, 1] where it has more than 8 bits.

    A picture is turned upright if its metadata says so. 16 bits of grey are divided by 65,535, floating point
    in [0, 1] is taken as it is; Pillow reads 16 bits of colour as 8. Only the first picture of a camera's MPO
    file is looked at.

    Args:
        source: the file, or its content.
        where: what it is called in errors; the file's name if empty.
        size: its shorter side is resized to this (bicubic) and the centre square kept; None keeps it whole.
        mode: ``"RGB"`` or ``"L"`` (grey), what it is converted to.

    Raises:
        UserError: if it is missing, no regular file, damaged, no image of `FORMATS`, too large to be one, an
            animation, transparent, or has pixels whose range is not known.
    """
    where = where or f"image '{source if not isinstance(source, bytes) else '?'}'"
    if mode not in get_args(Mode):
        raise unknown_name("image mode", str(mode), get_args(Mode))
    return opened(source, where, lambda image: _decoded(image, where, size, mode))


def opened(source: str | Path | bytes, where: str, use: Callable[[Image.Image], T]) -> T:
    """Returns what ``use`` makes of an opened image file; errors as `read_picture`."""
    try:
        content = BytesIO(source) if isinstance(source, bytes) else _regular(Path(source), where)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata; what matters is an error
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(content, formats=FORMATS) as image:
                return use(image)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{where} does not exist. Check the path.") from error
    except (Exception, Image.DecompressionBombWarning) as error:  # decoders raise nearly anything
        said = shown(str(error), 200).strip("'\"") or "no reason given"
        raise UserError(
            f"{where} cannot be read ({type(error).__name__}: {said}). It is damaged, too large or no image."
        ) from error


def as_unit(x: Tensor) -> Tensor:
    """Returns pixels as float32 in [0, 1]; uint8 is divided by 255."""
    return x.float() / 255 if x.dtype == torch.uint8 else x.float()


def stacked(pictures: list[Tensor]) -> Tensor:
    """Returns pictures (N, C, H, W) of one size: uint8 if all are, else float32 in [0, 1]."""
    if all(x.dtype == torch.uint8 for x in pictures):
        return torch.stack(pictures)
    return torch.stack([as_unit(x) for x in pictures])


def check_same_size(images: dict[str, Tensor], where: str) -> None:
    """Raises UserError that names the first image whose shape is not that of the first one."""
    first, reference = next(iter(images.items()))
    for name, image in images.items():
        if image.shape != reference.shape:
            raise UserError(
                f"{where}: '{name}' is {image.shape[1]} x {image.shape[2]} pixels (height x width) where "
                f"'{first}' is {reference.shape[1]} x {reference.shape[2]}. "
                "Set size to resize and crop all images, as in --set data.options.size=32."
            )


def is_image(path: Path) -> bool:
    """Whether a path looks like an image file; a dangling link does, so that it is not overlooked."""
    return path.suffix.lower() in EXTENSIONS and not path.is_dir()


def _regular(path: Path, where: str) -> Path:
    """The path, if it is not a folder, pipe or device, which would be read without end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise UserError(f"{where} is not a regular file. Give an image file.")
    return path


def loaded(image: Image.Image, where: str) -> Image.Image:
    """Returns an opened image with its pixels; UserError if it holds several, or none."""
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise UserError(
            f"{where} holds several pictures (an animation, or pages). Save the one that is meant as a file."
        )
    if 0 in image.size:
        raise UserError(f"{where} has no pixels: it is {image.width} x {image.height}.")
    image.load()
    return image


def _decoded(image: Image.Image, where: str, size: int | None, mode: Mode) -> Tensor:
    """The pixels of an opened image."""
    orientation = orientation_of(loaded(image, where))
    deep = deep_pixels(image, where)
    flat = _flat(image, where, mode) if deep is None else Image.fromarray(deep)
    flat = upright(flat, orientation)
    if size is not None:
        flat = _square(flat, size, where)
    array = np.array(flat)
    if deep is not None:
        x = torch.from_numpy(array).clamp(0, 1)[None]  # bicubic weights overshoot
        return x.repeat(3, 1, 1) if mode == "RGB" else x
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def deep_pixels(image: Image.Image, where: str) -> np.ndarray | None:
    """Returns grey pixels of more than 8 bits as float32 (H, W) in [0, 1]; None where there are 8 bits."""
    if not image.mode.startswith(("I", "F")):
        return None
    values = np.asarray(image)
    if image.info.get("transparency") is not None:
        raise UserError(f"{where} has transparent pixels. Put it on a background first.")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return (values / 65535).astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if image.mode == "I":
        raise UserError(
            f"{where} has whole numbers of 32 bits or with a sign ({low:g} to {high:g}), whose white is not"
            " known. Convert it to 8 or 16 bits first."
        )
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise UserError(
            f"{where} has pixels of floating point outside [0, 1] ({low:g} to {high:g}), whose white is not"
            " known. Scale them to [0, 1] first."
        )
    return values.astype(np.float32)


def _flat(image: Image.Image, where: str, mode: Mode) -> Image.Image:
    """The image in mode L or RGB; UserError if something shines through."""
    if image.mode in TRANSPARENT or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise UserError(f"{where} has transparent pixels. Put it on a background first.")
        image = image.convert("RGB")
    return image.convert(mode)


def orientation_of(image: Image.Image) -> int:
    """Returns how the picture must be turned, 1 to 8; 1 if the metadata do not say, or are damaged."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow parses metadata with struct, and any of its errors comes through
        return 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Returns the picture as its camera meant it; see `_TURNS`."""
    turns, mirrored = _TURNS.get(orientation, (0, False))
    turn = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)[turns]
    image = image if turn is None else image.transpose(turn)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image


def _square(image: Image.Image, size: int, where: str) -> Image.Image:
    """The centre of the image, its shorter side resized to ``size``."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if width * height > (Image.MAX_IMAGE_PIXELS or width * height):
        raise UserError(
            f"{where} of {image.width} x {image.height} pixels would become {width} x {height} on its way to"
            f" size {size}. Crop it first, or choose a smaller size."
        )
    left, top = (width - size) // 2, (height - size) // 2
    box = (left, top, left + size, top + size)
    return image.resize((width, height), Image.Resampling.BICUBIC).crop(box)
