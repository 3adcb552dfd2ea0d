"""Accuracy against the budget eps, over several runs per model, and the difference of two such curves.

The thing people get wrong: the same images are attacked at every eps, so the points of a curve move together.
An interval of the curve's mean has one value per image; treating the points as independent makes it too
short.
"""

import copy
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from dbpkit.foundation.amounts import amount
from dbpkit.foundation.errors import UserError
from dbpkit.results.compare import refuse_other_data, spec_changes, spec_warnings
from dbpkit.results.kinds import BASELINE_ROWS
from dbpkit.results.run_directory import RunDirectory
from dbpkit.results.votes import votes
from dbpkit.statistics.estimates import Estimate, average_difference, mean_accuracy

PER_BUDGET = ("step_size",)
"""Options of attacks that may follow eps without making it another model's curve."""


class ModelCurve(NamedTuple):
    """One model at several budgets.

    Attributes:
        name: what the titles of its runs have in common.
        runs: eps, in the norm's [0, 1] pixel units, to the run at it; ascending.
        rows: row to eps to accuracy per draw, with Wilson's 95 % interval over examples.
        scores: row to eps to example id to the mean over draws, in [0, 1]; what differences are made of.
    """

    name: str
    runs: dict[float, RunDirectory]
    rows: dict[str, dict[float, Estimate]]
    scores: dict[str, dict[float, dict[int, float]]]


class CurveDifference(NamedTuple):
    """Model A's curve minus model B's, over the same images.

    Attributes:
        at: row to eps to the paired difference there, over the examples both have at that eps.
        average: row to the mean difference over all eps that both have, if these are two or more, over the
            examples that both models have at all of them.
        changed: leaves in which the models' specs or weights differ.
        warnings: what makes the difference hard to read; see `dbpkit.results.compare.spec_warnings`.
    """

    at: dict[str, dict[float, Estimate]]
    average: dict[str, Estimate]
    changed: list[str]
    warnings: list[str]


class EpsCurves(NamedTuple):
    """Several models against eps.

    Attributes:
        norm: of the budget, ``"linf"`` or ``"l2"``.
        eps: every budget, ascending, and how the specs write it.
        models: in the order in which their first runs were given.
        difference: that of the two models, first minus second; None unless there are exactly two.
    """

    norm: str
    eps: dict[float, str]
    models: list[ModelCurve]
    difference: CurveDifference | None


def eps_curves(runs: Sequence[RunDirectory]) -> EpsCurves:
    """Groups runs by model and eps.

    Runs are of one model if their specs agree in all but ``threat.eps``, the title and a ``step_size`` that
    follows eps, and their weights have the same hashes.

    Args:
        runs: run directories on the same data under the same norm, one for every model and eps.

    Raises:
        UserError: if there is no run, two norms, two runs of one model at one eps, or other data.
    """
    if not runs:
        raise UserError("a curve needs at least one run directory, none was given.")
    threats = [run.recorded_spec().threat for run in runs]
    norms = list(dict.fromkeys(t.norm for t in threats))
    if len(norms) > 1:
        raise UserError(f"a curve needs one norm, but the runs have {' and '.join(norms)}. Choose one norm.")
    written = {amount(t.eps): t.eps for t in reversed(threats)}
    models: list[tuple[Any, dict[float, RunDirectory]]] = []
    for run, threat in zip(runs, threats, strict=True):
        refuse_other_data(runs[0], run)
        key, eps = _model(run), amount(threat.eps)
        group = next((group for other, group in models if other == key), None)
        if group is None:
            models.append((key, group := {}))
        if eps in group:
            raise UserError(
                f"'{group[eps].path}' and '{run.path}' are the same model at the same eps"
                f" {threat.eps}. Give one of them."
            )
        group[eps] = run
    curves = [_curve(dict(sorted(group.items()))) for _, group in models]
    return EpsCurves(
        norms[0],
        dict(sorted(written.items())),
        curves,
        curve_difference(*curves) if len(curves) == 2 else None,
    )


def curve_difference(a: ModelCurve, b: ModelCurve) -> CurveDifference:
    """Returns the paired difference of two models' curves, at each eps and on average over all.

    The average is unweighted over the eps that both have. An example's value is the mean of its differences
    over these eps: every eps sees the same images, so the correlation between the points of the curve is
    kept, and n is the number of examples.

    Args:
        a: a model's curve.
        b: another's, on the same data.
    """
    at: dict[str, dict[float, Estimate]] = {}
    average: dict[str, Estimate] = {}
    for row in (row for row in a.scores if row in b.scores):
        left, right = a.scores[row], b.scores[row]
        common = [eps for eps in left if eps in right and left[eps].keys() & right[eps].keys()]
        at[row] = {
            eps: average_difference([left[eps]], [right[eps]], _draws(a, b, row, [eps])) for eps in common
        }
        if len(common) > 1:
            tables = [left[eps] for eps in common], [right[eps] for eps in common]
            average[row] = average_difference(*tables, _draws(a, b, row, common))
    shared = [eps for eps in a.runs if eps in b.runs]
    pairs = [(a.runs[eps], b.runs[eps]) for eps in shared]
    warnings = [sentence for pair in pairs for sentence in spec_warnings(*pair)]
    if a.runs.keys() != b.runs.keys():
        warnings.append("The models were not evaluated at the same eps: only those of both are compared.")
    changed = spec_changes(*pairs[0]) if pairs else []
    return CurveDifference(at, average, changed, list(dict.fromkeys(warnings)))


def _model(run: RunDirectory) -> Any:
    """What all runs of one model have in common."""
    spec = copy.deepcopy(run.spec()["spec"])
    del spec["name"], spec["threat"]["eps"]
    for attack in spec["attacks"]:
        for option in PER_BUDGET:
            attack["options"].pop(option, None)
    session = (run.sessions() or [{}])[0]
    return spec, session.get("classifier_sha256"), session.get("denoiser_sha256")


def _curve(runs: dict[float, RunDirectory]) -> ModelCurve:
    """Reads the records of one model's runs."""
    specs = [run.recorded_spec() for run in runs.values()]
    records = {eps: run.columns().rows for eps, run in runs.items()}
    order = [*BASELINE_ROWS, *(k.name for k in specs[0].knowledge)]
    found = {row: {eps: rows[row] for eps, rows in records.items() if row in rows} for row in order}
    rows, scores = {}, {}
    for row, at in found.items():
        if at:
            scores[row] = {eps: group.by_example() for eps, group in at.items()}
            counted = {eps: votes(group) for eps, group in at.items()}
            rows[row] = {
                eps: mean_accuracy("per_draw", v.share.tolist(), v.most) for eps, v in counted.items()
            }
    return ModelCurve(_common_title([spec.name for spec in specs]), runs, rows, scores)


def _common_title(names: Sequence[str]) -> str:
    """The words with which all titles begin, or the first title if they share none."""
    columns = zip(*(name.split() for name in names), strict=False)
    start = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
    return " ".join(start).rstrip(" ,;:=-(") or names[0]


def _draws(a: ModelCurve, b: ModelCurve, row: str, eps: Sequence[float]) -> int:
    """Draws behind an example's value at each eps."""
    return min(model.rows[row][e].draws for model in (a, b) for e in eps)
