"""Threat models: which perturbed images count as attacks, and the two budgets on pixel values.

The thing people get wrong: the budget is on pixels in [0, 1]. A budget of 8/255 there is 16/255 in the
[-1, 1] units that diffusion models use.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor

from dbpkit.foundation.errors import UserError, shown
from dbpkit.foundation.inputs import real
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.registry import Registry, call_with_options

threats: Registry[Callable[..., "ThreatModel"]] = Registry("threat model", ["dbpkit.threats.perceptual"])
"""Called with ``eps`` and options."""

_TINY = 1e-10

HALVINGS = 16
"""Of an interval in which a bisection searches a share of the pixel range; it is right to 2e-5."""

L2_MOST = 100.0
"""Largest Euclidean budget: nearly twice the distance from black to white of 32 x 32 colour images."""


class ThreatModel(Protocol):
    """A set of allowed images around each clean one; images (B, C, H, W) in [0, 1].

    It may have a method ``typical_length(x)`` besides; of one that has none, `typical_length` measures it.
    """

    @property
    def eps(self) -> float:
        """Budget: in [0, 1] pixel units, or of the distance if that is none of pixels."""
        ...

    @property
    def default_step_size(self) -> float:
        """Step of an attack that the literature uses with this budget."""
        ...

    def project(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Returns the allowed image near ``x_adv``, within the budget of ``x`` and in [0, 1]."""
        ...

    def random_start(self, x: Tensor, noise: NoisePlan) -> Tensor:
        """Returns a random allowed image, from the plan's ``start`` site."""
        ...

    def steepest(self, grad: Tensor) -> Tensor:
        """Returns the direction of unit size along which a loss with gradient ``grad`` rises most."""
        ...

    def distance(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Returns the size of each perturbation, (B,)."""
        ...


@threats.register("linf")
@dataclass(frozen=True)
class Linf:
    """Every pixel value moves by at most ``eps``.

    Attributes:
        eps: budget in [0, 1] pixel units, from 0 to 1.

    Raises:
        UserError: if the budget is not such a number.

    Source:
        Liu et al., ICLR 2025: 8/255 with step 2/255, a quarter of the budget.
    """

    eps: float

    def __post_init__(self) -> None:
        if _checked_eps(self.eps, "Linf") > 1:
            raise UserError(
                f"Linf: eps {self.eps:g} exceeds the pixel range [0, 1]. Did you mean {self.eps:g}/255?"
            )

    @property
    def default_step_size(self) -> float:
        """A quarter of the budget, as published."""
        return self.eps / 4

    def project(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Clips to the budget, then to [0, 1]."""
        return torch.minimum(torch.maximum(x_adv, x - self.eps), x + self.eps).clamp(0, 1)

    def random_start(self, x: Tensor, noise: NoisePlan) -> Tensor:
        """Draws uniformly from the cube, clipped to [0, 1]."""
        return self.project(x, x + self.eps * (2 * noise.uniform("start", 0, x) - 1))

    def steepest(self, grad: Tensor) -> Tensor:
        """The sign of the gradient."""
        return grad.sign()

    def distance(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Largest absolute change of a pixel value, (B,)."""
        return (x_adv - x).abs().flatten(1).amax(dim=1)

    def typical_length(self, x: Tensor) -> Tensor:
        """Root mean square length of uniform noise in the cube, eps sqrt(d / 3) for d values, (B,)."""
        return _constant(self.eps * (x[0].numel() / 3) ** 0.5, x)


@threats.register("l2")
@dataclass(frozen=True)
class L2:
    """The perturbation's Euclidean norm over all pixel values is at most ``eps``.

    Attributes:
        eps: budget in [0, 1] pixel units, from 0 to `L2_MOST`.

    Raises:
        UserError: if the budget is not such a number.

    Source:
        Liu et al., ICLR 2025: 0.5 with step 0.1, a fifth of the budget.
    """

    eps: float

    def __post_init__(self) -> None:
        if _checked_eps(self.eps, "L2") > L2_MOST:
            raise UserError(
                f"L2: eps {self.eps:g} turns most images into any other: budgets are in [0, 1] pixel units."
                f" Did you mean {self.eps:g}/255?"
            )

    @property
    def default_step_size(self) -> float:
        """A fifth of the budget, as published."""
        return self.eps / 5

    def project(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Shrinks to the ball, then clips to [0, 1], which can only shrink further."""
        delta = x_adv - x
        factor = (self.eps / (self.distance(x, x_adv) + _TINY)).clamp(max=1)
        return (x + delta * factor[:, None, None, None]).clamp(0, 1)

    def random_start(self, x: Tensor, noise: NoisePlan) -> Tensor:
        """Draws uniformly from the ball, clipped to [0, 1]."""
        z = noise.normal("start", 0, x)
        radius = noise.uniform("start", 1, x[:, :1, :1, :1]) ** (1 / x[0].numel())
        return self.project(x, x + self.eps * radius * self.steepest(z))

    def steepest(self, grad: Tensor) -> Tensor:
        """The gradient at unit norm; zero where the gradient is."""
        norm: Tensor = grad.flatten(1).norm(dim=1)
        return grad / (norm + _TINY)[:, None, None, None]

    def distance(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Euclidean norm of the change, (B,)."""
        length: Tensor = (x_adv - x).flatten(1).norm(dim=1)
        return length

    def typical_length(self, x: Tensor) -> Tensor:
        """The budget itself, (B,)."""
        return _constant(self.eps, x)


def typical_length(threat: ThreatModel, x: Tensor) -> Tensor:
    """Returns the typical Euclidean length of a perturbation that uses a budget up.

    Budgets of different kinds are compared by it: 8/255 in Linf, 0.5 in L2 and 0.05 in a feature distance are
    no numbers of one scale.

    Args:
        threat: the budget; its own ``typical_length`` where it has one, `measured_length` where it has none.
        x: images (B, C, H, W) in [0, 1].

    Returns:
        Lengths (B,) in [0, 1] pixel units, float64. Under a budget on pixels they are the same for every
        image; under any other they are not.
    """
    own = getattr(threat, "typical_length", None)
    return measured_length(threat, x) if own is None else own(x)


@torch.no_grad()
def measured_length(threat: ThreatModel, x: Tensor) -> Tensor:
    """Measures how long uniform noise may be before a threat's distance exceeds its budget.

    Noise u, uniform in [-1, 1] and the same for every image and every call, is scaled up until the distance
    of ``x`` and clip(x + a u) uses the budget up, or a is 1. The scale is found by bisection, to within
    2**-16 of the pixel range, which takes for granted that the distance grows with it.

    Args:
        threat: needs ``eps`` and ``distance``.
        x: images (B, C, H, W) in [0, 1].

    Returns:
        Euclidean lengths (B,) of clip(x + a u) - x, in [0, 1] pixel units, float64.
    """
    u = uniform_direction(x)
    low, high = torch.zeros_like(x[:, 0, 0, 0]), torch.ones_like(x[:, 0, 0, 0])

    def moved(scale: Tensor) -> Tensor:
        return (x + scale[:, None, None, None] * u).clamp(0, 1)

    low = torch.where(threat.distance(x, moved(high)) <= threat.eps, high, low)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        allowed = threat.distance(x, moved(middle)) <= threat.eps
        low, high = torch.where(allowed, middle, low), torch.where(allowed, high, middle)
    length: Tensor = (moved(low) - x).double().flatten(1).norm(dim=1)
    return length


def uniform_direction(x: Tensor) -> Tensor:
    """Uniform noise in [-1, 1] (B, C, H, W) that depends on nothing but the shape of an image."""
    plan = NoisePlan.of(0, torch.zeros(len(x), dtype=torch.int64), "control")
    u: Tensor = plan.uniform("probe", 0, x)
    return 2 * u - 1


def _constant(length: float, x: Tensor) -> Tensor:
    """The same length for every image, (B,) float64."""
    return torch.full((len(x),), length, dtype=torch.float64, device=x.device)


def check_threat(threat: Any, where: str) -> None:
    """Raises UserError unless ``threat`` is a threat model; ``where`` says who asks."""
    if isinstance(threat, type) or not all(hasattr(threat, name) for name in ("eps", "project", "distance")):
        raise UserError(f"{where}: threat must be a threat model such as Linf(8 / 255), not {shown(threat)}.")


def _checked_eps(eps: float, name: str) -> float:
    """A budget as a number; UserError if it is none, not finite, or negative."""
    value = real(eps, f"{name}: eps")
    if value < 0:
        raise UserError(
            f"{name}: eps {value:g} is negative. Give a budget in [0, 1] pixel units, such as 8 / 255."
        )
    return value


def make_threat(norm: str, eps: float, options: Mapping[str, Any] | None = None) -> ThreatModel:
    """Builds a threat model by name.

    Raises:
        UserError: if the name or an option is unknown, or the budget is negative or above the pixel range.
    """
    if isinstance(eps, bool) or not isinstance(eps, Real):
        real(eps, "threat.eps")
    if not 0 <= eps < float("inf"):
        raise UserError(
            f"threat.eps {eps:g} is {'negative' if eps < 0 else 'not finite'}. Give a budget in [0, 1] pixel"
            ' units, such as "8/255".'
        )
    if norm == "linf" and eps > 1:
        raise UserError(f'threat.eps {eps:g} exceeds the pixel range [0, 1]. Did you mean "{eps:g}/255"?')
    made: ThreatModel = call_with_options(
        partial(threats.resolve(norm), eps), options or {}, f"threat model '{norm}'"
    )
    return made
