"""The ImageNet validation images (ILSVRC 2012), as a folder per synset or as one folder of 50,000 files.

The thing people get wrong: class k is the k-th synset in the order of text. The ground truth of the
development kit counts classes in another order.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dbpkit.data.dataset import Dataset, data_root, datasets
from dbpkit.data.deferred import from_files
from dbpkit.data.lists import WNID, lines_of, refused
from dbpkit.data.pictures import as_unit, read_picture
from dbpkit.data.synsets import CLASSES, MAPPING, labels_in, names_in, synsets_in
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.options import Count

WHAT = "data 'imagenet'"

_FILE = re.compile(r"ILSVRC2012_val_([0-9]{8})\.jpe?g", re.IGNORECASE)
_PARTS = ("", "val", "ILSVRC2012_img_val", "ILSVRC/Data/CLS-LOC/val")
"""Where the images may lie below the folder that is named."""


_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class _Found(NamedTuple):
    number: int  # in the name of the file, from 1
    path: Path
    wnid: str


@datasets.register("imagenet")
def imagenet(
    path: str | None = None,
    size: Count = 224,
    resize: Count | None = 256,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    listed: Literal["number", "class"] = "number",
    labels: str | None = None,
    synsets: str | None = None,
    files: str | None = None,
) -> Dataset:
    """The validation images of ImageNet, which are read when they are wanted: (N, 3, size, size).

    Their folder has a sub-folder per synset (``n01440764``, ...), or the 50,000 files themselves; then one
    of the lists of labels lies beside it or above: ``LOC_val_solution.csv``, ``val.txt`` (file and class), or
    ``ILSVRC2012_validation_ground_truth.txt`` with ``meta.mat`` of the development kit. Ids are the numbers
    in the names of files, from 0 on, in both.

    Args:
        path: the folder, or one that holds it as ``val`` or ``ILSVRC/Data/CLS-LOC/val``; ``imagenet`` in the
            environment's DBPKIT_DATA if not given.
        size: side of the square that is cut from the centre.
        resize: what the shorter side is resized to before; None for ``size``.
        interpolation: how; ``"bilinear"`` is torchvision's and RobustBench's.
        listed: the order of the files: by number, or ``"class"`` by class as torchvision's ImageFolder.
        labels: the list of labels; looked for if not given.
        synsets: a list of all 1,000 synsets, needed where images of some are left out;
            ``LOC_synset_mapping.txt`` is looked for.
        files: a list of files, which are taken in its order, one a line, such as RobustBench's
            ``imagenet_test_image_ids.txt``.

    Raises:
        UserError: if images or lists are missing, damaged or do not fit each other, or an option is wrong.

    Source:
        Russakovsky et al. 2015, "ImageNet large scale visual recognition challenge".
    """
    top = Path(path).expanduser() if path else data_root() / "imagenet"
    folder = _folder(top)
    label_of = labels_in(folder, labels) if _is_flat(folder) else {}
    found = list(_flat(folder, label_of) if label_of else _by_synset(folder))
    wnids = _classes({item.wnid for item in found} | {*label_of.values()}, synsets, folder)
    place = {wnid: k for k, wnid in enumerate(wnids)}
    _refuse_twins(found)
    found.sort(key=lambda item: (place[item.wnid] if listed == "class" else 0, item.number))
    found = _listed(found, Path(files).expanduser()) if files else found
    shorter = size if resize is None else resize
    if shorter < size:
        raise UserError(f"{WHAT}: resize = {shorter} is smaller than size = {size}. Set it to at least that.")

    return from_files(
        "imagenet",
        lambda number: _cut(found[number].path, shorter, size, _FILTERS[interpolation]),
        torch.tensor([place[item.wnid] for item in found]),
        torch.tensor([item.number - 1 for item in found]),
        names_in(folder, wnids),
        tuple(item.path.relative_to(folder).as_posix() for item in found),
        called=lambda number: str(found[number].path),
    )


def _cut(path: Path, shorter: int, size: int, resample: Image.Resampling) -> Tensor:
    """The centre of a picture whose shorter side is resized, as torchvision's Resize and CenterCrop do."""
    x = read_picture(path, f"image '{path}'")
    pixels = x if x.dtype == torch.uint8 else (255 * as_unit(x)).round().byte()
    _, height, width = pixels.shape
    short, long = sorted((height, width))
    longer = int(shorter * long / short)
    wide, high = (shorter, longer) if width <= height else (longer, shorter)
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((wide, high), resample)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    cut = np.array(image.crop((left, top, left + size, top + size)))
    return torch.from_numpy(cut.transpose(2, 0, 1).copy())


