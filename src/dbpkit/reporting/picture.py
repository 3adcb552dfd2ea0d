"""The strip of pictures as one PNG, for a README: clean, attacked and purified images under each other."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dbpkit.foundation.errors import UserError, unknown_name
from dbpkit.foundation.files import OwnFile, check_place, write_atomically
from dbpkit.foundation.png import png_bytes
from dbpkit.reporting.figures import as_picture
from dbpkit.reporting.strip import EXAMPLES, class_name
from dbpkit.results.run_directory import RunDirectory

if TYPE_CHECKING:
    from dbpkit.foundation.arrays import Array
    from dbpkit.reporting.figures.pixels import Pixels

SIDE = 112
GAP = 10
LABEL = 24
MARGIN = 96
"""Layout in pixels: side of a picture, gap, height of a line of text, width of the names at the left."""

INK, MUTED, GOOD, BAD = "#1b1f24", "#5a636e", "#0072B2", "#B54708"


PICTURE = OwnFile("a picture", ".png", re.compile(rb"\x89PNG\r\n.{0,99}tEXtSoftware\0dbpkit", re.DOTALL))
"""A picture that says that this package made it: a photograph of the user's does not."""


def write_strip_png(run: str | Path, path: str | Path, row: str = "white_box") -> Path:
    """Writes the pictures of one attacker as a PNG.

    Args:
        run: a run directory that has reached its end.
        path: the PNG file.
        row: attacker whose images are shown.

    Returns:
        The path of the PNG file.

    Raises:
        UserError: if the run has no pictures yet, or none of this attacker.
    """
    directory = RunDirectory(run)
    directory.spec()
    tensors, about = directory.read_strip()
    if not tensors:
        raise UserError(
            f"'{directory.path}' has no pictures yet: its evaluation has not reached its end."
            " Run the same command again to continue it."
        )
    shown = [name for name in about["predicted"] if f"{name}.x_adv" in tensors]
    if row not in shown:
        raise unknown_name("row of pictures", row, shown)
    labels = [class_name(about, y) for y in about["labels"]]
    predicted = [class_name(about, k) for k in about["predicted"][row]]
    judged = [_judged(said, label) for said, label in zip(predicted, labels, strict=True)]
    lines = [
        ("clean", tensors["clean"], [(label, INK) for label in labels]),
        ("attacked", tensors[f"{row}.x_adv"], []),
        ("purified", tensors[f"{row}.x_pure"], judged),
    ]
    write_atomically(Path(path), png_bytes(_strip(lines, min(EXAMPLES, len(labels)))))
    return Path(path)


def write_replay_png(
    path: str | Path,
    x: "Pixels",
    x_adv: "Pixels",
    x_pure: "Pixels | None",
    label: str,
    predicted: Sequence[str],
) -> Path:
    """Writes a replayed example as a PNG: the clean image, the attacked one, and it after each purification.

    Args:
        path: the PNG file.
        x: clean image (C, H, W) in [0, 1].
        x_adv: attacked image (C, H, W).
        x_pure: the attacked image purified R times (R, C, H, W), or None without a purifier.
        label: true class.
        predicted: class of each draw, R of them; without a purifier that of the attacked image.

    Returns:
        The path of the PNG file. At most 8 purifications are shown.

    Raises:
        UserError: if something else of that name is there, or it cannot be written.
    """
    check_place(path, PICTURE)
    judged = [_judged(said, label) for said in predicted]
    images, texts = [x, x_adv], [(label, INK), judged[0] if x_pure is None else ("attacked", MUTED)]
    if x_pure is not None:
        images += list(x_pure[:EXAMPLES])
        texts += judged[:EXAMPLES]
    write_atomically(Path(path), png_bytes(_strip([("", images, texts)], len(images)), by="dbpkit"))
    return Path(path)


def _judged(predicted: str, label: str) -> tuple[str, str]:
    """A prediction as text, with a mark besides the colour."""
    return (f"✓ {predicted}", GOOD) if predicted == label else (f"✗ {predicted}", BAD)


def _strip(
    lines: Sequence[tuple[str, "Sequence[Pixels] | Array", Sequence[tuple[str, str]]]], count: int
) -> "Array":
    """Puts pictures and texts on white; returns the pixels (H, W, 3)."""
    height = sum(SIDE + (LABEL if texts else GAP) for _, _, texts in lines) + 2 * GAP
    canvas = Image.new("RGB", (MARGIN + count * (SIDE + GAP) + GAP, height), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 14)
    y = GAP
    for name, images, texts in lines:
        draw.text((GAP, y + SIDE / 2), name, MUTED, font, anchor="lm")
        for k in range(count):
            x = MARGIN + k * (SIDE + GAP)
            picture = as_picture(images[k]).convert("RGB")
            canvas.paste(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST), (x, y))
            if texts:
                text, colour = texts[k]
                place = (x + SIDE / 2, y + SIDE + LABEL / 2)
                draw.text(place, _fitting(text, font), colour, font, anchor="mm")
        y += SIDE + (LABEL if texts else GAP)
    return np.asarray(canvas)


def _fitting(text: str, font: ImageFont.FreeTypeFont) -> str:
    """The text, cut where it is wider than a picture."""
    if font.getlength(text) <= SIDE:
        return text
    while font.getlength(text + "…") > SIDE:
        text = text[:-1]
    return text + "…"
