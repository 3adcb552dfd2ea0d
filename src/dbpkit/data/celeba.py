"""Faces with an attribute, yes or no: CelebA and CelebA-HQ.

The thing people get wrong: CelebA-HQ has its own numbers, and which part an image belongs to is that of the
CelebA image it was made from.
"""

import re
from pathlib import Path
from typing import Literal, get_args

import torch

from dbpkit.data.dataset import Dataset, data_root, datasets
from dbpkit.data.deferred import from_files
from dbpkit.data.lists import first_existing, lines_of, refused
from dbpkit.data.pictures import read_picture
from dbpkit.foundation.errors import UserError, unknown_name
from dbpkit.foundation.options import Count

Part = Literal["train", "val", "test", "all"]
"""Which images, after ``list_eval_partition.txt``: 0, 1 or 2 there."""

_NAME = re.compile(r"([0-9]{1,6})\.(?:jpe?g|png)", re.IGNORECASE)
_LISTS = ("list_attr_celeba.txt", "list_attr_celeba.csv")
_PARTITIONS = ("list_eval_partition.txt", "list_eval_partition.csv")
_IMAGES = ("img_align_celeba/img_align_celeba", "img_align_celeba", "Img/img_align_celeba")


@datasets.register("celeba")
def celeba(
    attribute: str, path: str | None = None, split: Part = "test", size: Count | None = None
) -> Dataset:
    """CelebA, aligned and cropped, with one attribute as two classes; ids are the numbers of files less 1.

    Args:
        attribute: its name in the list of attributes, such as ``"Smiling"``; class 1 has it, class 0 not.
        path: the folder, with ``list_attr_celeba.txt``, ``list_eval_partition.txt`` (or the same as .csv) and
            ``img_align_celeba``; ``celeba`` in the environment's DBPKIT_DATA if not given.
        split: ``"test"``, ``"val"``, ``"train"``, or ``"all"``.
        size: side of the square that each image is resized and cropped to; None leaves 178 x 218 pixels.

    Raises:
        UserError: if a list or image is missing or damaged, or there is no such attribute.

    Source:
        Liu, Luo, Wang & Tang 2015, "Deep learning face attributes in the wild".
    """
    what = "data 'celeba'"
    top = Path(path).expanduser() if path else data_root() / "celeba"
    has = _attribute(_list(top, _LISTS), attribute, what)
    part_of = _partition(_list(top, _PARTITIONS), what) if split != "all" else {}
    chosen = sorted(n for n in has if split == "all" or part_of.get(n) == split)
    folder = first_existing([top / name for name in _IMAGES]) or top / _IMAGES[1]
    files = {n: folder / f"{n:06d}.jpg" for n in chosen}
    return _made("celeba", attribute, files, has, 1, size)


@datasets.register("celeba_hq")
def celeba_hq(
    attribute: str, path: str | None = None, split: Part = "all", size: Count | None = 256
) -> Dataset:
    """CelebA-HQ with one attribute as two classes; ids are the numbers of files.

    Args:
        attribute: its name in the list of attributes, such as ``"Eyeglasses"``; class 1 has it, class 0 not.
        path: the folder, with ``CelebAMask-HQ-attribute-anno.txt`` and ``CelebA-HQ-img``; ``CelebAMask-HQ``
            in the environment's DBPKIT_DATA if not given.
        split: ``"all"``, or a part of CelebA, for which ``CelebA-HQ-to-CelebA-mapping.txt`` and
            ``list_eval_partition.txt`` must lie in the folder.
        size: side that images of 1,024 x 1,024 pixels are resized to; None leaves them.

    Raises:
        UserError: if a list or image is missing or damaged, or there is no such attribute.

    Source:
        Karras et al. 2018 (arXiv:1710.10196); Lee et al. 2020, "MaskGAN" (arXiv:1907.11922) for the lists.
    """
    what = "data 'celeba_hq'"
    top = Path(path).expanduser() if path else data_root() / "CelebAMask-HQ"
    has = _attribute(top / "CelebAMask-HQ-attribute-anno.txt", attribute, what)
    chosen = sorted(has)
    if split != "all":
        original = _mapping(top / "CelebA-HQ-to-CelebA-mapping.txt", what)
        part_of = _partition(_list(top, _PARTITIONS), what)
        chosen = [n for n in chosen if n in original and part_of.get(original[n]) == split]
    files = {n: top / "CelebA-HQ-img" / f"{n}.jpg" for n in chosen}
    return _made("celeba_hq", attribute, files, has, 0, size)


