"""A folder of images with one sub-folder per class.

An image's id is a hash of its path inside the folder, so adding or removing a file never changes the noise of
the others.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dbpkit.data.classes import in_class_order
from dbpkit.data.dataset import Dataset, datasets, path_id
from dbpkit.data.deferred import from_files
from dbpkit.data.pictures import EXTENSIONS, Mode, is_image, read_picture
from dbpkit.foundation.errors import UserError, unknown_name
from dbpkit.foundation.options import Count

log = logging.getLogger(__name__)

JUNK = frozenset(
    ["__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information"]
)
"""Folders that systems make beside yours, in lower case; hidden ones are passed over too."""

SPLITS = frozenset(["train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"])
"""Sub-folders of these names, in lower case, are parts of the data and no classes."""

WHERE = "data 'folder'"


@datasets.register("folder")
def folder(
    path: str,
    size: Count | None = None,
    mode: Mode = "RGB",
    unreadable: Literal["error", "skip"] = "error",
    split: str | None = None,
    classes: tuple[str, ...] | None = None,
) -> Dataset:
    """Images below ``path``, one sub-folder per class: uint8 (N, C, H, W), or float32 if any has more bits.

    Classes are the sub-folders: whole numbers in the order of numbers, words in that of text; images may lie
    deeper inside them. Hidden files and folders, the `JUNK` of systems, and files without an image's
    extension are passed over.

    Args:
        path: the folder.
        size: side of the square that each image is resized and cropped to; None takes images as they are,
            which must then all agree in size.
        mode: ``"RGB"`` or ``"L"`` (grey), what each image is converted to.
        unreadable: ``"error"`` refuses a file that cannot be read, ``"skip"`` logs it and goes on.
        split: the sub-folder to take where ``path`` holds ``train``, ``test`` and the like.
        classes: names of all classes in the order of their labels; one that is named may be an empty folder.

    Raises:
        UserError: if the folder is missing or has no classes or images, a class has no image, the classes are
            parts such as ``train`` or their order is not clear, an image lies outside the classes, is
            unreadable or has another size than the first, two ids collide, or an option is wrong.
    """
    root = _part(Path(path).expanduser(), split, classes)
    by_class = _listing(root, classes)
    files = sorted((f for own in by_class.values() for f in own), key=lambda f: _inside(f, root))
    ids = _unique_ids(root, files)

    def read(file: Path) -> Tensor:
        try:
            return read_picture(file, f"image '{file}'", size=size, mode=mode)
        except UserError as error:
            raise UserError(f'{error} Or set unreadable = "skip".') from error

    if unreadable == "skip":
        files = [file for file in files if _is_readable(file, size, mode)]
        _require_every_class(root, by_class, files)
    label = {name: k for k, name in enumerate(by_class)}
    return from_files(
        root.name or "folder",
        lambda number: read(files[number]),
        torch.tensor([label[file.relative_to(root).parts[0]] for file in files]),
        torch.tensor([ids[file] for file in files]),
        tuple(by_class),
        tuple(_inside(file, root) for file in files),
        called=lambda number: str(files[number]),
    )


def _is_readable(file: Path, size: int | None, mode: Mode) -> bool:
    """Whether an image can be read; logs why not."""
    try:
        read_picture(file, f"image '{file}'", size=size, mode=mode)
    except UserError as error:
        log.warning("skipped: %s", error)
        return False
    return True


def _require_every_class(root: Path, by_class: dict[str, list[Path]], readable: list[Path]) -> None:
    """Raises UserError if no image, or none of some class, was readable."""
    if not readable:
        count = sum(map(len, by_class.values()))
        raise UserError(
            f"{WHERE}: none of the {count} images in '{root}' is readable. See the warnings above."
        )
    found = set(readable)
    unread = next((name for name, own in by_class.items() if own and not found & set(own)), None)
    if unread is not None:
        raise UserError(
            f"{WHERE}: no image of class '{unread}' in '{root}' is readable. See the warnings above."
        )


def _part(root: Path, split: str | None, classes: tuple[str, ...] | None) -> Path:
    """The folder whose sub-folders are classes: ``root``, or the part of it that is asked for."""
    if not root.is_dir():
        raise UserError(
            f"{WHERE}: '{root}' is not a folder. Set path to one that has a sub-folder per class."
        )
    names = [entry.name for entry in _folders(root)]
    parts = sorted(name for name in names if name.lower() in SPLITS)
    if split is not None:
        if split not in names:
            raise unknown_name(f"split of '{root}'", split, parts or names)
        return root / split
    if parts and classes is None and (len(parts) > 1 or len(parts) == len(names)):
        said = "test" if "test" in parts else parts[-1]
        raise UserError(
            f"{WHERE}: '{root}' holds {', '.join(parts)}, which are parts of the data and no classes. Set"
            f' split = "{said}", or classes = [...] if they are classes.'
        )
    return root


def _listing(root: Path, classes: tuple[str, ...] | None) -> dict[str, list[Path]]:
    """The image files of every class, classes in the order of their labels."""
    names = [entry.name for entry in _folders(root)]
    if not names:
        raise UserError(f"{WHERE}: '{root}' has no sub-folders. Put the images of each class into one.")
    stray = sorted(entry.name for entry in root.iterdir() if not _passed_over(entry.name) and is_image(entry))
    if stray:
        raise UserError(
            f"{WHERE}: image '{root / stray[0]}' lies in no class. Move it into a sub-folder or away."
        )
    found = {name: list(_images(root / name)) for name in names}
    if not any(found.values()):
        raise UserError(
            f"{WHERE}: '{root}' has {len(names)} class folders but no images. "
            f"Known endings: {', '.join(sorted(EXTENSIONS))}."
        )
    empty = next((name for name in sorted(names) if not found[name]), None)
    if empty is not None and (classes is None or empty not in classes):
        raise UserError(
            f"{WHERE}: class folder '{root / empty}' has no images. Remove it, or name every class in"
            " classes = [...] if it is meant to be empty."
        )
    return {name: found[name] for name in in_class_order(names, f"{WHERE} '{root}'", classes)}


def _folders(root: Path) -> list[Path]:
    """The sub-folders of a folder that are the user's."""
    return [entry for entry in root.iterdir() if not _passed_over(entry.name) and entry.is_dir()]


def _images(top: Path) -> Iterator[Path]:
    """All image files below a folder; one that cannot be looked into is an error, not overlooked."""
    for where, inside, names in os.walk(top, onerror=_raise):
        inside[:] = [name for name in inside if not _passed_over(name)]
        yield from (file for name in names if not _passed_over(name) and is_image(file := Path(where) / name))


def _raise(error: OSError) -> None:
    raise UserError(f"{WHERE}: folder '{error.filename}' cannot be read ({error.strerror}).") from error


def _passed_over(name: str) -> bool:
    """Whether a name is hidden, or of a folder that a system makes."""
    return name.startswith(".") or name.lower() in JUNK


def _inside(file: Path, root: Path) -> str:
    """The path inside the folder, with forward slashes."""
    return file.relative_to(root).as_posix()


def _unique_ids(root: Path, files: list[Path]) -> dict[Path, int]:
    """The id of every file; an error if two are the same."""
    ids = {file: path_id(_inside(file, root)) for file in files}
    owners: dict[int, Path] = {}
    for file, example_id in ids.items():
        if example_id in owners:
            raise UserError(
                f"{WHERE}: '{owners[example_id]}' and '{file}' have the same id {example_id} (a chance "
                "collision of 44-bit hashes of their paths). Rename one of them."
            )
        owners[example_id] = file
    return ids
