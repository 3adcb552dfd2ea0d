"""Resamples of a bootstrap, drawn from our own generator: the same at every call.

SciPy's bootstrap has percentile, basic and BCa intervals. The intervals of this package need the studentised
one and that of two crossed axes, which take the resamples themselves.
"""

import numpy as np

from dbpkit.foundation.philox import uniforms

RESAMPLES = 1000
"""Bootstrap samples."""


def resampled(count: int, resamples: int = RESAMPLES, which: int = 1) -> np.ndarray:
    """Positions drawn with replacement, (resamples, count), always the same; ``which`` names the draw."""
    return (uniforms(resamples, count, "probe", which) * count).astype(int)


def counted(rows: np.ndarray, count: int) -> np.ndarray:
    """Weights (resamples, count) of the positions in each resample; every line adds up to 1."""
    weights = np.zeros((len(rows), count))
    np.add.at(weights, (np.arange(len(rows))[:, None], rows), 1 / rows.shape[1])
    return weights
