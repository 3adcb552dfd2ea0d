"""Likelihood maximisation: the image itself is moved to where the diffusion model finds it likely."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Length, NonNegative
from dbpkit.foundation.types import Denoiser, State
from dbpkit.models.schedule import vp_sigma
from dbpkit.purification.samplers.chain import Chain, samplers
from dbpkit.purification.samplers.gdmp import gradient

FIRST = 2
"""Number of the first step's draw of site ``level``: 0 is that of drawn grids, 1 of a mixture's choice."""


def ascent_levels(t_star: float, steps: int, lowest: float = 2 / 3) -> Tensor:
    """Noise levels of ``steps`` steps, evenly from that of VP time ``t_star`` down to a share of it, then 0.

    Args:
        t_star: time of the highest level, in (0, 1).
        steps: S, steps of the ascent.
        lowest: the lowest level over the highest, in (0, 1).

    Returns:
        (steps + 1,) float64 levels.
    """
    if not 0 < lowest < 1:
        raise UserError(f"lowest {lowest:g} is outside (0, 1): it is a share of the highest noise level.")
    top = vp_sigma(torch.tensor(t_star, dtype=torch.float64))
    share = torch.linspace(1, lowest, steps, dtype=torch.float64) if steps > 1 else torch.ones(1).double()
    return torch.cat([top * share, top.new_zeros(1)])


@samplers.register("likelihood")
@dataclass(frozen=True)
class Likelihood(Chain):
    """Descends the diffusion loss ``|D(x + sigma z) - x|^2 / sigma^2`` of the image, within a ball around it.

    There is no noisy state: noise only measures. A step costs a forward and a backward pass of the network,
    and an attacker's exact gradient its second derivative.

    Attributes:
        step_size: length of a step in [0, 1] pixel units: the mean change of a pixel without momentum.
        momentum: share of the earlier directions that is kept, at least 0; 1 adds all of them up.
        eps: largest change of a pixel, in [0, 1] pixel units.
        drawn: whether the level of each step is drawn between the grid's highest and lowest (published), or
            walks down the grid.

    Source:
        Chen et al. 2024 (Robust Diffusion Classifier, arXiv:2305.15241), likelihood maximisation: momentum
        over gradients of norm one, five steps in an L-infinity ball of 8/255, one level and draw a step.
    """

    step_size: Length = 2 / 255
    momentum: NonNegative = 1.0
    eps: Length = 8 / 255
    drawn: bool = True
    grid = staticmethod(ascent_levels)
    generates = False

    @property
    def sites(self) -> frozenset[str]:
        """Noise sites, with that of the levels if they are drawn."""
        return frozenset({"forward", "level"} if self.drawn else {"forward"})

    def start(self, x: Tensor, noise: NoisePlan) -> State:
        """Returns the images, no direction yet, and the images again as the centre of the ball."""
        del noise
        return x, torch.zeros_like(x), x

    def step(self, denoiser: Denoiser, state: State, i: int, noise: NoisePlan) -> State:
        """One step down the diffusion loss; one call of the denoiser and its derivative."""
        x, direction, centre = state
        sigma = self._sigma(x, i, noise)
        z = noise.normal("forward", i, x)

        def loss(x: Tensor) -> Tensor:
            return ((denoiser(x + sigma * z, sigma.flatten()) - x) / sigma).square().sum()

        slope = gradient(loss, x)
        size = slope.abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-30)
        direction = self.momentum * direction - slope / size
        moved = x + 2 * self.step_size * direction
        within = centre + (moved - centre).clamp(-2 * self.eps, 2 * self.eps)
        return within.clamp(-1, 1), direction, centre

    def _sigma(self, x: Tensor, i: int, noise: NoisePlan) -> Tensor:
        """The level of a step, for each example, (B, 1, 1, 1)."""
        if not self.drawn:
            return torch.full_like(x[:, :1, :1, :1], self.levels[i])
        highest, lowest = self.levels[0], self.levels[-2]
        return lowest + (highest - lowest) * noise.uniform("level", FIRST + i, x[:, :1, :1, :1])

    def place(self, i: int) -> tuple[float, int]:
        """Every state is a clean image."""
        del i
        return 0.0, 0
