"""What an attack may ask of the model: logits, judgements and gradients, in micro-batches of bounded size.

The thing people get wrong: averaging the gradient over draws (EoT) one image batch at a time. Here the
draws of all images are rows of one batch, cut into micro-batches, and each image's rows are summed in
the order of its draws, so that the sum does not depend on how they were cut.
"""

import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dbpkit.attacks.loss import Loss, check_classes, losses
from dbpkit.foundation.errors import NonFiniteError, UserError, shown
from dbpkit.foundation.inputs import check_images, check_labels, check_length, check_outputs, whole
from dbpkit.foundation.later import asked_at_the_end, refuse
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.rows import RowLimit
from dbpkit.foundation.types import RandomisedClassifier, Traced

Visit = Callable[[Tensor, NoisePlan], None]
"""Called with an iterate (B, C, H, W) and the attack's plan of its examples."""


class ExpectedGradient(NamedTuple):
    """Averages over draws: ``grad`` (B, C, H, W), ``loss`` (B,), share classified right ``right`` (B,)."""

    grad: Tensor
    loss: Tensor
    right: Tensor


class DrawGradients(NamedTuple):
    """Of every draw: ``grad`` (B, R, C, H, W), ``loss`` (B, R) and ``logits`` (B, R, K)."""

    grad: Tensor
    loss: Tensor
    logits: Tensor


class Judgement(NamedTuple):
    """Averages over draws: ``loss`` (B,), share classified right ``right`` (B,)."""

    loss: Tensor
    right: Tensor


