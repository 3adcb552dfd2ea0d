"""Red flags from records alone, and what a flag is; `docs/reference/flags.md` has a section for each.

A weak attack and a strong defence look alike in the accuracy. They differ in what is looked at here.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dbpkit.results.columns import ABSENT, Columns, Ragged, RowColumns
from dbpkit.results.gathering import gather
from dbpkit.results.journal import Line
from dbpkit.results.kinds import BASELINE_ROWS, NOISE_CONTROL, TRANSFER, kind_of
from dbpkit.results.records import Record, read
from dbpkit.statistics.estimates import Estimate, paired_difference
from dbpkit.statistics.intervals import VERDICT_EXAMPLES

BUDGET_TOLERANCE = 1e-5
"""Excess over the budget that float32 rounding of a projection explains."""

FEW_EXAMPLES = VERDICT_EXAMPLES
"""With fewer examples a comparison of means only warns."""


class Flag(NamedTuple):
    """A finding that travels with the result.

    Attributes:
        name: section of ``docs/reference/flags.md``.
        severity: ``"error"`` (the number is not to be believed) or ``"warning"``.
        message: one or two sentences with the values.
        row: row of the table it concerns, or empty.
    """

    name: str
    severity: str
    message: str
    row: str = ""


def record_flags(recorded: Columns | Sequence[Record], preflight: Sequence[Flag] = ()) -> list[Flag]:
    """Returns the preflight's flags and those that follow from the records."""
    flags = list(preflight)
    columns = recorded if isinstance(recorded, Columns) else _columns(recorded)
    failed = columns.failed
    if failed:
        flags.append(
            Flag(
                "failed_examples",
                "error",
                f"{len(failed)} records failed (first: {failed[0]['row']}, example"
                f" {failed[0]['example']}: {failed[0]['error']}). Run the same command to try them"
                " again.",
            )
        )
    for row, group in columns.rows.items():
        if kind_of(row).runs_attack:
            flags += _attack_flags(row, group)
    flags += _comparison_flags({row: group.by_example() for row, group in columns.rows.items()})
    return flags


def _columns(records: Sequence[Record]) -> Columns:
    """Good and failed records as columns."""
    lines = [Line(k, k, {**record}) for k, record in enumerate(records)]
    return gather(lambda: [(lines, {})] if lines else [], lambda line: read(line.entry, line.number))


def _attack_flags(row: str, group: RowColumns) -> list[Flag]:
    """Flags of one attacker's own diagnostics."""
    flags = []
    norms = group.paths["grad_norm"]
    count, zero = int((norms.counts > 0).sum()), int((norms.first() == 0).sum())
    if zero:
        flags.append(
            Flag(
                "zero_gradient",
                "error" if zero > count // 20 else "warning",
                f"The gradient is exactly zero at the start for {zero} of {count} examples.",
                row,
            )
        )
    broken = len(np.unique(norms.owner()[np.isnan(norms.values)]))
    if broken:
        flags.append(
            Flag(
                "non_finite_gradient",
                "error",
                f"{broken} of {count} examples met a gradient that is not finite.",
                row,
            )
        )
    flags += _loss_flags(row, group.paths["loss"])
    excess = max([0.0, *group.measures["excess"][np.isfinite(group.measures["excess"])].tolist()])
    if excess > BUDGET_TOLERANCE:
        flags.append(
            Flag(
                "budget_exceeded",
                "warning",
                f"The attack left the budget by {excess:.3g} before the runner projected it back.",
                row,
            )
        )
    return flags + _claim_flags(row, group)


def _loss_flags(row: str, loss: Ragged) -> list[Flag]:
    """A flag if the loss did not rise, over the paths that are whole."""
    broken = np.zeros(len(loss.counts), dtype=bool)
    broken[loss.owner()[np.isnan(loss.values)]] = True
    whole = loss.select(np.flatnonzero((loss.counts > 1) & ~broken))
    if not len(whole.counts):
        return []
    starts = np.cumsum(whole.counts) - whole.counts
    place = np.arange(len(whole.values)) - np.repeat(starts, whole.counts)
    late = place >= np.repeat(whole.counts // 2, whole.counts)
    halves = whole.counts - whole.counts // 2
    later = float((np.bincount(whole.owner(), whole.values * late) / halves).mean())
    first = float(whole.first().mean())
    if later > first:  # few examples and few draws can hide a rise, so they only warn
        return []
    severity = "error" if len(whole.counts) >= FEW_EXAMPLES else "warning"
    message = (
        f"The attack's mean loss began at {first:.3f} and was {later:.3f} in its second half: it did"
        " not rise."
    )
    return [Flag("loss_not_rising", severity, message, row)]


def _claim_flags(row: str, group: RowColumns) -> list[Flag]:
    """A flag if another library's claims disagree with most report draws of the same image."""
    told = group.claimed_success != ABSENT
    judged = list(zip((group.claimed_success[told] == 1).tolist(), group.right[told].tolist(), strict=True))
    stands = sum(claimed and right > 0.5 for claimed, right in judged)
    falls = sum(not claimed and right < 0.5 for claimed, right in judged)
    if not stands + falls:
        return []
    share = sum(claimed for claimed, _ in judged) / len(judged)
    right = sum(r for _, r in judged) / len(judged)
    message = (
        f"The attack's library claims success on {share:.1%} of {len(judged)} images, report draws leave"
        f" {right:.1%} right: {stands} claimed images are right on most draws, {falls} images without a claim"
        " are wrong on most."
    )
    return [Flag("claim_disagrees", "warning", message, row)]


def _comparison_flags(scores: Mapping[str, dict[int, float]]) -> list[Flag]:
    """Flags that compare rows over the examples both have."""
    flags = []
    for row in scores.keys() - set(BASELINE_ROWS):
        gain, noise, attacked = _paired(scores.get(NOISE_CONTROL.name, {}), scores[row])
        if gain and noise > 0 and gain.value <= 0:
            severity = "error" if gain.examples >= FEW_EXAMPLES else "warning"
            message = f"The attack leaves {attacked:.1%} right, random noise of the same size {noise:.1%}."
            flags.append(Flag("no_better_than_noise", severity, message, row))
    gap, white, transfer = _paired(scores.get("white_box", {}), scores.get(TRANSFER.name, {}))
    if gap and gap.value > 0:
        severity = "error" if gap.low > 0 and gap.examples >= FEW_EXAMPLES else "warning"
        message = (
            f"Images that fool the undefended classifier leave {transfer:.1%} right, the white box"
            f" {white:.1%}: the white-box attack is not at its strength."
        )
        flags.append(Flag("transfer_stronger", severity, message, "white_box"))
    return sorted(flags)


def _paired(a: dict[int, float], b: dict[int, float]) -> tuple[Estimate | None, float, float]:
    """The difference a - b over shared examples and both means there; None without any."""
    shared = sorted(a.keys() & b.keys())
    if not shared:
        return None, 0.0, 0.0
    left, right = [a[i] for i in shared], [b[i] for i in shared]
    return paired_difference(left, right), sum(left) / len(left), sum(right) / len(right)
