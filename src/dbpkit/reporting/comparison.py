"""Several runs side by side: what each of them has, and paired differences, as text for the page.

The thing people get wrong: two bars whose whiskers overlap may still differ clearly, because the runs share
their examples. Only the table of paired differences can tell.
"""

from collections.abc import Sequence
from typing import NamedTuple

from dbpkit.foundation.errors import UserError
from dbpkit.reporting.figures import MARKERS, PALETTE, ResponsiveChart, accuracy_chart, curve_chart
from dbpkit.reporting.tables import (
    Cell,
    DifferenceRow,
    TableRow,
    accuracy_cell,
    difference_cell,
    difference_row,
    points,
    row_title,
    short_title,
)
from dbpkit.results.compare import compare_runs, spec_changes
from dbpkit.results.curves import CurveDifference, EpsCurves, ModelCurve, curve_difference, eps_curves
from dbpkit.results.run_directory import RunDirectory

ANSWERING_ROWS = ("white_box", "dw_both")
"""Rows whose average difference is said before all tables."""


class ShownRun(NamedTuple):
    """One run: its letter, title, directory and lines of the headline table."""

    letter: str
    name: str
    directory: RunDirectory
    rows: Sequence[TableRow]


class Key(NamedTuple):
    """One entry of the legend: its sign, its colours (light, dark), a label such as ``"A"``, what it is."""

    mark: str
    colours: tuple[str, str]
    label: str
    name: str


class Against(NamedTuple):
    """A table of paired differences with the first run or model.

    Attributes:
        label: of the other run, or model.
        rows: differences of two runs.
        curve: differences of two models: title of a row, cells by eps with the average last, and its n.
        changed: leaves in which the two differ.
        warnings: what makes the differences hard to read.
        problem: why there is no difference, or empty.
    """

    label: str
    rows: list[DifferenceRow]
    curve: list[tuple[str, list[Cell | None], int]]
    changed: list[str]
    warnings: list[str]
    problem: str


class Comparison(NamedTuple):
    """Several runs beside each other.

    Attributes:
        legend: runs, or models if the runs are curves.
        chart: bars by run, or lines against eps; None if nothing is recorded.
        eps: every budget as the specs write it, if the runs are curves, else empty.
        rows: title of every setting and its accuracy in every run, None where a run has no such row.
        curves: title of every setting and, for every model that has it, label and accuracy at each eps.
        against: paired differences with the first run or model.
        answers: what two models' curves come to, one sentence for each of `ANSWERING_ROWS`.
    """

    legend: list[Key]
    chart: ResponsiveChart | None
    eps: list[str]
    rows: list[tuple[str, list[Cell | None]]]
    curves: list[tuple[str, list[tuple[str, list[Cell | None]]]]]
    against: list[Against]
    answers: list[str]


def compare_shown(runs: Sequence[ShownRun]) -> Comparison:
    """Returns two or more runs beside each other: as curves if a model is there at several eps, else as bars.

    Raises:
        UserError: if a run is damaged. Runs that cannot be compared are shown, with the reason.
    """
    curves = _curves_of([run.directory for run in runs])
    titles = {row.name: row.title for run in runs for row in run.rows}
    if curves is None or not titles:
        cells = [{row.name: row.accuracy for row in run.rows} for run in runs]
        return Comparison(
            legend=_keys([(run.letter, run.name, run.directory) for run in runs], ["■"]),
            chart=accuracy_chart([(run.letter, run.rows) for run in runs]) if titles else None,
            eps=[],
            rows=[(title, [row.get(name) for row in cells]) for name, title in titles.items()],
            curves=[],
            against=[_run_against(runs[0], other) for other in runs[1:]],
            answers=[],
        )
    first, *others = curves.models
    pairs = [curves.difference or curve_difference(first, other) for other in others]
    against = [_model_against(curves, number, pair) for number, pair in enumerate(pairs, 2)]
    if not others:
        against = [_run_against(runs[0], other) for other in runs[1:]]
    return Comparison(
        legend=_model_keys(curves, runs),
        chart=curve_chart(curves),
        eps=list(curves.eps.values()),
        rows=[],
        curves=_curve_rows(curves),
        against=against,
        answers=_answers(curves, curves.difference) if curves.difference else [],
    )


