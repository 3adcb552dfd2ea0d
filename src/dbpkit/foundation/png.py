"""The one writer of PNG files: images in [0, 1] become pixels of 8 or 16 bits, and pixels a file."""

import io
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from dbpkit.foundation.arrays import Array


def eight_bits(image: Any) -> Array:
    """Returns an image in [0, 1] as pixels.

    Args:
        image: array or CPU tensor (C, H, W) of 1 or 3 channels; values outside [0, 1] are clipped.

    Returns:
        uint8 (H, W) for one channel, else (H, W, 3), rounded to the nearest of 256 values.
    """
    return whole_numbers(image, 8)


def whole_numbers(image: Any, bits: int) -> Array:
    """Returns what `eight_bits` does, in 8 bits or in 16, whose white is 65,535."""
    values = np.asarray(image)
    kind, white = (np.uint8, 255) if bits == 8 else (np.uint16, 65535)
    pixels = np.rint(values.clip(0, 1) * white).astype(kind).transpose(1, 2, 0)
    return np.asarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])


def png_bytes(
    pixels: Array,
    *,
    smallest: bool = True,
    dpi: int | None = None,
    profile: bytes | None = None,
    by: str = "",
) -> bytes:
    """Returns pixels as the content of a PNG file, which holds nothing but them: no date.

    Args:
        pixels: uint8, (H, W) grey, (H, W, 2) grey with opacity, (H, W, 3) RGB or (H, W, 4) RGB with opacity;
            or uint16 (H, W) grey.
        smallest: takes longer over the compression.
        dpi: dots per inch that the file asks to be printed at.
        profile: ICC profile of the colours.
        by: name of the program that made it, where another picture of that name must not be replaced.
    """
    file = io.BytesIO()
    more: dict[str, Any] = {} if dpi is None else {"dpi": (dpi, dpi)}
    if profile is not None:
        more["icc_profile"] = profile
    if by:
        more["pnginfo"] = PngImagePlugin.PngInfo()
        more["pnginfo"].add_text("Software", by)
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG", optimize=smallest, **more)
    return file.getvalue()
