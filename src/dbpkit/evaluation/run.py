"""The loop: from a spec to a full run directory.

For every batch of examples and every row of the table: attack, project, judge, record. Work that is recorded
is never done again. A resumed run is the run that was not interrupted, because nothing here draws a number or
remembers one from batch to batch.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from dbpkit.checks import Checked
from dbpkit.checks.preflight import preflight
from dbpkit.evaluation.rows import Rows
from dbpkit.evaluation.session import enter_session, refuse_other_parts
from dbpkit.evaluation.trial import one_line, report_failure, try_attacks
from dbpkit.evaluation.work import Made, Unit, joined
from dbpkit.experiment.build import Parts, build
from dbpkit.experiment.coverage import MISSING_CLASSES, missing_classes
from dbpkit.experiment.execution import Execution, check_execution, kernels
from dbpkit.experiment.sizing import settled
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.experiment.state import parts_state, state_changes
from dbpkit.foundation.errors import OutputError, UserError, check_kind, check_progress
from dbpkit.foundation.locking import writing
from dbpkit.results.checks_file import ChecksFile
from dbpkit.results.flags import Flag
from dbpkit.results.records import Key, Record, failed
from dbpkit.results.run_directory import STATE_CHANGED, RunDirectory
from dbpkit.results.summary import Summary, summarise

log = logging.getLogger(__name__)

GIVE_UP_AFTER = 8
"""Examples a row may fail on, with none that works, before the run stops."""

STRIP_EXAMPLES = 8
"""Examples shown as pictures in the report."""

Progress = Callable[[float, str], None]
"""Called with the share of the work that is done, in [0, 1], and what is being done."""

Checks = Callable[[Parts, EvaluationSpec, Progress], Checked]
"""Looks at the parts before a run and returns what it finds."""


def evaluate(
    spec: EvaluationSpec,
    out: str | Path | RunDirectory,
    execution: Execution | None = None,
    progress: Progress = lambda *_: None,
    *,
    parts: Parts | None = None,
    checks: Checks | None = None,
) -> Summary:
    """Runs an evaluation, or goes on with the one in ``out``.

    Args:
        spec: what to evaluate.
        out: run directory; one given as such still knows its records afterwards.
        execution: device and batch sizes; None takes a GPU if there is one, and what is fastest there.
        progress: called whenever work is done.
        parts: models and data that are made already, on their device, which is used if ``execution``
            names none; None builds those of the spec.
        checks: what looks at the parts before the run; None takes `preflight`.

    Returns:
        The summary, which is also written to ``summary.json``.

    Raises:
        UserError: if ``out`` holds another run, a part is wrong, or the disk is full.
    """
    check_kind(spec, EvaluationSpec, "evaluate: spec", "Make one with read_spec(path, EvaluationSpec).")
    check_progress(progress, "evaluate")
    execution = check_execution(execution)
    run = out if isinstance(out, RunDirectory) else RunDirectory(out)
    run.refuse_other(spec.model_dump(mode="json"))  # at once, before seconds or minutes of work
    settings = kernels(execution.deterministic, spec.precision)
    with writing(run.path, f"dbpkit evaluate --out {run.path}"), settings:
        given, parts = parts is not None, parts or build(spec, execution.device, execution.budget)
        refuse_other_parts(run, parts)
        execution = settled(execution, parts, given=given)
        state = parts_state(parts)
        runner, found = _Runner(spec, parts, execution, run, progress), None
        if run.checks() is None:
            progress(0.0, "checks")
            found = _checked(parts, spec, progress, checks)
            try_attacks(spec, parts, runner.rows)
        # Claimed only now: a spec whose parts cannot be built or do not fit leaves no directory behind.
        run.claim(spec.model_dump(mode="json"))
        enter_session(run, parts, execution)
        _write_checks(run, found, missing_classes(parts.data, spec.examples.order))
        runner.run_all()
        runner.write_strip()
        _note_changes(run, state_changes(state, parts_state(parts)))
        summary = summarise(run)
        run.write_json("summary.json", summary.as_json())
    return summary


class _Runner:
    """The state of one evaluation while it runs."""

    def __init__(
        self,
        spec: EvaluationSpec,
        parts: Parts,
        execution: Execution,
        run: RunDirectory,
        progress: Progress,
    ) -> None:
        self.spec = spec
        self.parts = parts
        self.execution = execution
        self.run = run
        self.progress = progress
        self.rows = Rows(spec, parts, execution, run)
        self.units = self.rows.units()
        self.total = sum(u.cost for u in self.units) * len(parts.data)
        self.done = 0.0
        self.failures: dict[tuple[str, ...], int | None] = {}  # failed records by unit; None once one worked

    def run_all(self) -> None:
        """Does every unit of every batch that is not recorded yet."""
        recorded = self.run.done()
        worked = {key.row for key in recorded}
        self.failures = {unit.rows: None for unit in self.units if worked.intersection(unit.rows)}
        for index in self._batches():
            ids = self.parts.data.ids[index].tolist()
            for unit in self.units:
                missing = any(Key(row, unit.tape, i) not in recorded for row in unit.rows for i in ids)
                self.progress(self.done / self.total, unit.rows[0])
                if missing:
                    records, files = self._attempt(unit, index)
                    self.run.append(records, files)
                    self._give_up_if_nothing_works(unit, records)
                self.done += unit.cost * len(ids)
        self._forget_fixed_failures()
        self.progress(1.0, "done")

    def _give_up_if_nothing_works(self, unit: Unit, records: list[Record]) -> None:
        """Stops a run in which a row has failed on every example so far, and on enough of them to tell."""
        failed = sum("error" in r for r in records)
        self.failures[unit.rows] = None if failed < len(records) else self._failed_before(unit, failed)
        count = (self.failures[unit.rows] or 0) // len(unit.rows)
        if count >= min(GIVE_UP_AFTER, len(self.parts.data)):
            raise UserError(
                f"{_named(unit.rows)} failed on every one of {count} examples: {records[0]['error']}. "
                "Fix the part that failed and run the same command again; the tracebacks are in"
                f" '{self.run.path / 'errors'}'."
            )

    def _failed_before(self, unit: Unit, failed: int) -> int | None:
        before = self.failures.get(unit.rows, 0)
        return None if before is None else before + failed

    @torch.no_grad()
    def write_strip(self) -> None:
        """Stores clean, attacked and purified images of the first examples, for the report's picture."""
        index = torch.arange(min(STRIP_EXAMPLES, len(self.parts.data)))
        batch = self.rows.batch(index)
        ids = batch.noise.example_ids.tolist()
        tensors, said = {"ids": batch.noise.example_ids, "clean": batch.x.cpu()}, {}
        plans = {
            "clean": batch.noise,
            **{k.name: k.resolve().apply(batch.noise, 0) for k in self.spec.knowledge},
        }
        for row, noise in plans.items():
            records = self.run.some(row, 0, ids)
            if len(records) < len(ids):
                continue
            x_adv = batch.x
            if row != "clean":
                shards = {f: self.run.read_images(f) for f in {records[i]["images"] for i in ids}}
                x_adv = torch.stack([shards[records[i]["images"]][i] for i in ids]).to(batch.x)
                tensors[f"{row}.x_adv"] = x_adv.cpu()
            if self.parts.undefended is not None:
                # An unrepeated plan is draw 0, the first column of the row's predictions.
                tensors[f"{row}.x_pure"] = self.parts.model.purifier(x_adv, noise=noise).cpu()
            said[row] = [records[i]["predicted"][0] for i in ids]
        about = {
            "class_names": self.parts.data.class_names,
            "labels": batch.y.tolist(),
            "predicted": said,
        }
        self.run.write_strip(tensors, about)

    def _attempt(self, unit: Unit, index: Tensor) -> Made:
        """The records of a unit; if a batch fails, its examples are tried alone and failures recorded."""
        try:
            return unit.work(self.rows.batch(index))
        except Exception as error:
            if isinstance(error, UserError) and not isinstance(error, OutputError):
                raise
            log.warning("%s failed on %d examples: %s", _named(unit.rows), len(index), one_line(error))
            if len(index) > 1:
                return joined([self._attempt(unit, one) for one in index.split(1)])
            example = int(self.parts.data.ids[index[0]])
            failure = report_failure(self.run.path, f"{unit.rows[0]}-{unit.tape}-{example}", error)
            message = f"{one_line(error)} (traceback in errors/{failure.name})"
            return Made([failed(Key(row, unit.tape, example), message) for row in unit.rows], [])

    def _forget_fixed_failures(self) -> None:
        """Removes the tracebacks of units that have worked since."""
        folder = self.run.path / "errors"
        failed = {f"{r['row']}-{r['tape']}-{r['example']}" for r in self.run.columns().failed}
        ids = self.parts.data.ids.tolist() if folder.is_dir() else []
        for name in {f"{unit.rows[0]}-{unit.tape}-{i}" for unit in self.units for i in ids} - failed:
            (folder / f"{name}.txt").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()

    def _batches(self) -> Iterator[Tensor]:
        positions = torch.arange(len(self.parts.data))
        return iter(
            (positions.flip(0) if self.execution.reverse else positions).split(self.execution.batch_size)
        )


