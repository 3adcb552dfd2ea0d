"""Whether an order or a sign that a paper states is seen here, too.

Differences are paired: the same images, the same noise. A value measured on other models is never judged
against the published value, only its order. All tests of a table are judged together by Holm's procedure, so
that one false verdict or more in a table has a chance of at most 5 %.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from dbpkit.statistics.intervals import Interval, difference
from dbpkit.statistics.multiple import apart_p, difference_p, holm, sign_flip_p
from dbpkit.tables.reading import Measured
from dbpkit.tables.table import TableClaim

Verdict = Literal["holds", "does not hold", "undecided", "not testable", "not measured"]

NOT_YET = "not measured yet"
"""Why a cell has no number whose run has not been made; what runs later may change its claims."""

LEVEL = 0.05
"""Chance of one false verdict or more in a table, at most."""

FEWEST = 8
"""Images of a verdict: the simulation of the tests finds the level kept from here on."""


class Test(NamedTuple):
    """One comparison of a claim.

    Attributes:
        words: what is compared, such as ``ddpm/white - ddpm/both``.
        found: the difference in the column's unit, with the 95 % interval of this one alone.
        p: two-sided p-value of this one alone; nan where there is none.
        adjusted: the same, adjusted for all tests of the table.
    """

    words: str
    found: Interval
    p: float
    adjusted: float = math.nan

    @property
    def sees(self) -> int:
        """1 where the claimed order is seen, -1 where its opposite is, 0 where it is open."""
        if not self.adjusted <= LEVEL or self.found.examples < FEWEST:
            return 0
        return 1 if self.found.value > 0 else -1


class Judged(NamedTuple):
    """A claim and what became of it here.

    Attributes:
        claim: what the paper says.
        verdict: in a word or two.
        reason: why there is no verdict, or nothing.
        tests: the comparisons behind it.
    """

    claim: TableClaim
    verdict: Verdict
    reason: str
    tests: Sequence[Test]


def judge(
    claims: Sequence[TableClaim],
    cells: Mapping[str, Measured],
    missing: Mapping[str, str],
    same: Mapping[str, str],
    *,
    mini: bool,
) -> list[Judged]:
    """Judges the claims of a table together.

    Args:
        claims: of the table.
        cells: what was measured, by cell.
        missing: why another cell has no number.
        same: the earlier cell that is the same measurement, of a cell that is none of its own.
        mini: whether the models only stand in for the published ones.
    """
    refused = [_refused(claim, cells, missing, same, mini) for claim in claims]
    tests = [[] if no else tests_of(claim, cells) for claim, no in zip(claims, refused, strict=True)]
    known = [test for own in tests for test in own if not math.isnan(test.p)]
    later = sum(_comparisons(c) for c, no in zip(claims, refused, strict=True) if no.endswith(NOT_YET))
    corrected = holm([*(test.p for test in known), *[1.0] * later])  # no later run takes a verdict back
    adjusted = dict(zip(map(id, known), corrected, strict=False))
    done = [[t._replace(adjusted=adjusted.get(id(t), math.nan)) for t in own] for own in tests]
    return [_judged(c, no, own) for c, no, own in zip(claims, refused, done, strict=True)]


def _comparisons(claim: TableClaim) -> int:
    """How many comparisons a claim makes."""
    if claim.cell is not None:
        return sum(end is not None for end in (claim.least, claim.most))
    return 1 if claim.contrast else len(claim.order) - 1


def tests_of(claim: TableClaim, cells: Mapping[str, Measured]) -> list[Test]:
    """Returns the comparisons of a claim, each of which is above 0 where the claim is right."""
    if claim.cell is not None:
        ends = [(claim.least, 1.0), (claim.most, -1.0)]
        return [_against(claim.cell, cells[claim.cell], e, sign) for e, sign in ends if e is not None]
    if claim.contrast:
        return [_contrast(claim.contrast, cells)]
    pairs = zip(claim.order, claim.order[1:], strict=False)
    return [_contrast({a: 1.0, b: -1.0}, cells) for a, b in pairs]


def _contrast(weights: Mapping[str, float], cells: Mapping[str, Measured]) -> Test:
    """A weighted sum of cells, paired over images where every cell has them."""
    words = _words(weights)
    scores = [cells[name].scores for name in weights]
    scale = cells[next(iter(weights))].scale
    if all(s is not None for s in scores):
        shared = sorted(set.intersection(*(set(s or {}) for s in scores)))
        values = np.array([[(s or {})[i] for i in shared] for s in scores]).T @ np.array([*weights.values()])
        return _of_values(words, values, sum(map(abs, weights.values())) / 2, scale, paired=True)
    plus, minus = (_sum(weights, cells, sign) for sign in (1.0, -1.0))
    n = min(cells[name].found.examples for name in weights)
    found = Interval(
        plus.value - minus.value, plus.low - minus.high, plus.high - minus.low, n, "ends of both intervals"
    )
    return Test(words, found.scaled(scale), apart_p(plus, minus))


def _sum(weights: Mapping[str, float], cells: Mapping[str, Measured], sign: float) -> Interval:
    """The weighted sum of the cells whose weight has a sign, with the sum of their intervals."""
    own = [(abs(w), cells[name].found) for name, w in weights.items() if w * sign > 0]
    value, low, high = (sum(w * getattr(f, end) for w, f in own) for end in ("value", "low", "high"))
    return Interval(value, low, high, min(f.examples for _, f in own), "")


def _of_values(words: str, values: np.ndarray, reach: float, scale: float, *, paired: bool) -> Test:
    """A mean of values in [-reach, reach], one an image."""
    found = difference(values / reach).scaled(reach * scale)
    p = difference_p(values / reach)
    return Test(words, found, max(p, sign_flip_p(values)) if paired else p)


def _against(name: str, cell: Measured, end: float, sign: float) -> Test:
    """A cell against a constant in its unit."""
    words = f"{name} {'above' if sign > 0 else 'below'} {end:g}, margin"
    constant = end / cell.scale
    if cell.scores is not None:
        values = sign * (np.array([*cell.scores.values()]) - constant)
        reach = max(1.0, float(np.abs(values).max()))
        return _of_values(words, values, reach, cell.scale, paired=False)
    f = cell.found
    low, high = sorted(sign * (x - constant) for x in (f.low, f.high))
    shown = Interval(sign * (f.value - constant), low, high, f.examples, f.method)
    exact = Interval(constant, constant, constant, f.examples, "")
    return Test(words, shown.scaled(cell.scale), apart_p(f, exact))


def _words(weights: Mapping[str, float]) -> str:
    """A contrast as a formula."""
    parts = [(w, f"{'' if abs(w) == 1 else f'{abs(w):g} '}{name}") for name, w in weights.items()]
    return " ".join(f"{'-' if w < 0 else '+'} {text}" for w, text in parts).removeprefix("+ ")


def _refused(
    claim: TableClaim,
    cells: Mapping[str, Measured],
    missing: Mapping[str, str],
    same: Mapping[str, str],
    mini: bool,
) -> str:
    """Why a claim is not tested; empty if it is."""
    if mini and claim.not_mini:
        return claim.not_mini
    without = sorted(
        (name for name in claim.cells if name not in cells), key=lambda name: missing.get(name) == NOT_YET
    )
    if without:  # what will never be measured comes first
        return f"{without[0]}: {missing.get(without[0], NOT_YET)}"
    own = [same.get(name, name) for name in claim.cells]
    if len(set(own)) < len(own):
        first, second = next(
            (a, b) for a, b in zip(claim.cells, own, strict=True) if own.count(b) > 1 and a != b
        )
        return f"{second} and {first} are the same measurement at this scale"
    return ""


def _judged(claim: TableClaim, refused: str, tests: Sequence[Test]) -> Judged:
    """The verdict over all tests of a claim."""
    if refused:
        return Judged(claim, "not measured" if refused.endswith(NOT_YET) else "not testable", refused, [])
    seen = [test.sees for test in tests]
    if -1 in seen:
        return Judged(claim, "does not hold", "", tests)
    if all(one == 1 for one in seen):
        return Judged(claim, "holds", "", tests)
    few = min(test.found.examples for test in tests)
    if few < FEWEST:
        return Judged(claim, "undecided", f"a verdict needs {FEWEST} images, here are {few}", tests)
    if any(math.isnan(test.p) for test in tests):
        return Judged(claim, "undecided", "a number has no interval", tests)
    return Judged(claim, "undecided", "the interval leaves it open", tests)
