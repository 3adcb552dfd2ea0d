"""An attack that spends a budget of network passes where it measures that they help.

The thing people get wrong: calling a defence strong after an attack whose iterations, draws and loss were set
for another one. Here the one thing to set is what an image may cost; the rest is decided for each image from
its own draws, so that no decision depends on the batch.
"""

import contextlib
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dbpkit.attacks.apgd import apgd
from dbpkit.attacks.attack import AttackOutcome, attacks
from dbpkit.attacks.climbing import Climb, Leg, Rule, climb
from dbpkit.attacks.designs import random_for
from dbpkit.attacks.loss import margin
from dbpkit.attacks.passing import mean_in_order
from dbpkit.attacks.target import Target
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count, Length
from dbpkit.threats.pixels import L2, Linf, ThreatModel

GRIDS = (10, 20, 50, 100, 200)
"""Steps of the surrogates that are looked for, the coarsest first."""

CHEAPER = 3
"""A surrogate is tried only if a pass of it costs at most this part of the model's."""

PROBES = 4
"""Draws of the first gradient, which tell how much they agree."""

JUDGES = 8
"""Fresh draws that candidates are judged on, the same for all of them."""

TRIAL = 8
"""A trial of one candidate has this part of the budget."""

AGREEMENT = ((0.3, 1), (0.02, 2), (0.002, 4))
"""Draws of a gradient, by the share of it that draws have in common at least; below all of these, 8."""


@attacks.register("autopilot")
def autopilot(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    noise: NoisePlan,
    gradients: Count = 200,
    step_size: Length | None = None,
    loss: Literal["auto", "chance", "ce", "margin", "dlr"] = "auto",
    draws: Count | None = None,
    surrogate: bool = True,
) -> AttackOutcome:
    """Ascent within a budget of passes, with draws, loss and model chosen image by image.

    Where nothing is random, the budget goes to APGD: half of it on cross-entropy, and of the images that are
    still right then, half on the margin. Otherwise a first gradient tells how much its draws agree, and by
    that how many the others have. A surrogate with fewer steps, where there is a much cheaper one, is tried
    against the exact gradient at equal passes, and goes on with half of the rest where it wins on fresh draws
    of the model itself. The rest goes to exact gradients, averaged over iterations, with shrinking steps.

    Args:
        target: the classifier, as an attack may use it.
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).
        threat: budget, projection and steepest direction.
        noise: draws of the attack; every stretch has draws of its own.
        gradients: budget per image, in differentiated passes of the model; 200 is that of PGD20+EoT10. A
            pass without gradient counts one half, one of a surrogate as many network calls as it makes.
        step_size: first step in [0, 1] pixel units; None takes the threat model's published share.
        loss: what is maximised; ``auto`` chooses.
        draws: draws of each gradient; None decides it for each image.
        surrogate: whether surrogates are tried.

    Returns:
        The attacked images and loss and gradient norm along their own path; the columns of what was not used
        repeat the last.

    Raises:
        UserError: if an option is out of range.

    Source:
        Budget and decisions are ours. Ascent: see `dbpkit.attacks.climbing`; APGD: Croce & Hein 2020.
    """
    target = Target.of(target)
    step_size = threat.default_step_size if step_size is None else step_size
    setup = _Setup(target, threat, gradients, step_size, loss, draws, surrogate)
    return setup.random(x, y, noise) if random_for(target.model, noise) else setup.still(x, y, noise)


