"""The base of all filters: noise of a diffusion time, if asked for, and then a function of the image alone.

The thing people get wrong: rounding has no gradient, so a defence that rounds looks strong to an attacker who
differentiates it. Filters that round give another gradient and say so in ``gradient_note``.
"""

from abc import ABC, abstractmethod
from typing import Annotated

from annotated_types import Ge, Lt
from torch import Tensor

from dbpkit.foundation.frozen import Frozen, uncompiled
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count
from dbpkit.models.schedule import discrete_levels
from dbpkit.purification.purifier import check_call

Noising = Annotated[float, Ge(0), Lt(1)]
"""Diffusion time of the noise that is added first, in [0, 1); 0 adds none."""

BPDA_LIKE = "BPDA-like gradient"
"""How the note of a gradient begins that is not the derivative of the function."""


class Filter(Frozen, ABC):
    """A purifier without a network: clip(x + sigma z / 2) to [0, 1], then `filtered`.

    Args:
        t_star: diffusion time of the noise; 0 adds none, and the filter is deterministic.
        steps: S of the published grid that the time is looked up in, as for the sampler ``one_step``: level
            and draw are the same as there.

    Attributes:
        gradient_note: empty where the gradient is exact; else what it is instead.
    """

    calls = 0
    gradient_note = ""

    def __init__(self, t_star: Noising = 0.0, steps: Count = 1000) -> None:
        super().__init__()
        self.t_star = t_star
        self.sigma = float(discrete_levels(t_star, steps)[0]) if t_star else 0.0

    @property
    def sites(self) -> frozenset[str]:
        """The site ``forward`` if it adds noise."""
        return frozenset({"forward"}) if self.sigma else frozenset()

    @uncompiled
    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        """Purifies images (B, C, H, W) in [0, 1]; UserError if these are none, or the plan is another's."""
        check_call(x, noise, type(self).__name__)
        if self.sigma:
            x = (x + self.sigma / 2 * noise.normal("forward", 0, x)).clamp(0, 1)
        return self.filtered(x)

    @abstractmethod
    def filtered(self, x: Tensor) -> Tensor:
        """Returns filtered images (B, C, H, W) in [0, 1], differentiable in ``x``."""


def valued(value: Tensor, path: Tensor) -> Tensor:
    """Returns the values of one tensor with the gradient of another of the same shape."""
    return value.detach() + (path - path.detach())
