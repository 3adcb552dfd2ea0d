"""FAB: the nearest misclassified image, by projecting onto the linearised decision boundary.

The thing people get wrong: a random defence has no boundary to be near to, its boundary moves with every
draw. FAB is right for deterministic models; with ``eot`` above 1 it is an approximation.
"""

import itertools
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor
from torch.nn import functional

from dbpkit.attacks.attack import AttackOutcome, attacks
from dbpkit.attacks.loss import check_classes, margin
from dbpkit.attacks.passing import mean_in_order
from dbpkit.attacks.target import Target
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count, Share
from dbpkit.threats.pixels import ThreatModel


@attacks.register("fab")
def fab(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    noise: NoisePlan,
    iterations: Count = 100,
    n_targets: Count = 9,
    n_restarts: Count = 1,
    alpha_max: Share = 0.1,
    eta: Annotated[float, Ge(1)] = 1.05,
    beta: Annotated[float, Gt(0), Lt(1)] = 0.9,
    eot: Count = 10,
) -> AttackOutcome:
    """Targeted FAB: seeks the smallest perturbation that makes each of the likeliest other classes win.

    With ``eot = 1`` the model is taken to be deterministic, and an image within the budget ends the search
    for its example. With more draws, logits and gradients are averaged over them: a search near the boundary
    of the expected logits, which need not be where a single draw fails, and no example ends early. A clean
    image that is misclassified has distance 0 and is returned as it is. AutoAttack's form: no final search.

    Args:
        target: the classifier, as an attack may use it.
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).
        threat: Linf or L2, or any other norm l_p with p > 1; the budget ends a search and bounds the outcome.
        noise: draws of the attack. Draw block 0 ranks the targets; every step takes two blocks of ``eot``.
        iterations: steps for each target and restart.
        n_targets: most target classes, by clean logit.
        n_restarts: searches for each target; the first starts at the image, the others from random images
            within half the budget.
        alpha_max: largest share of the step that is taken from the image instead of the iterate, in [0, 1].
        eta: how far a step overshoots the plane, >= 1.
        beta: how much of a misclassified iterate's perturbation is kept, in (0, 1).
        eot: draws averaged in each gradient and judgement.

    Returns:
        The nearest misclassified images, or the last iterates where there is none, projected onto the budget,
        and logit difference to the label and its gradient norm in the first search, (B, iterations).

    Raises:
        UserError: if an option is out of range.

    Source:
        Croce & Hein 2020 (arXiv:1907.02044), algorithm 1; targeted with 9 classes as in AutoAttack, Croce &
        Hein 2020 (arXiv:2003.01690).
    """
    search = _Search(Target.of(target), threat, iterations, eot, _Step(threat, alpha_max, eta), beta)
    clean = _expected_logits(search.target, x, noise.at(0), eot)
    y = check_classes(y, clean)
    aims = _likeliest_others(clean, y, n_targets)
    found = _Found.of(x, margin(clean, y) > 0, iterations)
    for run, (rank, restart) in enumerate(itertools.product(range(aims.shape[1]), range(n_restarts))):
        pair = torch.stack([y, aims[:, rank]], dim=1)
        start = x.clone() if restart == 0 else (x + threat.random_start(x, noise.at(run))) / 2
        search.run(x, start, pair, found, noise, run)
    x_adv = _choose(found.distance < torch.inf, found.nearest, found.last)
    return AttackOutcome(threat.project(x, x_adv), found.loss, found.grad_norm)


def nearest_on_plane(x: Tensor, w: Tensor, rise: Tensor, threat: ThreatModel) -> Tensor:
    """Projects images onto the plane w . (z - x) = rise, within the pixel range.

    The solution moves along the steepest direction of the norm, every pixel until it meets its bound; how
    far follows from one sort. If the pixel range does not meet the plane, it is the point nearest to it.

    Args:
        x: images (B, C, H, W) in [0, 1].
        w: normals of the planes (B, C, H, W).
        rise: by how much w . z is to rise, (B,), of any sign.
        threat: the norm; its ``steepest`` gives the direction. Exact for l_p with p > 1.

    Returns:
        The nearest points z, (B, C, H, W) in [0, 1].

    Source:
        Croce & Hein 2020 (arXiv:1907.02044), section 2.2, eq. 3 and 4.
    """
    signed = w * rise.sign()[:, None, None, None]
    way = threat.steepest(signed).flatten(1).double()
    start, rise = x.flatten(1).double(), rise.abs().double()[:, None]
    room = torch.where(way > 0, 1 - start, start)
    until = torch.where(way == 0, 0.0, room / way.abs())  # step length at which a pixel meets its bound
    until, order = until.sort(dim=1)
    slopes = (way * signed.flatten(1).double()).gather(1, order)
    slopes = slopes.flip(1).cumsum(dim=1).flip(1)  # of the pixels that still move before bound k
    risen = (until.diff(dim=1, prepend=torch.zeros_like(rise)) * slopes).cumsum(dim=1)
    met = (risen < rise).sum(dim=1, keepdim=True)  # bounds that are met before the plane
    before = functional.pad(torch.stack([until, risen]), (1, 0)).gather(2, met.expand(2, -1, -1))
    slope = functional.pad(slopes, (0, 1)).gather(1, met)
    step = before[0] + torch.where(slope > 0, (rise - before[1]) / slope, 0.0)
    return (start + step * way).clamp(0, 1).to(x.dtype).reshape(x.shape)