class _Setup(NamedTuple):
    """What an attack is told, and the shares of its budget."""

    target: Target
    threat: ThreatModel
    gradients: int
    step_size: float
    loss: str
    draws: int | None
    surrogate: bool

    @property
    def rule(self) -> Rule:
        """What a random model's stretches maximise."""
        return "chance" if self.loss == "auto" else self.loss  # type: ignore[return-value]

    @property
    def passes(self) -> int:
        """Network passes that an image may cost."""
        return 2 * self.gradients * self.target.calls

    def leg(self, number: int, passes: int, begin: float, end: float) -> Leg:
        """A stretch of so many passes, whose draws are behind those that any earlier one can use."""
        return Leg(passes, number * (self.passes + 16), begin, end)

    def still(self, x: Tensor, y: Tensor, noise: NoisePlan) -> AttackOutcome:
        """The attack on a model that draws nothing: APGD by one loss, and by another where that fails."""
        names = ("ce", "margin") if self.loss in ("auto", "chance") else (self.loss,) * 2
        iterations = (self.gradients - 6) // 2  # two runs of one more gradient, with four judgements each
        if iterations < 2 or type(self.threat) not in (Linf, L2):
            leg, one = self.leg(0, self.passes, 0.0, 1.0), torch.ones_like(y)
            start = _Place(x, torch.zeros_like(x), one, one == 0)
            return _outcome([self.stretch([self.target], [leg], x, y, start, noise)])
        settings: dict[str, Any] = {"iterations": iterations, "eot": 1, "judge_draws": 1, "stop": True}
        settings["threat"] = self.threat
        search: Any = apgd  # an Attack as far as its type goes, which has no options
        first = search(self.target, x, y, noise=noise, loss=names[0], **settings)
        before = self.target.judge(first.x_adv, y, noise=noise, draws=1)
        x_adv = first.x_adv.clone()
        paths = [torch.cat([p, p[:, -1:].expand_as(p)], 1) for p in (first.loss, first.grad_norm)]
        rows = (before.right > 0).nonzero()[:, 0]
        if len(rows):
            plan = noise.rows(rows)
            second = search(self.target, x[rows], y[rows], noise=plan, loss=names[1], **settings)
            after = self.target.judge(second.x_adv, y[rows], noise=plan, draws=1)
            better = after.loss > before.loss[rows]
            x_adv[rows[better]] = second.x_adv[better]
            for path, more in zip(paths, (second.loss, second.grad_norm), strict=True):
                path[rows, iterations + 1 :] = more
        return AttackOutcome(x_adv, *paths)

    def random(self, x: Tensor, y: Tensor, noise: NoisePlan) -> AttackOutcome:
        """The attack on a model that draws noise."""
        left, parts = self.passes, list[_Part]()
        eot = torch.full_like(y, min(self.draws or 1, self.gradients))
        if self.draws is None and self.gradients >= 4 * PROBES:
            found = self.target.per_draw(x, y, noise=noise.at(0), eot=PROBES, loss="margin")
            left -= 2 * PROBES * self.target.calls
            eot = _draws_by(agreement(found.grad))
        place = _Place(x, torch.zeros_like(x), eot, torch.zeros_like(y, dtype=torch.bool))
        cheap = self.cheap() if self.surrogate and self.gradients >= 4 * TRIAL else None
        if cheap is not None:
            place, parts = self.by_surrogate(cheap, x, y, place, noise)
        left -= sum(part.passes for part in parts)
        leg = self.leg(6, left, 0.5 if parts else 0.0, 1.0)
        last = self.stretch([self.target], [leg], x, y, place, noise)
        return _outcome([*(part.climb for part in parts), last])

    def by_surrogate(
        self, cheap: Target, x: Tensor, y: Tensor, place: "_Place", noise: NoisePlan
    ) -> tuple["_Place", list["_Part"]]:
        """Tries a surrogate against exact gradients, and goes on with the better one."""
        trial, rest = self.passes // TRIAL, self.passes // 4
        both = [
            self.stretch([model], [self.leg(1 + k, trial, 0.0, 1 / TRIAL)], x, y, place, noise)
            for k, model in enumerate((self.target, cheap))
        ]
        first = self.best(both, y, noise)
        won = first.which == 1
        place = _Place(first.climb.x, first.climb.direction, place.eot, won)
        legs = [self.leg(3 + k, rest, 1 / TRIAL, 0.5) for k in range(2)]
        second = self.stretch([self.target, cheap], legs, x, y, place, noise)
        kept = torch.where(won[:, None, None, None], 0, second.direction)
        place = _Place(second.x, kept, place.eot, torch.zeros_like(won))
        return place, [first, _Part(second, rest, first.which)]

    def cheap(self) -> Target | None:
        """The surrogate of most steps among those that are much cheaper; None if there is none."""
        found: list[Target | None] = []
        for steps in GRIDS:
            with contextlib.suppress(UserError):  # a grid that the sampler does not have
                found.append(self.target.coarser(steps))
        cheap = [t for t in found if t is not None and CHEAPER * t.calls <= self.target.calls]
        return cheap[-1] if cheap else None

    def best(self, runs: list[Climb], y: Tensor, noise: NoisePlan) -> "_Part":
        """Of each image the run that is likeliest misclassified, on the same fresh draws of the model."""
        plan = noise.at(-(-self.leg(5, 0, 0.0, 1.0).first // JUDGES))
        gaps = []
        for run in runs:
            logits = self.target.draws(run.x, noise=plan, count=JUDGES)
            gap = margin(logits.flatten(0, 1), y.repeat_interleave(JUDGES)).unflatten(0, (len(y), JUDGES))
            gaps.append(gap)
        width = mean_in_order(torch.cat(gaps, 1).square()).sqrt().clamp_min(1e-6)[:, None]
        chance = torch.stack([mean_in_order((gap / width).sigmoid()) for gap in gaps], 1)
        chosen, which = runs[0], torch.zeros_like(y)
        for k in range(1, len(runs)):
            more = chance[:, k] > chance.gather(1, which[:, None])[:, 0]
            chosen, which = _where(more, runs[k], chosen), torch.where(more, k, which)
        passes = self.target.calls * JUDGES * len(runs) + self.passes // TRIAL * len(runs)
        return _Part(chosen, passes, which)

    def stretch(
        self,
        models: list[Target],
        legs: list[Leg],
        x: Tensor,
        y: Tensor,
        place: "_Place",
        noise: NoisePlan,
    ) -> Climb:
        """One stretch of every image, on its model and with its draws; they climb in groups of a kind."""
        columns = max(leg.passes // (2 * model.calls) for model, leg in zip(models, legs, strict=True))
        none = x.new_zeros(len(x), columns)
        found = Climb(place.x.clone(), place.direction.clone(), none, none.clone())
        for k, (model, leg) in enumerate(zip(models, legs, strict=True)):
            chosen = place.second == (k == 1) if len(models) > 1 else torch.ones_like(place.second)
            for eot in sorted(set(place.eot[chosen].tolist())):
                rows = (chosen & (place.eot == eot)).nonzero()[:, 0]
                climbed = climb(
                    model, x[rows], y[rows], place.x[rows], place.direction[rows], leg=leg, eot=eot,
                    step_size=self.step_size,
                    threat=self.threat, noise=noise.rows(rows), rule=self.rule,
                )  # fmt: skip
                for whole, part in zip(found, climbed, strict=True):
                    whole[rows] = _widened(part, whole)
        return found


class _Place(NamedTuple):
    """Where a stretch begins: iterates, running gradients, draws of a gradient, whether by the surrogate."""

    x: Tensor
    direction: Tensor
    eot: Tensor
    second: Tensor


class _Part(NamedTuple):
    """A finished stretch, the passes per image that it cost with all that led to it, and whose run it is."""

    climb: Climb
    passes: int
    which: Tensor


def agreement(grads: Tensor) -> Tensor:
    """The share of a draw's squared gradient that two draws have in common, (B,), of gradients (B, R, ...).

    It is 1 where all draws are alike and 0 on average where they have nothing in common: the mean over pairs
    of <g, g'> over the mean of |g|^2.
    """
    flat, count = grads.flatten(2).double(), grads.shape[1]
    square = torch.stack([one.square().sum() for one in flat])
    total = torch.stack([one.sum(dim=0).square().sum() for one in flat])
    return (total - square) / ((count - 1) * square).clamp_min(torch.finfo(square.dtype).tiny)


def _draws_by(shared: Tensor) -> Tensor:
    """Draws of a gradient (B,) by the share that draws have in common."""
    eot = torch.full_like(shared, 8, dtype=torch.int64)
    for least, draws in reversed(AGREEMENT):
        eot = torch.where(shared >= least, draws, eot)
    return eot


def _where(chosen: Tensor, here: Climb, there: Climb) -> Climb:
    """The one's rows where ``chosen`` (B,), else the other's."""
    width = max(here.loss.shape[1], there.loss.shape[1])
    blank = here.loss.new_zeros(len(chosen), width)
    pairs = zip(here, there, strict=True)
    parts = [
        torch.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), _widened(a, blank), _widened(b, blank))
        for a, b in pairs
    ]
    return Climb(*parts)


def _widened(part: Tensor, whole: Tensor) -> Tensor:
    """A path (B, I) with its last column repeated, as wide as the whole's; anything else as it is."""
    if part.ndim != 2 or whole.ndim != 2 or part.shape[1] == whole.shape[1]:
        return part
    last = part[:, -1:] if part.shape[1] else whole.new_zeros(len(part), 1)
    return torch.cat([part, last.expand(-1, whole.shape[1] - part.shape[1])], 1)


def _outcome(parts: list[Climb]) -> AttackOutcome:
    """The last iterate, and the paths of all stretches."""
    loss, norm = (torch.cat([p[k] for p in parts], 1) for k in (2, 3))
    return AttackOutcome(parts[-1].x, loss, norm)
