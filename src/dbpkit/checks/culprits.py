"""Which submodule is at fault: two runs of a model are compared module by module.

Modules are compared in the order in which they finish, so a child comes before the parent it spoils. The
thing people get wrong: the first module whose output differs is not at fault if its input differed too.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dbpkit.foundation.frozen import call_apart
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.types import RandomisedClassifier

ROUNDING = 1e-3
"""Relative difference of two fingerprints that another batch size's kernels explain."""


class Plain:
    """A model that knows of no noise plan, as a randomised classifier; it is not put in eval mode.

    Args:
        module: maps images (B, C, H, W) to logits (B, K).
    """

    sites: frozenset[str] = frozenset()

    def __init__(self, module: Callable[..., Tensor]) -> None:
        self.module = module

    def __call__(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        """Returns logits (B, K); the noise is ignored."""
        del noise
        logits: Tensor = call_apart(self.module, x)  # a copy: one that works in place spoils no image
        return logits


class Call(NamedTuple):
    """One call of a submodule: fingerprints of its tensors, and whether autograd knew of them."""

    name: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    input_tracked: bool
    output_tracked: bool


def random_module(model: RandomisedClassifier, x: Tensor, noise: NoisePlan) -> str:
    """Names the first module with equal inputs and unequal outputs in two equal runs, or returns ""."""
    with torch.no_grad():
        pairs = zip(_calls(model, x, noise), _calls(model, x, noise), strict=False)
    return next(
        (a.name for a, b in pairs if _same(a.inputs, b.inputs) and not _same(a.outputs, b.outputs)), ""
    )


def coupling_module(model: RandomisedClassifier, x: Tensor, noise: NoisePlan) -> str:
    """Names the first module whose output for the first image depends on the rest of the batch, or ""."""
    with torch.no_grad():
        together, alone = _calls(model, x, noise), _calls(model, x[:1], noise.rows([0]))
    for a, b in zip(together, alone, strict=False):
        first = [[t[:1] for t in tensors] for tensors in (a.inputs, b.inputs, a.outputs, b.outputs)]
        if _same(first[0], first[1], ROUNDING) and not _same(first[2], first[3], ROUNDING):
            return a.name
    return ""


def flat_module(model: RandomisedClassifier, x: Tensor, moved: Tensor, noise: NoisePlan) -> str:
    """Names the first module that gives equal outputs for unequal inputs, or returns ""."""
    with torch.no_grad():
        pairs = zip(_calls(model, x, noise), _calls(model, moved, noise), strict=False)
    return next(
        (a.name for a, b in pairs if not _same(a.inputs, b.inputs) and _same(a.outputs, b.outputs)), ""
    )


def detaching_module(model: RandomisedClassifier, x: Tensor, noise: NoisePlan) -> str:
    """Names the first module that autograd enters and does not leave, or returns ""."""
    calls = _calls(model, x.detach().requires_grad_(), noise)
    return next((c.name for c in calls if c.input_tracked and not c.output_tracked), "")


def heading_module(model: RandomisedClassifier, x: Tensor, noise: NoisePlan, values: Tensor) -> str:
    """Names the first module that is given the values (B, K) and returns others, or returns ""."""
    with torch.no_grad():
        calls = _calls(model, x, noise)
    given = [_fingerprint(values)]
    names = [c.name for c in calls if _same(c.inputs, given) and not _same(c.outputs, given)]
    return names[0] if names else ""


def _calls(model: RandomisedClassifier, x: Tensor, noise: NoisePlan) -> list[Call]:
    """Runs the model once and returns the calls of its modules in the order in which they end."""
    module = model.module if isinstance(model, Plain) else model
    if not isinstance(module, nn.Module):
        return []
    calls: list[Call] = []

    def hook(name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            label = (
                f"'{name}' ({type(module).__name__})" if name else f"the forward of {type(module).__name__}"
            )
            entered, left = list(_tensors([args, kwargs])), list(_tensors(output))
            prints = [[_fingerprint(t) for t in tensors] for tensors in (entered, left)]
            tracked = [any(t.requires_grad for t in tensors) for tensors in (entered, left)]
            calls.append(Call(label, prints[0], prints[1], tracked[0], tracked[1]))

        return note

    modules = module.named_modules()
    handles = [m.register_forward_hook(hook(name), with_kwargs=True) for name, m in modules]
    try:
        model(x, noise=noise)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _tensors(value: Any) -> Iterator[Tensor]:
    """Floating tensors inside a module's arguments or result."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _fingerprint(tensor: Tensor) -> Tensor:
    """Three sums of each row, (rows, 3) float64: enough to tell tensors apart without keeping them."""
    rows = tensor.detach().double().reshape(len(tensor) if tensor.ndim else 1, -1)
    weights = torch.arange(rows.shape[1], device=rows.device, dtype=rows.dtype).cos()
    return torch.stack([rows.sum(1), rows @ weights, rows.square().sum(1)], dim=1).cpu()


def _same(a: list[Tensor], b: list[Tensor], tolerance: float = 0.0) -> bool:
    """Whether fingerprints agree to a relative tolerance; different shapes never do."""
    return len(a) == len(b) and all(
        s.shape == t.shape and bool(((s - t).norm(dim=1) <= tolerance * s.norm(dim=1)).all())
        for s, t in zip(a, b, strict=True)
    )
