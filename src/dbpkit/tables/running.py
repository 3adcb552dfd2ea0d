"""Runs the jobs of tables, each once, in run directories that go on where they were stopped."""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from dbpkit.analyses.run import analyse
from dbpkit.checks.preflight import SharedPreflight
from dbpkit.evaluation.run import evaluate
from dbpkit.experiment.execution import Execution
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.locking import BusyError
from dbpkit.results.analysis import AnalysisRecords
from dbpkit.results.run_directory import RunDirectory
from dbpkit.results.summary import expected_rows
from dbpkit.tables.job import Job

Progress = Callable[[float, str], None]


class Planned(NamedTuple):
    """A job and its place.

    Attributes:
        job: for as many images as any cell asks for, or as there are already.
        folder: its run directory.
    """

    job: Job
    folder: Path

    @property
    def is_done(self) -> bool:
        """Whether everything it asks for is recorded, and can be read."""
        return self.state()[0]

    def state(self) -> tuple[bool, str]:
        """Returns whether it is done, and why its run directory cannot be read; empty if it can."""
        try:
            return self._is_done(), ""
        except UserError as error:
            return False, f"the run in '{self.folder}' cannot be read: {error}"

    def _is_done(self) -> bool:
        if not (self.folder / "spec.json").is_file():
            return False
        run = RunDirectory(self.folder)
        if self.job.analysis:
            return _as_many(self.job, run)
        return run.read_json("summary.json") is not None and _recorded(self.job, run)


def plan(jobs: Iterable[Job], out: Path, limit: int | None = None) -> dict[str, Planned]:
    """Returns every job once, by its key: of equal ones, that with the most images.

    Args:
        jobs: what cells are read from.
        out: where the run directories are.
        limit: most images of every job.
    """
    found: dict[str, Planned] = {}
    for job in jobs:
        asked = [job.images, *([found[job.key].job.images] if job.key in found else [])]
        count = None if None in asked else max(n for n in asked if n is not None)
        if limit is not None:
            count = limit if count is None else min(count, limit)
        folder = out / job.key
        there = _there(folder)
        if there and count and there > count:
            count = there  # a run can grow and not shrink
        found[job.key] = Planned(_of(job, count), folder)
    return found


def run_jobs(
    planned: Mapping[str, Planned],
    execution: Execution | None = None,
    progress: Progress = lambda *_: None,
    patience: float | None = None,
    *,
    elsewhere: Callable[[], int] = lambda: 0,
    made: Callable[[str, float], object] = lambda *_: None,
) -> dict[str, float]:
    """Runs every job that is not done and that no other process is at; returns the seconds of each.

    Args:
        planned: the jobs.
        execution: how; None takes a GPU if there is one.
        progress: called with the share of jobs that is done, and what is being done.
        patience: seconds after which no further job is begun; None waits for all.
        elsewhere: returns how many other processes have made meanwhile.
        made: called with the key and the seconds of every job that was made.
    """
    checks, begun = SharedPreflight(), time.monotonic()
    seconds: dict[str, float] = {}
    left = [key for key, one in planned.items() if not one.is_done]
    for key in left:
        job, folder = planned[key]
        if patience is not None and time.monotonic() - begun > patience:
            break
        if planned[key].is_done:
            continue  # by another process, meanwhile

        def share(part: float, what: str, name: str = job.spec.name) -> None:
            done = len(seconds) + elsewhere()
            progress(min(1.0, (done + part) / len(left)), f"{done + 1} of {len(left)}, {name}: {what}")

        start = time.monotonic()
        try:
            if job.analysis:
                analyse(job.spec, folder, {job.analysis: job.options}, execution, share)
            else:
                evaluate(job.spec, folder, execution, share, checks=checks)
        except BusyError:
            continue  # another process makes it
        except UserError as error:
            if planned[key].state()[1]:
                continue  # it is told with its cells, and the others do not wait for it
            raise UserError(f"the run of '{job.spec.name}' in '{folder}' failed: {error}") from error
        seconds[key] = time.monotonic() - start
        made(key, seconds[key])
    progress(1.0, "done")
    return seconds


def _there(folder: Path) -> int | None:
    """How many images a run has; 0 where there is none, or none that can be read."""
    try:
        is_run = (folder / "spec.json").is_file()
        return RunDirectory(folder).recorded_spec().examples.count if is_run else 0
    except UserError:
        return 0


def _of(job: Job, count: int | None) -> Job:
    """The same job for another number of images."""
    examples = job.spec.examples.model_copy(update={"count": count})
    spec: EvaluationSpec = job.spec.model_copy(update={"examples": examples})
    options = dict(job.options)
    if job.analysis and count is not None and type(options.get("images")) is int:
        options["images"] = min(options["images"], count)
    return Job(spec, job.analysis, options)


def _as_many(job: Job, run: RunDirectory) -> bool:
    """Whether an analysis was concluded from as many images as are asked for."""
    result = AnalysisRecords(run, str(job.analysis)).read_result()
    asked = dict(job.options).get("images")
    return result is not None and (asked is None or result.settings.get("images") == asked)


def _recorded(job: Job, run: RunDirectory) -> bool:
    """Whether every row of an evaluation has a record of every image, good or failed."""
    columns = run.columns()
    tapes = expected_rows(run.recorded_spec())
    there = {row: len(columns.rows[row]) if row in columns.rows else 0 for row in tapes}
    for record in columns.failed:
        there[record["row"]] = there.get(record["row"], 0) + 1
    return all(there[row] >= count * (job.images or 1) for row, count in tapes.items())
