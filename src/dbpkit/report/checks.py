"""What the checks look at, in words, and which of them had something to look at.

The thing people get wrong: a check that found nothing because it had nothing to look at is no good news.
"""

from collections.abc import Sequence

from dbpkit.results.flags import BASELINE_ROWS
from dbpkit.results.run_directory import Record

PREFLIGHT_CHECKS = {
    "probabilities": "the classifier returns logits, not probabilities",
    "untracked_randomness": "the same image and noise give the same output twice",
    "batch_dependence": "an image's logits do not depend on the rest of the batch",
    "piecewise_constant": "the logits move when the pixels do",
    "saturated_loss": "the loss's gradient is not lost in rounding",
    "suspicious_level": "purification starts at a noise level the papers use",
    "suspicious_grid": "the sampler takes enough steps",
    "gradient_mismatch": "the exact gradient agrees with a numeric derivative",
    "replay_differs": "a replayed step computes what it computed before",
}
"""Checks before a run; `docs/flags.md` has a section for each."""

RECORD_CHECKS = {
    "failed_examples": "every example has a result",
    "zero_gradient": "no gradient is exactly zero at the start",
    "non_finite_gradient": "every gradient is finite",
    "loss_not_rising": "the attack raises its own loss",
    "budget_exceeded": "the attack keeps to its budget by itself",
    "no_better_than_noise": "the attack beats random noise of the same size",
    "transfer_stronger": "the white box beats images made against the classifier alone",
    "claim_disagrees": "what another library claims to have broken is broken",
}
"""Checks of the records."""


def record_checks(records: Sequence[Record]) -> dict[str, str]:
    """Returns those of `RECORD_CHECKS` that these records let run."""
    good = [r for r in records if "error" not in r]
    rows = {r["row"] for r in good}
    ran = {
        "failed_examples": bool(records),
        "zero_gradient": any(r.get("grad_norm") for r in good),
        "non_finite_gradient": any(r.get("grad_norm") for r in good),
        "loss_not_rising": any(len(r.get("loss", [])) > 1 for r in good),
        "budget_exceeded": any("excess" in r for r in good),
        "no_better_than_noise": "noise_control" in rows and bool(rows - set(BASELINE_ROWS)),
        "transfer_stronger": {"transfer", "white_box"} <= rows,
        "claim_disagrees": any("claimed_success" in r for r in good),
    }
    return {name: what for name, what in RECORD_CHECKS.items() if ran[name]}