def _folder(top: Path) -> Path:
    """The folder of images, which is the one named or lies in it."""
    for part in _PARTS:
        folder = top / part
        if folder.is_dir() and any(
            WNID.fullmatch(e.name) or _FILE.fullmatch(e.name) for e in os.scandir(folder)
        ):
            return folder
    raise UserError(
        f"{WHAT}: there are no validation images in '{top}'. Set data.options.path to the folder that has a"
        " sub-folder per synset (n01440764, ...) or the files ILSVRC2012_val_00000001.JPEG and on."
    )


def _is_flat(folder: Path) -> bool:
    return any(_FILE.fullmatch(entry.name) for entry in os.scandir(folder))


def _by_synset(folder: Path) -> Iterator[_Found]:
    """The images of a folder per synset."""
    for entry in os.scandir(folder):
        if WNID.fullmatch(entry.name) and entry.is_dir():
            for file in os.scandir(entry):
                if match := _FILE.fullmatch(file.name):
                    yield _Found(int(match[1]), Path(file.path), entry.name)
                elif file.name.lower().endswith((".jpeg", ".jpg")):
                    raise UserError(
                        f"{WHAT}: '{file.path}' is not named as a validation image is"
                        " (ILSVRC2012_val_00000001.JPEG). Use data 'folder' for other images."
                    )


def _flat(folder: Path, label_of: dict[int, str]) -> Iterator[_Found]:
    """The images of one folder, with the labels of a list."""
    for entry in os.scandir(folder):
        if match := _FILE.fullmatch(entry.name):
            number = int(match[1])
            if number not in label_of:
                raise UserError(
                    f"{WHAT}: the list of labels has none for '{entry.name}'. Use the whole list."
                )
            yield _Found(number, Path(entry.path), label_of[number])


def _classes(present: set[str], synsets: str | None, folder: Path) -> tuple[str, ...]:
    """All synsets in the order of their classes."""
    wnids = synsets_in(folder, synsets)
    if wnids is None and len(present) != CLASSES:
        raise UserError(
            f"{WHAT}: '{folder}' has images of {len(present)} synsets, so their places among {CLASSES} are"
            f" not known. Set synsets to a list of all, such as {MAPPING}, or complete the folder."
        )
    known = tuple(sorted(present)) if wnids is None else wnids
    if unknown := sorted(present - set(known)):
        raise UserError(f"{WHAT}: synset '{unknown[0]}' is not in the list of synsets. Use the whole list.")
    if not present:
        raise UserError(f"{WHAT}: the folders in '{folder}' hold no validation images. Unpack them there.")
    return known


def _refuse_twins(found: Sequence[_Found]) -> None:
    """Refuses two files of one number, and the number 0."""
    seen: dict[int, Path] = {0: Path("the number 0")}
    for item in found:
        if item.number in seen:
            raise UserError(
                f"{WHAT}: '{seen[item.number]}' and '{item.path}' are the same image. Remove one."
            )
        seen[item.number] = item.path


def _listed(found: Sequence[_Found], path: Path) -> list[_Found]:
    """The images that a list names, in its order."""
    by_name = {item.path.name.lower(): item for item in found}
    chosen: dict[int, _Found] = {}
    for number, line in enumerate(lines_of(path, WHAT), 1):
        item = by_name.get(line.replace("\\", "/").rsplit("/", 1)[-1].lower())
        if item is None:
            raise refused(path, number, line, "one of the validation images in the folder", WHAT)
        if item.number in chosen:
            raise refused(path, number, line, "a file that is not there before", WHAT)
        chosen[item.number] = item
    if not chosen:
        raise UserError(f"{WHAT}: '{path}' names no files. Write one a line.")
    return list(chosen.values())
