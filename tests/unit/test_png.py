"""PNG files: pixels survive, and nothing else is in the file."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from dbpkit.foundation.png import eight_bits, png_bytes


def test_every_value_of_a_pixel_survives() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert (np.asarray(Image.open(io.BytesIO(png_bytes(grey)))) == grey).all()


@pytest.mark.parametrize(("channels", "shape"), [(1, (2, 5)), (3, (2, 5, 3))])
def test_image_becomes_pixels_rounded_to_the_nearest(channels: int, shape: tuple[int, ...]) -> None:
    pixels = eight_bits(torch.full((channels, 2, 5), 100.4 / 255))
    assert pixels.shape == shape
    assert (pixels == 100).all()


def test_image_outside_its_range_is_clipped() -> None:
    assert eight_bits(np.array([[[-0.1, 1.1]]])).tolist() == [[0, 255]]


def test_file_says_how_large_it_is_printed_and_nothing_more() -> None:
    picture = Image.open(io.BytesIO(png_bytes(np.zeros((2, 2), np.uint8), dpi=192)))
    assert picture.info.keys() == {"dpi"}
    assert picture.info["dpi"] == pytest.approx((192, 192), abs=0.01)
