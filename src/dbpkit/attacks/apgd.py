"""Auto-PGD: gradient ascent with momentum that halves its own step, untargeted and targeted.

The thing people get wrong: on a random defence the published code calls an image broken, and gives up on it,
when one draw fails. Here an iterate is judged by all its draws, and what they favour by fresh ones.
"""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from annotated_types import Gt, Le
from torch import Tensor

from dbpkit.attacks.attack import AttackOutcome, attacks
from dbpkit.attacks.dlr import dlr_targeted
from dbpkit.attacks.loss import Loss, LossName, losses
from dbpkit.attacks.passing import mean_in_order
from dbpkit.attacks.target import Target
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count
from dbpkit.threats.pixels import L2, Linf, ThreatModel

Weight = Annotated[float, Gt(0), Le(1)]
"""Of the step against the one before it."""

RHO = 0.75
"""A step is halved if a smaller share of those since the last checkpoint raised the loss."""


@attacks.register("apgd")
def apgd(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    noise: NoisePlan,
    iterations: Count = 100,
    eot: Count = 20,
    n_restarts: Count = 1,
    loss: LossName = "ce",
    momentum: Weight = 0.75,
    judge_draws: Count = 20,
    stop: bool = False,
) -> AttackOutcome:
    """Auto-PGD from random starts.

    Every run has two candidates: the iterate that the fewest of its own draws classified right, by the
    higher loss if several did so, and the one of highest loss. All are judged on the same fresh draws, by
    accuracy and then by margin. For a deterministic model a misclassified iterate therefore wins, as
    published.

    Args:
        target: the classifier, as an attack may use it.
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).
        threat: budget, Linf or L2.
        noise: draws of the attack. Iterate i of run r averages over the draws from
            (r * (iterations + 1) + i) * eot on; those that judge lie behind the last of these.
        iterations: steps of each run.
        eot: draws averaged in each gradient; 1 for deterministic models.
        n_restarts: runs, each from a random allowed image.
        loss: registered loss that is maximised: ``ce``, ``dlr`` or ``margin``.
        momentum: share of the new step, in (0, 1]; the rest of it repeats the last one.
        judge_draws: draws that judge a candidate; 1 for deterministic models.
        stop: whether an image is left alone once none of an iterate's draws and none of ``judge_draws`` fresh
            ones is classified right. It saves passes; the loss of that image is driven no further. An
            evaluation turns it on where the model that judges is deterministic for the attacker.

    Returns:
        The attacked images, and loss and gradient norm of all iterates of the run that made them,
        (B, iterations + 1), start and end included; those of a stopped image repeat its last.

    Raises:
        UserError: if an option is out of range, or the threat is neither Linf nor L2.

    Source:
        Croce & Hein 2020 (arXiv:2003.01690), algorithm 1 and section 3; candidates and judging after the
        repair for random defences by Liu et al., ICLR 2025, which averages over 20 draws.
    """
    settings = _Settings(iterations, eot, momentum, judge_draws, stop)
    settings.check("apgd", threat)
    goals = [_Goal(losses.resolve(loss), y)] * n_restarts
    return _best_of(goals, Target.of(target), x, y, threat=threat, noise=noise, settings=settings)


