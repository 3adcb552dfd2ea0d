"""Passes through the model that several checks look at: each is made once for a probe.

A network of tens of millions of parameters takes seconds for one pass, and a check that repeats another one's
pass tells nothing new.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from dbpkit.attacks import cross_entropy
from dbpkit.checks.check import Probe
from dbpkit.foundation.precision import current_precision

T = TypeVar("T")


class Slopes(NamedTuple):
    """Gradients of three sums of the logits at a probe's images, from one forward pass.

    Attributes:
        logits: (B, K).
        loss: gradient of the cross-entropy, (B, C, H, W); None if it does not reach the images.
        exact: gradient of the logits along the direction of softmax(z) - e_y, without cancellation.
        weighted: gradient of the logits weighted by ``weights``.
        weights: standard normal numbers, (B, K).
    """

    logits: Tensor
    loss: Tensor | None
    exact: Tensor
    weighted: Tensor
    weights: Tensor


def repeated(probe: Probe, times: int) -> list[Tensor]:
    """Returns the outputs (B, K) of so many equal calls, without a graph."""
    made: list[Tensor] = _once(probe, "repeated", list)
    with torch.no_grad():
        while len(made) < times:
            made.append(probe.outputs())
    return made[:times]


def slopes(probe: Probe) -> Slopes | None:
    """Returns the gradients at the probe's images; None if autograd knows of no way to them."""
    return _once(probe, "slopes", lambda: _slopes(probe))


def purified(probe: Probe) -> Tensor | None:
    """Returns the images (B, C, H, W) that the probe's diffusion chain makes of its own; None without one."""
    purifier = probe.diffusion
    if purifier is None:
        return None
    with torch.no_grad():
        found: Tensor = _once(probe, "purified", lambda: purifier(probe.x, noise=probe.noise))
    return found


def softmax_error(logits: Tensor, y: Tensor) -> Tensor:
    """The direction of softmax(z) - e_y, (B, K), without cancellation at the label and of length 1."""
    label = one_hot(y, logits.shape[1]).bool()
    others = logits.double().masked_fill(label, -torch.inf).softmax(dim=1)  # sums to 1 without the label
    error = torch.where(label, -torch.ones_like(others), others)
    return normalize(error, dim=1).to(logits)


def _slopes(probe: Probe) -> Slopes | None:
    leaf = probe.x.detach().requires_grad_()
    logits = probe.outputs(leaf)
    if not logits.requires_grad:
        return None
    values = logits.detach()
    weights = probe.noise.on("control").normal("probe", 2, values)
    loss = cross_entropy(logits, probe.y).sum()
    (grad,) = torch.autograd.grad(loss, leaf, retain_graph=True, allow_unused=True)
    error = softmax_error(values, probe.y)
    (exact,) = torch.autograd.grad(logits, leaf, error, retain_graph=True, materialize_grads=True)
    (weighted,) = torch.autograd.grad(logits, leaf, weights, materialize_grads=True)
    return Slopes(values, grad, exact, weighted, weights)


def _once(probe: Probe, name: str, make: Callable[[], T]) -> T:
    """What was made for a probe under a name in the precision of now, or is made now."""
    key = f"{name} in {current_precision()}"
    if key not in probe.made:
        probe.made[key] = make()
    found: T = probe.made[key]
    return found
