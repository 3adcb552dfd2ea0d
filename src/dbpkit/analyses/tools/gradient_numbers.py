"""Numbers of the gradient's variance: of one purifier, and what they say of many purifiers' hidden accuracy.

The thing people get wrong: calling the difference between a white-box attack and one that knows the noise
what noise hides for good. It is what it hides from that many draws.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dbpkit.analyses.tools.configurations import Setting
from dbpkit.analyses.tools.crossed_gradients import SHARED
from dbpkit.results.analysis import Claim, Number
from dbpkit.statistics.components import HALF, PARTS, Draws, needed_draws, power, ratio_of_means
from dbpkit.statistics.crossed import crossed, crossed_correlation
from dbpkit.statistics.intervals import CROSSED_EXAMPLES, Interval, difference, mean, median

ATTACKERS = {"nothing": "no noise", "forward": "the forward noise", "reverse": "the reverse noise"}
"""What an attacker knows whose draws share it with the defender's, in words."""

TOLERANCE = 0.05
"""The closed form of the cosine is said to hold where it is off by less."""

FEWEST = 5
"""Purifiers that a rank correlation is made of."""


class Gradients(NamedTuple):
    """What was measured of one purifier, by image.

    Attributes:
        gradient: mean inner products of pairs of gradients, columns `SHARED`, (n, 4).
        direction: the same of gradients of length 1.
        length: the same of their lengths.
        right: share of the design's cells that are classified right, (n,).
        sides: kinds of noise that the purifier draws, of ``forward`` and ``reverse``.
        even: product of two lengths of fresh draws over the mean square of a length; empty if not measured.
        cosine: measured cosine to the gradient under known noise by number of draws; empty if not measured.
        white_box: share right under attack, or empty.
        dw_both: share right under attack with the noise known, or empty.
    """

    gradient: np.ndarray
    direction: np.ndarray
    length: np.ndarray
    right: np.ndarray
    sides: Sequence[str]
    even: np.ndarray
    cosine: Mapping[int, np.ndarray]
    white_box: np.ndarray
    dw_both: np.ndarray

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]]) -> "Gradients":
        """Reads the records of all images of a purifier, in the images' order."""

        def column(name: str) -> np.ndarray:
            return np.array([r[name] for r in records if name in r], dtype=float)

        cosines = {int(k): np.array([r["cosine"][k] for r in records]) for k in records[0].get("cosine", {})}
        return cls(
            gradient=column("gradient"),
            direction=column("direction"),
            length=column("length"),
            right=column("right"),
            sides=records[0]["sides"],
            even=column("evenness"),
            cosine=cosines,
            white_box=column("white_box"),
            dw_both=column("dw_both"),
        )

    def cosines(self, shared: str = "nothing") -> np.ndarray:
        """Mean cosine of pairs of draws that share this, (n,)."""
        return self.direction[:, SHARED.index(shared)]

    def evenness(self, shared: str = "nothing") -> np.ndarray:
        """Product of two lengths over the mean square of a length, (n,); 1 where all are 0.

        Few draws look more alike in length than they are, so independent ones are used where there are any.
        """
        if shared == "nothing" and len(self.even):
            return self.even
        whole = self.length[:, SHARED.index("all")]
        product = self.length[:, SHARED.index(shared)]
        return np.divide(product, whole, out=np.ones(len(whole)), where=whole > 0)

    def draws(self, shared: str = "nothing", weights: np.ndarray | None = None) -> Draws:
        """How alike the draws of an attacker are who knows this part of the noise."""
        return Draws.of(self.cosines(shared), self.evenness(shared), weights)

    @property
    def attackers(self) -> list[str]:
        """Whom it is worth asking about: who knows nothing, and who knows one of two kinds of noise."""
        return list(ATTACKERS) if len(self.sides) == 2 else ["nothing"]