class Target:
    """A randomised classifier as an attack may use it.

    Wherever the model returns something else than logits (B, K), `OutputError` is raised. Logits that are not
    finite are refused at once on a CPU; on an accelerator when a method returns, or when the attack ends.

    Args:
        model: the classifier.
        micro_batch: most rows (images times draws) that go through the model at once. Rows that run out of
            memory are tried again in halves; all who share a `RowLimit` learn of it.
        fixed_shape: whether every call has exactly ``micro_batch`` rows, the last row repeated as needed, so
            that kernels round alike however the rows are cut. Running out of memory is then an error.

    Attributes:
        limit: the rows that go through the model at once.
        forward_passes: rows passed through the model so far, by example id.
        gradient_passes: those of them that were differentiated.
        visit: an attack calls it with every iterate, for protocols that judge while the attack runs.
    """

    def __init__(
        self, model: RandomisedClassifier, micro_batch: int | RowLimit = 32, *, fixed_shape: bool = False
    ) -> None:
        self.model = _takes_noise(model)
        self.limit = RowLimit.of(micro_batch, fixed=fixed_shape)
        self.fixed_shape = fixed_shape
        self.forward_passes: Counter[int] = Counter()
        self.gradient_passes: Counter[int] = Counter()
        self.visit: Visit = lambda _x, _noise: None

    @property
    def micro_batch(self) -> int:
        """Most rows that go through the model at once, as of now."""
        return self.limit.rows

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

    @asked_at_the_end()
    @torch.no_grad()
    def __call__(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        """Returns logits (B, K) of images (B, C, H, W) under their own noise."""
        _check(x, noise)
        self.forward_passes.update(noise.example_ids.tolist())
        return torch.cat(self.limit.over(len(x), lambda rows: self._logits(x[rows], noise.rows(rows))))

    @asked_at_the_end()
    def draws(self, x: Tensor, *, noise: NoisePlan, count: int) -> Tensor:
        """Returns logits (B, R, K) of ``count`` = R independent draws of each image."""
        _check(x, noise)
        plan = noise.repeat(count)
        logits: Tensor = self(x.repeat_interleave(count, dim=0), noise=plan)
        by_image: Tensor = logits.unflatten(0, (len(x), count))
        return by_image

    @asked_at_the_end()
    def judge(self, x: Tensor, y: Tensor, *, noise: NoisePlan, draws: int, loss: str = "margin") -> Judgement:
        """Averages a loss of labels (B,) and the accuracy over ``draws`` draws of each image."""
        logits = self.draws(x, noise=noise, count=draws)
        values = losses.resolve(loss)(logits.flatten(0, 1), y.repeat_interleave(draws))
        right = (logits.argmax(dim=2) == y[:, None]).to(x.dtype)
        return Judgement(mean_in_order(values.unflatten(0, (len(x), draws))), mean_in_order(right))

    def gradient(
        self,
        x: Tensor,
        y: Tensor,
        *,
        noise: NoisePlan,
        eot: int = 1,
        loss: str | Loss = "ce",
        deviation: float = 0.0,
    ) -> ExpectedGradient:
        """Averages the loss and its gradient over ``eot`` draws of each image.

        Args:
            x: images (B, C, H, W) in [0, 1].
            y: labels (B,), or (B, n) with the label first, for a loss that needs more than the label.
            noise: plan of the B examples; its repetitions are the draws.
            eot: draws per image.
            loss: registered loss name, or the loss.
            deviation: weight of the purification's deviation, which is added to the loss.

        Returns:
            The averaged gradient (B, C, H, W), loss (B,) and accuracy (B,).

        Raises:
            UserError: if images, labels and plan do not fit, or a deviation is asked of a model that does not
                tell it, see `Traced`.

        Source:
            Athalye et al. 2018 (arXiv:1707.07397), expectation over transformation.
        """
        found = self.per_draw(x, y, noise=noise, eot=eot, loss=loss, deviation=deviation)
        labels = y if y.ndim == 1 else y[:, 0]
        right = (found.logits.argmax(dim=2) == labels[:, None]).to(x.dtype)
        return ExpectedGradient(*map(mean_in_order, (found.grad, found.loss, right)))

    @asked_at_the_end()
    def per_draw(
        self,
        x: Tensor,
        y: Tensor,
        *,
        noise: NoisePlan,
        eot: int = 1,
        loss: str | Loss = "ce",
        deviation: float = 0.0,
    ) -> DrawGradients:
        """Returns gradient, loss and logits of each of ``eot`` = R draws; arguments and errors as `gradient`.

        All R gradients of an image are held at once.
        """
        _check(x, noise)
        whole(eot, "eot", 1)
        _check_goal(y, len(x), loss)
        loss_function = losses.resolve(loss) if isinstance(loss, str) else loss
        plan = noise.repeat(eot)

        def differentiated(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
            with torch.enable_grad():
                image = torch.arange(rows.start, rows.stop, device=x.device) // eot
                leaf = x[image].detach().requires_grad_()
                if deviation:
                    logits, apart = self._traced(leaf, plan.rows(rows))
                else:
                    logits, apart = self._logits(leaf, plan.rows(rows)), torch.zeros(())
                value = loss_function(logits, check_classes(y, logits)[image])
                value = value + deviation * apart if deviation else value
                return _gradient(value, leaf), value.detach(), logits.detach()

        found = zip(*self.limit.over(len(plan), differentiated), strict=True)
        ids = plan.example_ids.tolist()
        self.forward_passes.update(ids)
        self.gradient_passes.update(ids)
        return DrawGradients(*(torch.cat(rows).unflatten(0, (len(x), eot)) for rows in found))

    def _logits(self, x: Tensor, noise: NoisePlan) -> Tensor:
        """One call of the model."""
        images, plan = self._padded(x, noise)
        return _of_batch(self.model(images, noise=plan), images)[: len(x)]

    def _traced(self, x: Tensor, noise: NoisePlan) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and deviation (B,) from one call of the model."""
        if not isinstance(self.model, Traced):
            raise UserError(
                f"the loss has a deviation of purification states, which {type(self.model).__name__} does not"
                " tell. Attack a PurifiedClassifier by its exact gradient, or give the model a method"
                " traced(x, noise=...) that returns logits (B, K) and deviation (B,)."
            )
        images, plan = self._padded(x, noise)
        logits, deviation = self.model.traced(images, noise=plan)
        return _of_batch(logits, images)[: len(x)], deviation[: len(x)]

    def _padded(self, x: Tensor, noise: NoisePlan) -> tuple[Tensor, NoisePlan]:
        """All rows, and the last one again up to the fixed shape if there is one."""
        more = self.limit.rows - len(x)
        if not self.fixed_shape or more <= 0:
            return x, noise
        return torch.cat([x, x[-1:].expand(more, -1, -1, -1)]), noise.padded(self.limit.rows)


def _of_batch(output: Any, x: Tensor) -> Tensor:
    """The logits if they are (B, K) and finite: on others an attack would search in vain and say nothing."""
    logits = check_outputs(output, len(x))
    refuse(~logits.isfinite().all(), _not_finite, about="finite logits")
    return logits


def _not_finite() -> NonFiniteError:
    return NonFiniteError(
        "the model returned logits that are not finite. Look for a division by zero, the logarithm of"
        " zero, or half precision that overflows."
    )


def _check(x: Tensor, noise: NoisePlan) -> None:
    """Raises UserError unless these are images and the plan is theirs, and puts the plan where they are."""
    check_images(x, "Target", pixels=False)  # their values are the model's affair
    check_length(noise, len(x), "Target")
    noise.placed(x.device)


def _check_goal(y: Any, count: int, loss: Any) -> None:
    """Raises UserError unless these are a loss and labels (B,), or the more than labels that it takes."""
    if not isinstance(loss, str) and not callable(loss):
        raise UserError(f"a loss is a registered name or a function, not {shown(loss)}.")
    if loss in ("ce", "margin") or not isinstance(y, Tensor) or y.ndim < 2:
        if not isinstance(y, Tensor) or y.ndim != 1 or not (callable(loss) and y.is_floating_point()):
            check_labels(y, count, "Target.gradient")
    elif len(y) != count:
        raise UserError(f"{count} images came with {len(y)} labels.")


def _gradient(value: Tensor, leaf: Tensor) -> Tensor:
    """The gradient of losses (B,) with respect to images; UserError if autograd sees no path to them."""
    if not value.requires_grad:
        raise UserError(
            "the model's output does not depend on its input for autograd: a path is detached. Use an attack"
            " without gradients, such as 'square', or let the gradient through."
        )
    return torch.autograd.grad(value.sum(), leaf)[0]


def _takes_noise(model: Any) -> Any:
    """Returns a randomised classifier; UserError for what cannot be called with a plan."""
    if not callable(model) or isinstance(model, type):
        raise UserError(f"a model is called as model(x, noise=plan), which {shown(model)} cannot be.")
    try:
        call = model.forward if isinstance(model, torch.nn.Module) else model
        scripted = isinstance(model, torch.jit.ScriptModule)  # has no signature, and knows no plans
        parameters = {} if scripted else inspect.signature(call).parameters
    except (TypeError, ValueError):  # written in C, and silent about itself
        return model
    if "noise" not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise UserError(
            f"{type(model).__name__} takes no noise plan. Wrap a classifier that draws nothing:"
            " dbpkit.Undefended(model)."
        )
    return model


def mean_in_order(per_draw: Tensor) -> Tensor:
    """Mean over the second axis, added up draw by draw so that rounding never depends on the batch."""
    total = per_draw[:, 0].clone()
    for r in range(1, per_draw.shape[1]):
        total += per_draw[:, r]
    return total / per_draw.shape[1]
