"""Runs analyses into a run directory, unit by unit; what is recorded is not done again."""

import contextlib
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from dbpkit.analyses.analysis import Analysis, ImagesError, PurifierError, Subject, Unit, analyses
from dbpkit.evaluation.session import hashes_of, refuse_other_parts
from dbpkit.evaluation.trial import one_line, report_failure
from dbpkit.experiment.build import build
from dbpkit.experiment.execution import Execution, check_execution, current_gpu, kernels
from dbpkit.experiment.sizing import settled
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.experiment.state import parts_state, state_changes
from dbpkit.foundation.compiled import compiling
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.locking import Shard, setting_up, writing
from dbpkit.foundation.registry import call_with_options
from dbpkit.results.analysis import AnalysisRecords, AnalysisResult
from dbpkit.results.layout import canonical_hash
from dbpkit.results.run_directory import RunDirectory

log = logging.getLogger(__name__)

Progress = Callable[[float, str], None]


def analyse(
    spec: EvaluationSpec,
    out: str | Path,
    chosen: Mapping[str, Mapping[str, Any]] | None = None,
    execution: Execution | None = None,
    progress: Progress = lambda *_: None,
) -> list[AnalysisResult]:
    """Runs analyses, or goes on with those in ``out``.

    Args:
        spec: the models, data and threat; an evaluation of the same spec may lie in the same directory.
        out: run directory.
        chosen: options by name of analysis; None takes those the spec names, or, if it names none, all that
            its purifier admits.
        execution: device and batch sizes, and which of several processes this is: unit k of an analysis
            belongs to rank k modulo the world. None takes a GPU if there is one, and what is fastest there.
        progress: called with the share done and what is being done.

    Returns:
        What each analysis found, in their order; the same lies in ``analyses/`` of the run directory. Those
        whose units are not all recorded yet, because another rank has them, are left out.

    Raises:
        UserError: if ``out`` holds a run of another spec, a name or an option is wrong, or the disk is full.
    """
    execution = check_execution(execution, shared=True)
    wanted = chosen or spec.analyses or {name: {} for name in analyses}
    made = {name: make_analysis(name, options) for name, options in wanted.items()}
    run = RunDirectory(out)
    run.refuse_other(spec.model_dump(mode="json"))  # at once, before seconds or minutes of work
    shard = Shard(execution.rank, execution.world, _launch(made))
    with (
        writing(out, f"dbpkit analyse --out {out}", shard),
        kernels(execution.deterministic, spec.precision),
        current_gpu(execution.device),
    ):
        run.write_as(shard)
        parts = build(spec, execution.device, execution.budget)
        state = parts_state(parts)
        with setting_up(run.path, shard):
            refuse_other_parts(run, parts)
            subject = Subject(spec, parts, settled(execution, parts).limit)
            units = _admitted(made, subject, choose=not (chosen or spec.analyses))
            run.claim(spec.model_dump(mode="json"))  # not before: what cannot be used leaves no directory
        results = []
        for number, name in enumerate(units):

            def share(part: float, what: str, before: int = number) -> None:
                progress((before + part) / len(units), what)

            if getattr(made[name], "in_turn", False):  # one process does all, another for each analysis
                own = units[name] if number % shard.world == shard.rank else []
            else:
                own = units[name][shard.rank :: shard.world]
            with compiling(execution.compile):
                result = _run(name, made[name], units[name], own, subject, run, share)
            results += [result] if result else []
        if changes := state_changes(state, parts_state(parts)):
            raise UserError(f"{changes[0].message} Delete '{run.path / 'analyses'}' and run them again.")
    return results


def _launch(made: Mapping[str, Analysis]) -> str:
    """What ranks must agree on to write together, in words: the analyses, and a hash of their options."""
    options: dict[str, Any] = {n: asdict(one) if is_dataclass(one) else {} for n, one in made.items()}
    return f"dbpkit analyse {' '.join(made)} (options {canonical_hash(json.loads(json.dumps(options)))[:8]})"


