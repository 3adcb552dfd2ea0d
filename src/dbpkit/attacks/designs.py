"""How the draws of one gradient depend on each other, so that as many passes err less.

Whatever the design, the gradient's expectation is that of independent draws, except with ``common``, which
fixes the draws. The thing people get wrong: a control variate's weight that is fitted to the very draws it
is used on, which biases the average; here each draw gets the weight that the others tell.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dbpkit.attacks.passing import mean_in_order
from dbpkit.foundation.coupling import inner
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.inputs import whole
from dbpkit.foundation.noise import NoisePlan

if TYPE_CHECKING:
    from dbpkit.attacks.target import Target

AT_ONCE = 1 << 24
"""Most values of gradients that are combined at once, in copies of double precision."""


@dataclass(frozen=True)
class Design:
    """How the draws of one gradient are made; the default is independent draws.

    Attributes:
        antithetic: draws in pairs, the noise z and -z; uniforms u and 1 - u on their grid.
        orthogonal: the normals of an image's draws are at right angles, at each site and step.
        common: the same draws at every iteration of an attack, so that it maximises one sample average.
        control: steps of the surrogate whose gradient is the control variate; None for none. It is the
            purifier on a grid of so many steps, or with 1 denoising once, on the same noise.
        control_draws: further draws of the surrogate alone, which tell its mean; at least 1.

    Raises:
        UserError: if a value is of another type or out of range.

    Example:
        >>> Design(antithetic=True).plain, Design().plain
        (False, True)
    """

    antithetic: bool = False
    orthogonal: bool = False
    common: bool = False
    control: int | None = None
    control_draws: int = 20

    def __post_init__(self) -> None:
        """Looks at the values."""
        for name in ("antithetic", "orthogonal", "common"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"design: {name} is true or false, not {getattr(self, name)!r:.40}.")
        if self.control is not None:
            whole(self.control, "design: control", 1)
        whole(self.control_draws, "design: control_draws", 1)

    @property
    def plain(self) -> bool:
        """Whether draws are independent and fresh, and nothing is subtracted."""
        return self == Design(control_draws=self.control_draws)

    @property
    def of_draws(self) -> "Design":
        """The same without a control variate."""
        return Design(self.antithetic, self.orthogonal, self.common)

    def repeat(self, noise: NoisePlan, draws: int, *, skip: int = 0, of: int | None = None) -> NoisePlan:
        """Returns the plan of ``draws`` repetitions of each row, as `NoisePlan.repeat` numbers them."""
        plan = noise.at(0) if self.common else noise
        return plan.repeat(draws, antithetic=self.antithetic, orthogonal=self.orthogonal, skip=skip, of=of)

    @property
    def block(self) -> int:
        """Draws that depend on each other and are left out together: a mirrored pair, or one."""
        return 2 if self.antithetic else 1


def random_for(model: Any, noise: NoisePlan) -> bool:
    """Whether a model still draws anything from a plan that is not shared with it.

    What says nothing of its ``sites`` may draw anywhere.
    """
    sites = getattr(model, "sites", None)
    return sites is None or not set(sites) <= noise.shared.keys()


def controlled(full: Tensor, paired: Tensor, further: Tensor, design: Design) -> Tensor:
    """The mean of full gradients, less what the surrogate's tell of its error.

    g = mean_r [f_r - b_r (s_r - m)], where m is the surrogate's mean over further draws. The weight b_r is
    that of least squares over the image's other draws (of mirrored pairs: over the means of the others),
    times M / (R + M) for the error of m. So it is independent of (s_r - m), whose expectation is 0, and g is
    unbiased. Where there are not two others, and with orthogonal draws, of which none is independent of the
    others, it is M / (R + M).

    Args:
        full: gradients f of the model (B, R, ...).
        paired: gradients s of the surrogate on the same noise (B, R, ...).
        further: gradients of the surrogate on other noise (B, M, ...).
        design: how the draws were made.

    Returns:
        The gradient (B, ...).

    Source:
        Control variates: Glasserman 2003, section 4.1; weights of split samples: Avramidis & Wilson 1993.
    """
    some = max(1, AT_ONCE // (full[0].numel() + paired[0].numel() + further[0].numel()))
    parts = zip(full.split(some), paired.split(some), further.split(some), strict=True)
    return torch.cat([_controlled(f, s, m, design) for f, s, m in parts])


def _controlled(full: Tensor, paired: Tensor, further: Tensor, design: Design) -> Tensor:
    """`controlled` of a few images, in double precision."""
    block, count, extra = design.block, full.shape[1], further.shape[1]
    f, s, m = (g.flatten(2).double() for g in (full, paired, further))
    starts = range(0, count, block)
    f_mean, s_mean = (torch.stack([mean_in_order(g[:, i : i + block]) for i in starts], 1) for g in (f, s))
    weights = [f.new_ones(len(f)) for _ in starts]
    if not design.orthogonal and len(starts) > 2:
        weights = [_slope(*(_without(g, k) for g in (f_mean, s_mean))) for k in range(len(starts))]
    shrunk = torch.stack(weights, 1).repeat_interleave(block, 1)[:, :count, None] * (extra / (count + extra))
    flat = mean_in_order(f - shrunk * (s - mean_in_order(m)[:, None]))
    found: Tensor = flat.unflatten(1, full.shape[2:]).to(full.dtype)
    return found


def _without(values: Tensor, k: int) -> Tensor:
    """Values (B, R, N) without those of draw k."""
    return torch.cat([values[:, :k], values[:, k + 1 :]], dim=1)


def _slope(f: Tensor, s: Tensor) -> Tensor:
    """The weight b (B,) of least squares of f on s, both (B, R, N) about their means; of each image alone."""
    f, s = (g - mean_in_order(g)[:, None] for g in (f, s))
    f, s = f.flatten(1), s.flatten(1)
    along, size = inner(f, s)[:, 0], inner(s, s)[:, 0]
    return torch.where(size > 0, along / size.clamp(min=torch.finfo(size.dtype).tiny), torch.zeros_like(size))


@contextmanager
def using(target: "Target", design: Design) -> Iterator[None]:
    """Inside the block the target's gradients are made by a design."""
    before, target.design = target.design, design
    try:
        yield
    finally:
        target.design = before


def designed(attack: Callable[..., Any], design: Design) -> Callable[..., Any]:
    """Returns an attack whose gradients are made by a design, whatever it is; the attack itself if plain."""
    if design.plain:
        return attack

    @wraps(attack)
    def with_design(target: Any, *args: Any, **options: Any) -> Any:
        from dbpkit.attacks.target import Target

        target = Target.of(target)
        with using(target, design):
            return attack(target, *args, **options)

    return with_design