def logit_difference(logits: Tensor, y: Tensor) -> Tensor:
    """The target's logit minus the label's, (B,), for ``y`` (B, 2) of label and target."""
    label, target = logits.gather(1, y).unbind(dim=1)
    return target - label


class _Step(NamedTuple):
    """One step past the linearised boundary, partly from the image."""

    threat: ThreatModel
    alpha_max: float
    eta: float

    def __call__(self, x: Tensor, iterate: Tensor, grad: Tensor, value: Tensor) -> Tensor:
        """Steps past the plane value + grad . (z - iterate) = 0."""
        value_at_x = value + (grad * (x - iterate)).flatten(1).sum(dim=1)
        from_iterate = nearest_on_plane(iterate, grad, -value, self.threat)
        from_x = nearest_on_plane(x, grad, -value_at_x, self.threat)
        a, b = self.threat.distance(iterate, from_iterate), self.threat.distance(x, from_x)
        tiny = torch.finfo(x.dtype).tiny
        alpha = (a / (a + b).clamp_min(tiny)).clamp(max=self.alpha_max)[:, None, None, None]
        past_iterate, past_x = iterate + self.eta * (from_iterate - iterate), x + self.eta * (from_x - x)
        return ((1 - alpha) * past_iterate + alpha * past_x).clamp(0, 1)


@dataclass
class _Found:
    """Of every image the nearest misclassified one, the last iterate, and the first search's path."""

    nearest: Tensor
    last: Tensor
    distance: Tensor
    loss: Tensor
    grad_norm: Tensor

    @classmethod
    def of(cls, x: Tensor, wrong: Tensor, iterations: int) -> "_Found":
        """Before the first search; an image that is ``wrong`` is its own nearest one."""
        loss, grad_norm = x.new_zeros(2, len(x), iterations)
        distance = torch.where(wrong, 0.0, torch.inf).to(x)
        return cls(x.clone(), x.clone(), distance, loss, grad_norm)

    def note(self, rows: Tensor, step: Tensor, size: Tensor, wrong: Tensor) -> None:
        """Keeps the steps that are misclassified and nearer than all before."""
        nearer = wrong & (size < self.distance[rows])
        self.distance[rows] = torch.where(nearer, size, self.distance[rows])
        self.nearest[rows] = _choose(nearer, step, self.nearest[rows])
        self.last[rows] = step

    def note_path(self, rows: Tensor, i: int, grad: Tensor, value: Tensor, after: Tensor) -> None:
        """Keeps loss and gradient norm; examples that end repeat their last values."""
        self.grad_norm[rows, i:] = grad.flatten(1).norm(dim=1)[:, None]
        self.loss[rows, i] = value
        self.loss[rows, i + 1 :] = after[:, None]


class _Search(NamedTuple):
    """Algorithm 1 of the paper for one target class and one start."""

    target: Target
    threat: ThreatModel
    iterations: int
    eot: int
    step: _Step
    beta: float

    def run(
        self, x: Tensor, iterate: Tensor, pair: Tensor, found: _Found, noise: NoisePlan, run: int
    ) -> None:
        """Searches from ``iterate``, which is changed in place, and notes what it finds."""
        near_enough = self.threat.eps if self.eot == 1 else 0.0
        searching = torch.zeros(len(x), dtype=torch.bool)
        rows, plan = searching.nonzero()[:, 0], noise
        for i in range(self.iterations):
            far = (found.distance > near_enough).cpu()  # the one answer of a step that the host waits for
            left = torch.ones_like(far) if run == i == 0 else far
            if not bool(left.any()):
                break
            if not torch.equal(left, searching):
                searching, rows, plan = left, left.nonzero()[:, 0].to(x.device), noise.rows(left)
            block = 1 + 2 * (run * self.iterations + i)
            grad, value, _ = self.target.gradient(
                iterate[rows], pair[rows], noise=plan.at(block), eot=self.eot, loss=logit_difference
            )
            step = self.step(x[rows], iterate[rows], grad, value)
            logits = _expected_logits(self.target, step, plan.at(block + 1), self.eot)
            wrong = margin(logits, pair[rows, 0]) > 0
            found.note(rows, step, self.threat.distance(x[rows], step), wrong)
            iterate[rows] = _choose(wrong, x[rows] + self.beta * (step - x[rows]), step)
            if run == 0:
                found.note_path(rows, i, grad, value, logit_difference(logits, pair[rows]))
            self.target.visit(self.threat.project(x[rows], step), plan)


def _expected_logits(target: Target, x: Tensor, noise: NoisePlan, eot: int) -> Tensor:
    """Logits (B, K), averaged over draws."""
    return mean_in_order(target.draws(x, noise=noise, count=eot))


def _likeliest_others(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """The classes (B, at most ``count``) other than the label, the highest logit first."""
    label = functional.one_hot(y, logits.shape[1]).bool()
    ranked = logits.masked_fill(label, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return ranked[:, : min(count, logits.shape[1] - 1)]


def _choose(which: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Images of ``a`` where ``which`` (B,) is true, else of ``b``."""
    return torch.where(which[:, None, None, None], a, b)
