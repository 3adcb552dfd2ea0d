"""Runs analyses into a run directory, unit by unit; what is recorded is not done again."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from dbpkit.analyses.analysis import Analysis, Subject, analyses
from dbpkit.evaluation.build import build
from dbpkit.evaluation.run import Execution, hashes_of
from dbpkit.evaluation.spec import EvaluationSpec
from dbpkit.registry import call_with_options
from dbpkit.results.analysis import AnalysisRecords, AnalysisResult
from dbpkit.results.run_directory import RunDirectory
from dbpkit.spec import differences, spec_hash

Progress = Callable[[float, str], None]


def analyse(
    spec: EvaluationSpec,
    out: str | Path,
    chosen: Mapping[str, Mapping[str, Any]] | None = None,
    execution: Execution = Execution(),  # noqa: B008 - an immutable value
    progress: Progress = lambda *_: None,
) -> list[AnalysisResult]:
    """Runs analyses, or goes on with those in ``out``.

    Args:
        spec: the models, data and threat; an evaluation of the same spec may lie in the same directory.
        out: run directory.
        chosen: options by name of analysis; None takes those the spec names, or all if it names none.
        execution: device and batch sizes.
        progress: called with the share done and what is being done.

    Raises:
        UserError: if ``out`` holds a run of another spec, a name or an option is wrong, or the disk is full.
    """
    wanted = chosen or spec.analyses or {name: {} for name in analyses}
    made = {name: make_analysis(name, options) for name, options in wanted.items()}
    parts = build(spec, execution.device, execution.memory_bytes)
    run = RunDirectory(out)  # claimed only now: a spec that cannot be built leaves no directory
    run.claim(spec.model_dump(mode="json"), spec_hash(spec), differences)
    subject = Subject(spec, parts, execution.micro_batch)
    results = []
    for number, (name, analysis) in enumerate(made.items()):

        def share(part: float, what: str, before: int = number) -> None:
            progress((before + part) / len(made), what)

        results.append(_run(name, analysis, subject, run, share))
    return results


def make_analysis(name: str, options: Mapping[str, Any]) -> Analysis:
    """Builds an analysis by registered name or import path; UserError if an option is unknown."""
    return call_with_options(analyses.resolve(name), options, f"analysis '{name}'")


def _claim(records: AnalysisRecords, options: dict[str, Any], subject: Subject) -> None:
    """Makes these the records of the options and parts, or of the same run with more examples."""
    parts, old = subject.parts, records.settings() or {}
    before = old.get("examples", len(parts.data))
    shared = min(before, len(parts.data)) if isinstance(before, int) else len(parts.data)
    settings = {"options": options, "hashes": hashes_of(parts, shared), "examples": shared}
    if {"examples": shared, **old} != json.loads(json.dumps(settings)):
        settings = {"options": options, "hashes": parts.hashes, "examples": len(parts.data)}
        records.claim(settings)


def _run(
    name: str, analysis: Analysis, subject: Subject, run: RunDirectory, progress: Progress
) -> AnalysisResult:
    """Does the units that are not recorded yet, then concludes from all."""
    records = AnalysisRecords(run, name)
    options: dict[str, Any] = asdict(analysis) if is_dataclass(analysis) else {}
    _claim(records, options, subject)
    units = list(analysis.units(subject))
    done = records.read()
    for number, unit in enumerate(units):
        progress(number / len(units), f"{name} {unit}")
        if unit not in done:
            records.append(unit, analysis.measure(subject._replace(done=done), unit))
            done = records.read()
    result = analysis.conclude({unit: done[unit] for unit in units})
    result = result._replace(name=name, title=analysis.title, settings=options)
    records.write_result(result)
    progress(1.0, name)
    return result
