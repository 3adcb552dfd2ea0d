"""In which order the examples of a data set are taken, so that any number of them is a fair choice.

The first N files of a folder are often all of its first class.
"""

import re
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from dbpkit.data.dataset import Dataset
from dbpkit.foundation.errors import unknown_name
from dbpkit.foundation.noise import NoisePlan

Order = Literal["balanced", "file", "shuffled"]
"""``balanced`` takes every class in turn, ``shuffled`` any example, ``file`` the order of the files."""

ORDERS: tuple[str, ...] = get_args(Order)


_FIRST = re.compile(r"first-([1-9][0-9]{0,8})")


def subset(name: str) -> dict[str, Any]:
    """Returns the keys of ``[examples]`` that a subset of the papers stands for.

    Args:
        name: ``"first-1024"``, ``"first-1000"``, ``"first-200"`` or any other number: the first so many in
            the order of the files; ``"robustbench"``: all in that order, which for CIFAR is what RobustBench
            evaluates on.

    Raises:
        ValueError: if there is no such subset.
    """
    if name == "robustbench":
        return {"order": "file"}
    if match := _FIRST.fullmatch(name):
        return {"count": int(match[1]), "order": "file"}
    raise ValueError(f"'{name}' is no subset. Available: first-1024 (or another number), robustbench")


def in_order(data: Dataset, order: str, seed: int) -> Tensor:
    """Returns the positions (N,) of all examples in the order in which they are taken.

    A choice of N is the first N of them, so a larger choice holds every smaller one. The order depends on the
    examples' ids and labels and on the seed, and not on where an example lies in the data.

    Args:
        data: the examples.
        order: ``"balanced"`` goes round the classes, in another random order every time, and takes a random
            example of each that has one left, so that no two classes with examples left ever differ by more
            than one; ``"shuffled"`` is a random order of all; ``"file"`` is the order held.
        seed: of the random order.

    Raises:
        UserError: if the order is unknown.
    """
    if order not in ORDERS:
        raise unknown_name("order of examples", str(order), ORDERS)
    if order == "file" or not len(data):
        return torch.arange(len(data))
    ids, labels = data.ids.numpy(), data.labels.numpy()
    # Two uniforms of 24 bits each are one of 48; an equal pair is settled by the id.
    pair = NoisePlan.of(seed, data.ids, "control").uniform("order", 0, torch.zeros(len(data), 2)).double()
    key = (pair[:, 0] + pair[:, 1] * 2.0**-24).numpy()
    shuffled = np.lexsort((ids, key))
    if order == "shuffled":
        return torch.from_numpy(shuffled)
    turn = np.empty(len(data), np.int64)
    turn[shuffled] = _occurrence(labels[shuffled])
    return torch.from_numpy(np.lexsort((ids, key, turn)))


def _occurrence(labels: np.ndarray) -> np.ndarray:
    """For every entry, how many equal ones stand before it."""
    by_label = np.argsort(labels, kind="stable")
    arranged = labels[by_label]
    starts = np.flatnonzero(np.r_[True, arranged[1:] != arranged[:-1]])
    lengths = np.diff(np.r_[starts, len(labels)])
    found = np.empty(len(labels), np.int64)
    found[by_label] = np.arange(len(labels)) - np.repeat(starts, lengths)
    return found
