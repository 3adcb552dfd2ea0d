"""Square: random search without gradients, by squares of shrinking size.

The thing people get wrong: on a random defence the stored loss of the best image so far is a maximum over
lucky draws, and no honest candidate ever beats it. Here both are judged on the same fresh draws.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from annotated_types import Gt, Le
from torch import Tensor

from dbpkit.attacks.attack import AttackOutcome, attacks
from dbpkit.attacks.passing import Judgement
from dbpkit.attacks.target import Target
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count
from dbpkit.threats.pixels import L2, Linf, ThreatModel

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the share of changed pixels is halved."""

RECORDED = 100
"""Most losses that are recorded of each image."""


@attacks.register("square")
def square(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    noise: NoisePlan,
    iterations: Count = 5000,
    p_init: Annotated[float, Gt(0), Le(1)] = 0.8,
    eot: Count = 10,
    loss: Literal["margin", "ce"] = "margin",
    reevaluate: bool = True,
) -> AttackOutcome:
    """Square Attack: a query changes one square of the image and is kept if the loss rises.

    With ``reevaluate`` a query judges the image kept so far and its candidate on the same new draws: 2 * eot
    rows, and no lucky draw survives. Without it the kept image's first loss is stored, as published: eot rows
    a query, for deterministic models only. An image that is misclassified on all its draws then stops.

    Args:
        target: the classifier, as an attack may use it.
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).
        threat: budget, Linf or L2.
        noise: draws of the attack; query i averages over draws i * eot to i * eot + eot - 1, from 1 on, and
            the start, where it is judged, over the first eot. Squares are drawn at sites of their own.
        iterations: number of queries.
        p_init: share of pixels that the first squares cover, in (0, 1].
        eot: draws averaged in each judgement.
        loss: what is maximised.
        reevaluate: whether the image kept so far is judged again in every query.

    Returns:
        The kept images, their loss before evenly spaced queries, (B, at most 100), and no gradient norms.

    Raises:
        UserError: if an option is out of range, or the threat is neither Linf nor L2.

    Source:
        Andriushchenko et al. 2020 (arXiv:1912.00049), algorithms 1 to 3. Halvings of p and 5000 queries as
        in AutoAttack, Croce & Hein 2020 (arXiv:2003.01690).
    """
    search, judge = _search_in(threat), _Judge(Target.of(target), loss, eot)
    x_adv = threat.project(x, x + threat.eps * search.start(x, noise))
    kept = _Kept.unjudged(x_adv) if reevaluate else _Kept.better_start(judge, x, x_adv, y, noise.at(0))
    judge.target.visit(kept.x, noise)
    path = _Spaced.of(x, iterations)
    for i in range(iterations):
        rows = kept.searching.nonzero()[:, 0]
        if not len(rows):
            path.fill(i, kept.loss)
            break
        plan, p = noise.rows(rows), share(p_init, i)
        proposed = search.propose(x[rows], kept.x[rows], threat.eps, p, plan, i)
        candidate = threat.project(x[rows], proposed)
        step = kept.query_anew if reevaluate else kept.query_once
        before = step(judge, candidate, rows, y[rows], plan.at(i + 1))
        path.note(i, before)
        judge.target.visit(kept.x[rows], plan)
    return AttackOutcome(kept.x, path.loss, path.loss[:, :0])


def share(p_init: float, query: int) -> float:
    """Share of pixels that the square of a query covers; queries count from 0."""
    return p_init * 0.5 ** sum(query > halving for halving in HALVINGS)


def stripes(x: Tensor, noise: NoisePlan) -> Tensor:
    """Vertical stripes one pixel wide, each +1 or -1 in every channel: broadcasts to ``x``."""
    return _signs(noise.uniform("start", 0, x[:, :, :1, :]))


def square_linf(x: Tensor, x_adv: Tensor, eps: float, p: float, noise: NoisePlan, step: int) -> Tensor:
    """Moves one square of ``x_adv`` to ``x`` plus or minus ``eps``, a sign for every channel."""
    channels, height, width = x.shape[1:]
    side = min(max(round(math.sqrt(p * height * width)), 1), height, width)
    u = _uniforms(noise, step, x, 2 + channels)
    window = _window(*_offsets(u[:, :2], side, x), side)
    return torch.where(window, x + eps * _signs(u[:, 2:, None, None]).to(x), x_adv)