def _made(
    name: str,
    attribute: str,
    files: dict[int, Path],
    has: dict[int, bool],
    base: int,
    size: int | None,
) -> Dataset:
    """The data set of these files; ``base`` is the number of the first."""
    if not files:
        raise UserError(f"data '{name}': no image of the list is in this part. Set split to another.")
    numbers = list(files)

    def read(position: int) -> torch.Tensor:
        file = files[numbers[position]]
        return read_picture(file, f"image '{file}'", size=size)

    return from_files(
        name,
        read,
        torch.tensor([int(has[n]) for n in numbers]),
        torch.tensor([n - base for n in numbers]),
        (f"not {attribute}", attribute),
        tuple(files[n].name for n in numbers),
        called=lambda position: str(files[numbers[position]]),
    )


def _list(top: Path, names: tuple[str, ...]) -> Path:
    """The first of these lists in the folder or in its ``Anno`` or ``Eval``."""
    places = [top / part / name for part in ("", "Anno", "Eval") for name in names]
    return first_existing(places) or top / names[0]


def _fields(path: Path, what: str) -> list[list[str]]:
    """The fields of every line, apart by commas or spaces."""
    split = "," if path.suffix == ".csv" else None
    return [line.split(split) for line in lines_of(path, what)]


def _number(name: str) -> int | None:
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def _attribute(path: Path, attribute: str, what: str) -> dict[int, bool]:
    """Whether the image of every number has the attribute."""
    rows = _fields(path, what)
    if rows and len(rows[0]) == 1 and rows[0][0].isdecimal():
        rows = rows[1:]  # how many there are
    names = [name for name in rows[0] if name not in ("image_id", "File_Name")] if rows else []
    if attribute not in names:
        raise unknown_name(f"attribute of '{path}'", attribute, names)
    column = 1 + names.index(attribute)
    found: dict[int, bool] = {}
    for place, row in enumerate(rows[1:], 1):
        number = _number(row[0])
        if number is None or number in found or len(row) != 1 + len(names) or row[column] not in ("1", "-1"):
            raise refused(path, place, " ".join(row)[:80], f"a file and {len(names)} times 1 or -1", what)
        found[number] = row[column] == "1"
    return found


def _partition(path: Path, what: str) -> dict[int, str]:
    """The part that the image of every number belongs to."""
    parts = dict(zip("012", get_args(Part)[:3], strict=True))
    found: dict[int, str] = {}
    for place, row in enumerate(_fields(path, what), 1):
        number = _number(row[0])
        if number is None and place == 1:
            continue  # the head of a .csv
        if number is None or len(row) != 2 or row[1] not in parts:
            raise refused(path, place, " ".join(row)[:80], "a file and 0, 1 or 2", what)
        found[number] = parts[row[1]]
    return found


def _mapping(path: Path, what: str) -> dict[int, int]:
    """The number in CelebA of every image of CelebA-HQ."""
    found: dict[int, int] = {}
    for place, row in enumerate(_fields(path, what), 1):
        original = _number(row[-1])
        if place == 1 and original is None:
            continue  # the head
        if original is None or not row[0].isdecimal() or len(row[0]) > 6:
            raise refused(path, place, " ".join(row)[:80], "a number, and the file in CelebA", what)
        found[int(row[0])] = original
    return found
