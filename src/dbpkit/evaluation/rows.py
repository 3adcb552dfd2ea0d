"""The rows of an evaluation: who attacks and who judges each, and the work that a batch needs for it.

What is published comes from report draws, on which nothing was chosen.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dbpkit.attacks import Attack, AttackOutcome, Target
from dbpkit.evaluation.averaging import ensemble_classes
from dbpkit.evaluation.cost import network_calls
from dbpkit.evaluation.watch import Watch
from dbpkit.evaluation.work import Batch, Made, Unit, joined
from dbpkit.evaluation.worst import Attacker, worst_image
from dbpkit.experiment.build import Parts, accepted_options, make_view
from dbpkit.experiment.execution import Execution
from dbpkit.experiment.knowledge import Knowledge
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.errors import NonFiniteError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.purification.ensemble import Ensemble
from dbpkit.results.kinds import CLEAN, KINDS, NOISY, TRANSFER, baseline_rows, kind_of
from dbpkit.results.protocols import chosen_protocol
from dbpkit.results.records import Attacked, Key, Watched, judged
from dbpkit.results.run_directory import RunDirectory

UNDEFENDED = Knowledge("undefended")
"""The attacker of the classifier alone."""

STOPPING = frozenset({"apgd", "apgd_targeted"})
"""Attacks that leave an image alone once it is broken, if they are given ``stop``."""


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
        self.protocol = chosen_protocol(spec.protocol)
        self.watches = self.protocol.judges_iterates
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
        return Target(model, self.execution.limit, fixed_shape=self.execution.deterministic)

    def is_known(self, row: str) -> bool:
        """Whether the defence is deterministic for the attacker of a row."""
        if row == UNDEFENDED.name:
            return True
        return self.knowledge[row].leaves_nothing_random(self.parts.model.sites)

    def judge(self, row: str, tape: int, noise: NoisePlan) -> Judge:
        """Returns what decides a row of the examples of a plan."""
        if kind_of(row).is_undefended:
            return Judge(self.parts.undefended, noise, 1)
        knowledge = self.knowledge.get(row)
        if knowledge is None:
            deterministic = self.parts.undefended is None and not self.parts.model.sites
            return Judge(self.parts.model, noise, 1 if deterministic else self.spec.draws.report)
        plan, view = knowledge.apply(noise, tape), self.views[row]
        if self.is_known(row):  # whoever knows the noise of an ensemble is judged by that ensemble
            return Judge(view if isinstance(view, Ensemble) else self.parts.model, plan, 1)
        return Judge(self.parts.model, plan, self.spec.draws.report)

    def logits(self, row: str, tape: int, batch: Batch, x: Tensor) -> Tensor:
        """Returns the report logits (B, R, K) of images ``x`` that stand for a batch in a row."""
        judge = self.judge(row, tape, batch.noise)
        return self.target(judge.model).draws(x, noise=judge.noise, count=judge.draws)

    def noisy(self, batch: Batch) -> Tensor:
        """Returns the clean images under random noise of the full budget."""
        threat = self.parts.threat
        z = batch.noise.on("control").normal("probe", 0, batch.x)
        return threat.project(batch.x, batch.x + threat.eps * threat.steepest(z))

    def attack(self, row: str, tape: int, batch: Batch) -> tuple[Tensor, list[Attacked]]:
        """Runs a row's attacks; returns the chosen image of each example and what is recorded of it."""
        model = self.judge(row, tape, batch.noise).model
        attacker = Attacker(
            self._knows(row),
            tape,
            self._attacks(row),
            self.target(self._view(row)),
            self.target(model),
            self.parts.threat,
            1 if self.is_known(row) else self.spec.draws.select,
            self._watch(row, tape, batch),
        )
        worst, attacked = worst_image(attacker, batch)
        return worst, self._counted(row, attacker, batch, worst, attacked)

    def try_one(self, row: str, attack: Attack, index: Tensor) -> int:
        """Runs an attack on examples as an attacker of a row, and judges what it returns; records nothing.

        Returns:
            How many passes the attack differentiated.
        """
        batch = self.batch(index)
        noise = self._knows(row).apply(batch.noise.on("attack"), 0).in_lane(1)
        target = self.target(self._view(row))
        outcome = attack(target, batch.x, batch.y, threat=self.parts.threat, noise=noise)
        self.logits(row, 0, batch, self.parts.threat.project(batch.x, outcome.x_adv.detach()))
        return target.gradient_passes.total()

    def _attacks(self, row: str) -> list[tuple[str, Attack]]:
        """What attacks a row: by single draws where nothing is left to chance in what it differentiates.

        Where that is also what judges, one misclassified iterate decides the example, and attacks that can
        stop there do. Not against the classifier alone, whose images stand before the purifier next.
        """
        if row != UNDEFENDED.name and not self._knows(row).leaves_nothing_random(self._view(row).sites):
            return self.parts.attacks
        attacks = self.parts.single_draw_attacks
        if self.watches or self.views.get(row) is not self.parts.model:
            return attacks
        told = {
            name
            for name, part in zip(dict(attacks), self.spec.attacks, strict=False)
            if "stop" in part.options
        }
        return [(n, _stopping(a) if n in STOPPING - told else a) for n, a in attacks]

    def _view(self, row: str) -> Any:
        """What the attacker of a row differentiates."""
        return self.parts.undefended if row == UNDEFENDED.name else self.views[row]

    def _knows(self, row: str) -> Knowledge:
        """What the attacker of a row knows."""
        return self.knowledge.get(row, UNDEFENDED)

    def _baseline(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The rows of every run: those that no attack made, and the others."""
        rows = baseline_rows(purified=self.parts.undefended is not None)
        return tuple(r for r in rows if not KINDS[r].attacker), tuple(r for r in rows if KINDS[r].attacker)

    def _baseline_units(self) -> list[Unit]:
        draws = self.spec.draws.report
        iterations = sum(_iterations(a.name, a.options) for a in self.spec.attacks)
        unattacked, attacked = self._baseline()
        units = [Unit(unattacked, 0, 2.0 * draws, self._unattacked)]
        if attacked:
            units.append(Unit(attacked, 0, draws + 0.3 * iterations, self._undefended))
        return units

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
        x = {CLEAN: batch.x, NOISY: self.noisy(batch)}
        unattacked, _ = self._baseline()
        return joined(self._judged(row, 0, batch, x[KINDS[row].images], None) for row in unattacked)

    def _undefended(self, batch: Batch) -> Made:
        """The classifier alone under attack, and its attacked images in front of the purifier."""
        x_adv, attacked = self.attack(UNDEFENDED.name, 0, batch)
        own = self._judged(UNDEFENDED.name, 0, batch, x_adv, attacked)
        return joined([own, self._judged(TRANSFER.name, 0, batch, x_adv, None)])

    def _attacked(self, batch: Batch, row: str, tape: int) -> Made:
        """One attacker against the purified classifier, judged on report draws."""
        return self._judged(row, tape, batch, *self.attack(row, tape, batch))

    def _judged(self, row: str, tape: int, batch: Batch, x: Tensor, attacked: list[Attacked] | None) -> Made:
        """One record per example; images and logits are stored before the records that name their file."""
        try:
            logits = self.logits(row, tape, batch, x)
        except NonFiniteError as error:
            raise NonFiniteError(f"row '{row}': {error}") from error
        ids = batch.noise.example_ids
        name = f"{row}-{tape}-{int(ids[0])}-{int(ids[-1])}-{len(ids)}"
        files = []
        if attacked is not None:
            files.append(self.run.write_images(name, ids, x))
            attacked = [{**one, "images": files[0].name} for one in attacked]
        how = {
            "micro_batch": self.execution.limit.rows,
            "deterministic": self.execution.deterministic,
            "threads": torch.get_num_threads(),
        }
        files.append(self.run.write_logits(name, ids, logits, how))
        predicted = logits.argmax(dim=-1).tolist()
        told: Iterable[Attacked | None] = repeat(None, len(ids)) if attacked is None else attacked
        answers = ensemble_classes(logits, self.protocol.averages)
        columns = zip(ids.tolist(), batch.y.tolist(), predicted, told, answers, strict=True)
        records = [judged(Key(row, tape, i), y, p, one, mean) for i, y, p, one, mean in columns]
        return Made(records, files)

    def _counted(
        self, row: str, attacker: Attacker, batch: Batch, worst: Tensor, attacked: list[Attacked]
    ) -> list[Attacked]:
        """Adds to what the attacks left how far the images are, what they cost, and what was watched."""
        distance = self.parts.threat.distance(batch.x, worst).tolist()
        calls, target, watch = self._network_calls(row, batch), attacker.target, attacker.watch
        watched = watch.records(deterministic=self.is_known(row)) if watch else [Watched()] * len(attacked)
        return [
            {
                **attacked[b],
                "distance": distance[b],
                "forward_passes": target.forward_passes[example],
                "gradient_passes": target.gradient_passes[example],
                "network_calls": calls * target.forward_passes[example] + target.extra_calls(example),
                **watched[b],
            }
            for b, example in enumerate(batch.noise.example_ids.tolist())
        ]

    def _watch(self, row: str, tape: int, batch: Batch) -> Watch | None:
        """What judges every iterate of a row's attacks; None unless the protocol asks for it."""
        if not self.watches:
            return None
        judge = self.judge(row, tape, batch.noise.in_lane(1 + tape))
        return Watch(self.target(judge.model), batch.x, batch.y, judge.noise, self.parts.threat, judge.draws)

    def _network_calls(self, row: str, batch: Batch) -> int:
        """Network calls of one pass of an attacker's view, counted once."""
        if row not in self._calls:
            grey = torch.full_like(batch.x[:1], 0.5)
            self._calls[row] = network_calls(self._view(row), grey, batch.noise.rows(slice(0, 1)))
        return self._calls[row]


def judged_images(
    rows: Rows, row: str, batch: Batch, stored: Callable[[str, list[int]], Mapping[int, Tensor]]
) -> Tensor:
    """Returns the images (B, C, H, W) of a batch that a row has judged.

    Args:
        rows: of the run.
        row: of the table.
        batch: the examples.
        stored: returns the images that the run keeps of examples of a row, by id; the others stand clean.
    """
    kind = kind_of(row)
    if kind.images == CLEAN:
        return batch.x
    if kind.images == NOISY:
        return rows.noisy(batch)
    ids = batch.noise.example_ids.tolist()
    kept = stored(kind.attacker, ids)
    images = [kept[i] if i in kept else x.cpu() for i, x in zip(ids, batch.x, strict=True)]
    return torch.stack(images).to(batch.x)


def _stopping(attack: Callable[..., AttackOutcome]) -> Attack:
    """An attack that leaves an image alone once it is broken."""
    return partial(attack, stop=True)


def _iterations(name: str, options: dict[str, Any]) -> int:
    """Iterations of an attack, for the progress bar."""
    return int(options.get("iterations", accepted_options(name).get("iterations")) or 20)


def _eot(name: str, options: dict[str, Any]) -> int:
    return int(options.get("eot", accepted_options(name).get("eot", 1)))
