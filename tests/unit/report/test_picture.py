"""The strip as one PNG."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dbpkit.foundation.errors import UserError
from dbpkit.reporting import write_strip_png
from dbpkit.reporting.picture import GAP, MARGIN, SIDE
from dbpkit.results.run_directory import RunDirectory

MakeRun = Callable[..., RunDirectory]


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 28, 28)])
def test_write_strip_png_shows_pixels_of_stored_images(
    make_run: MakeRun, tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    run = make_run(shape=shape)
    path = write_strip_png(run.path, tmp_path / "strip.png")
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.shape[1] == MARGIN + 6 * (SIDE + GAP) + GAP
    clean = run.read_strip()[0]["clean"]
    # Middle of the picture in the first line and second column.
    shown = pixels[GAP + SIDE // 2, MARGIN + SIDE + GAP + SIDE // 2]
    stored = (clean[1, :, shape[1] // 2, shape[2] // 2] * 255).round()
    assert abs(shown.astype(float) - stored).max() <= 0.5


def test_write_strip_png_cuts_long_names(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(classes=["a name that is far wider than a picture"] * 4)
    assert write_strip_png(run.path, tmp_path / "strip.png", "dw_both").is_file()


def test_write_strip_png_of_unknown_row_names_the_nearest(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown row of pictures 'dw_bth'. Did you mean 'dw_both'\?"):
        write_strip_png(make_run().path, tmp_path / "strip.png", "dw_bth")


def test_write_strip_png_before_pictures_says_so(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no pictures yet"):
        write_strip_png(make_run(strip=False).path, tmp_path / "strip.png")


def test_write_strip_png_of_no_run_directory_names_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run directory"):
        write_strip_png(tmp_path, tmp_path / "strip.png")