@attacks.register("apgd_targeted")
def apgd_targeted(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    noise: NoisePlan,
    iterations: Count = 100,
    eot: Count = 20,
    n_restarts: Count = 1,
    n_targets: Count = 9,
    momentum: Weight = 0.75,
    judge_draws: Count = 20,
    stop: bool = False,
) -> AttackOutcome:
    """Auto-PGD towards one likely class after the other, by the targeted difference of logits ratio.

    The classes are the likeliest wrong ones by the clean image's logits, averaged over ``judge_draws`` draws
    of their own. Each gets ``n_restarts`` runs. All else is as in ``apgd``.

    Args:
        target: the classifier, as an attack may use it.
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).
        threat: budget, Linf or L2.
        noise: draws of the attack, used as in ``apgd``.
        iterations: steps of each run.
        eot: draws averaged in each gradient; 1 for deterministic models.
        n_restarts: runs for each target class.
        n_targets: how many classes are aimed at; all wrong ones if there are fewer.
        momentum: share of the new step, in (0, 1].
        judge_draws: draws that judge a candidate; 1 for deterministic models.
        stop: whether an image is left alone once it is broken, see ``apgd``; so are the classes left to try.

    Returns:
        As ``apgd``.

    Raises:
        UserError: if an option is out of range, the threat is neither Linf nor L2, or there are fewer than
            4 classes.

    Source:
        Croce & Hein 2020 (arXiv:2003.01690), section 5; 9 target classes as in AutoAttack.
    """
    settings, runs = _Settings(iterations, eot, momentum, judge_draws, stop), n_targets * n_restarts
    settings.check("apgd_targeted", threat)
    target = Target.of(target)
    plan = noise.at(settings.first_unused(runs))
    logits = mean_in_order(target.draws(x, noise=plan, count=judge_draws))
    others = logits.scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)
    aims = others[:, : min(n_targets, logits.shape[1] - 1)].unbind(dim=1)
    goals = [_Goal(dlr_targeted, torch.stack([y, aim], dim=1)) for aim in aims for _ in range(n_restarts)]
    return _best_of(goals, target, x, y, threat=threat, noise=noise, settings=settings)