def parts_of_power(found: Gradients) -> dict[str, Interval]:
    """Parts of the power of a gradient of length 1, each with the interval over images."""
    return {name: mean(values) for name, values in zip(PARTS, power(found.direction).T, strict=True)}


def own_numbers(found: Gradients) -> list[Number]:
    """Signal, noise, its parts, cosines and draws needed, of one purifier."""
    parts = power(found.gradient)
    noise = parts[:, 1:].sum(axis=1)
    each = np.divide(parts[:, 0], noise, out=np.full(len(noise), np.nan), where=noise > 0)
    ratio = "signal-to-noise ratio of the gradient"
    numbers = [
        Number.of(
            f"{ratio}, median image",
            median(each[np.isfinite(each)]),
            how="squared norm of the expected gradient over the trace of its covariance",
        ),
        Number.of(f"{ratio}, ratio of means", ratio_of_means(parts[:, 0], noise)),
    ]
    absent = {"forward noise": "forward", "reverse noise": "reverse"}
    for name, part in parts_of_power(found).items():
        missing = absent.get(name, found.sides[0]) not in found.sides or (
            name == PARTS[3] and len(found.sides) < 2
        )
        how = "exactly 0: the purifier does not draw it" if missing else "gradients of length 1"
        numbers.append(Number.of(f"share of the gradient's power: {name}", part, how=how))
    numbers += _noise_parts(found, parts)
    numbers += _cosines(found)
    return numbers + [n for shared in found.attackers for n in _needed(found, shared)]


def _noise_parts(found: Gradients, parts: np.ndarray) -> list[Number]:
    """How the gradient's variance, in its own length, divides; nothing to divide with one kind of noise."""
    if len(found.sides) < 2:
        return []
    noise = parts[:, 1:].sum(axis=1)
    return [
        Number.of(f"share of the gradient's variance: {name}", ratio_of_means(parts[:, k], noise))
        for k, name in enumerate(PARTS)
        if k
    ]


def _cosines(found: Gradients) -> list[Number]:
    """Measured cosines, the closed form's error at the most draws, and where the cosine ends."""
    numbers = [
        Number.of(f"cosine to the DW gradient, N = {n}", mean(values)) for n, values in found.cosine.items()
    ]
    own, most = found.draws(), max(found.cosine, default=0)
    if most:
        apart = own._replace(common=found.cosines())
        predicted = float(own.cosine(most)) + own.slope(most) * (apart.common - float(own.common))
        numbers.append(
            Number.of(
                f"cosine measured minus closed form, N = {most}",
                mean(found.cosine[most] - predicted),
                claim=Claim(f"within {TOLERANCE} of 0: pairs say what many do", -TOLERANCE, TOLERANCE),
                how="closed form of single draws' cosine and lengths, paired",
            )
        )
    common = mean(found.cosines())
    value, low, high = (
        end if math.isnan(end) else math.sqrt(max(0.0, end))
        for end in (common.value, common.low, common.high)
    )
    claim = Claim("below 1/2: no number of draws gives a cosine of one half", most=HALF)
    method = f"square root of the common share, {common.method}"
    limit = Interval(value, low, min(1.0, high), common.examples, method)
    return [*numbers, Number.of("cosine that endless draws reach", limit, claim=claim)]


def _needed(found: Gradients, shared: str) -> list[Number]:
    """Draws for a cosine of one half; no number where endless draws do not reach it."""
    needs = needed_draws(found.cosines(shared), found.evenness(shared))
    if math.isinf(needs.value):
        return []
    name = f"draws for a cosine of 1/2, attacker who knows {ATTACKERS[shared]}"
    if math.isfinite(needs.high):
        return [Number.of(name, needs)]
    how = f"no upper end; at least {in_draws(needs.low)}"
    return [Number.of(name, needs._replace(low=math.nan, high=math.nan), how=how)]


def in_draws(draws: float) -> str:
    """A number of draws in words, rounded up."""
    return "no number" if math.isinf(draws) else f"{math.ceil(draws - 1e-9)}"


