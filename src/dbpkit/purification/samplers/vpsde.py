"""The reverse variance-preserving SDE by Euler-Maruyama, with an optional Langevin corrector."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import CountOrNone, Length, NonNegative
from dbpkit.foundation.types import Denoiser, State
from dbpkit.models.schedule import BETA_MAX, BETA_MIN, continuous_levels, vp_time
from dbpkit.purification.samplers.chain import Chain, diffuse, level, samplers
from dbpkit.purification.samplers.columns import Level, root


@samplers.register("vpsde")
@dataclass(frozen=True)
class VPSDE(Chain):
    """Reverse VP-SDE (the DiffPure sampler), returning the last step's mean.

    The state is variance preserving: (x0 + sigma z) / sqrt(1 + sigma^2).

    Attributes:
        corrector_steps: Langevin steps before each predictor step; 0 is the published default row.
        snr: signal-to-noise ratio of the corrector, per example.
        beta_min: schedule's beta at t = 0.
        beta_max: schedule's beta at t = 1.

    Source:
        Song et al. 2021 (arXiv:2011.13456), algorithms 3 and 5; grid and last mean as in Liu et al. 2025.
    """

    corrector_steps: CountOrNone = 0
    snr: NonNegative = 0.16
    beta_min: NonNegative = BETA_MIN
    beta_max: Length = BETA_MAX
    grid = staticmethod(continuous_levels)
    clamps = False
    by_row = True

    @property
    def sites(self) -> frozenset[str]:
        """Noise sites, with the corrector's if it runs."""
        return frozenset({"forward", "reverse"} | ({"corrector"} if self.corrector_steps else set()))

    @property
    def calls(self) -> int:
        """Network calls: one a step, and one for each corrector step."""
        return self.steps * (1 + self.corrector_steps)

    @cached_property
    def times(self) -> list[Any]:
        """VP times of the levels, the last one 0; of columns they are columns."""
        levels: tuple[Any, ...] = self.levels[:-1]
        if isinstance(levels[0], Tensor):
            times = vp_time(torch.stack(levels).double(), self.beta_min, self.beta_max)
            return [*times.to(levels[0]), 0.0]
        times = vp_time(torch.tensor(levels, dtype=torch.float64), self.beta_min, self.beta_max)
        return [*times.tolist(), 0.0]

    def start(self, x: Tensor, noise: NoisePlan) -> State:
        """Returns the images, noised to the first level and scaled."""
        return (diffuse(x, self.levels[0], noise) / root(1 + self.levels[0] ** 2),)

    def step(self, denoiser: Denoiser, state: State, i: int, noise: NoisePlan) -> State:
        """Correctors and predictor; a call of the denoiser for each."""
        (x,), (t, t_next) = state, self.times[i : i + 2]
        beta = self.beta_min + t * (self.beta_max - self.beta_min)
        for j in range(self.corrector_steps):
            score = self.score(denoiser, x, i)
            z = noise.normal("corrector", i * self.corrector_steps + j, x)
            x = correct(x, score, z, beta, self.snr)
        dt = t - t_next
        mean = x + (0.5 * beta * x + beta * self.score(denoiser, x, i)) * dt
        if i + 1 == self.steps:
            return (mean,)
        return (mean + root(beta * dt) * noise.normal("reverse", i, x),)

    def score(self, denoiser: Denoiser, x: Tensor, i: int) -> Tensor:
        """Returns the score at a state (B, C, H, W) before step ``i``."""
        sigma, signal = self.levels[i], self.scale(self.levels[i])
        x0 = denoiser(x / signal, level(sigma, x))
        return (signal * x0 - x) / (signal * sigma) ** 2

    def scale(self, sigma: Level) -> Level:
        """Returns sqrt(alpha_bar) at level ``sigma``."""
        return 1 / root(1 + sigma**2)


def correct(x: Tensor, score: Tensor, z: Tensor, beta: Level, snr: float) -> Tensor:
    """One Langevin step of a state (B, C, H, W), its size set by the ratio of norms of each example."""
    ratio = z.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1)
    size = (snr * ratio[:, None, None, None]) ** 2 * 2 * (1 - beta / 1000)
    corrected: Tensor = x + size * score + torch.sqrt(2 * size) * z
    return corrected
