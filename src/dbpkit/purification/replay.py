"""Gradients through a purification: exact ones at bounded memory, and the labelled alternatives.

Exact means the gradient of the very function that classifies, through every step and every clip. Budgeted
replay keeps only the state before each step and runs the step again in the backward pass, except for the
last steps, whose graphs are kept while they fit a memory budget: N steps with k kept cost (2N - k) forward
and N backward passes. Where a graph of the gradient itself is asked for (``create_graph``), the graphs of the
steps run again are kept too, so second derivatives are exact at the memory of plain autograd. The thing
people get wrong: the replayed step must draw the same noise and run in the same mode and precision; here the
noise is a function of its key, autocast is restored, and networks are put back into eval mode.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dbpkit.foundation.errors import UserError

DEFAULT_MEMORY = 2 * 2**30
"""Bytes that kept graphs of one forward pass may take by default (2 GiB)."""


class Replay:
    """The step hook for exact gradients: replays early steps, keeps the graphs of the last ones.

    One object serves one forward pass. Replayed steps are differentiated with respect to the state only, so
    weights must be frozen, as a `Purifier` makes them.

    Args:
        steps: how many times the sampler will call the hook.
        memory_bytes: budget for the graphs that are kept. The last step's is kept whatever the budget: the
            backward pass needs one such graph at a time anyway.
        verify: whether each replayed step must reproduce its stored result bit for bit.
        settle: called before a step runs again, to put the networks into the mode they first ran in.
    """

    def __init__(
        self,
        steps: int,
        memory_bytes: int = DEFAULT_MEMORY,
        *,
        verify: bool = False,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self.steps = steps
        self.memory_bytes = memory_bytes
        self.verify = verify
        self.settle = settle
        self.kept = 1
        self._done = 0

    def __call__(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Returns ``function(x)``, differentiable in ``x``."""
        self._done += 1
        if not (torch.is_grad_enabled() and x.requires_grad) or _transformed(x):
            return function(x)
        if self._done == 1 and self.memory_bytes and self.steps > 1:
            return self._first(function, x)
        if self._done > self.steps - self.kept:
            return function(x)
        return _Replayed.apply(x, self._step(function, x), None)

    def _first(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Runs the first step with its graph, to learn how many such graphs fit the budget."""
        sizes: dict[int, int] = {}

        def weigh(saved: Tensor) -> _Saved:
            storage = saved.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return _Saved(saved)

        with torch.autograd.graph.saved_tensors_hooks(weigh, _Saved.unpack):
            y = function(x)
        # Frozen weights are among the saved tensors; counting them at every step errs on the safe side.
        self.kept = min(self.steps, max(1, self.memory_bytes // max(sum(sizes.values()), 1)))
        if self.kept == self.steps:
            return y
        return _Replayed.apply(x, self._step(function, x), y.detach())

    def _step(self, function: Callable[[Tensor], Tensor], x: Tensor) -> "_Step":
        return _Step(function, x.device.type, self.verify, self.settle)


def _transformed(x: Tensor) -> bool:
    """Whether a tensor belongs to forward-mode differentiation or a transform of `torch.func`.

    Neither knows of saved tensors, and forward mode needs none: such a pass keeps what it keeps.
    """
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        return True
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None


class _Saved:
    """A tensor that autograd saved, as a hook may keep it.

    The tensor itself must not be kept: where an operation saves its own result, that would close a cycle of
    node and tensor that nothing frees. Its detached twin shares memory and version, so that a change in
    place is still noticed; under hooks autograd does not look for one.
    """

    __slots__ = ("tensor", "version")

    def __init__(self, saved: Tensor) -> None:
        self.tensor = saved.detach()
        self.version = saved._version

    def unpack(self) -> Tensor:
        """Returns the tensor; RuntimeError if it was changed in place since."""
        if self.tensor._version != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace"
                f" operation: a {tuple(self.tensor.shape)} tensor of a purification step is at version"
                f" {self.tensor._version}; expected version {self.version} instead."
            )
        return self.tensor


class _Step:
    """A step's function with the precision it first ran in."""

    def __init__(
        self, function: Callable[[Tensor], Tensor], device: str, verify: bool, settle: Callable[[], None]
    ) -> None:
        self.function = function
        self.device = device
        self.verify = verify
        self.settle = settle
        self.autocast = torch.is_autocast_enabled(device)
        self.dtype = torch.get_autocast_dtype(device)

    def again(self, x: Tensor) -> Tensor:
        """Runs the function in that precision."""
        self.settle()
        with torch.autocast(self.device, self.dtype, enabled=self.autocast):
            return self.function(x)


class _Replayed(torch.autograd.Function):
    """A step that stores its input only and runs again to be differentiated, as often as is asked for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: _Step, result: Tensor | None) -> Tensor:
        y = step.function(x) if result is None else result
        ctx.step = step
        ctx.save_for_backward(x, *([y] if step.verify else []))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, *stored = ctx.saved_tensors
        asked = torch.is_grad_enabled()  # only where a graph of the gradient is asked for
        with torch.enable_grad():
            x = x if asked else x.detach().requires_grad_()
            y = ctx.step.again(x)
        if stored and not torch.equal(y, stored[0]):
            raise UserError(
                "a purification step gave another result when it was run again with the same noise"
                f" (largest difference {float((y - stored[0]).abs().max()):.3g}). Put the network"
                " in eval mode and remove randomness it draws itself, or its gradients are wrong."
            )
        (grad,) = torch.autograd.grad(y, x, grads[0], create_graph=asked, materialize_grads=True)
        return grad, None, None


def straight_through(pure: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """BPDA: the value of ``pure(x)`` with the gradient of the identity.

    Args:
        pure: maps images to images of the same shape.
        x: images (B, C, H, W).

    Source:
        Athalye, Carlini & Wagner 2018 (arXiv:1802.00420), section 4.1. Overstates robustness: with fixed
        noise it reports 68 % where exact gradients report 23.7 % (Liu & Wei 2025).
    """
    with torch.no_grad():
        value = pure(x)
    return value + (x - x.detach())


def directional_derivatives(
    function: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, step: float
) -> tuple[Tensor, Tensor]:
    """Exact and central-difference derivative of per-example losses along a direction.

    Args:
        function: maps images (B, C, H, W) to losses (B,), with all noise fixed.
        x: images (B, C, H, W).
        direction: (B, C, H, W), unit size per example.
        step: length of the difference, in the units of ``x``.

    Returns:
        Two tensors (B,): from the gradient, and (f(x + h d) - f(x - h d)) / 2h.
    """
    leaf = x.detach().requires_grad_()
    (grad,) = torch.autograd.grad(function(leaf).sum(), leaf)
    exact = (grad * direction).flatten(1).sum(dim=1)
    with torch.no_grad():
        numeric = (function(x + step * direction) - function(x - step * direction)) / (2 * step)
    return exact, numeric
