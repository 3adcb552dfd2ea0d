"""Images and labels that a script already has, in whatever it holds them, as a `Dataset`.

Of a loader that shuffles the data set behind it is read, in its own order: the loader's positions name
another example every time.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from dbpkit.data.dataset import Dataset
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.inputs import check_images, check_labels

EXPECTED = (
    "Give a data set's name, a Dataset, images (N, C, H, W) with labels (N,), or a torch data set or"
    " DataLoader of such pairs."
)


def as_dataset(given: Any, name: str = "given") -> Dataset:
    """Returns images with labels as a data set, whose ids are positions.

    Args:
        given: a `Dataset`, which is returned as it is; a pair of tensors or NumPy arrays, images (N, C, H, W)
            and labels (N,); a torch data set of pairs, all of whose examples are read; or a DataLoader, whose
            data set is read in its own order.
        name: name of the result, for reports.

    Raises:
        UserError: if it is anything else, or the images or labels are not such tensors.
    """
    if isinstance(given, Dataset):
        return given
    where = f"data '{name}'"
    if isinstance(given, DataLoader):
        batched = isinstance(given.dataset, IterableDataset)
        x, y = _batches(given, where) if batched else _pairs(given.dataset, where)
    elif isinstance(given, tuple | list) and len(given) == 2 and all(_is_array(part) for part in given):
        x, y = (_tensor(part, where) for part in given)
    elif (
        hasattr(given, "__getitem__")
        and hasattr(given, "__len__")
        and not isinstance(given, str | bytes | dict)
    ):
        x, y = _pairs(given, where)
    else:
        raise UserError(f"{where} cannot be made of {type(given).__name__}. {EXPECTED}")
    if y.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        y = y.long()
    check_images(x if x.dtype != torch.uint8 else x[:1].float(), where, pixels=False)
    check_labels(y, len(x), where)
    return Dataset(name, x, y, torch.arange(len(x)), tuple(str(k) for k in range(int(y.max()) + 1)))


def _pairs(items: Any, where: str) -> tuple[Tensor, Tensor]:
    """Every pair of a data set of single examples, stacked."""
    found = [items[i] for i in range(len(items))]
    if not found or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in found):
        raise UserError(f"{where} has no pairs of an image and a label. {EXPECTED}")
    images = [_tensor(x, where) for x, _ in found]
    if len({image.shape for image in images}) > 1:
        raise UserError(f"{where} has images of several shapes; resize them to one.")
    return torch.stack(images), _tensor([_label(y, where) for _, y in found], where)


def _batches(loader: Iterable[Any], where: str) -> tuple[Tensor, Tensor]:
    """Every batch of a loader without positions, joined."""
    found = list(loader)
    if not found or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in found):
        raise UserError(f"{where} has no pairs of images and labels. {EXPECTED}")
    try:
        x, y = (torch.cat([_tensor(pair[k], where) for pair in found]) for k in (0, 1))
    except RuntimeError as error:
        raise UserError(f"{where} has batches that do not fit together. {EXPECTED}") from error
    return x, y


def _is_array(part: Any) -> bool:
    return isinstance(part, Tensor) or (hasattr(part, "__array__") and getattr(part, "ndim", 0) > 0)


def _label(y: Any, where: str) -> int:
    if hasattr(y, "item") and getattr(y, "ndim", 1) == 0:
        y = y.item()
    if isinstance(y, bool) or not isinstance(y, int):
        raise UserError(f"{where}: a label must be a whole number, not {type(y).__name__}.")
    return y


def _tensor(part: Any, where: str) -> Tensor:
    try:
        return torch.as_tensor(part).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{where} cannot be made of {type(part).__name__}. Let the transform end in a tensor, such as"
            " torchvision's ToTensor()."
        ) from error
