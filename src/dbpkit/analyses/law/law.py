"""The law: does a purifier's compression rate decide how robust it is once its randomness is fixed?

Many purifiers around one denoiser and one classifier are measured: compression rate (forward passes only),
accuracy at the anchors, margin of the classifier there, and accuracy under an exact attack that knows the
noise. The thing people get wrong: attacked accuracy is bounded by accuracy at the anchors. What compresses
most also changes the image most, so the curve can turn down again where compression is strongest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbpkit.analyses.analysis import Subject, Unit, analyses, batches, check_options, cut, needs_diffusion
from dbpkit.analyses.law.charts import law_chart, margin_chart, plane, prediction_chart
from dbpkit.analyses.law.numbers import PREDICTION, RANK, law_numbers, nearest_to_halving
from dbpkit.analyses.law.table import CLASSIFIER, Table, at_shared_budgets, joined, tabulate
from dbpkit.analyses.tools.boundary import finite, margins
from dbpkit.analyses.tools.configurations import (
    CONFIGURATIONS,
    budget_lengths,
    budgets,
    eps_name,
    pixels,
    screen,
    settings,
    survival,
    with_purifier,
)
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.options import Count, call_with_options
from dbpkit.foundation.registry import names_of
from dbpkit.results.analysis import AnalysisRecords, AnalysisResult, Chart, Conclusion, Number
from dbpkit.results.run_directory import RunDirectory


@analyses.register("law")
@dataclass(frozen=True)
class Law:
    """Robustness at fixed randomness against compression rate, over many purifiers.

    Attributes:
        configurations: purifiers, each a table with ``sampler``, ``t_star``, ``steps``, ``options``.
        eps: budgets in pixel units as text, such as ``["0.5/255", "2/255"]``; none takes 1/16, 1/8, 1/4, 1/2
            and all of the spec's.
        images: examples.
        tapes: fixed noises per example.
        directions: random directions per example and tape.
        iterations: steps of the attack at each budget.
    """

    configurations: Sequence[Mapping[str, Any]] = CONFIGURATIONS
    eps: Sequence[str | float] = ()
    images: Count = 64
    tapes: Count = 1
    directions: Count = 2
    iterations: Count = 8
    title = "Compression rate against robustness"
    grows = frozenset({"images"})

    def __post_init__(self) -> None:
        check_options(self)
        _ = [pixels(eps) for eps in self.eps]
        if len(settings(self.configurations)) < 5:
            raise UserError("law fits three numbers to its configurations. Give at least 5 of them.")

    def units(self, subject: Subject) -> list[Unit]:
        """The classifier alone and every configuration, by batches of examples."""
        needs_diffusion("law", subject)
        for setting in settings(self.configurations):
            with_purifier(subject, setting)  # a wrong name is found now, not after an hour
        return self.of_each(batches(subject, self.images))

    def of_each(self, parts: Sequence[Unit]) -> list[Unit]:
        """The classifier alone and every configuration on each batch."""
        kinds = [CLASSIFIER, *settings(self.configurations)]
        return [Unit(part.images, kind) for part in parts for kind in kinds]

    def measure(self, subject: Subject, unit: Unit) -> dict[str, Any]:
        """One configuration on one batch: what forward passes tell, and what the attack finds."""
        x, y, noise = subject.examples(unit.images)
        if unit.of == CLASSIFIER:
            return {"margin": finite(margins(subject, x, y))}
        chosen = with_purifier(subject, unit.of)
        eps = budgets(subject, self.eps)
        tapes = []
        for tape in range(self.tapes):
            plan = noise.at(tape)
            anchor = chosen.purify(x, plan)
            seen = screen(chosen, x, y, anchor, plan, self.directions)
            tapes.append({**seen, **survival(chosen, x, y, anchor, noise, tape, eps, self.iterations)})
        return {"eps": eps, "lengths": budget_lengths(subject, eps, x), "tapes": tapes}

    def conclude(self, measured: Mapping[Unit, Any]) -> Conclusion:
        """Correlations, sigmoid, leave-one-out error, and the prediction without an attack."""
        table = tabulate(measured)
        numbers = law_numbers([measured])
        return Conclusion(_sentences(table, numbers), numbers, _charts([measured], table))


def combine(runs: Sequence[str | Path]) -> AnalysisResult:
    """Concludes from the law's records of several runs, such as two data sets, each alone and pooled.

    What differs between two data sets makes the pooled correlations, so these carry no claim: whether a law
    holds is a question about the purifiers of one data set.

    Args:
        runs: directories in which ``law`` has been run; the budgets that all of them have are used.

    Returns:
        The law of each run, and of all of them pooled.

    Raises:
        UserError: if one holds no records of it, or they have no budget in common.
    """
    names = _distinct_names([Path(run) for run in runs])
    records = [_recorded(run) for run in runs]
    try:
        return _combined(names, at_shared_budgets(records))
    except UserError:
        raise
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(
            f"the records of the analysis 'law' in {', '.join(map(str, runs))} are damaged or of another"
            f" version ({type(error).__name__}). Run 'dbpkit analyse' into a new directory."
        ) from error


law = combine
"""Its public name, `dbpkit.law`."""


def _recorded(run: str | Path) -> dict[Unit, Any]:
    """What the law's units in a run directory measured; UserError if there is nothing."""
    records = AnalysisRecords(RunDirectory(run), "law")
    found, noted, concluded = records.read(), records.settings(), records.read_result()
    if not found or noted is None:
        raise UserError(f"'{run}' holds no records of the analysis 'law'. Run 'dbpkit analyse' there first.")
    with names_of(f"'{records.path / 'settings.json'}'"):
        options = concluded.settings if concluded else noted["options"]
        law = call_with_options(Law, options, f"the analysis 'law' of '{run}'")
        units = law.of_each(cut(min(law.images, 8 * len(found))))  # no batch without a record
    return {unit: found[str(unit)] for unit in units if str(unit) in found}


