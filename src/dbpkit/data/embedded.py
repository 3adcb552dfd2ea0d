"""The 256 CIFAR-10 test images inside the package, so that a first run needs no download.

They show that everything works, and are too few for a published figure.
"""

import hashlib
import json
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import torch

from dbpkit.data.dataset import Dataset, datasets
from dbpkit.data.pictures import read_picture
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.png import png_bytes

NAME = "cifar10-test-256"
TILES, SIDE = 16, 32
"""The mosaic has 16 x 16 images of 32 x 32 pixels, row by row."""


@datasets.register("embedded")
def embedded() -> Dataset:
    """CIFAR-10 test images 0 to 255, uint8 (256, 3, 32, 32), from the package itself.

    Raises:
        UserError: if the package's files are missing or damaged.

    Source:
        Krizhevsky 2009, "Learning multiple layers of features from tiny images".
    """
    return read_embedded(resources.files("dbpkit") / "assets")


def read_embedded(folder: Traversable) -> Dataset:
    """Reads the pair of files that `write_embedded` wrote.

    Raises:
        UserError: if a file is missing or unreadable, or the pixels do not have the recorded sha256.
    """
    try:
        described = json.loads((folder / f"{NAME}.json").read_text("utf-8"))
        mosaic = read_picture((folder / f"{NAME}.png").read_bytes(), f"image '{NAME}.png'").numpy()
        # (3, 16 * 32, 16 * 32) -> (256, 3, 32, 32)
        tiles = mosaic.reshape(3, TILES, SIDE, TILES, SIDE)
        images = tiles.transpose(1, 3, 0, 2, 4).reshape(-1, 3, SIDE, SIDE)
        expected = described["sha256"]
        ids, labels = torch.tensor(described["ids"]), torch.tensor(described["labels"])
        class_names = tuple(described["class_names"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise UserError(
            f"embedded images in '{folder}' cannot be read ({error}). Reinstall dbpkit."
        ) from error
    found = hashlib.sha256(images.tobytes()).hexdigest()
    if found != expected:
        raise UserError(
            f"embedded images in '{folder}' are damaged: sha256 {found} where {expected} was expected. "
            "Reinstall dbpkit."
        )
    return Dataset("embedded", torch.from_numpy(images.copy()), labels, ids, class_names)


def write_embedded(dataset: Dataset, folder: Path) -> None:
    """Writes 256 images as one lossless PNG mosaic, and what is known of them as JSON beside it.

    Args:
        dataset: 256 examples, uint8 (256, 3, 32, 32).
        folder: where the two files go; made if needed.

    Raises:
        UserError: if the data has another type or shape.
    """
    shape = (TILES * TILES, 3, SIDE, SIDE)
    if dataset.images.dtype != torch.uint8 or tuple(dataset.images.shape) != shape:
        found = f"{dataset.images.dtype} {tuple(dataset.images.shape)}"
        raise UserError(
            f"embedded images must be uint8 {shape}, not {found}. Select the first 256 of 8-bit CIFAR images."
        )
    images = dataset.images.numpy()
    # (256, 3, 32, 32) -> (16 * 32, 16 * 32, 3)
    mosaic = (
        images.reshape(TILES, TILES, 3, SIDE, SIDE)
        .transpose(0, 3, 1, 4, 2)
        .reshape(TILES * SIDE, TILES * SIDE, 3)
    )
    described = {
        "sha256": hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest(),
        "class_names": list(dataset.class_names),
        "ids": dataset.ids.tolist(),
        "labels": dataset.labels.tolist(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{NAME}.png").write_bytes(png_bytes(mosaic))
    (folder / f"{NAME}.json").write_text(json.dumps(described) + "\n", "utf-8")