def tiles(x: Tensor, noise: NoisePlan) -> Tensor:
    """Five by five bumps with a random sign in every channel and direction of their own, at unit norm."""
    channels, height, width = x.shape[1:]
    count = min(5, height, width)
    side = min(height, width) // count
    u = noise.uniform("start", 0, x.new_empty(len(x), 1 + channels, count, count))
    u = u.repeat_interleave(side, 2).repeat_interleave(side, 3)
    upright, level = (p.to(x).repeat(count, count) for p in (bump_pair(side), bump_pair(side).T))
    delta = torch.zeros_like(x)
    top, left = (height - count * side) // 2, (width - count * side) // 2
    where = (..., slice(top, top + count * side), slice(left, left + count * side))
    delta[where] = _signs(u[:, 1:]) * torch.where(u[:, :1] < 0.5, upright, level)
    length: Tensor = delta.flatten(1).norm(dim=1)
    return delta / length[:, None, None, None]


def square_l2(x: Tensor, x_adv: Tensor, eps: float, p: float, noise: NoisePlan, step: int) -> Tensor:
    """Takes the perturbation out of two windows and puts a bump with their and all unused norm in the first.

    Without clipping, the perturbation has the norm ``eps`` afterwards.
    """
    channels, height, width = x.shape[1:]
    side = max(round(math.sqrt(p * height * width)), 3)
    side = min(side + 1 - side % 2, height, width)
    u = _uniforms(noise, step, x, 5 + channels)
    row, column = _offsets(u[:, :2], side, x)
    first, second = _window(row, column, side), _window(*_offsets(u[:, 2:4], side, x), side)
    row, column, pair = row.clamp(0, side - 1), column.clamp(0, side - 1), bump_pair(side).to(x)
    upright = (u[:, 4] < 0.5)[:, None, None]
    eta = first * torch.where(upright, pair[row, column], pair.T[row, column])[:, None]
    rho = _signs(u[:, 5:, None, None]).to(x)

    delta = x_adv - x
    unused = (eps**2 - delta.square().sum(dim=(1, 2, 3), keepdim=True)).clamp(min=0)
    available = (_channel_norm(delta * (first | second)).square() + unused / channels).sqrt()
    direction = _unit(rho * eta + _unit(delta * first))
    return x + torch.where(first | second, direction * available, delta)


