"""The loop: from a spec to a full run directory.

For every batch of examples and every row of the table: attack, project, judge, record. Work that is recorded
is never done again. A resumed run is the run that was not interrupted, because nothing here draws a number or
remembers one from batch to batch.
"""

import contextlib
import functools
import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dbpkit.checks import Checked
from dbpkit.checks.preflight import SharedPreflight, preflight
from dbpkit.evaluation.estimate import Estimate, foretell
from dbpkit.evaluation.rows import Rows
from dbpkit.evaluation.session import enter_session, refuse_other_parts
from dbpkit.evaluation.strip import write_strip
from dbpkit.evaluation.trial import one_line, report_failure, try_attacks
from dbpkit.evaluation.work import Made, Unit, joined
from dbpkit.experiment.build import Parts, build
from dbpkit.experiment.coverage import MISSING_CLASSES, missing_classes
from dbpkit.experiment.execution import Execution, check_execution, current_gpu, kernels
from dbpkit.experiment.sizing import settled
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.experiment.state import parts_state, state_changes
from dbpkit.foundation.compiled import compiling
from dbpkit.foundation.errors import OutputError, UserError, check_kind, check_progress
from dbpkit.foundation.locking import Shard, setting_up, writing
from dbpkit.results.checks_file import ChecksFile
from dbpkit.results.flags import Flag
from dbpkit.results.records import Key, Record, failed
from dbpkit.results.run_directory import STATE_CHANGED, RunDirectory
from dbpkit.results.summary import Summary, summarise

log = logging.getLogger(__name__)

