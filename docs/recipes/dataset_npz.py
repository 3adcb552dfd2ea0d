"""A data set in one file: images and labels of a NumPy archive."""

import numpy as np
import torch

from dbpkit.data import Dataset, datasets


@datasets.register("npz")
def npz(path: str, classes: tuple[str, ...]) -> Dataset:
    """Images ``x`` (N, C, H, W), uint8 or floats in [0, 1], and labels ``y`` (N,) of an .npz file."""
    with np.load(path) as held:
        x, y = torch.from_numpy(held["x"]), torch.from_numpy(held["y"]).long()
    return Dataset("npz", x, y, ids=torch.arange(len(y)), class_names=classes)
