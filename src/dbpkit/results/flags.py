"""Red flags that follow from records alone, and what a flag is; `docs/flags.md` has a section for each.

The thing people get wrong: a weak attack and a strong defence look alike in the accuracy; they differ here.
"""

from collections.abc import Sequence
from typing import NamedTuple

from dbpkit.results.estimates import Estimate, paired_difference
from dbpkit.results.intervals import VERDICT_EXAMPLES
from dbpkit.results.run_directory import Record

BUDGET_TOLERANCE = 1e-5
"""Excess over the budget that float32 rounding of a projection explains."""

FEW_EXAMPLES = VERDICT_EXAMPLES
"""With fewer examples a comparison of means only warns."""

BASELINE_ROWS = ("undefended_clean", "undefended", "clean", "noise_control", "transfer")
"""Rows of every run that are no attacker's row."""


class Flag(NamedTuple):
    """A finding that travels with the result.

    Attributes:
        name: section of ``docs/flags.md``.
        severity: ``"error"`` (the number is not to be believed) or ``"warning"``.
        message: one or two sentences with the values.
        row: row of the table it concerns, or empty.
    """

    name: str
    severity: str
    message: str
    row: str = ""


def record_flags(records: Sequence[Record], preflight: Sequence[Flag] = ()) -> list[Flag]:
    """Returns the preflight's flags and those that follow from the records."""
    flags = list(preflight)
    failed = [r for r in records if "error" in r]
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
    by_row: dict[str, list[Record]] = {}
    for record in records:
        if "error" not in record:
            by_row.setdefault(record["row"], []).append(record)
    for row, rows in by_row.items():
        if row not in ("undefended_clean", "clean", "noise_control", "transfer"):
            flags += _attack_flags(row, rows)
    flags += _comparison_flags(by_row)
    return flags


def _attack_flags(row: str, records: Sequence[Record]) -> list[Flag]:
    """Flags of one attacker's own diagnostics."""
    flags = []
    norms = [r["grad_norm"] for r in records if r.get("grad_norm")]
    zero = sum(n[0] == 0 for n in norms)
    if zero:
        flags.append(
            Flag(
                "zero_gradient",
                "error" if zero > len(norms) // 20 else "warning",
                f"The gradient is exactly zero at the start for {zero} of {len(norms)} examples.",
                row,
            )
        )
    if any(v is None for n in norms for v in n):
        flags.append(
            Flag(
                "non_finite_gradient",
                "error",
                f"{sum(any(v is None for v in n) for n in norms)} of {len(norms)} examples met a"
                " gradient that is not finite.",
                row,
            )
        )
    paths = [r["loss"] for r in records if r.get("loss") and None not in r["loss"] and len(r["loss"]) > 1]
    if paths:
        first = sum(p[0] for p in paths) / len(paths)
        later = sum(sum(p[len(p) // 2 :]) / len(p[len(p) // 2 :]) for p in paths) / len(paths)
        if later <= first:  # few examples and few draws can hide a rise, so they only warn
            severity = "error" if len(paths) >= FEW_EXAMPLES else "warning"
            message = (
                f"The attack's mean loss began at {first:.3f} and was {later:.3f} in its second half: it"
                " did not rise."
            )
            flags.append(Flag("loss_not_rising", severity, message, row))
    excess = max((r.get("excess", 0.0) for r in records), default=0.0)
    if excess > BUDGET_TOLERANCE:
        flags.append(
            Flag(
                "budget_exceeded",
                "warning",
                f"The attack left the budget by {excess:.3g} before the runner projected it back.",
                row,
            )
        )
    return flags + _claim_flags(row, records)


def _claim_flags(row: str, records: Sequence[Record]) -> list[Flag]:
    """A flag if another library's claims disagree with most report draws of the same image."""
    judged = [
        (bool(r["claimed_success"]), sum(p == r["label"] for p in r["predicted"]) / len(r["predicted"]))
        for r in records
        if "claimed_success" in r
    ]
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


def _comparison_flags(by_row: dict[str, list[Record]]) -> list[Flag]:
    """Flags that compare rows over the examples both have."""
    flags = []
    scores = {row: example_scores(records) for row, records in by_row.items()}
    for row in scores.keys() - set(BASELINE_ROWS):
        gain, noise, attacked = _paired(scores.get("noise_control", {}), scores[row])
        if gain and noise > 0 and gain.value <= 0:
            severity = "error" if gain.examples >= FEW_EXAMPLES else "warning"
            message = f"The attack leaves {attacked:.1%} right, random noise of the same size {noise:.1%}."
            flags.append(Flag("no_better_than_noise", severity, message, row))
    gap, white, transfer = _paired(scores.get("white_box", {}), scores.get("transfer", {}))
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


def example_scores(records: Sequence[Record]) -> dict[int, float]:
    """Accuracy of every example over its draws and tapes, by example id; failed records left out."""
    shares: dict[int, list[float]] = {}
    for r in records:
        if "error" not in r:
            right = sum(p == r["label"] for p in r["predicted"])
            shares.setdefault(r["example"], []).append(right / len(r["predicted"]))
    return {example: sum(s) / len(s) for example, s in shares.items()}