def _named(rows: tuple[str, ...]) -> str:
    """Rows that are made together, and so fail together."""
    return f"row '{rows[0]}'" if len(rows) == 1 else f"rows {', '.join(rows)} (made together)"


def _note_changes(run: RunDirectory, changes: list[Flag]) -> None:
    """Adds to the checks that a session has changed its models; once is enough."""
    noted = run.checks() or []
    if changes and not any(f["name"] == STATE_CHANGED for f in noted):
        run.write_checks([*noted, *(f._asdict() for f in changes)], run.checks_run())


def _checked(parts: Parts, spec: EvaluationSpec, progress: Progress, own: Checks | None) -> ChecksFile:
    """What the checks before the run find, and which of them ran; nobody knows that of a caller's own."""
    found = (own or preflight)(parts, spec, progress)
    return ChecksFile([f._asdict() for f in found.flags], found.words if own is None else None)


def _write_checks(run: RunDirectory, found: ChecksFile | None, missing: list[Flag]) -> None:
    """Writes what the checks found, or keeps what they did; what the examples lack changes as they grow."""
    flags, ran = found or ChecksFile(run.checks() or [], run.checks_run())
    kept = [f for f in flags if f["name"] != MISSING_CLASSES]
    run.write_checks([*kept, *(f._asdict() for f in missing)], ran)
