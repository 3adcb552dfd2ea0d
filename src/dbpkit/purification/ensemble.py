"""An ensemble: one answer from the mean of the logits, or of the probabilities, of several purifications.

The thing people get wrong: attacking it by the mean of single purifications' losses (EoT). It answers with
the mean of the logits, and the gradient of the loss of a mean is not the mean of the losses' gradients.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.frozen import Frozen, as_frozen, uncompiled
from dbpkit.foundation.inputs import check_outputs, whole
from dbpkit.foundation.noise import NoisePlan
from dbpkit.purification.purifier import PURIFIER_SITES, check_call, takes_noise

Averaged = Literal["logits", "softmax"]


class Ensemble(Frozen):
    """A randomised classifier asked several times, each time with noise of its own, that answers once.

    Its gradient is exact, that of the loss of the mean: the members are called without a graph, and once more
    with one each in the backward pass, so that it takes one member's memory and 3 passes a member where one
    differentiated purification takes 2. It has no second derivative.

    Args:
        model: called as ``model(x, noise=plan)``, such as a `PurifiedClassifier`.
        members: how often it is asked, R.
        average: ``logits``, or ``softmax``: then it returns the logarithm of the mean probabilities.

    Attributes:
        sites: noise sites of the model.

    Raises:
        UserError: if the model takes no plan, or another value is wrong.

    Example:
        >>> from dbpkit import NoisePlan, PurifiedClassifier, Purifier, load_embedded
        >>> denoiser, classifier = load_embedded()
        >>> model = Ensemble(PurifiedClassifier(Purifier(denoiser, "one_step"), classifier), 3)
        >>> model(torch.full((2, 3, 32, 32), 0.5), noise=NoisePlan.of(0, [4, 9])).shape
        torch.Size([2, 10])

    Source:
        Lee & Kim 2023 (arXiv:2303.09051), ensemble of purification runs; Du, Hill & Cai 2026 (MEFA,
        arXiv:2605.06357), mean logits.
    """

    def __init__(self, model: Any, members: int = 10, average: Averaged = "logits") -> None:
        super().__init__()
        if isinstance(model, type) or not callable(model) or not takes_noise(model):
            raise UserError("an ensemble is of a model that is called as model(x, noise=plan).")
        if average not in ("logits", "softmax"):
            raise UserError(f"an ensemble averages 'logits' or 'softmax', not {average!r}.")
        self.model = as_frozen(model, "the model of an ensemble")
        self.members = whole(members, "members of an ensemble", 1)
        self.average = average
        self.sites = frozenset(getattr(model, "sites", PURIFIER_SITES))

    @uncompiled
    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        """Returns logits (B, K) of images (B, C, H, W) in [0, 1]: one answer for each image.

        Draw d of an image's plan is the ensemble of draws ``d R`` to ``d R + R - 1`` of the model, also of
        noise that is shared with another plan: who knows an ensemble's tape knows that of each member.
        """
        check_call(x, noise, "Ensemble")
        self.settle()
        plans = self.plans(noise)
        if torch.is_grad_enabled() and x.requires_grad:
            return cast(Tensor, _Answer.apply(x, self, plans))  # type: ignore[no-untyped-call]
        with torch.no_grad():
            return self.averaged([self.asked(x, plan) for plan in plans])

    def plans(self, noise: NoisePlan) -> list[NoisePlan]:
        """The plan of each member."""
        return [_member(noise, self.members, r) for r in range(self.members)]

    def asked(self, x: Tensor, noise: NoisePlan) -> Tensor:
        """Logits (B, K) of one member."""
        return check_outputs(self.model(x, noise=noise), len(x))

    def averaged(self, logits: Sequence[Tensor]) -> Tensor:
        """The answer (B, K) of members that said ``logits``, added up in their order."""
        count = len(logits)
        if self.average == "softmax":
            return torch.stack([one.log_softmax(dim=1) for one in logits]).logsumexp(dim=0) - math.log(count)
        total = logits[0]
        for one in logits[1:]:
            total = total + one
        return total / count


class _Answer(torch.autograd.Function):
    """The answer of an ensemble; the backward pass calls each member again, one at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ensemble: Ensemble, plans: list[NoisePlan]) -> Tensor:
        """The mean of what the members say."""
        logits = [ensemble.asked(x, plan).detach() for plan in plans]
        ctx.ensemble, ctx.plans, ctx.logits = ensemble, plans, logits
        ctx.save_for_backward(x)
        return ensemble.averaged(logits)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """The sum over members of their gradients, weighted by what each does to the mean."""
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            said = [one.requires_grad_() for one in ctx.logits]
            weights = torch.autograd.grad(ctx.ensemble.averaged(said), said, grad)
            total = torch.zeros_like(x)
            for plan, weight in zip(ctx.plans, weights, strict=True):
                leaf = x.detach().requires_grad_()
                total += torch.autograd.grad(ctx.ensemble.asked(leaf, plan), leaf, weight)[0]
        return total, None, None


def _member(noise: NoisePlan, members: int, r: int) -> NoisePlan:
    """The plan of member r: repetition r, also of the plans that sites are shared with."""
    rows = slice(r, None, members)
    plan = noise.repeat(members).rows(rows)
    for site, source in noise.shared.items():
        plan = plan.sharing([site], source.repeat(members).rows(rows))
    return plan
