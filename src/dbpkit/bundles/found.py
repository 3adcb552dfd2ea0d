"""What judging a bundle again finds, in parts: hashes, the budget, and every row."""

from typing import NamedTuple

from dbpkit.statistics.estimates import Estimate


class HashFound(NamedTuple):
    """A hash of weights or data: what the bundle noted, and the verifier's own."""

    part: str
    recorded: str
    found: str

    @property
    def equal(self) -> bool:
        """Whether both are the same."""
        return self.recorded == self.found


class BudgetFound(NamedTuple):
    """Attacked images against the verifier's clean ones.

    Attributes:
        eps: budget, in the threat's units.
        images: how many were measured.
        largest: size of the largest perturbation.
        outside: examples with an image beyond the budget and float32's rounding.
    """

    eps: float
    images: int
    largest: float
    outside: list[int]


class RowFound(NamedTuple):
    """One row, judged again.

    Attributes:
        row: row of the table.
        title: the same for people.
        recorded: its accuracy as recorded, over the examples that were judged again.
        again: as judged again.
        predictions: how many were judged: examples, tapes and draws.
        differ: how many are another class now.
        near: those of them that rounding explains.
        allowed: how many others may differ.
        unlike: recorded predictions that the logits stored with them do not give.
        gap: largest difference of a logit; None where none was stored.
        examples: ids of examples that differ, the first of them.
        equal: whether all records are equal.
        holds: whether no more differ than rounding makes.
    """

    row: str
    title: str
    recorded: Estimate
    again: Estimate
    predictions: int
    differ: int
    near: int
    allowed: int
    unlike: int
    gap: float | None
    examples: list[int]
    equal: bool
    holds: bool