def _combined(names: Sequence[str], records: Sequence[dict[Unit, Any]]) -> AnalysisResult:
    """The conclusion from the records of every run."""
    if len(records) == 1:
        return AnalysisResult("law", Law.title, *Law().conclude(records[0]))
    within = {name: Law().conclude(found) for name, found in zip(names, records, strict=True)}
    table = joined([_of_run(name, tabulate(found)) for name, found in zip(names, records, strict=True)])
    pooled = [
        n._replace(name=f"pooled: {n.name}", claim="", least=None, most=None) for n in law_numbers(records)
    ]
    numbers = [n._replace(name=f"{name}: {n.name}") for name, r in within.items() for n in r.numbers]
    sentences = [
        f"Pooled over {len(table.settings)} purifiers of {len(records)} runs, the numbers mix what differs"
        " between the runs with what differs between purifiers: they say nothing about those of one run.",
        *(f"Within {name}: {sentence}" for name, result in within.items() for sentence in result.sentences),
    ]
    return AnalysisResult("law", Law.title, sentences, [*numbers, *pooled], _charts(records, table))


def _charts(records: Sequence[Mapping[Unit, Any]], table: Table) -> list[Chart]:
    main = nearest_to_halving(table)
    return [
        law_chart(table, main),
        prediction_chart(table),
        margin_chart(records, table),
        plane(table),
    ]


def _of_run(name: str, table: Table) -> Table:
    return table._replace(settings=[setting.of(name) for setting in table.settings])


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path that tell it from the others; UserError if a run is given twice."""
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise UserError("the same run directory was given twice. Give each once.")
    for depth in range(1, max(len(path.parts) for path in resolved) + 1):
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            break
    return names


def _sentences(table: Table, numbers: Sequence[Number]) -> list[str]:
    """What the compression rate goes with, and how well it predicts without an attack."""
    found = {n.name: n for n in numbers}
    at = eps_name(table.eps[nearest_to_halving(table)])
    rank = found.get(RANK.format(at))
    error, bias = (found[f"{PREDICTION}: {what}"] for what in ("mean error", "bias"))
    way = "over" if bias.value > 0 else "under"
    return [
        f"Over {len(table.settings)} purifiers at fixed randomness and {table.images} images, a smaller"
        f" compression rate goes with {_goes_with(rank)} at eps {at}, the budget nearest to halving it.",
        "Compression rate and the classifier's margin, measured without attacking the purifier, predict the"
        f" attacked accuracy to within {100 * error.value:.0f} points on average; they {way}estimate it by"
        f" {100 * abs(bias.value):.0f}.",
    ]


def _goes_with(rank: Number | None) -> str:
    """What a correlation with the rate says, in words."""
    if rank is None or rank.low is None or rank.high is None:
        return "no measurable difference in accuracy"
    word = {True: "more", False: "less", None: "no clear change in"}[rank.holds]
    why = "" if rank.holds is not None else f"; {rank.open_because}"
    return f"{word} accuracy (rank correlation {rank.value:.2f}, {rank.low:.2f} to {rank.high:.2f}{why})"
