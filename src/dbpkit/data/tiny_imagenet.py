"""Tiny-ImageNet: 200 classes of 64 x 64 pixels.

The thing people get wrong: ``wnids.txt`` is in no order. Most classifiers were trained on folders in the
order of text; one that counts classes as the file does needs ``order = "file"``.
"""

import os
import re
from pathlib import Path
from typing import Literal

import torch

from dbpkit.data.dataset import Dataset, data_root, datasets
from dbpkit.data.deferred import from_files
from dbpkit.data.lists import lines_of, refused, wnids_of
from dbpkit.data.pictures import read_picture
from dbpkit.foundation.errors import UserError

WHAT = "data 'tiny_imagenet'"

EACH = 500
"""Training images of a class."""

_VAL = re.compile(r"val_([0-9]{1,6})\.jpe?g", re.IGNORECASE)
_TRAIN = re.compile(r"n[0-9]{8}_([0-9]{1,3})\.jpe?g", re.IGNORECASE)


@datasets.register("tiny_imagenet")
def tiny_imagenet(
    path: str | None = None,
    split: Literal["val", "train"] = "val",
    order: Literal["text", "file"] = "text",
) -> Dataset:
    """Tiny-ImageNet from the folder ``tiny-imagenet-200``: uint8 (N, 3, 64, 64).

    Args:
        path: the folder, with ``wnids.txt``, ``words.txt``, ``val`` and ``train``; ``tiny-imagenet-200`` in
            the environment's DBPKIT_DATA if not given.
        split: ``"val"`` (10,000 images, ids the numbers in their names) or ``"train"`` (100,000, ids 500
            times the place of the synset in the order of text, and the number in the name).
        order: of the classes: ``"text"``, or ``"file"`` for that of ``wnids.txt``.

    Raises:
        UserError: if a list or an image is missing or damaged.

    Source:
        Le & Yang 2015, "Tiny ImageNet visual recognition challenge", CS 231N, Stanford.
    """
    top = Path(path).expanduser() if path else data_root() / "tiny-imagenet-200"
    lists = top / "wnids.txt"
    wnids = wnids_of(lines_of(lists, WHAT), lists, WHAT)
    if not wnids:
        raise UserError(f"{WHAT}: '{lists}' is empty. Unpack the archive again.")
    classes = wnids if order == "file" else sorted(wnids)
    found = _val(top / "val", set(wnids)) if split == "val" else _train(top / "train", sorted(wnids))
    ids = sorted(found)
    files = [found[key][0] for key in ids]
    place = {wnid: k for k, wnid in enumerate(classes)}
    return from_files(
        "tiny_imagenet",
        lambda number: read_picture(files[number], f"image '{files[number]}'"),
        torch.tensor([place[found[key][1]] for key in ids]),
        torch.tensor(ids),
        _names(top / "words.txt", classes),
        tuple(file.relative_to(top).as_posix() for file in files),
        called=lambda number: str(files[number]),
    )


def _val(folder: Path, wnids: set[str]) -> dict[int, tuple[Path, str]]:
    """File and synset of every validation image, by number."""
    path = folder / "val_annotations.txt"
    found: dict[int, tuple[Path, str]] = {}
    for number, line in enumerate(lines_of(path, WHAT), 1):
        name, *rest = line.split()
        match = _VAL.fullmatch(name)
        if match is None or not rest or rest[0] not in wnids:
            raise refused(path, number, line, "'val_0.JPEG' and a synset of wnids.txt", WHAT)
        if int(match[1]) in found:
            raise refused(path, number, line, "an image that is not there before", WHAT)
        found[int(match[1])] = folder / "images" / name, rest[0]
    if not found:
        raise UserError(f"{WHAT}: '{path}' names no images. Unpack the archive again.")
    return found


def _train(folder: Path, wnids: list[str]) -> dict[int, tuple[Path, str]]:
    """File and synset of every training image, by id."""
    found: dict[int, tuple[Path, str]] = {}
    for k, wnid in enumerate(wnids):
        inside = folder / wnid / "images"
        if not inside.is_dir():
            raise UserError(f"{WHAT}: folder '{inside}' is missing. Unpack the archive again.")
        for entry in os.scandir(inside):
            if match := _TRAIN.fullmatch(entry.name):
                if int(match[1]) >= EACH:
                    raise UserError(f"{WHAT}: '{entry.path}' has a number above {EACH - 1}. Remove it.")
                found[EACH * k + int(match[1])] = Path(entry.path), wnid
    if not found:
        raise UserError(f"{WHAT}: there are no training images in '{folder}'. Unpack the archive again.")
    return found


def _names(path: Path, wnids: list[str]) -> tuple[str, ...]:
    """A name of every synset, its number where the list of words is missing."""
    if not path.is_file():
        return tuple(wnids)
    named = dict(line.split("\t", 1) for line in lines_of(path, WHAT) if "\t" in line)
    return tuple(named.get(wnid, wnid).split(",")[0].strip() for wnid in wnids)
