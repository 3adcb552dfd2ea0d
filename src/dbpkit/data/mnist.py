"""MNIST from its original idx files."""

import torch

from dbpkit.data.dataset import Dataset, Split, data_root, datasets
from dbpkit.data.idx import read_split
from dbpkit.data.padding import pad_to
from dbpkit.foundation.options import Count

_MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}

_FOLDERS = ("mnist", "MNIST/raw", "MNIST")
"""Where the files are looked for; the second is torchvision's place."""


@datasets.register("mnist")
def mnist(
    root: str | None = None, split: Split = "test", size: Count | None = None, *, verify: bool = True
) -> Dataset:
    """MNIST from the folder ``mnist`` or ``MNIST/raw``, grey images (N, 1, 28, 28).

    Files may be packed with gzip, as published, or not.

    Args:
        root: folder that holds it; the environment's DBPKIT_DATA if not given.
        split: ``"test"`` (10,000 images, ids 0 to 9,999) or ``"train"`` (60,000, ids 0 to 59,999).
        size: side to zero-pad to, such as 32; None leaves 28 pixels.
        verify: whether packed files must have their published MD5 sums.

    Raises:
        UserError: if a file is missing, truncated or changed, or an option is wrong.

    Source:
        LeCun, Bottou, Bengio & Haffner 1998, "Gradient-based learning applied to document recognition".
    """
    top = data_root(root)
    folder = next((top / name for name in _FOLDERS if (top / name).is_dir()), top / _FOLDERS[0])
    images, labels = read_split(folder, split, "MNIST", _MD5, verify)
    padded = pad_to(images[:, None], size, "data 'mnist'")
    return Dataset("mnist", padded, labels, torch.arange(len(images)), tuple(str(k) for k in range(10)))
