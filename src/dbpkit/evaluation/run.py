"""The loop: from a spec to a full run directory.

For every batch of examples and every row of the table: attack, project, judge, record. Work that is
recorded is never done again. The thing people get wrong: the attack must not judge itself; the runner
projects onto the budget, chooses on select draws, and publishes on report draws.
"""

import contextlib
import logging
import math
import os
import platform
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dbpkit.attacks import Target
from dbpkit.attacks.target import Attack
from dbpkit.errors import UserError
from dbpkit.evaluation.build import Parts, accepted_options, build
from dbpkit.evaluation.checks import preflight
from dbpkit.evaluation.knowledge import Knowledge
from dbpkit.evaluation.spec import EvaluationSpec
from dbpkit.gradients import DEFAULT_MEMORY
from dbpkit.noise import NoisePlan
from dbpkit.purify import gradients
from dbpkit.results.run_directory import Key, Record, RunDirectory
from dbpkit.results.summary import Summary, summarise
from dbpkit.spec import differences, spec_hash

log = logging.getLogger(__name__)

GIVE_UP_AFTER = 8
"""Examples a row may fail on, with none that works, before the run stops."""

STRIP_EXAMPLES = 8
"""Examples shown as pictures in the report."""

Progress = Callable[[float, str], None]
"""Called with the share of the work that is done, in [0, 1], and what is being done."""


class Execution(NamedTuple):
    """How an evaluation is run; none of it may change a result beyond rounding.

    Attributes:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        batch_size: examples attacked together and recorded together.
        micro_batch: rows (examples times draws) in one call of the model.
        deterministic: every call has exactly ``micro_batch`` rows, so that records are bit-equal whatever the
            batch size and order.
        memory_bytes: budget for kept graphs, see `dbpkit.gradients.Replay`.
        reverse: whether the last example comes first.
    """

    device: str = "cpu"
    batch_size: int = 16
    micro_batch: int = 32
    deterministic: bool = False
    memory_bytes: int = DEFAULT_MEMORY
    reverse: bool = False


DEFAULT_EXECUTION = Execution()


class Batch(NamedTuple):
    """Examples that are attacked together: x (B, C, H, W), y (B,) and their noise on the report stream."""

    x: Tensor
    y: Tensor
    noise: NoisePlan


class Unit(NamedTuple):
    """A piece of work on one batch: the rows it records, the tape, its relative cost, and how it is done."""

    rows: tuple[str, ...]
    tape: int
    cost: float
    work: Callable[[Batch], list[Record]]


def evaluate(
    spec: EvaluationSpec,
    out: str | Path,
    execution: Execution = DEFAULT_EXECUTION,
    progress: Progress = lambda *_: None,
) -> Summary:
    """Runs an evaluation, or goes on with the one in ``out``.

    Args:
        spec: what to evaluate.
        out: run directory.
        execution: device and batch sizes.
        progress: called whenever work is done.

    Returns:
        The summary, which is also written to ``summary.json``.

    Raises:
        UserError: if ``out`` holds another run, a part is wrong, or the disk is full.
    """
    run = RunDirectory(out)
    run.claim(spec.model_dump(mode="json"), spec_hash(spec), differences)
    with _kernels(execution.deterministic):
        parts = build(spec, execution.device, execution.memory_bytes)
        _enter_session(run, parts, execution)
        if run.read_json("checks.json") is None:
            progress(0.0, "checks")
            run.write_json("checks.json", [flag._asdict() for flag in preflight(parts, spec)])
        runner = _Runner(spec, parts, execution, run, progress)
        runner.run_all()
        runner.write_strip()
    summary = summarise(run)
    run.write_json("summary.json", summary.as_json())
    return summary


