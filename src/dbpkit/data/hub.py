"""Image data sets in the format of the Hugging Face ``datasets`` library: saved, in a folder, or on the Hub.

The thing people get wrong: an example's id is its row in the split, so shuffling or filtering a data set
before saving it gives its images other noise.
"""

import importlib
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dbpkit.data.classes import in_class_order
from dbpkit.data.dataset import Dataset, datasets
from dbpkit.data.deferred import from_files
from dbpkit.data.pictures import Mode, read_picture
from dbpkit.foundation.errors import UserError, shown, unknown_name
from dbpkit.foundation.options import Count


@datasets.register("huggingface")
def huggingface(
    path: str,
    split: str = "test",
    image_column: str | None = None,
    label_column: str | None = None,
    size: Count | None = None,
    mode: Mode = "RGB",
    classes: tuple[str, ...] | None = None,
) -> Dataset:
    """A data set of the ``datasets`` library, ids the rows of the split; pixels as those of a folder.

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
        classes: names of all classes in the order of their labels; left out, as declared, or the whole
            numbers or words of the column in their order.

    Raises:
        UserError: if the library is not installed, nothing readable is there, the split or a column is
            unknown or ambiguous, a row has no image or no label, or the sizes differ.
    """
    where = f"data 'huggingface' ({path})"
    table = _load_table(str(path), split, where)
    if not len(table):
        raise UserError(f"{where}: split '{split}' has no rows. Choose another.")
    image_column = _column(table, image_column, "Image", "image_column", where)
    label_column = _column(table, label_column, "ClassLabel", "label_column", where)
    labels, class_names = _labels(table, label_column, where, classes)
    rows = _undecoded(table, image_column)

    def read(row: int) -> Tensor:
        source = _source(rows[row][image_column], image_column, row, where)
        return read_picture(source, f"{where}: the image of row {row}", size=size, mode=mode)

    return from_files(
        Path(path).name or "huggingface",
        read,
        torch.tensor(labels, dtype=torch.int64),
        torch.arange(len(table)),
        class_names,
        called="row {}".format,
    )


def _undecoded(table: Any, column: str) -> Any:
    """The rows of a table with contents or paths of images, which our own reader decodes."""
    if type(table.features[column]).__name__ == "Image":
        library: Any = importlib.import_module("datasets")
        table = table.cast_column(column, library.Image(decode=False))
    return table.select_columns([column])


def _source(held: Any, column: str, row: int, where: str) -> bytes | str:
    """Content or path of one row's image."""
    source = held.get("bytes") or held.get("path") if isinstance(held, dict) else None
    if not isinstance(source, (bytes, str)):
        raise UserError(
            f"{where}: column '{column}' of row {row} holds a {type(held).__name__}, not an image. "
            "Set image_column, or cast it with datasets.Image()."
        )
    return source


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


def _labels(
    table: Any, column: str, where: str, classes: tuple[str, ...] | None
) -> tuple[list[int], tuple[str, ...]]:
    """Class indices of all rows, and the class names: declared, or the values themselves in their order."""
    values = list(table[column])
    names = getattr(table.features[column], "names", None)
    kind = int if names is not None or isinstance(values[0], int) else str
    wrong = next((i for i, v in enumerate(values) if not isinstance(v, kind) or isinstance(v, bool)), None)
    if wrong is not None:
        raise UserError(
            f"{where}: column '{column}' holds no class label in row {wrong}: {shown(values[wrong])}. "
            "Set label_column to another."
        )
    if kind is int and min(values) < 0:
        raise UserError(
            f"{where}: column '{column}' has label {min(values)} in row {values.index(min(values))}, which"
            " means that it has none. Choose a split with labels."
        )
    if names is None and kind is int:
        names = [str(k) for k in range(max(values) + 1)]
    if names is not None and max(values) >= len(names):
        raise UserError(f"{where}: column '{column}' has label {max(values)} and {len(names)} class names.")
    texts = values if names is None else [names[v] for v in values]
    if names is not None and classes is None and not _from_folders(table):
        return values, tuple(names)
    ordered = in_class_order(set(texts) if names is None else names, where, classes)
    place = {name: k for k, name in enumerate(ordered)}
    return [place[text] for text in texts], ordered


def _from_folders(table: Any) -> bool:
    """Whether the library made the class names from folders, sorted as text, and nobody declared them."""
    return getattr(table.info, "builder_name", None) == "imagefolder"
