"""What judging a row again leaves: which predictions differ, and which of those rounding explains.

Kernels of another machine add in another order. A logit moves by its last digits, and a prediction changes
where two classes were that close. So a prediction that differs is explained by rounding if the logits
of the two classes were apart by no more than rounding moves them, in the record and judged again: a sender
chooses the logits of the record. Of others there may be a few.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dbpkit.evaluation.averaging import ensemble_means
from dbpkit.results.kinds import kind_of
from dbpkit.results.protocols import Protocol, headline
from dbpkit.results.records import Record
from dbpkit.statistics.estimates import Estimate, mean_accuracy
from dbpkit.statistics.strata import luckier

_Both = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
"""Values as recorded, and as judged again."""

ROUNDING = {"float32": 2e-3, "tf32": 2e-2, "bfloat16": 1e-1}
"""How far rounding may move the lead of a class, as a share of the largest minus the smallest logit."""

BEYOND = 1 / 1000
"""Share of a row's predictions that may differ beyond that: rounding now and then grows along a chain."""

WITHOUT_LOGITS = 1 / 100
"""Share that may differ in a run that stored no logits, at least one."""

SMALL_SHARE = 0.5
"""Share of the budget below which the largest perturbation of an attacked row is remarked upon."""

LUCKY = 0.001
"""A published number is called a lucky draw if honest draws are as lucky with at most this probability."""


@dataclass
class RowTally:
    """Counts of one row while it is judged.

    Attributes:
        row: row of the table.
        predictions: how many were judged again: examples, tapes and draws, and averages of draws.
        differ: how many are another class.
        near: those of them where the lead of one class over the other is within rounding, then and now.
        unlike: recorded predictions that are not the largest of the logits stored with them.
        gap: largest difference of a logit from the stored one; nan without stored logits.
        labels: examples whose label in the verifier's data is another one.
        examples: ids of examples with a prediction that differs.
        recorded: records of the run.
        again: the same, judged again.
        sizes: size of the largest perturbation by example, against the verifier's own clean images.
    """

    row: str
    predictions: int = 0
    differ: int = 0
    near: int = 0
    unlike: int = 0
    gap: float = math.nan
    labels: set[int] = field(default_factory=set)
    examples: set[int] = field(default_factory=set)
    recorded: list[Record] = field(default_factory=list)
    again: list[Record] = field(default_factory=list)
    sizes: dict[int, float] = field(default_factory=dict)

    @property
    def allowed(self) -> int:
        """How many may differ beyond those that rounding explains."""
        if math.isnan(self.gap):
            return max(1, int(WITHOUT_LOGITS * self.predictions))
        return int(BEYOND * self.predictions)

    @property
    def holds(self) -> bool:
        """Whether no more predictions differ than rounding makes."""
        return self.differ - self.near <= self.allowed

    @property
    def equal(self) -> bool:
        """Whether every record is equal."""
        return self.differ == 0


def count_batch(
    tally: RowTally,
    recorded: Sequence[Record],
    again: Sequence[Record],
    old: Tensor | None,
    new: Tensor,
    precision: str,
    averages: str = "",
) -> None:
    """Adds a batch to a row's counts.

    Args:
        tally: of the row.
        recorded: its records, one for each example.
        again: the same, as judged again.
        old: stored logits (B, R, K), or None.
        new: those of now.
        precision: what the networks computed in.
        averages: what of the draws the protocol averages, see `dbpkit.evaluation.averaging`.
    """
    tally.recorded += recorded
    tally.again += again
    stored = None if old is None or old.shape != new.shape else old.double().numpy()
    if stored is not None:
        gap = float(np.abs(stored - new.double().numpy()).max())
        tally.gap = gap if math.isnan(tally.gap) else max(tally.gap, gap)
    share, logits = ROUNDING[precision], None if stored is None else (stored, new.double().numpy())
    means = None if stored is None or old is None else _means(old, new, averages)
    for b, (before, now) in enumerate(zip(recorded, again, strict=True)):
        if before["label"] != now["label"]:
            tally.labels.add(now["example"])
        if stored is not None and len(before["predicted"]) == stored.shape[1]:
            tally.unlike += int((stored[b].argmax(axis=1) != np.asarray(before["predicted"])).sum())
        lists = (
            (before["predicted"], now["predicted"], logits),
            (before.get("ensembles", []), now.get("ensembles", []), means),
        )
        for a, c, values in lists:
            _count(tally, a, c, now["example"], values and (values[0][b], values[1][b]), share)


