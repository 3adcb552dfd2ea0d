"""Verdicts on a bundle, from what was counted: it stands, it does not, or it cannot be judged."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from dbpkit.bundles.found import BudgetFound, HashFound, RowFound
from dbpkit.bundles.opening import Opened
from dbpkit.bundles.tally import LUCKY, FoundLuck, RowTally, accuracy, hardly_moved
from dbpkit.foundation import display
from dbpkit.results.flags import BUDGET_TOLERANCE
from dbpkit.results.kinds import kind_of
from dbpkit.results.protocols import DEFAULT, Protocol, protocols, recorded_protocol

STANDS, DOES_NOT, CANNOT = "stands", "does not stand", "cannot be judged"

UNLIKELY = 0.05
"""A p-value below this is remarked upon."""

SHOWN_EXAMPLES = 50
"""Ids of examples that are listed."""


class Verification(NamedTuple):
    """What came of a bundle.

    Attributes:
        verdict: ``stands``, ``does not stand`` or ``cannot be judged``.
        reasons: sentences: why it does not stand, or why it cannot be judged; empty if it stands.
        remarks: sentences that do not decide.
        name: title of the run.
        bundle_sha256: of the file.
        rows: what was counted, by row.
        budget: attacked images against your clean ones; None where none was judged.
        luck: the published draws beside fresh ones; None where nothing is random or none were asked for.
        hashes: of weights and data.
        changed: leaves of the spec that you changed, ``"classifier.name mine:model -> yours:model"``.
        seed: of the fresh draws and of the choice of examples.
        examples: how many were judged, and how many the run has.
    """

    verdict: str
    reasons: list[str]
    remarks: list[str]
    name: str
    bundle_sha256: str
    rows: list[RowFound]
    budget: BudgetFound | None
    luck: FoundLuck | None
    hashes: list[HashFound]
    changed: list[str]
    seed: int
    examples: tuple[int, int]

    @classmethod
    def impossible(cls, opened: Opened, changed: list[str], seed: int, why: str) -> "Verification":
        """What is returned of a bundle that cannot be judged."""
        remarks, total = _remarks(opened), _count(opened)
        name, sha256 = opened.manifest.name, opened.sha256
        return cls(CANNOT, [why], remarks, name, sha256, [], None, None, [], changed, seed, (0, total))

    @property
    def stands(self) -> bool:
        """Whether the claim stands."""
        return self.verdict == STANDS

    @property
    def equal(self) -> bool:
        """Whether every record that was judged again is equal."""
        return bool(self.rows) and all(row.equal for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """Returns plain dictionaries and lists."""
        rows = [
            {**r._asdict(), "recorded": r.recorded._asdict(), "again": r.again._asdict()} for r in self.rows
        ]
        luck = self.luck
        told = luck and {
            **luck._asdict(),
            "recorded": luck.recorded._asdict(),
            "fresh": luck.fresh._asdict(),
            "lucky": luck.lucky,
        }
        hashes = [{**h._asdict(), "equal": h.equal} for h in self.hashes]
        budget = self.budget and self.budget._asdict()
        own = {"rows": rows, "luck": told, "hashes": hashes, "budget": budget, "equal": self.equal}
        return {**self._asdict(), **own, "examples": list(self.examples)}

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return display.html(self)

    def to_frame(self) -> Any:
        """Returns a ``pandas.DataFrame``: a line for every row that was judged again, shares in [0, 1].

        Raises:
            UserError: if pandas is not installed.
        """
        return display.frame(self)


def verdict_of(
    opened: Opened,
    tallies: Sequence[RowTally],
    luck: FoundLuck | None,
    hashes: list[HashFound],
    eps: float,
    changed: list[str],
    seed: int,
    left_out: Sequence[int] = (),
) -> Verification:
    """Decides from what was counted.

    Args:
        opened: the bundle.
        tallies: of the rows.
        luck: of the fresh draws.
        hashes: of weights and data.
        eps: the budget.
        changed: leaves of the spec that the verifier changed.
        seed: of the fresh draws.
        left_out: examples of the verifier's data that the spec chooses and the run lacks.
    """
    chosen = recorded_protocol(opened.manifest.protocol)
    of_images = chosen is not None and not chosen.judges_iterates
    protocol = chosen if chosen is not None and of_images else protocols.get(DEFAULT)
    rows = [_row(protocol, tally) for tally in tallies if tally.again]
    budget = _budget(eps, tallies)
    reasons = [said for tally in tallies for said in _why_not(tally)]
    if budget and budget.outside:
        reasons.append(
            f"{len(budget.outside)} attacked images are outside the budget of your clean ones: the largest is"
            f" {budget.largest:.4g}, eps is {eps:.4g} (example {budget.outside[0]})."
        )
    reasons += _of_left_out(left_out)
    if luck and luck.lucky:
        reasons.append(
            f"The published draws of row '{luck.row}' were lucky: {luck.recorded.value:.1%} are right,"
            f" {luck.fresh.value:.1%} of {luck.draws} fresh draws of each image. Honest draws are so lucky"
            f" with probability {luck.p_value:.2g}; a claim falls at {LUCKY:g}."
        )
    remarks = _remarks(opened) + _of_hashes(hashes, tallies) + _of_luck(luck) + hardly_moved(eps, tallies)
    verdict = DOES_NOT if reasons else STANDS
    if not reasons and not of_images:
        verdict, reasons = CANNOT, [_of_iterates(opened.manifest.protocol)]
    judged = {record["example"] for tally in tallies for record in tally.again}
    return Verification(
        verdict,
        reasons,
        remarks,
        opened.manifest.name,
        opened.sha256,
        rows,
        budget,
        luck,
        hashes,
        changed,
        seed,
        (len(judged), _count(opened)),
    )


def _of_iterates(protocol: str) -> str:
    """Why a headline that counts images on the way cannot be judged."""
    return (
        f"The headline of protocol '{protocol}' does not follow from final images, and no others are stored."
        " What was judged, accuracy per draw, agrees."
    )


def _of_left_out(left_out: Sequence[int]) -> list[str]:
    """Why a run that lacks examples which its spec chooses does not stand."""
    if not left_out:
        return []
    return [
        f"It calls itself finished and lacks {len(left_out)} of the examples that its spec chooses from"
        f" your data (example {left_out[0]})."
    ]


def _row(protocol: Protocol, tally: RowTally) -> RowFound:
    """A row with its accuracy as recorded and as judged again."""
    return RowFound(
        tally.row,
        kind_of(tally.row).title,
        accuracy(protocol, tally.row, tally.recorded),
        accuracy(protocol, tally.row, tally.again),
        tally.predictions,
        tally.differ,
        tally.near,
        tally.allowed,
        tally.unlike,
        None if math.isnan(tally.gap) else tally.gap,
        sorted(tally.examples)[:SHOWN_EXAMPLES],
        tally.equal,
        tally.holds and not tally.unlike and not tally.labels,
    )


def _why_not(tally: RowTally) -> list[str]:
    """Why a row does not stand; nothing if it does."""
    found = []
    if tally.labels:
        found.append(
            f"Row '{tally.row}': {len(tally.labels)} examples have another label in your data"
            f" (example {min(tally.labels)})."
        )
    if tally.unlike:
        found.append(
            f"Row '{tally.row}': {tally.unlike} recorded predictions are not those of the logits beside them."
        )
    if not tally.holds:
        found.append(
            f"Row '{tally.row}': {tally.differ} of {tally.predictions} predictions are another class when"
            f" judged again; rounding explains {tally.near} of them and may make {tally.allowed} more."
        )
    return found


def _budget(eps: float, tallies: Sequence[RowTally]) -> BudgetFound | None:
    """All attacked images against the budget."""
    sizes = [(i, size) for tally in tallies for i, size in tally.sizes.items()]
    if not sizes:
        return None
    most = eps + BUDGET_TOLERANCE * max(1.0, eps)
    outside = sorted({i for i, size in sizes if not size <= most})
    return BudgetFound(eps, len(sizes), max(size for _, size in sizes), outside)


def _count(opened: Opened) -> int:
    """Examples of the run."""
    return max((row.headline.examples for row in opened.summary.rows), default=0)


def _remarks(opened: Opened) -> list[str]:
    """What everybody should know who sees the bundle's number."""
    errors = [name for name, severity in opened.manifest.flags if severity == "error"]
    found = [f"The run is {opened.manifest.unfinished[:1].lower()}{opened.manifest.unfinished[1:]}"]
    found = found if opened.manifest.unfinished else []
    if errors:
        found.append(f"The run itself raised errors: {', '.join(errors)}. Its number is not to be believed.")
    return found


def _of_hashes(hashes: Sequence[HashFound], tallies: Sequence[RowTally]) -> list[str]:
    """What other hashes mean beside equal or other predictions."""
    other = [h.part for h in hashes if not h.equal]
    if not other:
        return []
    same = all(tally.holds for tally in tallies)
    meaning = "; the answers agree all the same" if same else ", which may be why predictions differ"
    return [f"Your {' and '.join(other)} {'has' if len(other) == 1 else 'have'} another hash{meaning}."]


def _of_luck(luck: FoundLuck | None) -> list[str]:
    """A remark on draws that are somewhat lucky."""
    if luck is None or luck.lucky or luck.p_value > UNLIKELY:
        return []
    return [
        f"The published draws are better than fresh ones, {luck.recorded.value:.1%} against"
        f" {luck.fresh.value:.1%} (p = {luck.p_value:.2g}). One honest run in twenty is so; more fresh draws"
        " decide (--fresh)."
    ]
