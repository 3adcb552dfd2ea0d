"""The worst of several attacks on each example.

The thing people get wrong: the attack must not judge itself. It is projected onto the budget here, and the
worst of several is chosen on select draws, which are not those that are published.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dbpkit.attacks import Attack, AttackOutcome, Target
from dbpkit.evaluation.watch import Watch
from dbpkit.evaluation.work import Batch
from dbpkit.experiment.knowledge import Knowledge
from dbpkit.foundation.errors import NonFiniteError, UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.results.records import Attacked
from dbpkit.threats.pixels import ThreatModel


class Attacker(NamedTuple):
    """Who attacks a row.

    Attributes:
        knowledge: what is known of the noise.
        tape: tape of the row.
        attacks: names and attacks, tried in turn.
        target: what is attacked; counts its passes.
        judge: what decides which attack was worst.
        threat: the budget.
        select_draws: draws of each image on which it is decided.
        watch: what judges every iterate, or None.
    """

    knowledge: Knowledge
    tape: int
    attacks: list[tuple[str, Attack]]
    target: Target
    judge: Target
    threat: ThreatModel
    select_draws: int
    watch: Watch | None

    def noise(self, plan: NoisePlan, index: int) -> NoisePlan:
        """Returns the noise of attack number ``index``, a lane of its own with what is known in it."""
        lane = 1 + self.tape * len(self.attacks) + index
        return self.knowledge.apply(plan.on("attack"), self.tape).in_lane(lane)


def worst_image(attacker: Attacker, batch: Batch) -> tuple[Tensor, list[Attacked]]:
    """Returns the image of the worst attack of each example, and what that attack left.

    The worst has the least accuracy on select draws; a later attack must be strictly worse. So an example
    that none of its select draws classifies right is decided and meets no further attack, except where every
    iterate of every attack is judged.

    Raises:
        UserError: if an attack returns images of another shape.
        NonFiniteError: if an attack returns pixels that are not finite.
    """
    if attacker.watch:
        attacker.target.visit = attacker.watch
    worst, accuracy = batch.x.clone(), torch.full((len(batch.x),), torch.inf)
    details = [Attacked() for _ in range(len(batch.x))]
    left = torch.arange(len(batch.x))
    for index, (name, _) in enumerate(attacker.attacks):
        some = batch.rows(left)
        outcome, x_adv = _attacked(attacker, index, some)
        selected = _selected(attacker, x_adv, some)
        better = (selected < accuracy[left]).nonzero()[:, 0]
        accuracy[left[better]] = selected[better]
        worst[left[better]] = x_adv[better]
        excess = (attacker.threat.distance(some.x, outcome.x_adv) - attacker.threat.eps).tolist()
        for b in better.tolist():
            details[left[b]] = _left(name, outcome, excess[b], b)
        if not attacker.watch and not len(left := left[accuracy[left] > 0]):
            break
    return worst, details


def _attacked(attacker: Attacker, index: int, batch: Batch) -> tuple[AttackOutcome, Tensor]:
    """What attack number ``index`` returns, and its image within the budget."""
    (name, attack), watch = attacker.attacks[index], attacker.watch
    noise = attacker.noise(batch.noise, index)
    seen = dict(watch.shown) if watch else {}
    outcome = attack(attacker.target, batch.x, batch.y, threat=attacker.threat, noise=noise)
    if outcome.x_adv.shape != batch.x.shape:  # one image for several would be broadcast to them
        got, wanted = tuple(outcome.x_adv.shape), tuple(batch.x.shape)
        raise UserError(f"attack '{name}' returned images of shape {got}, not {wanted}. Return one for each.")
    if not bool(torch.isfinite(outcome.x_adv).all()):
        raise NonFiniteError(f"attack '{name}' returned pixels that are not finite")
    x_adv = attacker.threat.project(batch.x, outcome.x_adv.detach())
    if watch:
        watch.at_least(seen, x_adv, noise)
    return outcome, x_adv


def _selected(attacker: Attacker, x_adv: Tensor, batch: Batch) -> Tensor:
    """Accuracy of each example on select draws, (B,); 0 where there is one attack and nothing to choose."""
    if len(attacker.attacks) == 1:
        return torch.zeros(len(batch.x))
    plan = attacker.knowledge.apply(batch.noise.on("select"), attacker.tape)
    logits = attacker.judge.draws(x_adv, noise=plan, count=attacker.select_draws)
    return (logits.argmax(-1) == batch.y[:, None]).float().mean(1).cpu()


def _left(name: str, outcome: AttackOutcome, excess: float, b: int) -> Attacked:
    """What is recorded of an attack on example ``b`` of its batch."""
    left: Attacked = {
        "attack": name,
        "excess": excess,
        "loss": _numbers(outcome.loss[b]),
        "grad_norm": _numbers(outcome.grad_norm[b]),
    }
    if outcome.claimed is not None:
        left["claimed_success"] = bool(outcome.claimed[b])
    return left


def _numbers(values: Tensor) -> list[float | None]:
    """Values for JSON; what is not finite becomes null."""
    return [v if math.isfinite(v) else None for v in values.tolist()]
