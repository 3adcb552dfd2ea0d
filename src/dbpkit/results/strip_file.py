"""``strip.safetensors``: a few images of a run for the report, with labels, predictions and class names."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dbpkit.foundation.arrays import Array
from dbpkit.results.layout import arrays_of, checked, damaged, parsed
from dbpkit.results.schemas import ABOUT


def read_strip_file(path: Path, remedy: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """Returns images as arrays by name and what belongs to them; two empty dictionaries without a file.

    Args:
        path: the file.
        remedy: what to do about a damaged one.

    Raises:
        UserError: if it is damaged.
    """
    if not os.path.lexists(path):
        return {}, {}
    arrays, metadata = arrays_of(path, remedy)
    where = f"'{path}'"
    about: dict[str, Any] = checked(parsed(metadata.get("about", ""), where, remedy), ABOUT, where, remedy)
    if why := strip_fault(arrays, about):
        raise damaged(where, why, remedy)
    return arrays, about


def strip_fault(arrays: Mapping[str, Array], about: Mapping[str, Any]) -> str:
    """Returns what is wrong with the pictures of a run, or nothing."""
    ids, clean = arrays.get("ids"), arrays.get("clean")
    if ids is None or clean is None or ids.dtype != np.int64 or ids.ndim != 1 or clean.ndim != 4:
        return "it has no ids or no clean images"
    images = {k: v for k, v in arrays.items() if k != "ids"}
    if any(v.dtype != np.float32 or v.shape != clean.shape or not v.size for v in images.values()):
        return "its images are not of one type and shape"
    if not all(np.isfinite(v).all() for v in images.values()):
        return "its images are none"
    if not len(ids) == len(clean) == len(about["labels"]):
        return "its labels are not those of its images"
    for row, predicted in about["predicted"].items():
        if len(predicted) != len(ids) or (row != "clean" and f"{row}.x_adv" not in arrays):
            return f"its predictions or images of row '{row}' are missing"
    return ""
