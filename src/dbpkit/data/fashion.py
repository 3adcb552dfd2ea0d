"""Fashion-MNIST from its original idx files."""

import torch

from dbpkit.data.dataset import Dataset, Split, data_root, datasets
from dbpkit.data.idx import read_split
from dbpkit.data.padding import pad_to
from dbpkit.foundation.options import Count

_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}

_CLASS_NAMES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


@datasets.register("fashion_mnist")
def fashion_mnist(
    root: str | None = None, split: Split = "test", size: Count | None = None, *, verify: bool = True
) -> Dataset:
    """Fashion-MNIST from the folder ``fashion-mnist``, grey images (N, 1, 28, 28).

    Files may be packed with gzip, as published, or not.

    Args:
        root: folder that holds it; the environment's DBPKIT_DATA if not given.
        split: ``"test"`` (10,000 images, ids 0 to 9,999) or ``"train"`` (60,000, ids 0 to 59,999).
        size: side to zero-pad to, such as 32; None leaves 28 pixels.
        verify: whether packed files must have their published MD5 sums.

    Raises:
        UserError: if a file is missing, truncated or changed, or an option is wrong.

    Source:
        Xiao, Rasul & Vollgraf 2017 (arXiv:1708.07747).
    """
    folder = data_root(root) / "fashion-mnist"
    images, labels = read_split(folder, split, "Fashion-MNIST", _MD5, verify)
    padded = pad_to(images[:, None], size, "data 'fashion_mnist'")
    return Dataset("fashion_mnist", padded, labels, torch.arange(len(images)), _CLASS_NAMES)