@contextlib.contextmanager
def _kernels(deterministic: bool) -> Iterator[None]:
    """Inside the block, kernels that give the same bits every time, if asked for; settings are restored."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.allow_tf32
    try:
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.allow_tf32 = False
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


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
        self.units = [*self._baseline_units(), *self._attack_units()]
        self.total = sum(u.cost for u in self.units) * len(parts.data)
        self.done = 0.0
        self.failures: dict[tuple[str, ...], int | None] = {}  # failed records by unit; None once one worked

    def run_all(self) -> None:
        """Does every unit of every batch that is not recorded yet."""
        recorded = {Key(r["row"], r["tape"], r["example"]) for r in self.run.records() if "error" not in r}
        worked = {key.row for key in recorded}
        self.failures = {unit.rows: None for unit in self.units if worked.intersection(unit.rows)}
        for index in self._batches():
            ids = self.parts.data.ids[index].tolist()
            for unit in self.units:
                missing = any(Key(row, unit.tape, i) not in recorded for row in unit.rows for i in ids)
                self.progress(self.done / self.total, unit.rows[0])
                if missing:
                    records = self._attempt(unit, index)
                    self.run.append(records)
                    self._give_up_if_nothing_works(unit, records)
                self.done += unit.cost * len(ids)
        self.progress(1.0, "done")

    def _give_up_if_nothing_works(self, unit: Unit, records: list[Record]) -> None:
        """Stops a run in which a row has failed on every example so far, and on enough of them to tell."""
        failed = sum("error" in r for r in records)
        self.failures[unit.rows] = None if failed < len(records) else self._failed_before(unit, failed)
        count = (self.failures[unit.rows] or 0) // len(unit.rows)
        if count >= min(GIVE_UP_AFTER, len(self.parts.data)):
            raise UserError(
                f"row '{unit.rows[0]}' failed on every one of {count} examples: {records[0]['error']}. "
                "Mend the part that failed and run the same command again."
            )

    def _failed_before(self, unit: Unit, failed: int) -> int | None:
        before = self.failures.get(unit.rows, 0)
        return None if before is None else before + failed

    @torch.no_grad()
    def write_strip(self) -> None:
        """Stores clean, attacked and purified images of the first examples, for the report's picture."""
        index = torch.arange(min(STRIP_EXAMPLES, len(self.parts.data)))
        batch = self._batch(index)
        ids = batch.noise.example_ids.tolist()
        records = {
            (r["row"], r["example"]): r for r in self.run.records() if r["tape"] == 0 and "error" not in r
        }
        tensors, said = {"ids": batch.noise.example_ids, "clean": batch.x.cpu()}, {}
        plans = {
            "clean": batch.noise,
            **{k.name: k.resolve().apply(batch.noise, 0) for k in self.spec.knowledge},
        }
        for row, noise in plans.items():
            if any((row, i) not in records for i in ids):
                continue
            x_adv = batch.x
            if row != "clean":
                shards = {f: self.run.read_images(f) for f in {records[row, i]["images"] for i in ids}}
                x_adv = torch.stack([shards[records[row, i]["images"]][i] for i in ids]).to(batch.x)
                tensors[f"{row}.x_adv"] = x_adv.cpu()
            # An unrepeated plan is draw 0, the first column of the row's predictions.
            tensors[f"{row}.x_pure"] = self.parts.model.purifier(x_adv, noise=noise).cpu()
            said[row] = [records[row, i]["predicted"][0] for i in ids]
        about = {
            "class_names": self.parts.data.class_names,
            "labels": batch.y.tolist(),
            "predicted": said,
        }
        self.run.write_strip(tensors, about)

    def _attempt(self, unit: Unit, index: Tensor) -> list[Record]:
        """The records of a unit; if a batch fails, its examples are tried alone and failures recorded."""
        try:
            return unit.work(self._batch(index))
        except UserError:
            raise
        except Exception as error:
            log.warning("%s failed on %d examples: %s", unit.rows[0], len(index), error)
            if len(index) > 1:
                return [record for one in index.split(1) for record in self._attempt(unit, one)]
            example = int(self.parts.data.ids[index[0]])
            message = f"{type(error).__name__}: {error}"
            return [
                {"row": row, "tape": unit.tape, "example": example, "error": message} for row in unit.rows
            ]

    def _batches(self) -> Iterator[Tensor]:
        positions = torch.arange(len(self.parts.data))
        return iter(
            (positions.flip(0) if self.execution.reverse else positions).split(self.execution.batch_size)
        )

    def _batch(self, index: Tensor) -> Batch:
        data = self.parts.data
        device = self.execution.device
        return Batch(
            data.x(index).to(device),
            data.labels[index].to(device),
            NoisePlan.of(self.spec.seed, data.ids[index]),
        )

    def _target(self, model: Any) -> Target:
        return Target(model, self.execution.micro_batch, fixed_shape=self.execution.deterministic)

    def _baseline_units(self) -> list[Unit]:
        draws = self.spec.draws.report
        iterations = sum(_iterations(a.name, a.options) for a in self.spec.attacks)
        return [
            Unit(("undefended_clean", "clean", "noise_control"), 0, 2.0 * draws, self._unattacked),
            Unit(("undefended", "transfer"), 0, draws + 0.3 * iterations, self._undefended),
        ]

    def _attack_units(self) -> list[Unit]:
        units = []
        for setting in self.spec.knowledge:
            knowledge = setting.resolve()
            view = gradients.get(knowledge.gradient)(self.parts.model, **knowledge.gradient_options)
            known = knowledge.leaves_nothing_random(view.sites)
            passes = sum(
                _iterations(a.name, a.options) * (1 if known else _eot(a.name, a.options))
                for a in self.spec.attacks
            )
            cost = 2.5 * passes + (1 if known else self.spec.draws.report)
            for tape in range(knowledge.tapes):
                units.append(
                    Unit(
                        (knowledge.name,),
                        tape,
                        cost,
                        partial(self._attacked, knowledge=knowledge, tape=tape, view=view),
                    )
                )
        return units

    def _unattacked(self, batch: Batch) -> list[Record]:
        """Clean accuracy of both models, and the purified one's under random noise of full size."""
        threat = self.parts.threat
        z = batch.noise.on("control").normal("probe", 0, batch.x)
        noisy = threat.project(batch.x, batch.x + threat.eps * threat.steepest(z))
        alone = self._target(self.parts.undefended)(batch.x, noise=batch.noise)[:, None]
        return [
            *_records("undefended_clean", 0, batch, alone),
            *_records("clean", 0, batch, self._report(batch.x, batch.noise)),
            *_records("noise_control", 0, batch, self._report(noisy, batch.noise)),
        ]

    def _undefended(self, batch: Batch) -> list[Record]:
        """The classifier alone under attack, and its attacked images in front of the purifier."""
        target = self._target(self.parts.undefended)
        nothing = Knowledge("undefended")
        x_adv, details = self._worst(
            target, batch, self.parts.single_draw_attacks, nothing, 0, select_draws=1
        )
        predicted = target(x_adv, noise=batch.noise)[:, None]
        self._store("undefended", 0, batch, x_adv, details)
        return [
            *_records("undefended", 0, batch, predicted, details),
            *_records("transfer", 0, batch, self._report(x_adv, batch.noise)),
        ]

    def _attacked(self, batch: Batch, knowledge: Knowledge, tape: int, view: Any) -> list[Record]:
        """One attacker against the purified classifier, judged on report draws."""
        known = knowledge.leaves_nothing_random(self.parts.model.sites)
        seen_whole = knowledge.leaves_nothing_random(view.sites)  # a view may draw less than the model
        attacks = self.parts.single_draw_attacks if seen_whole else self.parts.attacks
        select = 1 if known else self.spec.draws.select
        x_adv, details = self._worst(self._target(view), batch, attacks, knowledge, tape, select)
        self._store(knowledge.name, tape, batch, x_adv, details)
        report = knowledge.apply(batch.noise, tape)
        return _records(
            knowledge.name, tape, batch, self._report(x_adv, report, 1 if known else None), details
        )

    def _worst(
        self,
        target: Target,  # a new one: it counts the passes of these attacks
        batch: Batch,
        attacks: list[tuple[str, Attack]],
        knowledge: Knowledge,
        tape: int,
        select_draws: int,
    ) -> tuple[Tensor, list[Record]]:
        """The worst attack of each example by accuracy on select draws; later ones must be strictly worse."""
        threat = self.parts.threat
        judge = self._target(self.parts.undefended if knowledge.name == "undefended" else self.parts.model)
        worst, accuracy = batch.x, torch.full((len(batch.x),), torch.inf)
        details: list[Record] = [{} for _ in range(len(batch.x))]
        for index, (name, attack) in enumerate(attacks):
            noise = knowledge.apply(batch.noise.on("attack"), tape).in_lane(1 + tape * len(attacks) + index)
            outcome = attack(target, batch.x, batch.y, threat=threat, noise=noise)
            if not bool(torch.isfinite(outcome.x_adv).all()):
                raise FloatingPointError(f"attack '{name}' returned pixels that are not finite")
            x_adv = threat.project(batch.x, outcome.x_adv.detach())
            selected = torch.zeros(len(batch.x))
            if len(attacks) > 1:
                plan = knowledge.apply(batch.noise.on("select"), tape)
                logits = judge.draws(x_adv, noise=plan, count=select_draws)
                selected = (logits.argmax(-1) == batch.y[:, None]).float().mean(1).cpu()
            better = selected < accuracy
            accuracy = torch.where(better, selected, accuracy)
            worst = torch.where(better.to(batch.x.device)[:, None, None, None], x_adv, worst)
            excess = (threat.distance(batch.x, outcome.x_adv) - threat.eps).tolist()
            for b in better.nonzero()[:, 0].tolist():
                details[b] = {
                    "attack": name,
                    "excess": excess[b],
                    "loss": _numbers(outcome.loss[b]),
                    "grad_norm": _numbers(outcome.grad_norm[b]),
                }
        distance = threat.distance(batch.x, worst).tolist()
        for b, example in enumerate(batch.noise.example_ids.tolist()):
            details[b]["distance"] = distance[b]
            details[b]["forward_passes"] = target.forward_passes[example]
            details[b]["gradient_passes"] = target.gradient_passes[example]
        return worst, details

    def _report(self, x: Tensor, noise: NoisePlan, draws: int | None = None) -> Tensor:
        """Logits (B, R, K) of the purified classifier on report draws."""
        return self._target(self.parts.model).draws(x, noise=noise, count=draws or self.spec.draws.report)

    def _store(self, row: str, tape: int, batch: Batch, x_adv: Tensor, details: list[Record]) -> None:
        """Writes the attacked images before the records that name their file."""
        ids = batch.noise.example_ids
        file = self.run.write_images(f"{row}-{tape}-{int(ids[0])}-{int(ids[-1])}-{len(ids)}", ids, x_adv)
        for detail in details:
            detail["images"] = file


