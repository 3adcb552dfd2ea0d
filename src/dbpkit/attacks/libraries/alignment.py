"""Keeps noise and example together while a library attacks that knows of neither.

The thing people get wrong: looking up whose noise a row needs, by its position in the batch or by the nearest
clean image. Positions change when a library drops rows, and attacks such as FAB, Boundary and HopSkipJump
leave every neighbourhood. So a library gets one example at a time, or a batch that must stay whole.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dbpkit.attacks.attack import AttackOutcome
from dbpkit.attacks.libraries.library import seeded_libraries
from dbpkit.attacks.passing import mean_in_order
from dbpkit.attacks.target import Target
from dbpkit.foundation.errors import UserError, shown
from dbpkit.foundation.frozen import Frozen
from dbpkit.foundation.inputs import check_length, whole
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.types import RandomisedClassifier
from dbpkit.threats.pixels import ThreatModel

Alignment = Literal["single", "constant"]
"""``single``: one example a call of the library. ``constant``: a batch that the library must keep whole."""

Draws = Literal["fresh", "fixed"]
"""``fresh``: new draws at every query. ``fixed``: the same ones, for attacks that assume a function."""

BUDGET_TOLERANCE = 1e-5
"""Excess over the budget that float32 rounding explains; as in `dbpkit.results.flags`."""


class Returned(NamedTuple):
    """What a library returned: ``x_adv`` (B, C, H, W), and ``claimed`` (B,), where it says it succeeded."""

    x_adv: Tensor
    claimed: Tensor


class Queries(NamedTuple):
    """How a library's queries are answered: draws averaged in each, whether they are new, and for how many.

    Attributes:
        eot: draws averaged in every query.
        draws: whether every query has draws of its own.
        alignment: one example a call, or a batch that stays whole.
    """

    eot: int
    draws: Draws = "fresh"
    alignment: Alignment = "single"


Routine = Callable[["AlignedView", Tensor, Tensor], Returned]
"""``routine(view, x, y)`` calls the library."""


class AlignedView(Frozen):
    """A randomised classifier as a plain ``model(x) -> logits``, for one batch of examples.

    Logits are the mean over ``eot`` draws, and so is their gradient; the forward pass keeps no graph, the
    backward pass makes it in micro-batches. Every query is counted by the target.

    Args:
        model: the classifier, or a target.
        noise: plan of the examples. Query q uses draws q * eot to q * eot + eot - 1 of each.
        eot: draws averaged in every query.
        draws: whether every query has draws of its own.
        alignment: with ``single`` the plan has one example, to which all rows of a query belong, each a query
            of its own. With ``constant`` the rows of a query are the plan's, in its order.
        dtype: what the model computes in; None takes it as it comes.

    Raises:
        UserError: if an option is wrong, or a query does not fit the plan.

    Source:
        Athalye et al. 2018 (arXiv:1707.07397), expectation over transformation.

    Example:
        >>> from torch import nn
        >>> from dbpkit import NoisePlan, Undefended
        >>> classifier = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        >>> view = AlignedView(Undefended(classifier), NoisePlan.of(0, [7]))
        >>> view(torch.zeros(5, 3, 2, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        model: RandomisedClassifier | Target,
        noise: NoisePlan,
        *,
        eot: int = 1,
        draws: Draws = "fresh",
        alignment: Alignment = "single",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_length(noise, len(noise) if hasattr(noise, "example_ids") else 0, "AlignedView")
        whole(eot, "eot", 1)
        if draws not in ("fresh", "fixed") or alignment not in ("single", "constant"):
            raise UserError(
                "an adapted attack has draws 'fresh' or 'fixed' and alignment 'single' or 'constant', not"
                f" {shown(draws)} and {shown(alignment)}."
            )
        if alignment == "single" and len(noise) != 1:
            raise UserError(f"a view with alignment 'single' is bound to one example, not to {len(noise)}.")
        self.target = Target.of(model)
        self.noise = noise
        self.eot = eot
        self.draws = draws
        self.alignment = alignment
        self.dtype = dtype
        self.queries = 0
        self.watch: Callable[[Tensor, NoisePlan], None] = lambda _x, _noise: None

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, K) of images (B, C, H, W) in [0, 1], differentiable once in ``x``."""
        given = x if self.dtype is None else x.to(self.dtype)
        logits: Tensor = _MeanLogits.apply(given, self, self._next(len(x)))  # type: ignore[no-untyped-call]
        return logits.to(x.dtype)

    def _next(self, count: int) -> NoisePlan:
        """The plan of the next query."""
        if self.alignment == "constant" and count != len(self.noise):
            raise UserError(
                f"the library sent {count} images to a model bound to {len(self.noise)} examples: it drops or"
                " cuts rows, and the noise of the others is unknown. Use alignment = 'single'."
            )
        if self.alignment == "constant":
            plan, draw, used = self.noise, torch.full((count,), self.queries), 1
        else:
            plan, draw, used = self.noise.rows([0] * count), self.queries + torch.arange(count), count
        self.queries += used
        return replace(plan, draw=draw if self.draws == "fresh" else torch.zeros_like(draw))


class _MeanLogits(torch.autograd.Function):
    """Logits averaged over draws; the backward pass is that of the target, whose loss is ``logits . v``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, view: AlignedView, plan: NoisePlan) -> Tensor:
        ctx.save_for_backward(x)
        ctx.view, ctx.plan = view, plan
        return mean_in_order(view.target.draws(x, noise=plan, count=view.eot))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        ctx.view.watch(x, ctx.plan)
        with torch.enable_grad():
            found = ctx.view.target.gradient(x, v, noise=ctx.plan, eot=ctx.view.eot, loss=_along)
        return found.grad, None, None


