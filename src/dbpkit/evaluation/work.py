"""Pieces of an evaluation's work: the examples of a batch, what is done on them, and what that leaves."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor

from dbpkit.foundation.noise import NoisePlan
from dbpkit.results.records import Record
from dbpkit.results.shards import Stored


class Batch(NamedTuple):
    """Examples that are attacked together: x (B, C, H, W), y (B,) and their noise on the report stream."""

    x: Tensor
    y: Tensor
    noise: NoisePlan

    def rows(self, index: Tensor) -> "Batch":
        """Returns the examples at the positions ``index``."""
        return Batch(self.x[index], self.y[index], self.noise.rows(index))


class Made(NamedTuple):
    """What a piece of work leaves: records, and the files they were made with."""

    records: list[Record]
    files: list[Stored]


def joined(pieces: Iterable[Made]) -> Made:
    """Returns several pieces of work as one."""
    together = list(pieces)
    return Made([r for made in together for r in made.records], [f for made in together for f in made.files])


class Unit(NamedTuple):
    """A piece of work on one batch: the rows it records, the tape, its relative cost, and how it is done."""

    rows: tuple[str, ...]
    tape: int
    cost: float
    work: Callable[[Batch], Made]
