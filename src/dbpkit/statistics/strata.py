"""Whether draws that somebody chose were luckier than draws that nobody chose, image by image.

The thing people get wrong: to compare two accuracies over the same images as if the images were drawn anew.
The images are the same in both; only the draws differ, and an exact test has no more doubt than they give.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy import stats


def luckier(a: Sequence[int], of_a: Sequence[int], b: Sequence[int], of_b: Sequence[int]) -> float:
    """Exact one-sided p-value that the draws of ``a`` are right no more often than those of ``b``.

    If the draws of an image are exchangeable, whatever its accuracy, then given how many of all its draws are
    right, those among the draws of a are hypergeometric. Images are independent, so the sum over images has
    the convolution of these laws. At most a share alpha of honest pairs has a p-value of alpha or less.

    Args:
        a: right draws of every image, (n,).
        of_a: draws of every image, (n,), at least as many.
        b: right draws of the same images on other draws, (n,).
        of_b: how many those are, (n,).

    Returns:
        The p-value in (0, 1]; 1 where no image is right on some draws and wrong on others.

    Raises:
        ValueError: if the lengths differ, or a count is larger than its draws.

    Source:
        Mantel & Haenszel 1959, J. Natl. Cancer Inst. 22:719, the exact conditional form over strata.
    """
    counts = [np.asarray(values, dtype=np.int64) for values in (a, of_a, b, of_b)]
    right, draws, other, others = counts
    if len({len(c) for c in counts}) != 1 or (right > draws).any() or (other > others).any():
        raise ValueError("four lists of the same length are needed, and no more right draws than draws.")
    strata = Counter(zip((right + other).tolist(), draws.tolist(), others.tolist(), strict=True))
    length = int(draws.sum()) + 1
    law = np.ones(length // 2 + 1, dtype=complex)
    for (total, own, rest), images in strata.items():
        chances = stats.hypergeom.pmf(np.arange(own + 1), own + rest, total, own)
        law *= np.fft.rfft(chances, length) ** images
    at_least = np.fft.irfft(law, length)[int(right.sum()) :].clip(min=0).sum()
    return float(min(1.0, max(at_least, np.finfo(float).eps)))
