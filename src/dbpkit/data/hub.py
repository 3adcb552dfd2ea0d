"""Image data sets in the format of the Hugging Face ``datasets`` library: saved, in a folder, or on the Hub.

The thing people get wrong: an example's id is its row in the split, so shuffling or filtering a data set
before saving it gives its images other noise.
"""

import importlib
import inspect
from pathlib import Path
from typing import Any

import torch

from dbpkit.data.dataset import Dataset, datasets
from dbpkit.data.folder import check_image_options, check_same_size, pixels
from dbpkit.errors import UserError, unknown_name


@datasets.register("huggingface")
def huggingface(
    path: str,
    split: str = "test",
    image_column: str | None = None,
    label_column: str | None = None,
    size: int | None = None,
    mode: str = "RGB",
) -> Dataset:
    """A data set of the ``datasets`` library, uint8 (N, C, H, W), ids the rows of the split.

    Args:
        path: a folder written by ``save_to_disk``, a folder that the library can read (such as an image
            folder), or a Hub id. Folders need no network.
        split: name of the split; a saved data set that has no split recorded is taken whole.
        image_column: column of images; found if there is exactly one.
        label_column: column of class labels (or of integers or texts); found if there is exactly one of class
            labels.
        size: side of the square that each image is resized and cropped to; None takes images as they are,
            which must then all agree in size.
        mode: ``"RGB"`` or ``"L"`` (grey).

    Raises:
        UserError: if the library is not installed, nothing readable is there, the split or a column is
            unknown or ambiguous, a row has no image or no label, or the sizes differ.
    """
    where = f"data 'huggingface' ({path})"
    check_image_options(where, size, mode)
    table = _load_table(str(path), split, where)
    if not len(table):
        raise UserError(f"{where}: split '{split}' has no rows. Choose another.")
    image_column = _column(table, image_column, "Image", "image_column", where)
    label_column = _column(table, label_column, "ClassLabel", "label_column", where)
    labels, class_names = _labels(table, label_column, where)
    column = table.select_columns([image_column])
    images = {}
    for row in range(len(column)):
        name = f"row {row}"
        try:
            image = column[row][image_column]
        except Exception as error:  # the library passes on whatever Pillow's decoders raise
            raise UserError(
                f"{where}: the image of {name} cannot be read ({error}). Remove that row."
            ) from error
        if not hasattr(image, "convert"):
            raise UserError(
                f"{where}: column '{image_column}' of {name} holds a {type(image).__name__}, not an image. "
                "Set image_column, or cast it with datasets.Image()."
            )
        images[name] = pixels(image, size, mode, f"{where}, {name}")
    check_same_size(images, where)
    return Dataset(
        Path(path).name or "huggingface",
        torch.stack(list(images.values())),
        torch.tensor(labels, dtype=torch.int64),
        torch.arange(len(table)),
        class_names,
    )


def _load_table(path: str, split: str, where: str) -> Any:
    """One split as a table of the library."""
    try:
        library: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise UserError(
            "data 'huggingface' needs a library that is missing: pip install datasets."
        ) from error
    folder = Path(path).expanduser()
    if scripts := [folder] if folder.suffix == ".py" else sorted(folder.glob("*.py")):
        raise UserError(
            f"{where}: '{scripts[0]}' is a program, and data are read, not run. Remove it, or save the data"
            " set with save_to_disk where you trust it."
        )
    if path.startswith((".", "/", "~")) and not folder.is_dir():
        raise UserError(
            f"{where}: there is no such folder. Correct the path, or give a Hub id such as 'owner/name'."
        )
    saved = (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()
    try:
        if saved:
            loaded = library.load_from_disk(str(folder))
        else:
            # Versions before 4 run a data set's own program unless they are told not to.
            old = "trust_remote_code" in inspect.signature(library.load_dataset).parameters
            safe = {"trust_remote_code": False} if old else {}
            loaded = library.load_dataset(str(folder) if folder.is_dir() else path, split=split, **safe)
    except Exception as error:  # files, network and format: the library raises dozens of kinds
        reason = " ".join(str(error).split())
        raise UserError(
            f"{where}: split '{split}' cannot be loaded ({type(error).__name__}: {reason}). "
            "Give a folder written by save_to_disk, an image folder or a Hub id, and one of its splits."
        ) from error
    if isinstance(loaded, dict):
        if split not in loaded:
            raise unknown_name(f"split of {where}", split, loaded)
        return loaded[split]
    if saved and loaded.split is not None and str(loaded.split) != split:
        raise UserError(
            f"{where}: the folder holds the split '{loaded.split}', not '{split}'. Set split to it."
        )
    return loaded


def _column(table: Any, chosen: str | None, kind: str, option: str, where: str) -> str:
    """The chosen column, or the only one of this kind of feature."""
    if chosen is not None:
        if chosen not in table.column_names:
            raise unknown_name(f"{option} of {where}", chosen, table.column_names)
        return chosen
    found = [name for name, feature in table.features.items() if type(feature).__name__ == kind]
    if len(found) != 1:
        raise UserError(
            f"{where}: expected one column of kind {kind}, found {len(found)} "
            f"({', '.join(found) or 'none'}). Set {option} to one of {', '.join(table.column_names)}."
        )
    return found[0]


def _labels(table: Any, column: str, where: str) -> tuple[list[int], tuple[str, ...]]:
    """Class indices of all rows, and the class names: declared, or the values themselves in sorted order."""
    values = list(table[column])
    names = getattr(table.features[column], "names", None)
    if names is not None and all(isinstance(value, int) for value in values):
        return values, tuple(names)
    if not (
        all(isinstance(value, int) for value in values) or all(isinstance(value, str) for value in values)
    ):
        row = next(
            i for i, value in enumerate(values) if not isinstance(value, type(values[0])) or value is None
        )
        raise UserError(
            f"{where}: column '{column}' holds no class label in row {row}: {values[row]!r}. "
            "Set label_column to another."
        )
    if isinstance(values[0], int):
        return values, tuple(str(k) for k in range(max(values) + 1))
    class_names = tuple(sorted(set(values)))
    return [class_names.index(value) for value in values], class_names
