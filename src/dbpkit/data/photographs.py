"""Image files that are to be written again: what beside the pixels must come through.

Data sets want pixels and nothing else (`dbpkit.data.pictures`). A photograph has an orientation, an opacity,
a depth and a colour profile too, and whoever gives it back without them gives back another picture.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dbpkit.data.pictures import TRANSPARENT, deep_pixels, loaded, opened, orientation_of, upright
from dbpkit.foundation.arrays import Array

_GREY = {"1", "L", "LA", "La"}
"""Modes of Pillow without colour."""


class Photograph(NamedTuple):
    """The content of an image file, upright.

    Attributes:
        pixels: (C, H, W) with one channel of grey or three of colour: uint8, or float32 in [0, 1] where the
            file has more than 8 bits.
        alpha: opacity (H, W) uint8; None where the file has none.
        profile: the ICC profile of these colours, if the file has one.
        notes: what could not be kept, in a few words each.
    """

    pixels: Array
    alpha: Array | None
    profile: bytes | None
    notes: tuple[str, ...]

    @property
    def bits(self) -> int:
        """How many bits each value has: 8, or 16."""
        return 8 if self.pixels.dtype == np.uint8 else 16


def read_photograph(path: str | Path, where: str = "") -> Photograph:
    """Reads an image file with what belongs to it.

    It is turned upright if its metadata say so. Palettes become colours, grey stays one channel, 16 bits of
    grey stay (Pillow reads 16 bits of colour as 8, which is noted). The colours of CMYK files become RGB by
    Pillow's plain conversion, and their profile, which describes inks, is left out.

    Args:
        path: the file.
        where: what it is called in errors; the file's name if empty.

    Raises:
        UserError: as `dbpkit.data.pictures.read_picture`, but not for transparency.
    """
    where = where or f"image '{path}'"
    return opened(path, where, lambda image: _photograph(image, where))


def _photograph(image: Image.Image, where: str) -> Photograph:
    raw = str([tile[-1] for tile in getattr(image, "tile", [])])  # as stored; gone once pixels are loaded
    deep_colour = ";16" in raw and not image.mode.startswith("I")
    notes = ("its 16 bits are read as 8, as of everything but plain grey",) if deep_colour else ()
    orientation = orientation_of(loaded(image, where))
    profile: bytes | None = image.info.get("icc_profile") or None
    deep = deep_pixels(image, where)
    if deep is not None:
        turned = np.asarray(upright(Image.fromarray(deep), orientation))
        return Photograph(turned[None], None, profile, notes)
    if image.mode in ("CMYK", "LAB", "YCbCr", "HSV") and profile is not None:
        profile, notes = None, (*notes, f"the colour profile, of {image.mode} colours, is left out")
    flat, alpha = _flat(image, image.mode in _GREY or "LA;16" in raw)
    values = np.asarray(upright(flat, orientation))
    pixels = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    opacity = None if alpha is None else np.asarray(upright(alpha, orientation))
    return Photograph(pixels, opacity, profile, notes)


def _flat(image: Image.Image, grey: bool) -> tuple[Image.Image, Image.Image | None]:
    """The image in mode L or RGB, and its opacity if it has one."""
    if image.mode in TRANSPARENT or image.info.get("transparency") is not None:
        whole = image.convert("LA" if grey else "RGBA")
        return whole.convert("L" if grey else "RGB"), whole.getchannel("A")
    return image.convert("L" if grey else "RGB"), None
