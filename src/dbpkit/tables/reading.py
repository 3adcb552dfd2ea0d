"""What a cell's run says: its number with an interval, and the value of every image behind it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dbpkit.foundation.errors import UserError, nearest
from dbpkit.results.analysis import AnalysisRecords
from dbpkit.results.protocols import DEFAULT, protocols
from dbpkit.results.run_directory import RunDirectory
from dbpkit.statistics.estimates import mean_accuracy
from dbpkit.statistics.intervals import Interval
from dbpkit.tables.layers import Placed
from dbpkit.tables.table import Reads


class Measured(NamedTuple):
    """A cell's number as it was measured here.

    Attributes:
        found: value and 95 % interval, of a share in [0, 1].
        scores: value of each image by example id, in [0, 1]; None of an analysis, which gives one number.
        scale: factor to the column's unit.
    """

    found: Interval
    scores: Mapping[int, float] | None
    scale: float

    @property
    def shown(self) -> Interval:
        """The same in the column's unit."""
        return self.found.scaled(self.scale)


def read_cell(placed: Placed, folder: Path) -> Measured | None:
    """Reads a cell from the directory of its run; None if it is not recorded yet."""
    run, scale = RunDirectory(folder), 100.0 if placed.column.unit == "%" else 1.0
    if not (folder / "spec.json").is_file():
        return None
    if placed.reads.analysis:
        return _of_analysis(run, placed.reads, placed.name, scale)
    scores = scores_of(run, placed.reads)
    if not scores:
        return None
    found = mean_accuracy("cell", list(scores.values()), 1)
    interval = Interval(found.value, found.low, found.high, found.examples, "Wilson")
    return Measured(interval, scores, scale)


def scores_of(run: RunDirectory, reads: Reads) -> dict[int, float]:
    """Returns the share that held of every image of a run's row under a protocol, its tapes averaged."""
    protocol = protocols.get(reads.protocol or DEFAULT)
    group = run.columns().rows.get(str(reads.row))
    if group is None:
        return {}
    if protocol.at_once is not None:
        held = protocol.at_once(group)
    else:
        held = np.array([protocol.held(record) for record in group.records(str(reads.row))])
    ids, where = np.unique(group.example, return_inverse=True)
    means = np.bincount(where, held) / np.bincount(where)
    return dict(zip(ids.tolist(), means.tolist(), strict=True))


def _of_analysis(run: RunDirectory, reads: Reads, where: str, scale: float) -> Measured | None:
    """A number of an analysis by its name."""
    result = AnalysisRecords(run, str(reads.analysis)).read_result()
    if result is None:
        return None
    numbers = {number.name: number for number in result.numbers}
    number = numbers.get(str(reads.number))
    if number is None:
        raise UserError(
            f"cell {where} reads '{reads.number}' of analysis '{reads.analysis}', which it does not have."
            f"{nearest(str(reads.number), numbers)} It has: {', '.join(numbers)}."
        )
    low, high = (math.nan if end is None else end for end in (number.low, number.high))
    return Measured(Interval(number.value, low, high, number.examples, number.method), None, scale)
