"""One-step denoising: a single clean estimate from t*."""

from dataclasses import dataclass

from torch import Tensor

from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.types import Denoiser, State
from dbpkit.models.schedule import discrete_levels
from dbpkit.purification.samplers.chain import Chain, clipped, level, samplers


def one_level(t_star: float, steps: int, table: Tensor | None = None) -> Tensor:
    """The first level of the discrete grid, and 0; (2,) float64; see `discrete_levels`."""
    return discrete_levels(t_star, steps, table)[[0, -1]]


@samplers.register("one_step")
@dataclass(frozen=True)
class OneStep(Chain):
    """One call of the denoiser at t*, as in denoised smoothing.

    Attributes:
        clip: whether the estimate is limited to [-1, 1].

    Source:
        Carlini et al. 2023 (arXiv:2206.10550), algorithm 1.
    """

    clip: bool = True
    by_row = True
    grid = staticmethod(one_level)
    sites = frozenset({"forward"})

    def step(self, denoiser: Denoiser, state: State, i: int, noise: NoisePlan) -> State:
        """The clean estimate."""
        (x,) = state
        return (clipped(denoiser(x, level(self.levels[i], x)), self.clip),)
