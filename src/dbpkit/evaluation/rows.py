"""How each row of the table is made on one batch: attack, project, choose, judge.

The thing people get wrong: the attack must not judge itself. It is projected onto the budget here, the worst
of several is chosen on select draws, and what is published comes from report draws.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dbpkit.attacks import Target
from dbpkit.attacks.target import Attack
from dbpkit.evaluation.cost import network_calls
from dbpkit.evaluation.watch import Watch
from dbpkit.experiment.build import Parts, accepted_options, make_view
from dbpkit.experiment.execution import Execution
from dbpkit.experiment.knowledge import Knowledge
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.errors import NonFiniteError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.results.protocols import chosen_protocol
from dbpkit.results.run_directory import Record, RunDirectory, Stored

UNDEFENDED = Knowledge("undefended")
"""The attacker of the classifier alone."""


class Batch(NamedTuple):
    """Examples that are attacked together: x (B, C, H, W), y (B,) and their noise on the report stream."""

    x: Tensor
    y: Tensor
    noise: NoisePlan


class Made(NamedTuple):
    """What a piece of work leaves: records, and the files they were made with."""

    records: list[Record]
    files: list[Stored]


def joined(pieces: Iterable[Made]) -> Made:
    """Returns several pieces of work as one."""
    together = list(pieces)
    return Made([r for made in together for r in made.records], [f for made in together for f in made.files])


class Unit(NamedTuple):
    """A piece of work on one batch: the rows it records, the tape, its relative cost, and how it is done."""

    rows: tuple[str, ...]
    tape: int
    cost: float
    work: Callable[[Batch], Made]


class Judge(NamedTuple):
    """What decides a row: the model, its noise, and how many draws of it count."""

    model: Any
    noise: NoisePlan
    draws: int


class Rows:
    """The rows of one evaluation.

    Args:
        spec: what is evaluated.
        parts: its models, data and attacks.
        execution: device and batch sizes.
        run: where attacked images and logits are stored.
    """

    def __init__(self, spec: EvaluationSpec, parts: Parts, execution: Execution, run: RunDirectory) -> None:
        self.spec = spec
        self.parts = parts
        self.execution = execution
        self.run = run
        self.knowledge = {k.name: k.resolve() for k in spec.knowledge}
        self.views = {
            name: make_view(parts.model, k.gradient, k.gradient_options) for name, k in self.knowledge.items()
        }
        self.watches = chosen_protocol(spec.protocol).judges_iterates
        self._calls: dict[str, int] = {}

    def units(self) -> list[Unit]:
        """Returns all work that a batch needs, in the order of the table."""
        return [*self._baseline_units(), *self._attack_units()]

    def batch(self, index: Tensor) -> Batch:
        """Returns the examples at positions ``index`` of the data."""
        data, device = self.parts.data, self.execution.device
        noise = NoisePlan.of(self.spec.seed, data.ids[index])
        return Batch(data.x(index).to(device), data.labels[index].to(device), noise)

    def target(self, model: Any) -> Target:
        """Returns a model as it is called here; a new one, so that it counts from 0."""
        return Target(model, self.execution.micro_batch, fixed_shape=self.execution.deterministic)

    def is_known(self, row: str) -> bool:
        """Whether the defence is deterministic for the attacker of a row."""
        if row == UNDEFENDED.name:
            return True
        return self.knowledge[row].leaves_nothing_random(self.parts.model.sites)

    def judge(self, row: str, tape: int, noise: NoisePlan) -> Judge:
        """Returns what decides a row of the examples of a plan."""
        if row in ("undefended_clean", "undefended"):
            return Judge(self.parts.undefended, noise, 1)
        knowledge = self.knowledge.get(row)
        if knowledge is None:
            deterministic = self.parts.undefended is None and not self.parts.model.sites
            return Judge(self.parts.model, noise, 1 if deterministic else self.spec.draws.report)
        draws = 1 if self.is_known(row) else self.spec.draws.report
        return Judge(self.parts.model, knowledge.apply(noise, tape), draws)

    def logits(self, row: str, tape: int, batch: Batch, x: Tensor) -> Tensor:
        """Returns the report logits (B, R, K) of images ``x`` that stand for a batch in a row."""
        judge = self.judge(row, tape, batch.noise)
        return self.target(judge.model).draws(x, noise=judge.noise, count=judge.draws)

    def noisy(self, batch: Batch) -> Tensor:
        """Returns the clean images under random noise of the full budget."""
        threat = self.parts.threat
        z = batch.noise.on("control").normal("probe", 0, batch.x)
        return threat.project(batch.x, batch.x + threat.eps * threat.steepest(z))

    def attack(self, row: str, tape: int, batch: Batch) -> tuple[Tensor, list[Record]]:
        """Runs a row's attacks; returns the chosen image of each example and what is recorded of it."""
        if row == UNDEFENDED.name:
            attacks = self.parts.single_draw_attacks
            return self._worst(row, self.parts.undefended, batch, attacks, UNDEFENDED, 0, select_draws=1)
        knowledge, view = self.knowledge[row], self.views[row]
        seen_whole = knowledge.leaves_nothing_random(view.sites)  # a view may draw less than the model
        attacks = self.parts.single_draw_attacks if seen_whole else self.parts.attacks
        select = 1 if self.is_known(row) else self.spec.draws.select
        return self._worst(row, view, batch, attacks, knowledge, tape, select)

    def try_one(self, row: str, attack: Attack, index: Tensor) -> None:
        """Runs an attack on examples as an attacker of a row, and judges what it returns; records nothing."""
        batch = self.batch(index)
        view = self.parts.undefended if row == UNDEFENDED.name else self.views[row]
        knowledge = self.knowledge.get(row, UNDEFENDED)
        noise = knowledge.apply(batch.noise.on("attack"), 0).in_lane(1)
        outcome = attack(self.target(view), batch.x, batch.y, threat=self.parts.threat, noise=noise)
        self.logits(row, 0, batch, self.parts.threat.project(batch.x, outcome.x_adv.detach()))

    def _baseline_units(self) -> list[Unit]:
        draws = self.spec.draws.report
        iterations = sum(_iterations(a.name, a.options) for a in self.spec.attacks)
        if self.parts.undefended is None:
            return [Unit(("clean", "noise_control"), 0, 2.0 * draws, self._unattacked)]
        return [
            Unit(("undefended_clean", "clean", "noise_control"), 0, 2.0 * draws, self._unattacked),
            Unit(("undefended", "transfer"), 0, draws + 0.3 * iterations, self._undefended),
        ]

    def _attack_units(self) -> list[Unit]:
        units = []
        for name, knowledge in self.knowledge.items():
            known = knowledge.leaves_nothing_random(self.views[name].sites)
            iterations = [_iterations(a.name, a.options) for a in self.spec.attacks]
            eot = [1 if known else _eot(a.name, a.options) for a in self.spec.attacks]
            draws = 1 if known else self.spec.draws.report
            passes = sum(i * e for i, e in zip(iterations, eot, strict=True))
            cost = 2.5 * passes + draws * (1 + 2 * self.watches * sum(iterations))
            for tape in range(knowledge.tapes):
                units.append(Unit((name,), tape, cost, partial(self._attacked, row=name, tape=tape)))
        return units

    def _unattacked(self, batch: Batch) -> Made:
        """Clean accuracy of both models, and the purified one's under random noise of full size."""
        images = {"undefended_clean": batch.x, "clean": batch.x, "noise_control": self.noisy(batch)}
        if self.parts.undefended is None:
            del images["undefended_clean"]
        return joined(self._judged(row, 0, batch, x, None) for row, x in images.items())

    def _undefended(self, batch: Batch) -> Made:
        """The classifier alone under attack, and its attacked images in front of the purifier."""
        x_adv, details = self.attack(UNDEFENDED.name, 0, batch)
        judged = self._judged(UNDEFENDED.name, 0, batch, x_adv, details)
        return joined([judged, self._judged("transfer", 0, batch, x_adv, None)])

    def _attacked(self, batch: Batch, row: str, tape: int) -> Made:
        """One attacker against the purified classifier, judged on report draws."""
        return self._judged(row, tape, batch, *self.attack(row, tape, batch))

    def _judged(self, row: str, tape: int, batch: Batch, x: Tensor, details: list[Record] | None) -> Made:
        """One record per example; images and logits are stored before the records that name their file."""
        try:
            logits = self.logits(row, tape, batch, x)
        except NonFiniteError as error:
            raise NonFiniteError(f"row '{row}': {error}") from error
        ids = batch.noise.example_ids
        name = f"{row}-{tape}-{int(ids[0])}-{int(ids[-1])}-{len(ids)}"
        files = []
        if details is not None:
            files.append(self.run.write_images(name, ids, x))
            details = [{**detail, "images": files[0].name} for detail in details]
        how = {
            "micro_batch": self.execution.micro_batch,
            "deterministic": self.execution.deterministic,
            "threads": torch.get_num_threads(),
        }
        files.append(self.run.write_logits(name, ids, logits, how))
        predicted = logits.argmax(dim=-1).tolist()
        heads = [
            {"row": row, "tape": tape, "example": i, "label": y, "predicted": p}
            for i, y, p in zip(ids.tolist(), batch.y.tolist(), predicted, strict=True)
        ]
        records = [{**head, **more} for head, more in zip(heads, details or [{}] * len(heads), strict=True)]
        return Made(records, files)

    def _worst(
        self,
        row: str,
        view: Any,
        batch: Batch,
        attacks: list[tuple[str, Attack]],
        knowledge: Knowledge,
        tape: int,
        select_draws: int,
    ) -> tuple[Tensor, list[Record]]:
        """The worst attack of each example by accuracy on select draws; later ones must be strictly worse."""
        threat, target = self.parts.threat, self.target(view)
        watch = self._watch(row, tape, batch)
        if watch:
            target.visit = watch
        judge = self.target(self.judge(row, tape, batch.noise).model)
        worst, accuracy = batch.x, torch.full((len(batch.x),), torch.inf)
        details: list[Record] = [{} for _ in range(len(batch.x))]
        for index, (name, attack) in enumerate(attacks):
            noise = knowledge.apply(batch.noise.on("attack"), tape).in_lane(1 + tape * len(attacks) + index)
            seen = dict(watch.shown) if watch else {}
            outcome = attack(target, batch.x, batch.y, threat=threat, noise=noise)
            if not bool(torch.isfinite(outcome.x_adv).all()):
                raise NonFiniteError(f"attack '{name}' returned pixels that are not finite")
            x_adv = threat.project(batch.x, outcome.x_adv.detach())
            if watch:
                watch.at_least(seen, x_adv, noise)
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
                if outcome.claimed is not None:
                    details[b]["claimed_success"] = bool(outcome.claimed[b])
        distance = threat.distance(batch.x, worst).tolist()
        calls = self._network_calls(row, view, batch)
        watched = watch.records(deterministic=self.is_known(row)) if watch else [{}] * len(details)
        for b, example in enumerate(batch.noise.example_ids.tolist()):
            details[b] |= {
                "distance": distance[b],
                "forward_passes": target.forward_passes[example],
                "gradient_passes": target.gradient_passes[example],
                "network_calls": calls * target.forward_passes[example],
                **watched[b],
            }
        return worst, details

    def _watch(self, row: str, tape: int, batch: Batch) -> Watch | None:
        """What judges every iterate of a row's attacks; None unless the protocol asks for it."""
        if not self.watches:
            return None
        judge = self.judge(row, tape, batch.noise.in_lane(1 + tape))
        return Watch(self.target(judge.model), batch.x, batch.y, judge.noise, self.parts.threat, judge.draws)

    def _network_calls(self, row: str, view: Any, batch: Batch) -> int:
        """Network calls of one pass of an attacker's view, counted once."""
        if row not in self._calls:
            grey = torch.full_like(batch.x[:1], 0.5)
            self._calls[row] = network_calls(view, grey, batch.noise.rows(slice(0, 1)))
        return self._calls[row]


def _numbers(values: Tensor) -> list[float | None]:
    """Values for JSON; what is not finite becomes null."""
    return [v if math.isfinite(v) else None for v in values.tolist()]


def _iterations(name: str, options: dict[str, Any]) -> int:
    """Iterations of an attack, for the progress bar."""
    return int(options.get("iterations", accepted_options(name).get("iterations")) or 20)


def _eot(name: str, options: dict[str, Any]) -> int:
    return int(options.get("eot", accepted_options(name).get("eot", 1)))
