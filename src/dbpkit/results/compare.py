"""Two runs over the same examples, compared pair by pair."""

from dbpkit.errors import UserError
from dbpkit.results.estimates import Estimate, paired_difference
from dbpkit.results.flags import example_scores
from dbpkit.results.run_directory import RunDirectory


def compare(run_a: RunDirectory, run_b: RunDirectory) -> dict[str, Estimate]:
    """Returns the paired difference A - B of the per-draw accuracy for every row both runs have.

    Args:
        run_a: a run directory.
        run_b: another, on the same data; only examples both have are compared.

    Raises:
        UserError: if the runs are of other data or have no example and row in common.
    """
    hashes = [(run.read_json("env.json") or [{}])[0].get("data_sha256") for run in (run_a, run_b)]
    labels = []
    for run in (run_a, run_b):
        run.spec()
        labels.append({r["example"]: r["label"] for r in run.records() if "error" not in r})
    common = labels[0].keys() & labels[1].keys()
    if hashes[0] != hashes[1] and any(labels[0][i] != labels[1][i] for i in common):
        raise UserError(
            f"'{run_a.path}' and '{run_b.path}' are runs on different data. Compare runs on the"
            " same examples."
        )
    rows_a, rows_b = (_by_row(run) for run in (run_a, run_b))
    differences = {}
    for row in rows_a:
        shared = sorted(rows_a[row].keys() & rows_b.get(row, {}).keys())
        if shared:
            differences[row] = paired_difference(
                [rows_a[row][i] for i in shared], [rows_b[row][i] for i in shared]
            )
    if not differences:
        raise UserError(
            f"'{run_a.path}' and '{run_b.path}' have no example and row in common. Compare runs on"
            " the same examples."
        )
    return differences


def _by_row(run: RunDirectory) -> dict[str, dict[int, float]]:
    """Scores of every example, by row."""
    records = run.records()
    return {
        row: example_scores([r for r in records if r["row"] == row])
        for row in dict.fromkeys(r["row"] for r in records)
    }