GIVE_UP_AFTER = 8
"""Examples a row may fail on, with none that works, before the run stops."""

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
        The summary, which is also written to ``summary.json``. Of one of several processes, that of what is
        recorded so far by all of them; the last one writes it.

    Raises:
        UserError: if ``out`` holds another run, a part is wrong, or the disk is full.
    """
    run = out if isinstance(out, RunDirectory) else RunDirectory(out)
    return evaluate_share(spec, run, execution, progress, parts=parts, checks=checks) or summarise(run)


def evaluate_share(
    spec: EvaluationSpec,
    run: RunDirectory,
    execution: Execution | None = None,
    progress: Progress = lambda *_: None,
    *,
    parts: Parts | None = None,
    checks: Checks | None = None,
) -> Summary | None:
    """Does this process's share of an evaluation: batch k belongs to rank k modulo the world.

    Nothing is said between the processes but by files in the run directory, so that ranks may start hours
    apart, on other machines, and none waits for one that has died.

    Args:
        spec: what to evaluate.
        run: run directory.
        execution: device and batch sizes, and which of several processes this is.
        progress: called whenever work is done.
        parts: as of `evaluate`.
        checks: as of `evaluate`.

    Returns:
        The summary, if this process has found everything recorded and has concluded the run; None if other
        shares are still missing, or another process has concluded it.

    Raises:
        UserError: as `evaluate`, and if a process writes to the directory that is no rank of this launch.
    """
    check_kind(spec, EvaluationSpec, "evaluate: spec", "Make one with read_spec(path, EvaluationSpec).")
    check_progress(progress, "evaluate")
    execution = check_execution(execution, shared=True)
    run.refuse_other(spec.model_dump(mode="json"))  # at once, before seconds or minutes of work
    shard = _share_of(execution)
    with (
        writing(run.path, f"dbpkit evaluate --out {run.path}", shard),
        kernels(execution.deterministic, spec.precision),
        current_gpu(execution.device),
    ):
        run.write_as(shard)
        given, parts = parts is not None, parts or build(spec, execution.device, execution.budget)
        execution = settled(execution, parts, given=given)
        state = parts_state(parts)
        runner, found = _Runner(spec, parts, execution, run, progress), None
        if run.checks() is None:  # before the lock, so that it is also told by a rank that waits
            runner.weigh(foretell(spec, parts, execution))
        with setting_up(run.path, shard, lambda: progress(0.0, "waiting for another rank's checks")):
            refuse_other_parts(run, parts)
            if run.checks() is None:
                found = _checked(parts, spec, progress, checks)
                try_attacks(spec, parts, runner.rows)
            # Claimed only now: a spec whose parts cannot be built or do not fit leaves no directory behind.
            run.claim(spec.model_dump(mode="json"), parts.data.ids.tolist())
            if found or not (run.sessions() and runner.is_done()):  # who only asks adds nothing
                enter_session(run, parts, execution)
            _write_checks(run, found, missing_classes(parts.data, spec.examples.order))
        with compiling(execution.compile):
            runner.run_all()
        with setting_up(run.path, shard):
            return runner.conclude(lambda: state_changes(state, parts_state(parts)))


def _share_of(execution: Execution) -> Shard:
    """This process's share, and the launch that all shares must be of: it cuts the batches."""
    order = " --reverse" if execution.reverse else ""
    launch = f"dbpkit evaluate --batch-size {execution.batch_size}{order}"
    return Shard(execution.rank, execution.world, launch)


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
        self.batches = self._batches()
        self.examples = sum(map(len, self.batches))
        self.done = 0.0
        self.failures: dict[tuple[str, ...], int | None] = {}  # failed records by unit; None once one worked

    @property
    def total(self) -> float:
        """Cost of all units of all examples."""
        return sum(u.cost for u in self.units) * self.examples

    def weigh(self, forecast: Estimate | None) -> None:
        """Takes the hours of a forecast for the costs of units, so that the progress tells the time left."""
        hours = {row.rows: row.hours for row in forecast.rows} if forecast else {}
        if all(hours.get(unit.rows, 0) > 0 for unit in self.units):
            tapes = Counter(unit.rows for unit in self.units)
            self.units = [u._replace(cost=hours[u.rows] / tapes[u.rows]) for u in self.units]

    @functools.cached_property
    def recorded(self) -> set[Key]:
        """What of this process's share was recorded when it was first asked for."""
        return self.run.done(self._ids() if self.execution.world > 1 else None)

    def is_done(self) -> bool:
        """Whether nothing is left to this process."""
        return all(self._has(unit, self._ids()) for unit in self.units)

    def _has(self, unit: Unit, ids: list[int]) -> bool:
        return all(Key(row, unit.tape, i) in self.recorded for row in unit.rows for i in ids)

    def run_all(self) -> None:
        """Does every unit of every batch that is not recorded yet."""
        worked = {key.row for key in self.recorded}
        self.failures = {unit.rows: None for unit in self.units if worked.intersection(unit.rows)}
        for index in self.batches:
            ids = self.parts.data.ids[index].tolist()
            for unit in self.units:
                self.progress(self.done / self.total, unit.rows[0])
                if not self._has(unit, ids):
                    records, files = self._attempt(unit, index)
                    self.run.append(records, files)
                    self._give_up_if_nothing_works(unit, records)
                self.done += unit.cost * len(ids)
        self.progress(1.0, "done")

    def conclude(self, changes: Callable[[], list[Flag]]) -> Summary | None:
        """Writes what follows from all records, once all are there.

        Args:
            changes: returns those of the models in this session.
        """
        self._forget_fixed_failures()
        if self.execution.world > 1 and not self._is_complete():
            _note_changes(self.run, changes())
            return None
        write_strip(self.rows, lambda: enter_session(self.run, self.parts, self.execution))
        _note_changes(self.run, changes())
        summary = summarise(self.run)
        written = summary.as_json()
        if self.execution.world > 1 and self.run.read_json("summary.json") == json.loads(json.dumps(written)):
            return None
        self.run.write_json("summary.json", written)
        return summary

    def _is_complete(self) -> bool:
        """Whether there is a record of everything, whoever made it, good or failed."""
        columns, ids = self.run.columns(), self.parts.data.ids.tolist()
        there = columns.keys() | {Key(r["row"], r["tape"], r["example"]) for r in columns.failed}
        return all(Key(row, unit.tape, i) in there for unit in self.units for row in unit.rows for i in ids)

    def _give_up_if_nothing_works(self, unit: Unit, records: list[Record]) -> None:
        """Stops a run in which a row has failed on every example so far, and on enough of them to tell."""
        failed = sum("error" in r for r in records)
        self.failures[unit.rows] = None if failed < len(records) else self._failed_before(unit, failed)
        count = (self.failures[unit.rows] or 0) // len(unit.rows)
        if count >= min(GIVE_UP_AFTER, self.examples):
            raise UserError(
                f"{_named(unit.rows)} failed on every one of {count} examples: {records[0]['error']}. "
                "Fix the part that failed and run the same command again; the tracebacks are in"
                f" '{self.run.path / 'errors'}'."
            )

    def _failed_before(self, unit: Unit, failed: int) -> int | None:
        before = self.failures.get(unit.rows, 0)
        return None if before is None else before + failed

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
        ids = self._ids() if folder.is_dir() else []  # of others, a traceback may come before its record
        for name in {f"{unit.rows[0]}-{unit.tape}-{i}" for unit in self.units for i in ids} - failed:
            (folder / f"{name}.txt").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()

    def _batches(self) -> list[Tensor]:
        """Positions of the examples of every batch of this process; all count, so that all cut alike."""
        positions = torch.arange(len(self.parts.data))
        batches = (positions.flip(0) if self.execution.reverse else positions).split(
            self.execution.batch_size
        )
        return list(batches[self.execution.rank :: self.execution.world])

    def _ids(self) -> list[int]:
        """Ids of the examples of this process."""
        return [i for index in self.batches for i in self.parts.data.ids[index].tolist()]


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
    progress(0.0, "checks")
    found = (own or preflight)(parts, spec, progress)
    known = own is None or isinstance(own, SharedPreflight)
    return ChecksFile([f._asdict() for f in found.flags], found.words if known else None)


def _write_checks(run: RunDirectory, found: ChecksFile | None, missing: list[Flag]) -> None:
    """Writes what the checks found, or keeps what they did; what the examples lack changes as they grow."""
    flags, ran = found or ChecksFile(run.checks() or [], run.checks_run())
    kept = [f for f in flags if f["name"] != MISSING_CLASSES]
    run.write_checks([*kept, *(f._asdict() for f in missing)], ran)
