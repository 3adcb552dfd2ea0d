"""What a target looks at on the way: calls, labels, logits and gradients; and means that round alike."""

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dbpkit.foundation.errors import NonFiniteError, UserError, shown
from dbpkit.foundation.inputs import check_images, check_labels, check_length, check_outputs
from dbpkit.foundation.later import refuse
from dbpkit.foundation.noise import NoisePlan


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


def calls_of(model: Any) -> int:
    """Network calls of one row of a model, or of the model inside it: what the purifier says; at least 1."""
    purifier = getattr(model, "purifier", None)
    inner = getattr(model, "model", None)
    if purifier is None and inner is not None:
        return calls_of(inner) * int(getattr(model, "members", 1))  # of an ensemble
    said = getattr(purifier, "row_calls", None)  # of a chain of steps that make more than one call
    return max(1, int(getattr(purifier, "calls", 0) if said is None else said))


def logits_of(output: Any, x: Tensor) -> Tensor:
    """The logits if they are (B, K) and finite: on others an attack would search in vain and say nothing."""
    logits = check_outputs(output, len(x))
    refuse(~logits.isfinite().all(), _not_finite, about="finite logits")
    return logits


def _not_finite() -> NonFiniteError:
    return NonFiniteError(
        "the model returned logits that are not finite. Look for a division by zero, the logarithm of"
        " zero, or half precision that overflows."
    )


def check_call(x: Tensor, noise: NoisePlan) -> None:
    """Raises UserError unless these are images and the plan is theirs, and puts the plan where they are."""
    check_images(x, "Target", pixels=False)  # their values are the model's affair
    check_length(noise, len(x), "Target")
    noise.placed(x.device)


def check_goal(y: Any, count: int, loss: Any) -> None:
    """Raises UserError unless these are a loss and labels (B,), or the more than labels that it takes."""
    if not isinstance(loss, str) and not callable(loss):
        raise UserError(f"a loss is a registered name or a function, not {shown(loss)}.")
    if loss in ("ce", "margin") or not isinstance(y, Tensor) or y.ndim < 2:
        if not isinstance(y, Tensor) or y.ndim != 1 or not (callable(loss) and y.is_floating_point()):
            check_labels(y, count, "Target.gradient")
    elif len(y) != count:
        raise UserError(f"{count} images came with {len(y)} labels.")


def gradient_of(value: Tensor, leaf: Tensor) -> Tensor:
    """The gradient of losses (B,) with respect to images; UserError if autograd sees no path to them."""
    if not value.requires_grad:
        raise UserError(
            "the model's output does not depend on its input for autograd: a path is detached. Use an attack"
            " without gradients, such as 'square', or let the gradient through."
        )
    return torch.autograd.grad(value.sum(), leaf)[0]


def takes_noise(model: Any) -> Any:
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