def bump(height: int, width: int) -> Tensor:
    """A pyramid-like bump (height, width), ``height >= width``: it falls with the distance to the centre.

    Source:
        Andriushchenko et al. 2020, eq. 2: the sum over k up to M(r, s) of 1 / (n + 1 - k)^2, n = height // 2.
    """
    n = height // 2
    down = (torch.arange(height) - n).abs()
    across = (torch.arange(width) - width // 2).abs()
    terms = torch.arange(1, n + 2, dtype=torch.float64).reciprocal().square()
    by_distance = terms.flip(0).cumsum(0).flip(0)  # at distance d the sum over j > d of 1 / j^2
    return by_distance[torch.maximum(down[:, None], across[None])]


def bump_pair(side: int) -> Tensor:
    """Two bumps of opposite sign and equal norm next to each other, (side, side), at unit norm together."""
    left, right = bump(side, side // 2), bump(side, side - side // 2)
    pair = torch.cat([left / left.norm(), -right / right.norm()], dim=1)  # as in the authors' code
    length: Tensor = pair.norm()
    return pair / length


class Search(NamedTuple):
    """Random search in one norm: the first perturbation in units of the budget, and a changed image."""

    start: Callable[[Tensor, NoisePlan], Tensor]
    propose: Callable[[Tensor, Tensor, float, float, NoisePlan, int], Tensor]


SEARCHES: dict[type, Search] = {Linf: Search(stripes, square_linf), L2: Search(tiles, square_l2)}


def _search_in(threat: ThreatModel) -> Search:
    """The search in a threat's norm; UserError for a threat that has none."""
    if type(threat) not in SEARCHES:
        raise UserError(f"square needs the threat linf or l2, not {type(threat).__name__}.")
    return SEARCHES[type(threat)]


class _Judge(NamedTuple):
    """Judges images by their mean loss over draws."""

    target: Target
    loss: str
    draws: int

    def one(self, x: Tensor, y: Tensor, noise: NoisePlan) -> Judgement:
        """Loss (B,) and share of draws classified right."""
        return self.target.judge(x, y, noise=noise, draws=self.draws, loss=self.loss)

    def two(self, a: Tensor, b: Tensor, y: Tensor, noise: NoisePlan) -> tuple[Judgement, Judgement]:
        """The same of two batches of images, with common random numbers."""
        twice = noise.rows(torch.arange(len(noise)).repeat(2))
        both = self.one(torch.cat([a, b]), y.repeat(2), twice)
        first, second = zip(*(part.chunk(2) for part in both), strict=True)
        return Judgement(*first), Judgement(*second)


class _Spaced(NamedTuple):
    """Losses (B, at most `RECORDED`) before every ``every``-th query."""

    loss: Tensor
    every: int

    @classmethod
    def of(cls, x: Tensor, queries: int) -> "_Spaced":
        """Room for the losses of images."""
        every = -(-queries // RECORDED)
        return cls(x.new_empty(len(x), -(-queries // every)), every)

    def note(self, query: int, loss: Tensor) -> None:
        """Notes the losses (B,) before a query if it is one of the spaced ones."""
        if query % self.every == 0:
            self.loss[:, query // self.every] = loss

    def fill(self, query: int, loss: Tensor) -> None:
        """Notes losses (B,) that no query from this one on changes."""
        self.loss[:, -(-query // self.every) :] = loss[:, None]


@dataclass
class _Kept:
    """The images kept so far, their loss, and which of them are still searched for; changed in place."""

    x: Tensor
    loss: Tensor
    searching: Tensor

    @classmethod
    def unjudged(cls, x_adv: Tensor) -> "_Kept":
        """The start, which every query judges anew."""
        loss = torch.zeros_like(x_adv[:, 0, 0, 0])
        return cls(x_adv, loss, torch.ones_like(loss, dtype=torch.bool))

    @classmethod
    def better_start(cls, judge: _Judge, x: Tensor, x_adv: Tensor, y: Tensor, noise: NoisePlan) -> "_Kept":
        """The start, or the clean image where that is misclassified already."""
        clean, start = judge.two(x, x_adv, y, noise)
        wrong = clean.right == 0
        return cls(
            torch.where(wrong[:, None, None, None], x, x_adv),
            torch.where(wrong, clean.loss, start.loss),
            (clean.right > 0) & (start.right > 0),
        )

    def query_anew(self, judge: _Judge, new: Tensor, rows: Tensor, y: Tensor, noise: NoisePlan) -> Tensor:
        """Keeps one that beats the kept image on the same draws; returns the losses before, (B,)."""
        here, there = judge.two(self.x[rows], new, y, noise)
        self.loss[rows] = here.loss
        self._keep(there.loss > here.loss, new, rows)
        return self.loss

    def query_once(self, judge: _Judge, new: Tensor, rows: Tensor, y: Tensor, noise: NoisePlan) -> Tensor:
        """Keeps one that beats the stored loss or fools all draws; returns the losses before, (B,)."""
        before, there = self.loss.clone(), judge.one(new, y, noise)
        better = (there.loss > before[rows]) | (there.right == 0)
        self._keep(better, new, rows)
        self.loss[rows] = torch.where(better, there.loss, before[rows])
        self.searching[rows] = there.right > 0
        return before

    def _keep(self, better: Tensor, new: Tensor, rows: Tensor) -> None:
        self.x[rows] = torch.where(better[:, None, None, None], new, self.x[rows])


def _uniforms(noise: NoisePlan, step: int, x: Tensor, count: int) -> Tensor:
    """Uniforms (B, count) of one query, in float64."""
    u: Tensor = noise.uniform("probe", step, x.new_empty(len(x), count, dtype=torch.float64))
    return u


def _signs(u: Tensor) -> Tensor:
    return torch.where(u < 0.5, -1.0, 1.0).to(u.dtype)


def _offsets(place: Tensor, side: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Row (B, H, 1) and column (B, 1, W) of every pixel, counted from the corner of a window.

    The window lies wholly within the image; its corner follows from uniforms (B, 2), every place as likely.
    """
    row, column = (
        torch.arange(size, device=x.device) - (place[:, axis, None] * (size - side + 1)).long()
        for axis, size in enumerate(x.shape[2:])
    )
    return row[:, :, None], column[:, None, :]


def _window(row: Tensor, column: Tensor, side: int) -> Tensor:
    """The square window as a mask (B, 1, H, W)."""
    return ((row >= 0) & (row < side) & (column >= 0) & (column < side))[:, None]


def _channel_norm(delta: Tensor) -> Tensor:
    return delta.square().sum(dim=(2, 3), keepdim=True).sqrt()


def _unit(delta: Tensor) -> Tensor:
    """Every channel at unit norm, or zero."""
    tiny = torch.finfo(delta.dtype).tiny
    return delta / _channel_norm(delta).clamp_min(tiny)
