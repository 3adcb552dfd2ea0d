"""How often the draws of every example were right, and how often its most frequent wrong class was given.

The tapes of one example are draws of one example, and counted together.
"""

from typing import NamedTuple

import numpy as np

from dbpkit.results.columns import Floats, Integers, RowColumns


class Votes(NamedTuple):
    """Counts of draws by example, ids ascending; see `dbpkit.statistics.estimates` for what they estimate.

    Attributes:
        right: draws that gave the label, (n,).
        rival: draws that gave the most frequent other class, (n,).
        draws: all draws, (n,).
    """

    right: Integers
    rival: Integers
    draws: Integers

    @property
    def share(self) -> Floats:
        """Share of the draws that are right, (n,)."""
        return np.asarray(self.right / self.draws)

    @property
    def won(self) -> Floats:
        """1 where the label got strictly more draws than any other class, (n,); a tie is lost."""
        return np.asarray(self.right > self.rival, dtype=float)

    @property
    def always(self) -> Floats:
        """1 where every draw is right, (n,)."""
        return np.asarray(self.right == self.draws, dtype=float)

    @property
    def most(self) -> int:
        """Draws of the example that has most."""
        return int(self.draws.max(initial=0))


def votes(group: RowColumns) -> Votes:
    """Counts the draws of one row, all tapes of an example together."""
    ids, where = np.unique(group.example, return_inverse=True)
    draws = np.bincount(where, group.draws, len(ids)).astype(np.int64)
    labels = np.zeros(len(ids), np.int64)
    order = np.argsort(group.tape, kind="stable")
    labels[where[order]] = group.label[order]  # the last tape's, should they differ
    given = np.arange(group.predicted.shape[1]) < group.draws[:, None]
    hits = (group.predicted == labels[where][:, None]) & given
    right = np.bincount(where, hits.sum(axis=1), len(ids)).astype(np.int64)
    wrong = given & ~hits
    owner, said = where[np.nonzero(wrong)[0]], group.predicted[wrong]
    classes = int(said.max(initial=0)) + 1
    pairs, counts = np.unique(owner * classes + said, return_counts=True)
    rival = np.zeros(len(ids), np.int64)
    np.maximum.at(rival, pairs // classes, counts)
    return Votes(right, rival, draws)
