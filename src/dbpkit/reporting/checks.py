"""What the checks of the records look at, in words, and which of them had something to look at.

A check that found nothing because it had nothing to look at is not listed as passed.
"""

import numpy as np

from dbpkit.results.columns import ABSENT, Columns
from dbpkit.results.kinds import BASELINE_ROWS
from dbpkit.results.run_directory import RunDirectory

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


def record_checks(columns: Columns) -> dict[str, str]:
    """Returns those of `RECORD_CHECKS` that these records let run."""
    groups = list(columns.rows.values())
    rows = set(columns.rows)
    has_gradients = any(g.paths["grad_norm"].counts.any() for g in groups)
    ran = {
        "failed_examples": bool(groups or columns.failed),
        "zero_gradient": has_gradients,
        "non_finite_gradient": has_gradients,
        "loss_not_rising": any((g.paths["loss"].counts > 1).any() for g in groups),
        "budget_exceeded": any(np.isfinite(g.measures["excess"]).any() for g in groups),
        "no_better_than_noise": "noise_control" in rows and bool(rows - set(BASELINE_ROWS)),
        "transfer_stronger": {"transfer", "white_box"} <= rows,
        "claim_disagrees": any((g.claimed_success != ABSENT).any() for g in groups),
    }
    return {name: what for name, what in RECORD_CHECKS.items() if ran[name]}


def preflight_note(run: RunDirectory) -> str:
    """Returns what is missing of the checks before the run; nothing if they ran and are listed."""
    if run.checks() is None:
        return "The checks before the run (gradient, logits, noise level) have not run."
    if run.checks_run() is None:
        return "Which checks ran before the run is not recorded; what they found is."
    return ""
