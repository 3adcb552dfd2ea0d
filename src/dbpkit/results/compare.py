"""Two runs over the same examples, compared pair by pair, and what else differs between them.

With the same seed, draw r of an example has the same noise in both runs, so examples, tapes and draws are
paired. The thing people get wrong: a difference belongs to the models only if nothing but the models differs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dbpkit.foundation import display
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.spec import differences
from dbpkit.results.columns import RowColumns, network_calls
from dbpkit.results.run_directory import RunDirectory
from dbpkit.statistics.binomial import mcnemar
from dbpkit.statistics.estimates import Estimate, paired_difference

HARD_TO_READ = {
    "threat": "The budgets differ ({}): the difference is not that of the models alone.",
    "attacks": "The attacks differ ({}): a weaker attack looks like a stronger defence.",
    "knowledge": "Attackers of the same name know different things ({}): their rows are not alike.",
    "seed": "The seeds differ ({}): attacks and draws met other noise, so the pairs share only the example.",
    "draws": "The draws differ ({}): both means are of single draws, but not every draw has its pair.",
}
"""Parts of a spec that are not the model, and what it means if they differ."""


class RunComparison(NamedTuple):
    """Run A against run B.

    Attributes:
        differences: row to the paired difference A - B of the accuracy per draw, in [-1, 1].
        p_values: McNemar's exact p-value of the rows with one draw per example in both runs.
        changed: leaves in which the specs or weights differ, ``"denoiser.name embedded -> my:model"``.
        warnings: sentences about what makes the differences hard to read; empty if only the model differs.
        network_calls: row to what its attack cost per example in A and in B, None where it was not recorded.
    """

    differences: dict[str, Estimate]
    p_values: dict[str, float]
    changed: list[str]
    warnings: list[str]
    network_calls: dict[str, tuple[float | None, float | None]]

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return display.html(self)

    def to_frame(self) -> Any:
        """Returns a ``pandas.DataFrame``: one line for every row, differences in [-1, 1].

        Raises:
            UserError: if pandas is not installed.
        """
        return display.frame(self)

    def plot(self) -> Any:
        """Returns the differences in percentage points as a ``matplotlib.figure.Figure``."""
        return display.plot(self)


def compare(run_a: RunDirectory | str | Path, run_b: RunDirectory | str | Path) -> RunComparison:
    """Compares two runs pair by pair and says what differs between them.

    Args:
        run_a: a run directory.
        run_b: another, on the same data; only examples both have are compared.

    Returns:
        Per-draw accuracy A - B of every row that both runs have, with what else differs between them.

    Raises:
        UserError: if the runs are of other data or have no example and row in common.
    """
    run_a = run_a if isinstance(run_a, RunDirectory) else RunDirectory(run_a)
    run_b = run_b if isinstance(run_b, RunDirectory) else RunDirectory(run_b)
    changed, warnings = spec_changes(run_a, run_b), spec_warnings(run_a, run_b)
    refuse_other_data(run_a, run_b)
    rows_a, rows_b = run_a.columns().rows, run_b.columns().rows
    found, p_values, uneven = {}, {}, []
    for row, group in rows_a.items():
        if row not in rows_b:
            continue
        a, b = group.by_example(), rows_b[row].by_example()
        shared = sorted(a.keys() & b.keys())
        if not shared:
            continue
        uneven += [row] if a.keys() != b.keys() else []
        pairs = [a[i] for i in shared], [b[i] for i in shared]
        draws = min(_most_draws(group), _most_draws(rows_b[row]))
        found[row] = paired_difference(*pairs, draws)
        if _most_draws(group) == _most_draws(rows_b[row]) == 1:
            p_values[row] = mcnemar(*pairs)
    if not found:
        raise UserError(
            f"'{run_a.path}' and '{run_b.path}' have no example and row in common. Compare runs on"
            " the same examples."
        )
    if uneven:
        warnings.append(
            f"Only examples that both runs have are compared; {len(uneven)} of {len(found)} rows have others."
        )
    costs = {row: (network_calls(rows_a[row]), network_calls(rows_b[row])) for row in found}
    return RunComparison(found, p_values, changed, warnings, costs)


compare_runs = compare
"""An older name."""


def spec_changes(run_a: RunDirectory, run_b: RunDirectory) -> list[str]:
    """Returns the leaves in which two runs' specs or weights differ, the title left out.

    Hashes of weights are compared where the specs name the same part, for a file may have been replaced.
    """
    a, b = _alike(run_a, run_b)
    changed = differences(a, b)
    for part in ("classifier", "denoiser", "purifier"):
        hashes = [_session(run).get(f"{part}_sha256") for run in (run_a, run_b)]
        if a[part] == b[part] and None not in hashes:
            changed += differences(str(hashes[0])[:12], str(hashes[1])[:12], f"{part}_sha256")
    return changed


def spec_warnings(run_a: RunDirectory, run_b: RunDirectory) -> list[str]:
    """Returns a sentence for every part of the specs beside the model that differs; see `HARD_TO_READ`."""
    a, b = _alike(run_a, run_b)
    for spec in (a, b):
        spec["knowledge"] = {name: k for name, k in spec["knowledge"].items() if isinstance(k, dict)}
        if len(spec["attacks"]) == 1:
            spec["draws"].pop("select", None)  # nothing was selected
    leaves = {part: differences(a[part], b[part], part) for part in HARD_TO_READ}
    warnings = [HARD_TO_READ[part].format(", ".join(found)) for part, found in leaves.items() if found]
    hashes = [_session(run).get("data_sha256") for run in (run_a, run_b)]
    if hashes[0] != hashes[1] and (a["data"] != b["data"] or a["examples"] == b["examples"]):
        said = ", ".join(differences(a["data"], b["data"], "data")) or "data_sha256"
        warnings.append(f"The data may differ ({said}): the labels agree, the pictures were not compared.")
    return warnings


def refuse_other_data(run_a: RunDirectory, run_b: RunDirectory) -> None:
    """Raises UserError if an example of both runs has another label in each: it is another example."""
    hashes = [_session(run).get("data_sha256") for run in (run_a, run_b)]
    if hashes[0] == hashes[1] and hashes[0] is not None:
        return
    a, b = (_labels(run) for run in (run_a, run_b))
    if any(a[i] != b[i] for i in a.keys() & b.keys()):
        raise UserError(
            f"'{run_a.path}' and '{run_b.path}' are runs on different data. Compare runs on the"
            " same examples."
        )


def _labels(run: RunDirectory) -> dict[int, int]:
    """Label of every example that has a result."""
    return {
        example: label
        for group in run.columns().rows.values()
        for example, label in zip(group.example.tolist(), group.label.tolist(), strict=True)
    }


def _alike(run_a: RunDirectory, run_b: RunDirectory) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both specs without titles, and with their attackers by name, so that equal ones are compared."""
    specs = [dict(run.spec()["spec"]) for run in (run_a, run_b)]
    attackers = [{k["name"]: k for k in spec["knowledge"]} for spec in specs]
    for spec, own, other in zip(specs, attackers, reversed(attackers), strict=True):
        spec.pop("name")
        spec["draws"] = dict(spec["draws"])
        missing = dict.fromkeys(other.keys() - own.keys(), "not evaluated")
        spec["knowledge"] = {name: k if name in other else "evaluated" for name, k in own.items()} | missing
    return specs[0], specs[1]


def _session(run: RunDirectory) -> Mapping[str, Any]:
    """What the run's first session over all its examples noted: hashes of data and weights."""
    return max(run.sessions() or [{}], key=lambda session: session.get("examples") or 0)


def _most_draws(group: RowColumns) -> int:
    """Predictions of the example that has most, all its tapes together."""
    _, where = np.unique(group.example, return_inverse=True)
    return int(np.bincount(where, group.draws).max())
