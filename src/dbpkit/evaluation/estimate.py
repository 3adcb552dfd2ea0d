"""What an evaluation will take, before it begins: passes, network calls, hours and memory of every row.

Passes are counted (`dbpkit.evaluation.counting`), a few calls are timed on this machine
(`dbpkit.evaluation.timing`), and the cost is linear in both and in the examples.
"""

import json
import logging
import math
import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dbpkit.checks.preflight import passes_of
from dbpkit.evaluation.counting import Passes, chain_calls, passes
from dbpkit.evaluation.timing import STEPS, Clock, Timings
from dbpkit.experiment.build import Parts, build
from dbpkit.experiment.execution import Execution, check_execution, kernels
from dbpkit.experiment.sizing import settled
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation import console
from dbpkit.foundation.errors import check_kind
from dbpkit.foundation.inputs import whole
from dbpkit.results.executed import executed

log = logging.getLogger(console.ESTIMATES)


class RowEstimate(NamedTuple):
    """What rows that are made together will take.

    Attributes:
        rows: their names, as in the table.
        forward_passes: purifications per example that the attack runs, all tapes together.
        gradient_passes: those of them that it differentiates.
        network_calls: forward calls of the network per example that these mean.
        hours: of one machine, for all examples, with the judging.
        memory: bytes at the peak, with what the process holds anyway.
    """

    rows: tuple[str, ...]
    forward_passes: int
    gradient_passes: int
    network_calls: int
    hours: float
    memory: int


class Estimate(NamedTuple):
    """What an evaluation will take if every example withstands everything; less where attacks stop early.

    Attributes:
        rows: of the table, in its order.
        examples: how many.
        network_calls: forward calls of the network in all, judging included.
        hours: of one machine.
        machines: how many would share the examples.
        batches: how many the examples make; a machine takes whole ones.
        memory: bytes at the peak.
        executed: what was chosen for device, rows, memory and threads.
        checks: hours of the checks before a run, which come on top.
    """

    rows: list[RowEstimate]
    examples: int
    network_calls: int
    hours: float
    machines: int
    batches: int
    memory: int
    executed: str
    checks: float = 0.0

    @property
    def hours_each(self) -> float:
        """Hours of the machine that has the most batches."""
        return self.hours * math.ceil(self.batches / self.machines) / self.batches

    @property
    def sentence(self) -> str:
        """The total in one line."""
        several = f", {duration(self.hours_each)} on each of {self.machines}" if self.machines > 1 else ""
        if idle := max(0, self.machines - self.batches):
            several += f" ({idle} of them without a batch: lower --batch-size)"
        what = "1 example takes" if self.examples == 1 else f"{self.examples} examples take"
        return (
            f"{what} about {duration(self.hours)} on this machine{several}, and at"
            f" most {self.network_calls:,} network calls ({self.executed}). The checks before they begin take"
            f" about {duration(self.checks)} more."
        )

    def as_json(self) -> dict[str, Any]:
        """Returns plain dictionaries and lists."""
        return {
            **self._asdict(),
            "rows": [row._asdict() for row in self.rows],
            "hours_each": self.hours_each,
            "sentence": self.sentence,
        }


def duration(hours: float) -> str:
    """Returns hours as people say them: seconds, minutes, hours or days."""
    for unit, size in (("days", 24.0), ("hours", 1.0), ("minutes", 1 / 60)):
        if hours >= 2 * size:
            return f"{hours / size:.1f} {unit}"
    seconds = max(1, round(3600 * hours))
    return f"{seconds} seconds" if seconds > 1 else "1 second"


def estimate(
    spec: EvaluationSpec,
    execution: Execution | None = None,
    machines: int = 1,
    *,
    timings: Timings | None = None,
) -> Estimate:
    """Tells what an evaluation will take on this machine, without running it.

    Args:
        spec: what will be evaluated.
        execution: how; None takes a GPU if there is one, and what is fastest there.
        machines: how many machines like this one would share the examples.
        timings: a dictionary that several estimates of one process share, empty at first, so that each
            network is timed once; None times the networks of this spec alone.

    Returns:
        Passes, network calls, hours and memory of every row, and in all. Passes are those of an example that
        is never misclassified, so attacks that stop early take less.

    Raises:
        UserError: if the parts of the spec cannot be made.
    """
    check_kind(spec, EvaluationSpec, "estimate: spec", "Make one with read_spec(path, EvaluationSpec).")
    whole(machines, "machines", 1)
    execution = check_execution(execution)
    with kernels(execution.deterministic, spec.precision):
        parts = build(spec, execution.device, execution.budget)
        return of_parts(spec, parts, settled(execution, parts), machines, timings=timings)


