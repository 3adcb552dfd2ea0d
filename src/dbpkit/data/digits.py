"""The small handwritten digits that come with scikit-learn: no download, seconds to train on.

The split is by id: an example is always in the same part, and its id is its place in the whole set, not in
the part.
"""

import torch

from dbpkit.data.dataset import Dataset, Split, datasets
from dbpkit.data.padding import pad_to
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.options import Count

TEST_EVERY = 5
"""Ids divisible by this are the test part."""


@datasets.register("digits")
def digits(split: Split = "test", size: Count | None = None) -> Dataset:
    """Scikit-learn's 1,797 grey digits of 8 x 8 pixels, float32: levels 0 to 16 divided by 16.

    Args:
        split: ``"test"`` (360 images, ids 0, 5, 10, ...) or ``"train"`` (the other 1,437).
        size: side to zero-pad to, such as 16; None leaves 8 pixels.

    Raises:
        UserError: if an option is wrong or scikit-learn is not installed.

    Source:
        Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI, test part; CC BY 4.0.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            "data 'digits' comes with scikit-learn, which is missing: pip install scikit-learn."
        ) from error
    flat, digit = load_digits(return_X_y=True)  # (1797, 64), (1797,)
    images = torch.from_numpy(flat).float().reshape(-1, 1, 8, 8) / 16  # 17 levels are exact in float32
    ids = torch.arange(len(images))
    labels = torch.from_numpy(digit).long()
    chosen = (ids % TEST_EVERY == 0) == (split == "test")
    padded = pad_to(images[chosen], size, "data 'digits'")
    return Dataset("digits", padded, labels[chosen], ids[chosen], tuple(str(k) for k in range(10)))
