"""What a classifier does to its last values: a head that squashes them, and the values before it.

While a classifier runs, results of the size of its logits are noted. The earliest one that ranks the classes
as the outputs do holds the values before the head, be the head a sigmoid, a clamp, or nothing at all. The
thing people get wrong: a monotone head changes no prediction, but it can delete the gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dbpkit.foundation.errors import UserError

TIE = 1e-5
"""Share of the range of an image's outputs by which rounding may turn the order of two classes."""

AFFINE = 1e-3
"""Relative distance from a straight line that rounding explains, that of half precision included."""


class Head(NamedTuple):
    """What follows the last values of a classifier.

    Attributes:
        values: what the classifier had before the head, (B, K); its outputs if it has no head.
        outputs: what it returned, (B, K).
        weights: maps a gradient with respect to the outputs (B, K) to that with respect to the values (B, K).
        operations: names of the operations between them, the first one first.
    """

    values: Tensor
    outputs: Tensor
    weights: Callable[[Tensor], Tensor]
    operations: tuple[str, ...]


class Unsquashed(nn.Module):
    """A classifier that returns the values before its head, so that an attack sees what the head hides.

    Which values these are is decided for each image alone, by the order of its outputs.

    Args:
        classifier: maps images (B, C, H, W) to outputs (B, K).

    Raises:
        UserError: when called, if no values before the outputs can be seen (a scripted module).
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Returns values (B, K) that rank the classes as the classifier's outputs do."""
        noted, outputs = _watched(lambda: self.classifier(*args, **kwargs))
        values = torch.stack([v.flatten(1) for _, v in noted] or [outputs])  # (n, B, K)
        if not noted or (torch.is_grad_enabled() and not values.requires_grad):
            raise UserError(
                "gradient 'unsquashed' sees no values before the classifier's outputs, or none that autograd"
                " knows. Let the classifier return its logits."
            )
        chosen = _before_head(list(values.detach().unbind()), outputs.detach())
        return values[chosen, torch.arange(values.shape[1], device=values.device)]


def heads_of(call: Callable[[], Tensor]) -> list[Head]:
    """Runs a classifier and finds its head, the same for all images of the batch, and the heads of its parts.

    Args:
        call: runs it on a batch and returns the outputs (B, K).

    Returns:
        What follows the values that rank the classes as the outputs do; then whatever acts on each class
        alone, such as a sigmoid that is averaged with another one. Nothing if autograd knows of no values.
    """
    with torch.enable_grad():
        noted, outputs = _watched(call)
    linked = [(name, v) for name, v in noted if _leads_to(v, outputs)]
    if not linked:
        return []
    flat = [v.detach().flatten(1) for _, v in linked]
    chosen = _before_head(flat, outputs.detach())
    number = int(chosen.amin())  # an image whose values the head leaves alone goes on to the outputs
    if not bool(ranks_agree(flat[number], outputs.detach()).all()):
        number = int(chosen.amax())
    heads = [_head(linked[n:], outputs) for n in range(len(linked))]
    return [heads[number], *(h for n, h in enumerate(heads) if n != number and _acts_on_each_class_alone(h))]


def _head(linked: list[tuple[str, Tensor]], outputs: Tensor) -> Head:
    values = linked[0][1]

    def weights(grad: Tensor) -> Tensor:
        return torch.autograd.grad(outputs, values, grad, retain_graph=True)[0].flatten(1)

    return Head(values.detach().flatten(1), outputs.detach(), weights, tuple(name for name, _ in linked[1:]))


def _acts_on_each_class_alone(head: Head) -> bool:
    """Whether an output never falls with its own value and depends on no other one."""
    own = head.weights(torch.ones_like(head.outputs))
    slant = torch.linspace(-1, 1, own.shape[1], dtype=own.dtype, device=own.device).expand_as(own)
    return bool((own >= 0).all()) and torch.allclose(head.weights(slant.contiguous()), slant * own, rtol=1e-3)


def _before_head(noted: list[Tensor], outputs: Tensor) -> Tensor:
    """Numbers of the results (B, K) that are the values before the head, (B,).

    The earliest that ranks the classes as the outputs do, then on past every operation that only scales and
    shifts an image's values: no loss of logits minds those, or it is the attack's to choose a scale.
    """
    fits = torch.stack([ranks_agree(v, outputs) for v in noted])  # (n, B)
    chosen = torch.where(fits.any(dim=0), fits.int().argmax(dim=0), len(noted) - 1)
    for number in range(1, len(noted)):
        goes_on = (chosen == number - 1) & fits[number] & _is_affine(noted[number - 1], noted[number])
        chosen = torch.where(goes_on, number, chosen)
    return chosen


def _is_affine(a: Tensor, b: Tensor) -> Tensor:
    """Whether b is a scaled and shifted a for an image, (B,); both (B, K)."""
    a, b = (t.double() - t.double().mean(dim=1, keepdim=True) for t in (a, b))
    slope = (a * b).sum(dim=1) / a.square().sum(dim=1).clamp_min(1e-300)
    return (slope > 0) & ((b - slope[:, None] * a).norm(dim=1) <= AFFINE * b.norm(dim=1))


def ranks_agree(values: Tensor, outputs: Tensor) -> Tensor:
    """Whether the outputs (B, K) never fall where the values (B, K) rise, (B,); outputs may tie."""
    ordered = outputs.gather(1, values.argsort(dim=1))
    tie = TIE * (outputs.amax(dim=1) - outputs.amin(dim=1))
    return (ordered.diff(dim=1) >= -tie[:, None]).all(dim=1)


class _Watcher(TorchFunctionMode):
    """Notes every result that could be logits, with the name of its operation, as parts of one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[str, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__", "size") or not _could_be_logits(result):
            return result
        if torch.is_grad_enabled() and not result.requires_grad:
            result = result.detach().requires_grad_()
        self.noted.append((name.strip("_"), result))
        return result.clone()  # an operation in place must not change what is noted


def _could_be_logits(value: Any) -> bool:
    """Whether a value is a floating tensor (B, K), perhaps with axes of length 1."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2 or not value.numel():
        return False
    return value[0].numel() == max(value.shape[1:]) > 1


def _watched(call: Callable[[], Tensor]) -> tuple[list[tuple[str, Tensor]], Tensor]:
    """Runs a classifier; the results (B, K) of its operations in their order, and its outputs (B, K)."""
    with _Watcher() as watcher:
        outputs = call()
    size = outputs.shape[1:].numel()
    return [
        (name, v) for name, v in watcher.noted if len(v) == len(outputs) and v[0].numel() == size
    ], outputs


def _leads_to(values: Tensor, outputs: Tensor) -> bool:
    """Whether autograd knows a way from the values to the outputs."""
    if not outputs.requires_grad or not values.requires_grad:
        return False
    (grad,) = torch.autograd.grad(outputs.sum(), values, retain_graph=True, allow_unused=True)
    return grad is not None