def of_parts(
    spec: EvaluationSpec,
    parts: Parts,
    execution: Execution,
    machines: int = 1,
    steps: int = STEPS,
    timings: Timings | None = None,
) -> Estimate:
    """Tells what an evaluation with parts that are made already will take; ``steps`` of them are timed."""
    names = {} if timings is None else _names(spec, parts, execution, steps)
    clock, count = Clock(parts, execution, steps, names, timings), len(parts.data)
    base = _held(execution.device)
    found, calls = [], 0
    for row in passes(spec, parts, execution):
        seconds, own = _of_one(row, clock, execution, count)
        calls += own * count
        memory = base + _peak(row, clock, execution)
        found.append(RowEstimate(*row[:4], seconds * count / 3600, memory))
    noted = {**execution.noted(), "threads": torch.get_num_threads()}
    hours, peak = sum(r.hours for r in found), max(r.memory for r in found)
    batches = math.ceil(count / execution.batch_size)
    checks = _of_checks(spec, parts, clock) / 3600
    return Estimate(found, count, calls, hours, machines, batches, peak, executed([noted]), checks)


def _names(spec: EvaluationSpec, parts: Parts, execution: Execution, steps: int) -> dict[int, Hashable]:
    """What the time of a network call follows from, by the ``id`` of the part, for a `Clock`.

    Of a chain that is its network, its sampler and its sizes, not its steps: every call costs the same.
    """
    limit = execution.limit.rows
    where = (str(execution.device), limit, execution.deterministic, execution.compile, spec.precision, steps)
    shape = tuple(parts.data.x(slice(0, 1)).shape[1:])
    stages = (parts.hashes["classifier_sha256"], spec.classifier.model_dump_json())
    named: dict[int, Hashable] = {id(parts.model.classifier): ("classifier", where, shape, stages)}
    if parts.undefended is not None:
        named[id(parts.undefended)] = ("undefended", where, shape, stages)
    if parts.denoiser is not None and spec.purifier.is_diffusion:
        chain = spec.purifier.model_dump(mode="json", exclude={"t_star", "steps", "grid"})
        network = (parts.hashes["denoiser_sha256"], spec.denoiser.model_dump_json())
        own = getattr(parts.model.purifier, "denoiser", parts.denoiser)
        named[id(own)] = ("chain", where, shape, network, json.dumps(chain, sort_keys=True))
    return named


def foretell(spec: EvaluationSpec, parts: Parts, execution: Execution) -> Estimate | None:
    """Logs what an evaluation that begins will take, from one step, and returns it.

    Nothing is computed where nobody reads it, and there is nothing where that does not work.
    """
    if not log.isEnabledFor(logging.INFO):
        return None
    try:
        found = of_parts(spec, parts, execution, execution.world, steps=1)
    except Exception:  # whatever is wrong with a model is told where it is used
        log.debug("no estimate", exc_info=True)
        return None
    log.info("%s", found.sentence)
    return found


def _of_checks(spec: EvaluationSpec, parts: Parts, clock: Clock) -> float:
    """Seconds of the checks before a run, of a model that raises no flag."""
    count, plain, differentiated = passes_of(parts, spec)
    calls = chain_calls(parts.model, parts.data.x(slice(0, 1)))
    seconds = (clock.seconds(parts.model, calls, graph, count) for graph in (False, True))
    each, slope = (s / count for s in seconds)
    return plain * each + differentiated * slope


def _of_one(row: Passes, clock: Clock, execution: Execution, count: int) -> tuple[float, int]:
    """Seconds and network calls of one example, attacked with as many others as a batch has."""
    together, most = min(execution.batch_size, count), clock.most
    seconds, network_calls = 0.0, 0
    for (model, differentiated, rows), times in row.asked.items():
        calls = row.calls[model]
        full, rest = divmod(rows * together, most)
        rest = most if rest and execution.deterministic else rest
        one = full * clock.seconds(model, calls, differentiated, most) if full else 0.0
        one += clock.seconds(model, calls, differentiated, rest) if rest else 0.0
        seconds += times * one / together
        network_calls += times * rows * calls
    return seconds, network_calls


def _peak(row: Passes, clock: Clock, execution: Execution) -> int:
    """Bytes that the calls of a row take beside the weights."""
    if clock.need is None:
        return 0
    if not any(differentiated and row.calls[model] for model, differentiated, _ in row.asked):
        return clock.most * clock.need.rest
    return clock.need.rows(clock.most) + min(execution.budget, clock.need.kept(clock.most))


def _held(device: torch.device) -> int:
    """Bytes that this process holds on a device now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0
