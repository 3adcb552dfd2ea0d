"""Worst of several attacks: an example that is decided costs nothing more, and its record is the same."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dbpkit.attacks import AttackOutcome, Target, make_attack
from dbpkit.evaluation.watch import Watch
from dbpkit.evaluation.work import Batch
from dbpkit.evaluation.worst import Attacker, _left, worst_image
from dbpkit.experiment.knowledge import known
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.threats.pixels import Linf
from tests.oracles import NoisyClassifier, TinyClassifier, uniform

THREAT = Linf(0.1)
ATTACKS = [
    ("pgd", make_attack("pgd", {"iterations": 3, "eot": 2})),
    ("apgd", make_attack("apgd", {"iterations": 4, "eot": 2, "judge_draws": 2})),
    ("square", make_attack("square", {"iterations": 5, "eot": 2})),
]


def batch_of(seed: int, count: int = 12) -> Batch:
    x = uniform(count, 1, 4, 4, seed=seed, low=0.2, high=0.8)
    y = TinyClassifier()(x).argmax(1)
    return Batch(x, y, NoisePlan.of(seed, range(count)))


def attacker_of(
    attacks: list[tuple[str, Any]], watch: Watch | None = None, name: str = "white_box"
) -> Attacker:
    model = NoisyClassifier(TinyClassifier(), sigma=0.05)
    target, judge = (Target(model, 8, fixed_shape=True) for _ in range(2))
    return Attacker(known[name], 0, attacks, target, judge, THREAT, 3, None)


def plainly(attacker: Attacker, batch: Batch) -> tuple[Tensor, list[Any]]:
    """Every attack on every example, the worst of them chosen one by one."""
    worst, details = batch.x.clone(), [{} for _ in batch.x]
    least = [float("inf")] * len(batch.x)
    for index, (name, attack) in enumerate(attacker.attacks):
        noise = attacker.noise(batch.noise, index)
        found = attack(attacker.target, batch.x, batch.y, threat=THREAT, noise=noise)
        x_adv = THREAT.project(batch.x, found.x_adv)
        plan = attacker.knowledge.apply(batch.noise.on("select"), 0)
        logits = attacker.judge.draws(x_adv, noise=plan, count=3)
        for b in range(len(batch.x)):
            right = float((logits[b].argmax(-1) == batch.y[b]).float().mean())
            if right < least[b]:
                excess = THREAT.distance(batch.x, found.x_adv) - THREAT.eps
                least[b], worst[b], details[b] = right, x_adv[b], _left(name, found, float(excess[b]), b)
    return worst, details


@pytest.mark.parametrize("knowledge", ["white_box", "dw_both"])
@pytest.mark.parametrize("seed", range(6))
def test_worst_is_that_of_all_attacks_on_all_examples_for_fewer_passes(seed: int, knowledge: str) -> None:
    batch = batch_of(seed)
    left, stayed = attacker_of(ATTACKS, knowledge), attacker_of(ATTACKS, knowledge)
    worst, details = worst_image(left, batch)
    expected, expected_details = plainly(stayed, batch)
    assert torch.equal(worst, expected)
    assert details == expected_details
    assert len({detail["attack"] for detail in expected_details}) > 1  # a later attack does replace
    assert 0.2 < left.target.forward_rows / stayed.target.forward_rows < 0.9
    for example, passes in left.target.forward_passes.items():
        assert passes <= stayed.target.forward_passes[example]


def test_attack_that_returns_one_image_for_several_is_refused() -> None:
    def first(target: Target, x: Tensor, y: Tensor, *, threat: Any, noise: NoisePlan) -> AttackOutcome:
        return AttackOutcome(x[:1], torch.zeros(len(x), 1), torch.zeros(len(x), 0))

    with pytest.raises(UserError, match=r"'first' returned images of shape \(1, 1, 4, 4\), not"):
        worst_image(attacker_of([("first", first)]), batch_of(0))


class Told:
    """An attack that notes whom it meets, and moves the images of the ids it is told by the whole budget."""

    def __init__(self, fooled: set[int]) -> None:
        self.fooled, self.met = fooled, []

    def __call__(
        self, target: Target, x: Tensor, y: Tensor, *, threat: Any, noise: NoisePlan
    ) -> AttackOutcome:
        ids = noise.example_ids.tolist()
        self.met.append(ids)
        moved = torch.tensor([i in self.fooled for i in ids])
        target.visit(x, noise)
        loss = x.new_zeros(len(x), 1)
        return AttackOutcome(torch.where(moved[:, None, None, None], x + threat.eps, x), loss, loss[:, :0])


class Raised(torch.nn.Module):
    """Right about dark images, wrong about any that was raised."""

    sites = frozenset({"forward"})

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        raised = (x.mean(dim=(1, 2, 3)) > 0.05).to(x)
        return torch.stack([1 - raised, raised], dim=1)


def told(*fooled: set[int], watched: bool = False) -> list[list[int]]:
    """Whom attacks meet that fool these examples of 0 to 3."""
    batch = Batch(torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.long), NoisePlan.of(0, range(4)))
    judge = Target(Raised())
    watch = Watch(judge, batch.x, batch.y, batch.noise, THREAT, 1) if watched else None
    attacks = [Told(f) for f in fooled]
    named: list[tuple[str, Any]] = [("told", attack) for attack in attacks]
    worst_image(Attacker(known["white_box"], 0, named, Target(Raised()), judge, THREAT, 2, watch), batch)
    return [ids for attack in attacks for ids in attack.met]


def test_decided_examples_leave_one_after_the_other_and_nobody_is_left() -> None:
    assert told({1}, {0, 2}, {3}, {3}) == [[0, 1, 2, 3], [0, 2, 3], [3]]


def test_all_iterates_are_shown_where_they_are_judged() -> None:
    assert told({1}, {0, 2}, watched=True) == [[0, 1, 2, 3], [0, 1, 2, 3]]
