"""A folder of images with one sub-folder per class.

The thing people get wrong: numbering files by their place in a listing. Here an id is a hash of the file's
path inside the folder, so adding or removing a file never changes the noise of the others.
"""

import logging
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dbpkit.data.dataset import Dataset, datasets, path_id
from dbpkit.errors import UserError, unknown_name

log = logging.getLogger(__name__)

EXTENSIONS = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"])
"""Files with these endings, in either case, are images; others are ignored."""

MODES = ("L", "RGB")
"""One grey channel, or three of colour."""


@datasets.register("folder")
def folder(path: str, size: int | None = None, mode: str = "RGB", unreadable: str = "error") -> Dataset:
    """Images below ``path``, one sub-folder per class, uint8 (N, C, H, W).

    Classes are the sub-folders in sorted order; images may lie deeper inside them. Hidden files and folders,
    and files without an image's extension, are ignored.

    Args:
        path: the folder.
        size: side of the square that each image is resized and cropped to; None takes images as they are,
            which must then all agree in size.
        mode: ``"RGB"`` or ``"L"`` (grey), what each image is converted to.
        unreadable: ``"error"`` refuses a file that cannot be decoded, ``"skip"`` logs it and goes on.

    Raises:
        UserError: if the folder is missing or has no classes or images, an image lies outside the classes, is
            unreadable or has another size than the first, two ids collide, or an option is wrong.
    """
    where = "data 'folder'"
    check_image_options(where, size, mode)
    if unreadable not in ("error", "skip"):
        raise unknown_name("choice of unreadable", str(unreadable), ("error", "skip"))
    root = Path(path).expanduser()
    class_names, files = _listing(root)
    ids = _unique_ids(root, files)
    images: dict[Path, Tensor] = {}
    for file in files:
        try:
            images[file] = _read(file, size, mode)
        except UserError as error:
            if unreadable == "error":
                raise
            log.warning("skipped: %s", error)
    if not images:
        raise UserError(
            f"{where}: none of the {len(files)} images in '{root}' is readable. See the warnings above."
        )
    check_same_size({str(file): image for file, image in images.items()}, where)
    labels = [class_names.index(file.relative_to(root).parts[0]) for file in images]
    return Dataset(
        root.name or "folder",
        torch.stack(list(images.values())),
        torch.tensor(labels),
        torch.tensor([ids[file] for file in images]),
        class_names,
    )


def check_image_options(where: str, size: int | None, mode: str) -> None:
    """Raises UserError unless ``size`` is None or a positive integer and ``mode`` is one of `MODES`."""
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise UserError(
            f"{where}: size must be a positive number of pixels, not {size!r}. "
            "Leave it out to keep the images' own."
        )
    if mode not in MODES:
        raise unknown_name("image mode", str(mode), MODES)


def pixels(image: Image.Image, size: int | None, mode: str, where: str) -> Tensor:
    """Turns a decoded image into uint8 pixels (C, H, W).

    Args:
        image: any 8-bit image; it is turned upright if its metadata says so.
        size: its shorter side is resized to this (bicubic) and the centre square kept; None keeps it whole.
        mode: ``"RGB"`` or ``"L"``.
        where: the image's name, for the error.

    Raises:
        UserError: if the image has more than 8 bits per channel, which a conversion would clip.
    """
    if image.mode.startswith(("I", "F")):
        raise UserError(
            f"{where}: pixels of mode '{image.mode}' have more than 8 bits per channel. "
            "Convert it to 8 bits first."
        )
    image = ImageOps.exif_transpose(image).convert(mode)
    if size is not None:
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC).crop(
            (left, top, left + size, top + size)
        )
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def check_same_size(images: dict[str, Tensor], where: str) -> None:
    """Raises UserError that names the first image whose shape is not that of the first one."""
    first, reference = next(iter(images.items()))
    for name, image in images.items():
        if image.shape != reference.shape:
            raise UserError(
                f"{where}: '{name}' is {image.shape[1]} x {image.shape[2]} pixels (height x width) where "
                f"'{first}' is {reference.shape[1]} x {reference.shape[2]}. "
                "Set size to resize and crop all images."
            )


def _listing(root: Path) -> tuple[tuple[str, ...], list[Path]]:
    """Class names, and image files in the order of their paths."""
    if not root.is_dir():
        raise UserError(
            f"data 'folder': '{root}' is no folder. Set path to one that has a sub-folder per class."
        )
    visible = [entry for entry in root.iterdir() if not entry.name.startswith(".")]
    class_names = tuple(sorted(entry.name for entry in visible if entry.is_dir()))
    if not class_names:
        raise UserError(f"data 'folder': '{root}' has no sub-folders. Put the images of each class into one.")
    stray = sorted(entry.name for entry in visible if _is_image(entry))
    if stray:
        raise UserError(
            f"data 'folder': image '{root / stray[0]}' lies in no class. Move it into a sub-folder or away."
        )
    files = [
        file
        for name in class_names
        for file in (root / name).rglob("*")
        if _is_image(file) and not any(part.startswith(".") for part in file.relative_to(root).parts)
    ]
    if not files:
        raise UserError(
            f"data 'folder': '{root}' has {len(class_names)} class folders but no images. "
            f"Known endings: {', '.join(sorted(EXTENSIONS))}."
        )
    return class_names, sorted(files, key=lambda file: file.relative_to(root).as_posix())


def _is_image(path: Path) -> bool:
    """Whether a path looks like an image file; a dangling link does, so that it is not overlooked."""
    return path.suffix.lower() in EXTENSIONS and not path.is_dir()


def _unique_ids(root: Path, files: list[Path]) -> dict[Path, int]:
    """The id of every file; an error if two are the same."""
    ids = {file: path_id(file.relative_to(root).as_posix()) for file in files}
    owners: dict[int, Path] = {}
    for file, example_id in ids.items():
        if example_id in owners:
            raise UserError(
                f"data 'folder': '{owners[example_id]}' and '{file}' have the same id {example_id} (a chance "
                "collision of 44-bit hashes of their paths). Rename one of them."
            )
        owners[example_id] = file
    return ids


def _read(file: Path, size: int | None, mode: str) -> Tensor:
    """The pixels of one file; UserError if it cannot be decoded."""
    try:
        with Image.open(file) as image:
            image.load()
            return pixels(image, size, mode, f"image '{file}'")
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise UserError(
            f"image '{file}' cannot be read ({type(error).__name__}: {error}). "
            'Remove or replace it, or set unreadable = "skip".'
        ) from error
