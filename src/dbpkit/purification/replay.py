"""Gradients through a purification: exact ones at bounded memory, and the labelled alternatives.

Exact means the gradient of the very function that classifies, through every step and every clip. Budgeted
replay keeps only the state before each step and runs the step again in the backward pass, except for the
first steps, whose graphs are kept while they fit a memory budget, and the last: N steps with k kept cost
(2N - k) forward and N backward passes. Where a graph of the gradient itself is asked for
(``create_graph``), the graphs of the steps run again are kept too, so second derivatives are exact at the
memory of plain autograd. The thing people get wrong: the replayed step must draw the same noise and run in
the same mode and precision; here the noise is a function of its key, autocast is restored, and networks are
put back into eval mode.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.types import State

DEFAULT_MEMORY = 2 * 2**30
"""Bytes that kept graphs of one forward pass may take by default (2 GiB)."""


class Replay:
    """The step hook for exact gradients: keeps the graphs that fit a budget, replays the other steps.

    One object serves one forward pass. Each graph is weighed as it is made, so that the budget holds for
    steps of any size: the first ones are kept while there is room beside them for one graph more, that of the
    last step or of a step that runs again. What several steps share counts once, and weights not at all.
    Replayed steps are differentiated with respect to the tensors of the state only, so weights must be
    frozen, as a `Purifier` makes them.

    Args:
        steps: how many steps the sampler makes; further ones are replayed, whatever the budget.
        memory_bytes: budget for the graphs that are kept. The last step's is kept whatever the budget: the
            backward pass needs one such graph at a time anyway.
        verify: whether each replayed step must reproduce its stored result bit for bit.
        settle: called before a step runs again, to put the networks into the mode they first ran in.

    Attributes:
        kept: how many steps will not run again, the last one included.
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
        self._full = memory_bytes == 0
        self._held: dict[int, int] = {}  # bytes of every storage in the kept graphs
        self._largest = 0

    def __call__(self, step: Callable[[State], State], state: State) -> State:
        """Returns ``step(state)``, differentiable in every tensor of the state."""
        self._done += 1
        if not torch.is_grad_enabled() or not any(x.requires_grad for x in state):
            return step(state)
        if any(map(_transformed, state)):
            return step(state)
        if self._done == self.steps:
            return step(state)
        if self._full or self._done > self.steps:
            return self._replayed(step, state, None)
        return self._weighed(step, state)

    def _weighed(self, step: Callable[[State], State], state: State) -> State:
        """Runs a step with its graph, and keeps the graph if it fits and so does one more like it."""
        held = dict(self._held)

        def weigh(saved: Tensor) -> _Saved:
            if not isinstance(saved, nn.Parameter):
                storage = saved.untyped_storage()
                held[storage.data_ptr()] = storage.nbytes()
            return _Saved(saved)

        with torch.autograd.graph.saved_tensors_hooks(weigh, _Saved.unpack):
            result = step(state)
        total = sum(held.values())
        own = total - sum(self._held.values())
        # Once the first graph is kept, neither it nor what it shares with the others needs room again.
        self._largest = own if self._done <= 2 else max(self._largest, own)
        if total + self._largest <= self.memory_bytes:
            self._held = held
            self.kept += 1
            return result
        self._full = True
        return self._replayed(step, state, tuple(y.detach() for y in result))

    def _replayed(self, step: Callable[[State], State], state: State, result: State | None) -> State:
        again = _Step(step, state[0].device.type, self.verify, self.settle)
        return cast(State, _Replayed.apply(again, result, *state))  # type: ignore[no-untyped-call]


def _transformed(x: Tensor) -> bool:
    """Whether a tensor belongs to forward-mode differentiation or a transform of `torch.func`.

    Neither knows of saved tensors, and forward mode needs none: such a pass keeps what it keeps.
    """
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        return True
    return forward_ad._current_level >= 0 and _tangent(x) is not None


def _tangent(x: Tensor) -> Tensor | None:
    unpack: Callable[[Tensor], Any] = forward_ad.unpack_dual
    return cast(Tensor | None, unpack(x).tangent)


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
    """A sampler's step with the precision it first ran in."""

    def __init__(
        self, step: Callable[[State], State], device: str, verify: bool, settle: Callable[[], None]
    ) -> None:
        self.step = step
        self.device = device
        self.verify = verify
        self.settle = settle
        self.autocast = torch.is_autocast_enabled(device)
        self.dtype = torch.get_autocast_dtype(device)

    def again(self, state: State) -> State:
        """Runs the step in that precision."""
        self.settle()
        with torch.autocast(self.device, self.dtype, enabled=self.autocast):
            return self.step(state)


class _Replayed(torch.autograd.Function):
    """A step that stores its state only and runs again to be differentiated, as often as is asked for."""

    @staticmethod
    def forward(ctx: Any, step: _Step, result: State | None, *state: Tensor) -> State:
        ctx.set_materialize_grads(False)
        after = step.step(state) if result is None else result
        ctx.step, ctx.size = step, len(state)
        ctx.save_for_backward(*state, *(after if step.verify else ()))
        return after

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        state, stored = ctx.saved_tensors[: ctx.size], ctx.saved_tensors[ctx.size :]
        asked = torch.is_grad_enabled()  # only where a graph of the gradient is asked for
        needed = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            # Views, so that where one tensor of the state came from another, each gets its own part only.
            state = tuple(x.view_as(x) if asked else x.detach() for x in state)
            leaves = [
                x if asked else x.requires_grad_() for x, wanted in zip(state, needed, strict=True) if wanted
            ]
            after = ctx.step.again(state)
        for again, first in zip(after, stored, strict=False):
            _same(again, first)
        reached = [(y, g) for y, g in zip(after, grads, strict=True) if g is not None and y.requires_grad]
        if not reached:
            return (None, None, *(None for _ in needed))
        found = iter(
            torch.autograd.grad(
                [y for y, _ in reached],
                leaves,
                [g for _, g in reached],
                create_graph=asked,
                materialize_grads=True,
            )
        )
        return None, None, *(next(found) if wanted else None for wanted in needed)


def _same(again: Tensor, first: Tensor) -> None:
    """Raises UserError unless a step that ran again gave its first result."""
    if not torch.equal(again, first):
        raise UserError(
            "a purification step gave another result when it was run again with the same noise"
            f" (largest difference {float((again - first).abs().max()):.3g}). Put the network"
            " in eval mode and remove randomness it draws itself, or its gradients are wrong."
        )


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
    return exact, central_difference(function, x, direction, step)


@torch.no_grad()
def central_difference(
    function: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, step: float
) -> Tensor:
    """(f(x + h d) - f(x - h d)) / 2h, the numeric part of `directional_derivatives`, (B,) or (B, K)."""
    return (function(x + step * direction) - function(x - step * direction)) / (2 * step)