def _records(
    row: str, tape: int, batch: Batch, logits: Tensor, details: list[Record] | None = None
) -> list[Record]:
    """One record per example from logits (B, R, K)."""
    if not bool(torch.isfinite(logits).all()):
        raise FloatingPointError(f"the model returned logits that are not finite for row '{row}'")
    predicted = logits.argmax(dim=-1).tolist()
    ids, labels = batch.noise.example_ids.tolist(), batch.y.tolist()
    heads = [
        {"row": row, "tape": tape, "example": i, "label": y, "predicted": p}
        for i, y, p in zip(ids, labels, predicted, strict=True)
    ]
    return [{**head, **detail} for head, detail in zip(heads, details or [{}] * len(heads), strict=True)]


def _enter_session(run: RunDirectory, parts: Parts, execution: Execution) -> None:
    """Notes versions, device and hashes; refuses to continue with other weights or data."""
    sessions = run.read_json("env.json") or []
    for name, value in parts.hashes.items():
        if sessions and sessions[0][name] != value:
            raise UserError(
                f"{run.path} was made with another {name.removesuffix('_sha256')} (sha256"
                f" {sessions[0][name][:12]}, now {value[:12]}). Restore it or use a new --out."
            )
    packages = ("dbpkit", "torch", "numpy", "safetensors")
    session = {
        **parts.hashes,
        "examples": len(parts.data),
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in packages}},
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        **execution._asdict(),
    }
    if session not in sessions:
        run.write_json("env.json", [*sessions, session])


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _numbers(values: Tensor) -> list[float | None]:
    """Values for JSON; what is not finite becomes null."""
    return [v if math.isfinite(v) else None for v in values.tolist()]


def _iterations(name: str, options: dict[str, Any]) -> int:
    """Iterations of an attack, for the progress bar."""
    return int(options.get("iterations", accepted_options(name).get("iterations", 20)))


def _eot(name: str, options: dict[str, Any]) -> int:
    return int(options.get("eot", accepted_options(name).get("eot", 1)))