def checkpoints(iterations: int) -> list[int]:
    """Returns the iterates at which steps may be halved: w_j = ceil(p_j N), p_0 = 0, p_1 = 0.22.

    Source:
        Croce & Hein 2020, section 3.2: p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06), in hundredths here.
    """
    shares = [0, 22]
    while shares[-1] < 100:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 3, 6))
    return sorted({-(-share * iterations // 100) for share in shares if share <= 100})


class _Settings(NamedTuple):
    """What both attacks share, and which draws judge: those behind all that gradients may use."""

    iterations: int
    eot: int
    momentum: float
    judge_draws: int
    stop: bool

    def check(self, name: str, threat: ThreatModel) -> None:
        """Raises UserError if the threat is none of the published ones."""
        if type(threat) not in (Linf, L2):
            raise UserError(f"{name} needs the threat linf or l2, not {type(threat).__name__}.")

    def first_judge(self, runs: int) -> int:
        """Index of the block of draws that judges candidates; one block for every iterate's stop follows."""
        return -(-runs * (self.iterations + 1) * self.eot // self.judge_draws)

    def first_unused(self, runs: int) -> int:
        """Index of the first block that ``runs`` runs leave unused."""
        return self.first_judge(runs) + 1 + runs * (self.iterations + 1)


class _Goal(NamedTuple):
    """What a run maximises: a loss of logits and ``labels`` (B,) or (B, n), the label first."""

    loss: Loss
    labels: Tensor


class _Point(NamedTuple):
    """An iterate of every image with its averages over draws; ``right`` is the share classified right."""

    x: Tensor
    grad: Tensor
    loss: Tensor
    right: Tensor


class _Judged(NamedTuple):
    """Images, their accuracy and margin on judging draws, and the paths that led to them."""

    x: Tensor
    right: Tensor
    margin: Tensor
    loss: Tensor
    grad_norm: Tensor


def _best_of(
    goals: Sequence[_Goal],
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    noise: NoisePlan,
    settings: _Settings,
) -> AttackOutcome:
    """One run for each goal; of each image the best candidate of all runs, judged on the same draws."""
    path = x.new_zeros(len(x), settings.iterations + 1)
    best = _Judged(x.clone(), x.new_full((len(x),), torch.inf), x.new_zeros(len(x)), path, path.clone())
    judge = settings.first_judge(len(goals))
    left = torch.arange(len(x), device=x.device)
    for run, (loss, labels) in enumerate(goals):
        plan, goal = noise.rows(left), _Goal(loss, labels[left])
        candidates, *paths = _ascend(
            target, x[left], goal, run, judge, threat=threat, noise=plan, settings=settings
        )
        for candidate in candidates:
            gap, right = target.judge(candidate, y[left], noise=plan.at(judge), draws=settings.judge_draws)
            better = (right < best.right[left]) | ((right == best.right[left]) & (gap > best.margin[left]))
            for whole, part in zip(best, (candidate, right, gap, *paths), strict=True):
                whole[left[better]] = part[better]
        if settings.stop:
            left = left[best.right[left] > 0]
        if not len(left):
            break
    return AttackOutcome(best.x, best.loss, best.grad_norm)


def _ascend(
    target: Target,
    x: Tensor,
    goal: _Goal,
    run: int,
    judge: int,
    *,
    threat: ThreatModel,
    noise: NoisePlan,
    settings: _Settings,
) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """One run: the most fooling iterate, that of highest loss, and the paths of loss and gradient norm."""
    y = goal.labels if goal.labels.ndim == 1 else goal.labels[:, 0]
    x_adv = x_before = threat.random_start(x, noise.at(run))
    step, rises = (x.new_full((len(x),), value) for value in (2 * threat.eps, 0.0))
    here = _Point(x_adv, torch.zeros_like(x), torch.full_like(step, torch.inf), torch.ones_like(step))
    best = fooling = here._replace(loss=torch.full_like(step, -torch.inf))
    halved = torch.zeros_like(step, dtype=torch.bool)
    rows, plan = torch.arange(len(x)), noise  # of the images that are searched for
    there = rows.to(x.device)
    last, best_then, paths = 0, best.loss, []
    for i in range(settings.iterations + 1):
        if not len(rows):
            break
        block = run * (settings.iterations + 1) + i
        if i:
            target.visit(x_adv[there], plan)
        before = here.loss
        here = _evaluated(target, here, x_adv, goal, there, plan.at(block), settings.eot)
        paths.append((here.loss, here.grad.flatten(1).norm(dim=1)))
        rises += here.loss > before
        best = _where(here.loss > best.loss, here, best)
        more = (here.right < fooling.right) | ((here.right == fooling.right) & (here.loss > fooling.loss))
        fooling = _where(more, here, fooling)
        if settings.stop:
            rows = _unbroken(target, here, y, rows, noise.at(judge + 1 + block), settings.judge_draws)
            plan, there = noise.rows(rows), rows.to(x.device)
        if i in checkpoints(settings.iterations):
            stuck = (rises < RHO * (i - last)) | (~halved & (best.loss <= best_then))
            stuck &= torch.zeros_like(halved).index_fill(0, there, True)  # one that stopped stays there
            step, here = torch.where(stuck, step / 2, step), _where(stuck, best, here)
            rises, halved, last, best_then = torch.zeros_like(rises), stuck, i, best.loss
        z = threat.project(x, here.x + step[:, None, None, None] * threat.steepest(here.grad))
        share = settings.momentum if i else 1.0
        x_adv = threat.project(x, here.x + share * (z - here.x) + (1 - share) * (here.x - x_before))
        x_before = here.x
    paths += paths[-1:] * (settings.iterations + 1 - len(paths))
    loss_path, norm_path = (torch.stack(path, dim=1) for path in zip(*paths, strict=True))
    return (fooling.x, best.x), loss_path, norm_path


def _evaluated(
    target: Target, here: _Point, x_adv: Tensor, goal: _Goal, rows: Tensor, noise: NoisePlan, eot: int
) -> _Point:
    """Moves the chosen rows to ``x_adv``; the others keep their point, which never beats itself."""
    found = target.gradient(x_adv[rows], goal.labels[rows], noise=noise, eot=eot, loss=goal.loss)
    parts = (x_adv[rows], *found)
    return _Point(*(old.index_put((rows,), new.to(old.dtype)) for old, new in zip(here, parts, strict=True)))


def _unbroken(target: Target, here: _Point, y: Tensor, rows: Tensor, noise: NoisePlan, draws: int) -> Tensor:
    """Those of ``rows`` of which a draw of the iterate is classified right, or a fresh one that judges.

    Positions are on the CPU: whom an accelerator finds fooled is the one thing that is read back from it, and
    once for each image what the judging draws say.
    """
    doubtful = rows[(here.right == 0).cpu()[rows]]
    if not len(doubtful):
        return rows
    there = doubtful.to(y.device)
    judged = target.judge(here.x[there], y[there], noise=noise.rows(doubtful), draws=draws)
    return rows[~torch.isin(rows, doubtful[(judged.right == 0).cpu()])]


def _where(chosen: Tensor, here: _Point, there: _Point) -> _Point:
    """The one point's rows where ``chosen`` (B,), else the other's."""
    columns = (chosen.reshape(-1, *[1] * (part.ndim - 1)) for part in here)
    return _Point(*map(torch.where, columns, here, there))
