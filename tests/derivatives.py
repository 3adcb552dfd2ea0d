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


def assert_derivatives(
    network: Callable[[Tensor], Tensor], x: Tensor, rtol: float = 1e-6, step: float = STEP
) -> None:
    """Asserts that gradient and Hessian-vector product of a nonlinear function of the output are right.

    A network with rectifiers needs a smaller step, between two of their kinks.
    """
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
    assert float((grad != 0).double().mean()) > 0.95  # rectifiers may close the way from a pixel
    with torch.no_grad():
        difference = (value(x + step * along) - value(x - step * along)) / (2 * step)
    terms = grad.detach() * along
    assert float((terms.sum() - difference).abs()) < rtol * float(terms.norm())
    differences = (slope(x + step * along) - slope(x - step * along)) / (2 * step)
    assert float((second - differences).abs().max() / differences.abs().max()) < rtol