class Prediction(NamedTuple):
    """What a number of each purifier says of its hidden accuracy, in words and by resample of the images.

    Attributes:
        name: of the number.
        value: of each purifier, (N,).
        moved: the same from resamples of the images, (B, N).
    """

    name: str
    value: np.ndarray
    moved: np.ndarray


def setting_numbers(found: Mapping[Setting, Gradients], eot: int) -> list[Number]:
    """Of every purifier: common share, hidden accuracy, and accuracy under both attacks."""
    numbers = []
    for setting, own in found.items():
        numbers += [
            Number.of(f"{setting}: white box minus DW_Both", difference(own.white_box - own.dw_both)),
            Number.of(f"{setting}: share of the gradient's power: {PARTS[0]}", mean(own.cosines())),
            Number(
                f"{setting}: cosine to the DW gradient, N = {eot}, closed form",
                float(own.draws().cosine(eot)),
                examples=len(own.right),
                method="closed form",
            ),
        ]
    return numbers


def predictions(found: Mapping[Setting, Gradients], eot: int, weights: np.ndarray) -> list[Prediction]:
    """What might predict hidden accuracy: cosine, signal-to-noise ratio, accuracy without an attack.

    Args:
        found: by purifier, on the same images.
        eot: draws of the white box.
        weights: of the images in each resample, (B, n).
    """
    all_alike = np.full((1, weights.shape[1]), 1 / weights.shape[1])

    def ratios(own: Gradients, w: np.ndarray) -> np.ndarray:
        parts = w @ power(own.gradient)
        return parts[:, 0] / parts[:, 1:].sum(axis=1)

    columns = {
        f"cosine to the DW gradient at N = {eot}": lambda own, w: own.draws(weights=w).cosine(eot),
        "signal-to-noise ratio": ratios,
        "accuracy without an attack": lambda own, w: w @ own.right,
    }
    return [
        Prediction(
            name,
            np.array([float(of(own, all_alike)[0]) for own in found.values()]),
            np.stack([of(own, weights) for own in found.values()], axis=1),
        )
        for name, of in columns.items()
    ]


def prediction_numbers(found: Mapping[Setting, Gradients], eot: int) -> list[Number]:
    """Rank correlations over purifiers with white box minus DW_Both; images and purifiers are resampled."""
    if len(found) < FEWEST:
        return []
    axes = crossed(len(found), len(next(iter(found.values())).right))
    by_cosine, by_ratio, by_right = predictions(found, eot, axes.weights)

    def averages(columns: Iterable[np.ndarray], name: str) -> Prediction:
        values = list(columns)
        return Prediction(
            name, np.array([v.mean() for v in values]), np.stack([axes.weights @ v for v in values], 1)
        )

    def number(one: Prediction, other: Prediction, claim: Claim | None = None) -> Number:
        name = f"rank correlation over purifiers: {one.name} and {other.name}"
        pairs = (one.value, other.value), (one.moved, other.moved)
        return Number.of(name, crossed_correlation(*pairs, axes), claim=claim)

    hidden = averages((v.white_box - v.dw_both for v in found.values()), "white box minus DW_Both")
    known = averages((v.dw_both for v in found.values()), "accuracy under DW_Both")
    of_right = Prediction(
        f"{hidden.name} as a share of accuracy without an attack",
        hidden.value / np.maximum(by_right.value, 1e-9),
        hidden.moved / np.maximum(by_right.moved, 1e-9),
    )
    words = "negative: the fewer of its draws agree, the more accuracy the noise hides"
    claim = Claim(words, most=0, needs=CROSSED_EXAMPLES)
    return [
        *(number(one, hidden, claim) for one in (by_cosine, by_ratio)),
        number(by_right, hidden),
        number(by_cosine, of_right),
        number(by_cosine, known),
    ]
