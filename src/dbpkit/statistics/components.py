"""What follows from the inner products of random gradients: parts of their power, cosines, draws needed.

Columns of products are what two draws have in common: nothing, forward noise, reverse noise, all. The thing
people get wrong: taking draws of very different lengths for as many draws. A mean is led by its longest
members, so n draws count for fewer.
"""

import math
from typing import NamedTuple

import numpy as np

from dbpkit.statistics.intervals import Interval, Values, mean, root

PARTS = ("all draws", "forward noise", "reverse noise", "both noises together")
"""Parts of the power of a draw: what all share, the two main effects, and their interaction."""

HALF = 0.5
"""The cosine that is asked for by default."""

_RATIOS = np.geomspace(1e-4, 1e3, 561)
"""Ratios that are tried, three per cent apart."""


def power(products: np.ndarray) -> np.ndarray:
    """Splits the power of single draws: common part, forward, reverse, interaction; they add up to it.

    Args:
        products: mean inner products of pairs that share nothing, the forward noise, the reverse noise and
            all, (..., 4).

    Returns:
        Unbiased estimates (..., 4); one that is small may be negative. A part that the model does not have is
        exactly 0.

    Source:
        Law of total variance for g = m + a_f + b_r + c_fr; Searle, Casella & McCulloch 1992, section 4.3.
    """
    nothing, forward, reverse, whole = np.moveaxis(np.asarray(products, dtype=float), -1, 0)
    return np.stack(
        [nothing, forward - nothing, reverse - nothing, (whole - reverse) - (forward - nothing)], axis=-1
    )


class Draws(NamedTuple):
    """How alike single draws of a gradient are, on average over images.

    Attributes:
        common: mean cosine of two draws.
        spread: mean square of their length over the product of two lengths, at least 1 where lengths differ.

    Two draws of an attacker who knows a part of the noise share it, with each other and with the defender.
    """

    common: np.ndarray
    spread: np.ndarray

    @classmethod
    def of(cls, cosines: np.ndarray, evenness: np.ndarray, weights: np.ndarray | None = None) -> "Draws":
        """Averages over images.

        Args:
            cosines: of pairs of draws, (n,).
            evenness: product of two lengths over the mean square of a length, (n,).
            weights: of the images, (B, n), for an axis B of resamples; None weighs all alike.
        """
        each = np.full((1, len(cosines)), 1 / len(cosines)) if weights is None else weights
        common, spread = each @ cosines, 1 / np.clip(each @ evenness, 1e-6, None)
        return cls(common[0], spread[0]) if weights is None else cls(common, spread)

    def effective(self, draws: float | np.ndarray) -> np.ndarray:
        """How many draws of equal length ``draws`` count for.

        Source:
            Kish 1965, Survey Sampling: (sum m)^2 / sum m^2, with both sums at their expectations.
        """
        return np.asarray(1 + (np.asarray(draws) - 1) / self.spread)

    def cosine(self, draws: float | np.ndarray) -> np.ndarray:
        """Cosine of the mean of ``draws`` gradients to that of another draw.

        With n equal lengths and pairwise cosine c the mean has an inner product of c with another direction
        and a squared length of c + (1 - c) / n. Assumes that length and direction are independent, and that
        the squared length of the mean is at its expectation, as in many dimensions.
        """
        common = np.clip(self.common, 0, 1)
        square = common + (1 - common) / self.effective(draws)
        return np.asarray(common / np.sqrt(square))

    def slope(self, draws: float) -> float:
        """Derivative of `cosine` with respect to the common part, for intervals."""
        step = 1e-5
        up, down = (self._replace(common=np.clip(self.common + s, 0, 1)) for s in (step, -step))
        moved = float(up.common - down.common)
        return float(up.cosine(draws) - down.cosine(draws)) / moved if moved else 0.0

    def needed(self, cosine: float = HALF) -> float:
        """Fewest draws, not rounded, whose mean has that cosine; infinite where endless draws have not."""
        common = min(1.0, float(self.common))
        if common <= cosine**2:
            return math.inf
        effective = (1 - common) / (common**2 / cosine**2 - common)
        return max(1.0, 1 + float(self.spread) * (effective - 1))


def needed_draws(cosines: Values, evenness: Values, cosine: float = HALF) -> Interval:
    """Draws for a cosine to another draw, from the interval of the common part; both may be infinite.

    Args:
        cosines: of pairs of draws, one per image.
        evenness: as in `Draws.of`.
        cosine: that is asked for.
    """
    c, e = (np.asarray(v, dtype=float) for v in (cosines, evenness))
    found, common = Draws.of(c, e), mean(c)
    low, high = (
        math.nan if math.isnan(end) else found._replace(common=np.asarray(end)).needed(cosine)
        for end in (common.high, common.low)
    )
    return Interval(found.needed(cosine), low, high, len(c), "closed form, interval of the common part")


def ratio_of_means(top: Values, bottom: Values) -> Interval:
    """Ratio of the means of paired values of any size, the lower one positive: all that may well be it.

    Source:
        Fieller 1954, J. R. Stat. Soc. B 16:175, with the interval of `mean` for a - r b.
    """
    a, b = (np.asarray(v, dtype=float) for v in (top, bottom))
    scale = float(b.mean())
    if not scale > 0:
        return Interval(math.nan, math.nan, math.nan, len(a), "ratio of means")
    found = root(float(a.mean()) / scale, _RATIOS, (a[:, None] - b[:, None] * _RATIOS) / scale)
    low = min(0.0, found.value) if found.low <= _RATIOS[0] else found.low
    return found._replace(low=low, method=f"ratio of means, {found.method}")
