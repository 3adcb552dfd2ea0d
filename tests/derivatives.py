"""A network's derivatives in float64 against central differences, along one direction of all pixels.

The thing people get wrong: single precision, in which a difference of two values shows a gradient to two
digits, and a tolerance relative to a sum whose terms cancel.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.oracles import uniform

STEP = 1e-5
"""The error of a central difference is this squared, times the third derivative."""


def assert_derivatives(network: Callable[[Tensor], Tensor], x: Tensor, rtol: float = 1e-6) -> None:
    """Asserts that gradient and Hessian-vector product of a nonlinear function of the output are right."""
    x = x.double().requires_grad_()
    along = uniform(*x.shape, seed=5, low=-1.0, high=1.0)

    def value(at: Tensor) -> Tensor:
        return network(at).sin().sum()

    def slope(at: Tensor) -> Tensor:
        at = at.detach().requires_grad_()
        return torch.autograd.grad(value(at), at)[0]

    (grad,) = torch.autograd.grad(value(x), x, create_graph=True)
    (second,) = torch.autograd.grad((grad * along).sum(), x)
    assert bool(torch.isfinite(grad).all())
    assert bool((grad != 0).all())
    with torch.no_grad():
        difference = (value(x + STEP * along) - value(x - STEP * along)) / (2 * STEP)
    terms = grad.detach() * along
    assert float((terms.sum() - difference).abs()) < rtol * float(terms.norm())
    differences = (slope(x + STEP * along) - slope(x - STEP * along)) / (2 * STEP)
    assert float((second - differences).abs().max() / differences.abs().max()) < rtol
