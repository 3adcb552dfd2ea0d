"""The one writer of PNG files: images in [0, 1] become 8-bit pixels, and pixels the content of a file."""

import io
from typing import Any

import numpy as np
from PIL import Image

from dbpkit.foundation.arrays import Array


def eight_bits(image: Any) -> Array:
    """Returns an image in [0, 1] as pixels.

    Args:
        image: array or CPU tensor (C, H, W) of 1 or 3 channels; values outside [0, 1] are clipped.

    Returns:
        uint8 (H, W) for one channel, else (H, W, 3), rounded to the nearest of 256 values.
    """
    values = np.asarray(image)
    pixels = np.rint(values.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    return np.asarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])


def png_bytes(pixels: Array, *, smallest: bool = True, dpi: int | None = None) -> bytes:
    """Returns pixels as the content of a PNG file, which holds nothing but them: no date, no program.

    Args:
        pixels: uint8, (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGB with opacity.
        smallest: takes longer over the compression.
        dpi: dots per inch that the file asks to be printed at.
    """
    file = io.BytesIO()
    resolution = {} if dpi is None else {"dpi": (dpi, dpi)}
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG", optimize=smallest, **resolution)
    return file.getvalue()
