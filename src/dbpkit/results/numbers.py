"""A measured number and what a paper claims of it.

Nobody sets a verdict: it follows from the number's interval, the claim's range and the number of images.
"""

import math
from typing import NamedTuple

from dbpkit.statistics.intervals import VERDICT_EXAMPLES, Interval


class Claim(NamedTuple):
    """What is claimed of a number: that it lies in an open range.

    Attributes:
        words: the claim.
        least: lower end of the range.
        most: upper end.
        needs: fewest independent examples of a verdict.
    """

    words: str
    least: float = -math.inf
    most: float = math.inf
    needs: int = VERDICT_EXAMPLES


class Number(NamedTuple):
    """A measured number.

    Whether its claim holds follows from interval, examples and range; nothing sets it by hand.

    Attributes:
        name: what it is, in words.
        value: the number.
        low: lower end of its 95 % interval, or None where it has none.
        high: upper end.
        examples: independent examples behind it.
        method: how value and interval were made.
        published: the value of a paper, or None.
        source: where ``published`` comes from.
        claim: what the paper says of it, in words; empty if nothing.
        least: the claim holds above this; None for no bound.
        most: the claim holds below this; None for no bound.
        needs: fewest examples of a verdict.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    examples: int = 0
    method: str = ""
    published: float | None = None
    source: str = ""
    claim: str = ""
    least: float | None = None
    most: float | None = None
    needs: int = VERDICT_EXAMPLES

    @classmethod
    def of(
        cls,
        name: str,
        found: Interval,
        *,
        claim: Claim | None = None,
        published: float | None = None,
        source: str = "",
        how: str = "",
    ) -> "Number":
        """Makes a number of an interval.

        Args:
            name: what it is, in words.
            found: value, ends, examples and method.
            claim: what is claimed of it.
            published: the value of a paper.
            source: where that is from.
            how: more about the method.
        """
        low, high = (end if math.isfinite(end) else None for end in (found.low, found.high))
        method = f"{found.method}; {how}" if how else found.method
        number = cls(name, found.value, low, high, found.examples, method, published, source)
        if claim is None:
            return number
        least, most = (end if math.isfinite(end) else None for end in (claim.least, claim.most))
        return number._replace(claim=claim.words, least=least, most=most, needs=claim.needs)

    @property
    def holds(self) -> bool | None:
        """Whether the claim holds here: None without a claim, or where `open_because` has a reason."""
        if not self.claim or self.open_because or self.low is None or self.high is None:
            return None
        return self.low > _or(self.least, -math.inf) and self.high < _or(self.most, math.inf)

    @property
    def open_because(self) -> str:
        """Why there is no verdict; empty if there is one."""
        least, most = _or(self.least, -math.inf), _or(self.most, math.inf)
        if not self.claim or (self.least is None and self.most is None):
            return "nothing is claimed that could be tested"
        if self.examples < self.needs:
            return f"a verdict needs at least {self.needs} images, here are {self.examples}"
        if not self.method or self.low is None or self.high is None or not math.isfinite(self.value):
            return "it has no interval"
        inside, outside = least < self.low and self.high < most, self.high < least or most < self.low
        return "" if inside or outside else "the interval leaves it open"


def _or(end: float | None, missing: float) -> float:
    return missing if end is None else end