def _count(
    tally: RowTally, was: list[int], now: list[int], example: int, values: _Both | None, share: float
) -> None:
    """Adds the classes of an example, recorded and judged again, of which each has a line of values."""
    tally.predictions += max(len(was), len(now))
    tally.differ += abs(len(was) - len(now))
    if was != now:
        tally.examples.add(example)
    for r, (a, c) in enumerate(zip(was, now, strict=False)):
        if a != c:
            tally.differ += 1
            tally.near += values is not None and all(_is_near(own[r], a, c, share) for own in values)


def _means(old: Tensor, new: Tensor, averages: str) -> _Both | None:
    """Averages of the recorded logits and of those of now; None where nothing is averaged."""
    was, now = ensemble_means(old, averages), ensemble_means(new, averages)
    return None if was is None or now is None else (was.numpy(), now.numpy())


def _is_near(logits: np.ndarray[Any, Any], was: int, now: int, share: float) -> bool:
    """Whether one class led another by no more than rounding moves it."""
    if not 0 <= was < len(logits):
        return False
    return bool(abs(logits[was] - logits[now]) <= share * (logits.max() - logits.min()))


def accuracy(protocol: Protocol, row: str, records: Sequence[Record]) -> Estimate:
    """Returns what a protocol publishes of records."""
    return headline(protocol, row, records, []).estimate


class FoundLuck(NamedTuple):
    """The published draws beside draws that nobody chose.

    Attributes:
        row: row of the table.
        seed: of the fresh draws.
        draws: fresh draws of each image.
        recorded: accuracy per draw on the draws of the run, over the same images.
        fresh: accuracy per draw on fresh draws.
        p_value: probability that honest draws are at least as much better than fresh ones.
    """

    row: str
    seed: int
    draws: int
    recorded: Estimate
    fresh: Estimate
    p_value: float

    @property
    def lucky(self) -> bool:
        """Whether the published number is a lucky draw, wrongly said of at most `LUCKY` of honest runs."""
        return self.p_value <= LUCKY


@dataclass
class Fresh:
    """Fresh draws of a row while it is judged; see `FoundLuck`."""

    row: str
    seed: int
    draws: int
    _own: list[tuple[int, int, int]] = field(default_factory=list)
    _new: list[tuple[int, int]] = field(default_factory=list)

    def note_recorded(self, records: Sequence[Record]) -> None:
        """Adds records of the run."""
        self._own += [(r["example"], r["predicted"].count(r["label"]), len(r["predicted"])) for r in records]

    def note_fresh(self, examples: Sequence[int], right: Sequence[int]) -> None:
        """Adds how many fresh draws of examples were right, in the order of their records."""
        self._new += zip(examples, right, strict=True)

    def found(self) -> FoundLuck | None:
        """Returns what was found; None where nothing is random."""
        if not self._own:
            return None
        ids = sorted({example for example, *_ in self._own})
        shares: tuple[dict[int, list[float]], ...] = ({i: [] for i in ids}, {i: [] for i in ids})
        for (example, count, of), (_, other) in zip(self._own, self._new, strict=True):
            shares[0][example].append(count / of)
            shares[1][example].append(other / self.draws)
        means = [[sum(s) / len(s) for s in own.values()] for own in shares]
        right, draws = [right for _, right, _ in self._own], [of for *_, of in self._own]
        new = [right for _, right in self._new]
        p_value = luckier(right, draws, new, [self.draws] * len(new))
        old, fresh = (
            mean_accuracy("per_draw", m, d) for m, d in zip(means, (draws[0], self.draws), strict=True)
        )
        return FoundLuck(self.row, self.seed, self.draws, old, fresh, p_value)


def hardly_moved(eps: float, tallies: Sequence[RowTally]) -> list[str]:
    """A remark on attacked rows whose images are all nearly clean, as if nothing had been attacked."""
    found = []
    for tally in tallies:
        if not kind_of(tally.row).attacker or kind_of(tally.row).is_baseline or not tally.again:
            continue
        largest = max(tally.sizes.values(), default=0.0)
        if largest < SMALL_SHARE * eps:
            found.append(
                f"Row '{tally.row}': no image is farther from your clean ones than {largest:.2g}, and eps is"
                f" {eps:.4g}: an attack that hardly moves is no attack."
            )
    return found
