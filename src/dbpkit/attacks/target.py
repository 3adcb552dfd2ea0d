"""What an attack may ask of the model: logits and gradients, in micro-batches of bounded size.

The thing people get wrong: averaging the gradient over draws (EoT) one image batch at a time. Here the
draws of all images are rows of one batch, cut into micro-batches, and each image's rows are summed in
the order of its draws, so that the sum does not depend on how they were cut.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from dbpkit.errors import UserError
from dbpkit.noise import NoisePlan
from dbpkit.registry import Registry
from dbpkit.threat import ThreatModel
from dbpkit.types import RandomisedClassifier

attacks: Registry["Attack"] = Registry("attack")
losses: Registry["Loss"] = Registry("loss")

Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(logits, y)`` of logits (B, K) is (B,); ``y`` is (B,), or (B, n) where the label is not enough."""

Visit = Callable[[Tensor, NoisePlan], None]
"""Called with an iterate (B, C, H, W) and the attack's plan of its examples."""


class AttackOutcome(NamedTuple):
    """What an attack returns.

    Attributes:
        x_adv: attacked images (B, C, H, W).
        loss: expected loss at every iterate, before its step, (B, iterations).
        grad_norm: Euclidean norm of the averaged gradient there, (B, iterations); (B, 0) without gradients.
    """

    x_adv: Tensor
    loss: Tensor
    grad_norm: Tensor


class Attack(Protocol):
    """Searches near ``x`` for an image that is misclassified."""

    def __call__(
        self, target: "Target", x: Tensor, y: Tensor, *, threat: ThreatModel, noise: NoisePlan
    ) -> AttackOutcome:
        """Attacks images (B, C, H, W) in [0, 1] with labels (B,), using only draws of ``noise``."""
        ...


class ExpectedGradient(NamedTuple):
    """Averages over draws: ``grad`` (B, C, H, W), ``loss`` (B,), share classified right ``right`` (B,)."""

    grad: Tensor
    loss: Tensor
    right: Tensor


class Target:
    """A randomised classifier as an attack may use it.

    Args:
        model: the classifier.
        micro_batch: most rows (images times draws) that go through the model at once.
        fixed_shape: whether every call has exactly ``micro_batch`` rows, the last row repeated as needed, so
            that kernels round alike however the rows are cut.

    Attributes:
        forward_passes: rows passed through the model so far, by example id.
        gradient_passes: those of them that were differentiated.
        visit: an attack calls it with every iterate, for protocols that judge while the attack runs.
    """

    def __init__(
        self, model: RandomisedClassifier, micro_batch: int = 32, *, fixed_shape: bool = False
    ) -> None:
        self.model = model
        self.micro_batch = micro_batch
        self.fixed_shape = fixed_shape
        self.forward_passes: Counter[int] = Counter()
        self.gradient_passes: Counter[int] = Counter()
        self.visit: Visit = lambda _x, _noise: None

    @property
    def forward_rows(self) -> int:
        """Rows passed through the model so far."""
        return self.forward_passes.total()

    @property
    def gradient_rows(self) -> int:
        """Those of them that were differentiated."""
        return self.gradient_passes.total()

    @classmethod
    def of(cls, model: "RandomisedClassifier | Target") -> "Target":
        """Returns ``model`` as a target with default settings, or as it is if it is one."""
        return model if isinstance(model, Target) else cls(model)

    @torch.no_grad()
    def __call__(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        """Returns logits (B, K) of images (B, C, H, W) under their own noise."""
        self.forward_passes.update(noise.example_ids.tolist())
        parts = [self._logits(x[rows], noise.rows(rows)) for rows in self._cut(len(x))]
        return torch.cat(parts)

    def draws(self, x: Tensor, *, noise: NoisePlan, count: int) -> Tensor:
        """Returns logits (B, R, K) of ``count`` = R independent draws of each image."""
        plan = noise.repeat(count)
        return self(x.repeat_interleave(count, dim=0), noise=plan).unflatten(0, (len(x), count))

    def gradient(
        self, x: Tensor, y: Tensor, *, noise: NoisePlan, eot: int = 1, loss: str | Loss = "ce"
    ) -> ExpectedGradient:
        """Averages the loss and its gradient over ``eot`` draws of each image.

        Args:
            x: images (B, C, H, W) in [0, 1].
            y: labels (B,), or (B, n) with the label first, for a loss that needs more than the label.
            noise: plan of the B examples; its repetitions are the draws.
            eot: draws per image.
            loss: registered loss name, or the loss.

        Returns:
            The averaged gradient (B, C, H, W), loss (B,) and accuracy (B,).

        Source:
            Athalye et al. 2018 (arXiv:1707.07397), expectation over transformation.
        """
        loss_function = losses.get(loss) if isinstance(loss, str) else loss
        labels = y if y.ndim == 1 else y[:, 0]
        plan = noise.repeat(eot)
        image = torch.arange(len(x)).repeat_interleave(eot)
        grads, values, rights = [], [], []
        for rows in self._cut(len(plan)):
            leaf = x[image[rows]].detach().requires_grad_()
            logits = self._logits(leaf, plan.rows(rows))
            value = loss_function(logits, y[image[rows]])
            (grad,) = torch.autograd.grad(value.sum(), leaf)
            grads.append(grad)
            values.append(value.detach())
            rights.append((logits.detach().argmax(dim=1) == labels[image[rows]]).to(x.dtype))
        ids = plan.example_ids.tolist()
        self.forward_passes.update(ids)
        self.gradient_passes.update(ids)
        per_draw = (torch.cat(parts).unflatten(0, (len(x), eot)) for parts in (grads, values, rights))
        return ExpectedGradient(*map(_mean_in_order, per_draw))

    def _logits(self, x: Tensor, noise: NoisePlan) -> Tensor:
        """One call of the model, padded to the fixed shape if there is one."""
        count = len(x)
        if self.fixed_shape and count < self.micro_batch:
            rows = torch.arange(self.micro_batch).clamp(max=count - 1)
            return self.model(x[rows.to(x.device)], noise=noise.rows(rows))[:count]
        return self.model(x, noise=noise)

    def _cut(self, count: int) -> list[slice]:
        return [slice(i, min(i + self.micro_batch, count)) for i in range(0, count, self.micro_batch)]


@losses.register("ce")
def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of logits (B, K) with labels (B,); (B,)."""
    return functional.cross_entropy(logits, y, reduction="none")


@losses.register("margin")
def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest other logit minus the label's, (B,); positive where misclassified.

    Source:
        Carlini & Wagner 2017 (arXiv:1608.04644), f6 without the floor.
    """
    label = functional.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(label, -torch.inf).amax(dim=1) - logits[label]


def make_attack(name: str, options: Mapping[str, Any] | None = None) -> Attack:
    """Binds an attack to its options.

    Raises:
        UserError: if the name or an option is unknown.
    """
    attack = attacks.get(name)
    reserved = ("target", "x", "y", "threat", "noise")
    known = [p for p in inspect.signature(attack).parameters if p not in reserved]
    for option in options or {}:
        if option not in known:
            raise UserError(
                f"attack '{name}' has no option '{option}'. Available: {', '.join(known) or 'none'}."
            )
    return partial(attack, **(options or {}))


def _mean_in_order(per_draw: Tensor) -> Tensor:
    """Mean over the second axis, added up draw by draw so that rounding never depends on the batch."""
    total = per_draw[:, 0].clone()
    for r in range(1, per_draw.shape[1]):
        total += per_draw[:, r]
    return total / per_draw.shape[1]