def make_analysis(name: str, options: Mapping[str, Any]) -> Analysis:
    """Builds an analysis by registered name or import path; UserError if an option is unknown."""
    return call_with_options(analyses.resolve(name), options, f"analysis '{name}'")


def _admitted(made: Mapping[str, Analysis], subject: Subject, choose: bool) -> dict[str, list[Unit]]:
    """The units of every analysis; with ``choose``, of those that the purifier admits, if any is."""
    units: dict[str, list[Unit]] = {}
    refused: list[PurifierError] = []
    for name, analysis in made.items():
        try:
            units[name] = _units(name, analysis, subject)
        except PurifierError as error:
            if not choose:
                raise
            refused.append(error)
    if not units and refused:
        raise refused[0]
    for refusal in refused:
        log.warning("left out: %s", refusal)
    return units


def _units(name: str, analysis: Analysis, subject: Subject) -> list[Unit]:
    """The units of an analysis; UserError if the images are too few or two have one label."""
    try:
        units = list(analysis.units(subject))
    except ImagesError as error:
        raise UserError(f"analysis '{name}': {error}") from None
    labels = [str(unit) for unit in units]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise UserError(f"analysis '{name}' has two units called '{twice[0]}'. Give each another name.")
    return units


def _claim(
    records: AnalysisRecords, options: dict[str, Any], grows: Collection[str], subject: Subject
) -> None:
    """Makes these the records of the options and parts, or of the same run with more examples or images.

    What the first session noted stays, because every record has its hash.
    """
    parts, old = subject.parts, records.settings() or {}
    shared = min(old.get("examples") or len(parts.data), len(parts.data))
    settings = {"options": options, "hashes": hashes_of(parts, shared), "examples": shared}
    wanted = json.loads(json.dumps(settings))
    noted = {"examples": shared, **old, "options": dict(old.get("options", {}))}
    for name in grows:
        noted["options"][name] = wanted["options"].get(name)
    if not old or noted != wanted:
        old = {}
        settings = {"options": options, "hashes": parts.hashes, "examples": len(parts.data)}
    records.claim(old or settings)


def _run(
    name: str,
    analysis: Analysis,
    units: list[Unit],
    own: list[Unit],
    subject: Subject,
    run: RunDirectory,
    progress: Progress,
) -> AnalysisResult | None:
    """Does those of its own units that are not recorded yet, then concludes from all if all are there."""
    records = AnalysisRecords(run, name)
    options: dict[str, Any] = asdict(analysis) if is_dataclass(analysis) else {}
    with setting_up(run.path, run.shard):
        _claim(records, options, getattr(analysis, "grows", ()), subject)
    recorded = records.read()
    done = {unit: recorded[str(unit)] for unit in units if str(unit) in recorded}
    for number, unit in enumerate(own):
        progress(number / len(own), f"{name} {unit}")
        if unit not in done:
            with _kept_traceback(run, name, f"unit '{unit}'"):
                measured = analysis.measure(subject._replace(done=done), unit)
            done[unit] = records.append(str(unit), measured)
    with setting_up(run.path, run.shard):
        if len(done) < len(units):
            recorded = records.read()
            done = {unit: recorded[str(unit)] for unit in units if str(unit) in recorded}
        result = None
        if len(done) == len(units):
            with _kept_traceback(run, name, "the conclusion from its records"):
                conclusion = analysis.conclude({unit: done[unit] for unit in units})
                result = AnalysisResult(name, analysis.title, *conclusion, options)
                records.write_result(result)
            (run.path / "errors" / f"analysis-{name}.txt").unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                (run.path / "errors").rmdir()
    progress(1.0, name)
    return result


@contextlib.contextmanager
def _kept_traceback(run: RunDirectory, name: str, what: str) -> Iterator[None]:
    """Turns an error into a sentence, and keeps its traceback in the run directory."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        failure = report_failure(run.path, f"analysis-{name}", error)
        raise UserError(
            f"analysis '{name}' failed at {what}: {one_line(error)}. The traceback is in '{failure}'. What"
            " was recorded is intact; fix the part that failed and run the same command again."
        ) from error