def _curves_of(directories: Sequence[RunDirectory]) -> EpsCurves | None:
    """The runs as curves, or None if they are not: no model has two eps, or they do not fit together."""
    try:
        curves = eps_curves(directories)
    except UserError:  # two norms, other data or the same run twice: still shown beside each other
        return None
    return curves if any(len(model.runs) > 1 for model in curves.models) else None


def _keys(entries: Sequence[tuple[str, str, RunDirectory]], marks: Sequence[str]) -> list[Key]:
    """The legend; where titles are the same, what differs from the first stands beside them."""
    names = [name for _, name, _ in entries]
    keys = []
    for number, (label, name, directory) in enumerate(entries):
        changed = spec_changes(entries[0][2], directory) if names.count(name) > 1 else []
        said = f"{name} ({'; '.join(changed)})" if changed else name
        keys.append(Key(marks[number % len(marks)], PALETTE[number % len(PALETTE)], label, said))
    return keys


def _model_keys(curves: EpsCurves, runs: Sequence[ShownRun]) -> list[Key]:
    """The legend of models, with the letters of their runs."""
    letters = {run.directory.path: run.letter for run in runs}
    base = curves.models[0]
    entries = []
    for number, model in enumerate(curves.models, 1):
        shared = next((eps for eps in model.runs if eps in base.runs), next(iter(model.runs)))
        entries.append((f"Model {number}", model.name, model.runs[shared]))
    keys = _keys(entries, [sign for _, sign in MARKERS])
    return [
        key._replace(name=f"{key.name} – runs {', '.join(letters[r.path] for r in model.runs.values())}")
        for key, model in zip(keys, curves.models, strict=True)
    ]


def _run_against(first: ShownRun, other: ShownRun) -> Against:
    """The first run minus another."""
    try:
        found = compare_runs(first.directory, other.directory)
    except UserError as error:  # runs on other data can still be shown beside each other
        return Against(other.letter, [], [], [], [], str(error))
    rows = [difference_row(name, e, found.p_values.get(name)) for name, e in found.differences.items()]
    return Against(other.letter, rows, [], found.changed, found.warnings, "")


def _model_against(curves: EpsCurves, number: int, found: CurveDifference) -> Against:
    """The first model minus another."""
    rows: list[tuple[str, list[Cell | None], int]] = []
    for row, at in found.at.items():
        average = found.average.get(row)
        estimates = [*(at.get(eps) for eps in curves.eps), average]
        examples = [e.examples for e in estimates if e]
        if examples:
            cells = [difference_cell(e) if e else None for e in estimates]
            rows.append((row_title(row), cells, average.examples if average else min(examples)))
    problem = "" if rows else "the models have no example, row and eps in common."
    return Against(str(number), [], rows, found.changed, found.warnings, problem)


def _curve_rows(curves: EpsCurves) -> list[tuple[str, list[tuple[str, list[Cell | None]]]]]:
    """Accuracy of every setting by model and eps."""

    def cells(model: ModelCurve, row: str) -> list[Cell | None]:
        at = model.rows[row]
        return [accuracy_cell(at[eps]) if eps in at else None for eps in curves.eps]

    models = [(f"Model {number}", model) for number, model in enumerate(curves.models, 1)]
    names = dict.fromkeys(row for _, model in models for row in model.rows)
    return [
        (row_title(row), [(label, cells(model, row)) for label, model in models if row in model.rows])
        for row in names
    ]


def _answers(curves: EpsCurves, found: CurveDifference) -> list[str]:
    """One sentence for each of the rows that answer, from the average over eps."""
    answers = []
    for row in ANSWERING_ROWS:
        e = found.average.get(row)
        if e is None or not e.examples:
            continue
        eps = [curves.eps[at] for at in found.at[row]]
        title = short_title(row_title(row))
        verdict = "more" if e.low > 0 else "fewer" if e.high < 0 else "neither clearly more nor fewer"
        answers.append(
            f"{title[:1].upper()}{title[1:]}: model 1 leaves {verdict} images right than model 2,"
            f" {points(e.value)} points on average over eps {eps[0]} to {eps[-1]} (95 % interval"
            f" {points(e.low)} to {points(e.high)})."
        )
    return answers
