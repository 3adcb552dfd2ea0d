"""Small images for the page: tensors or arrays in [0, 1] become pictures and data URIs."""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dbpkit.foundation.png import eight_bits, png_bytes
from dbpkit.reporting.figures.engine import data_uri

if TYPE_CHECKING:
    from torch import Tensor

    from dbpkit.foundation.arrays import Array

    Pixels = Array | Tensor

GAIN = 8
"""Factor by which perturbations are amplified to be seen."""

LARGEST_SIDE = 160
"""Pixels; larger pictures are reduced to it, or the page would weigh megabytes."""


def image_uri(image: "Pixels") -> str:
    """Returns an image (C, H, W) in [0, 1] as a PNG data URI."""
    picture = as_picture(image)
    if max(picture.size) > LARGEST_SIDE:
        picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return data_uri("image/png", png_bytes(np.asarray(picture)))


def as_picture(image: "Pixels") -> Image.Image:
    """Returns an image (C, H, W) in [0, 1] as grey or RGB; of other numbers of channels, their mean."""
    values = np.asarray(image)
    if len(values) not in (1, 3):
        values = values.mean(axis=0, keepdims=True)
    return Image.fromarray(eight_bits(values))


def amplified(x: "Array", x_adv: "Array") -> "Array":
    """Returns the perturbation around grey, `GAIN` times its size."""
    return np.asarray((0.5 + GAIN * (x_adv - x)).clip(0, 1))