def _along(logits: Tensor, v: Tensor) -> Tensor:
    """Logits (B, K) along ``v`` (B, K): the gradient of this is the product of ``v`` and the Jacobian."""
    return (logits * v).sum(dim=1)


def attack_aligned(
    routine: Routine,
    target: Target | RandomisedClassifier,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    noise: NoisePlan,
    queries: Queries,
) -> AttackOutcome:
    """Lets a library attack, with noise and example together.

    Every image that the library differentiates, and the one it returns, is shown to ``target.visit`` after
    projection. The library's global random numbers are seeded from the plan, and restored.

    Args:
        routine: calls the library.
        target: the classifier.
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).
        threat: budget.
        noise: draws of the attack.
        queries: how they are answered.

    Returns:
        The library's images, not projected; ``loss`` (B, 2), the expected loss of the clean and the returned
        image on ``eot`` draws of branch 1, which no query used; no gradient norms; ``claimed``, where the
        library says that it found a misclassified image and that image is within the budget.

    Raises:
        UserError: if an option is wrong or the library breaks the alignment.
    """
    target = Target.of(target)
    single = queries.alignment == "single"
    parts = [slice(i, i + 1) for i in range(len(x))] if single else [slice(None)]
    found = [_call(routine, target, x[rows], y[rows], threat, noise.rows(rows), queries) for rows in parts]
    x_adv = torch.cat([f.x_adv for f in found]).to(x.dtype)
    claimed = torch.cat([f.claimed for f in found]).bool()
    claimed &= threat.distance(x, x_adv) <= threat.eps + BUDGET_TOLERANCE
    loss = [
        target.judge(images, y, noise=noise.branch(1), draws=queries.eot, loss="ce").loss
        for images in (x, threat.project(x, x_adv))
    ]
    return AttackOutcome(x_adv, torch.stack(loss, 1), x.new_zeros(len(x), 0), claimed)


def _call(
    routine: Routine,
    target: Target,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    noise: NoisePlan,
    queries: Queries,
) -> Returned:
    """One call of the library, and a look at what it returned."""
    view = AlignedView(target, noise, **queries._asdict(), dtype=x.dtype)
    view.watch = _watcher(target, x, threat)
    with seeded_libraries(_seed(noise), x.device):
        returned = routine(view, x.clone(), y)
    if returned.x_adv.shape != x.shape:
        raise UserError(
            f"the library returned images of shape {tuple(returned.x_adv.shape)} for {tuple(x.shape)}: it is"
            " no attack that perturbs images."
        )
    found = Returned(*(v.detach().to(x.device) for v in returned))
    target.visit(threat.project(x, found.x_adv.to(x.dtype)), noise)
    return found


def _watcher(target: Target, x: Tensor, threat: ThreatModel) -> Callable[[Tensor, NoisePlan], None]:
    """Shows differentiated images to the target's observer, projected."""
    return lambda x_adv, noise: target.visit(threat.project(x.expand_as(x_adv), x_adv), noise)


def _seed(noise: NoisePlan) -> int:
    """A seed below 2**32 from the first example's noise."""
    u = noise.rows([0]).uniform("start", 0, torch.zeros(1, 2, dtype=torch.float64))[0]
    high, low = map(int, (u * 2**16).long().tolist())
    return high << 16 | low
