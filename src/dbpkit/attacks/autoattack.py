"""AutoAttack: several attacks after each other, and of each image the worst.

The thing people get wrong: on a random defence the published code drops an image at its first wrong draw, so
that lucky noise counts as a success and the stronger attacks never see it. Here its accuracy over draws that
no attack used decides, and an image goes on while any of them is classified right.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor

from dbpkit.attacks.attack import (
    Attack,
    AttackOutcome,
    accepted_options,
    attacks,
    checked_attack_options,
    make_attack,
)
from dbpkit.attacks.target import Target
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Checked, Count
from dbpkit.foundation.spec import PartSpec, validate
from dbpkit.threats.pixels import ThreatModel

JUDGE = 15
"""Branch of the noise that judges; the attacks have the branches below."""

STEPS_PER_ITERATION = {"square": 50}
"""Steps of an attack for each iteration of the others, where not 1: 5000 queries of Square with 100."""

VERSIONS: dict[str, tuple[PartSpec, ...]] = {
    "standard": (
        PartSpec(name="apgd", options={"stop": True}),
        PartSpec(name="apgd_targeted", options={"stop": True}),
        PartSpec(name="fab"),
        PartSpec(name="square"),
    ),
    "rand": (
        PartSpec(name="apgd", options={"loss": "ce"}),
        PartSpec(name="apgd", options={"loss": "dlr"}),
    ),
}
"""Attacks of each version: the first is for deterministic models, the other for random ones."""


def _check_parts(parts: Sequence[str | Mapping[str, Any]] | None) -> None:
    """Raises UserError unless parts of a spec are attacks with options they have."""
    for part in _chosen("standard", parts):
        checked_attack_options(part.name, part.options)


Parts = Annotated[Sequence[str | Mapping[str, Any]] | None, Checked(_check_parts)]
"""Attacks by name, or as tables with ``name`` and ``options``."""


@attacks.register("autoattack")
def autoattack(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    noise: NoisePlan,
    version: Literal["standard", "rand"] = "standard",
    parts: Parts = None,
    iterations: Count = 100,
    eot: Count = 20,
    judge_draws: Count = 20,
    reevaluate: bool = True,
) -> AttackOutcome:
    """AutoAttack, with the accuracy of each image averaged over draws.

    The first attack meets every image, a later one those that any judging draw still classifies right. The
    first one's image stands unless the clean image is right less often; a later one replaces what stands
    only where it is right strictly less often.

    Args:
        target: the classifier, as an attack may use it.
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).
        threat: budget, Linf or L2.
        noise: draws of the attack. Attack n of the list gets branch n, and judging one of its own.
        version: ``standard`` (APGD-CE, targeted APGD-DLR and FAB, Square) or ``rand`` (APGD-CE, APGD-DLR).
        parts: at most 14 attacks instead, each a name or a table of ``name`` and ``options``. Their options
            go before the ones below.
        iterations: of every attack that has them; 50 queries of Square count as one.
        eot: draws averaged in each gradient or query; 1 for deterministic models.
        judge_draws: draws that judge an image; 1 for deterministic models.
        reevaluate: whether Square judges the kept image anew in every query; False for deterministic models.

    Returns:
        The worst images, and loss and gradient norm of the first attack.

    Raises:
        UserError: if an option is out of range, or a part or one of its options is unknown.

    Source:
        Croce & Hein 2020 (arXiv:2003.01690), section 6; averaged accuracy and strictly lower candidates after
        Liu et al., ICLR 2025, who use 20 draws.
    """
    shared = {"iterations": iterations, "eot": eot, "judge_draws": judge_draws, "reevaluate": reevaluate}
    bound = [_bind(part, shared) for part in _chosen(version, parts)]
    judge = _Judge(Target.of(target), noise.branch(JUDGE), judge_draws)
    worst, right = x.clone(), judge.accuracy(x, y)
    outcomes: list[AttackOutcome] = []
    left = torch.arange(len(x), device=x.device)
    for number, attack in enumerate(bound, start=1):
        found = attack(judge.target, x[left], y[left], threat=threat, noise=noise.rows(left).branch(number))
        x_adv = threat.project(x[left], found.x_adv.detach())
        judged = judge.rows(left).accuracy(x_adv, y[left])
        better = judged < right[left] if outcomes else judged <= right[left]
        worst[left[better]], right[left[better]] = x_adv[better], judged[better]
        outcomes.append(found)
        if not len(left := left[right[left] > 0]):
            break
    return outcomes[0]._replace(x_adv=worst, claimed=None)


def _chosen(version: str, parts: Sequence[str | Mapping[str, Any]] | None) -> Sequence[PartSpec]:
    """The attacks of a version, or those of the list."""
    if parts is None:
        return VERSIONS[version]
    if isinstance(parts, str) or not 0 < len(parts) < JUDGE:
        raise UserError(f"autoattack takes a list of 1 to {JUDGE - 1} parts, not {parts!r}.")
    tables = ({"name": part} if isinstance(part, str) else dict(part) for part in parts)
    return [validate(table, PartSpec, "autoattack parts") for table in tables]


def _bind(part: PartSpec, shared: Mapping[str, Any]) -> Attack:
    """An attack with its own options, and the shared ones that it knows."""
    steps = shared["iterations"] * STEPS_PER_ITERATION.get(part.name, 1)
    known = accepted_options(part.name)
    options = {name: value for name, value in {**shared, "iterations": steps}.items() if name in known}
    return make_attack(part.name, {**options, **part.options})


class _Judge(NamedTuple):
    """Judges images by draws that no attack used."""

    target: Target
    noise: NoisePlan
    draws: int

    def rows(self, index: Tensor) -> "_Judge":
        """The judge of the chosen images."""
        return self._replace(noise=self.noise.rows(index))

    def accuracy(self, x: Tensor, y: Tensor) -> Tensor:
        """Share of draws that are classified right, (B,)."""
        return self.target.judge(x, y, noise=self.noise, draws=self.draws).right
