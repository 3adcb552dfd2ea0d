"""Guided DDPM in rounds, after Wang et al. 2022 (arXiv:2205.14969): each is drawn towards the input."""

import math
from dataclasses import dataclass

from dbpkit.foundation.options import Count, NonNegative
from dbpkit.purification.samplers import Chain, level, samplers
from dbpkit.purification.samplers.ddpm import posterior


@samplers.register("guided")
@dataclass(frozen=True)
class Guided(Chain):
    """Rounds of DDPM, each step of N(mean - s variance grad D, variance) with D = |x_t - noised input|^2."""

    rounds: Count = 2
    guidance: NonNegative = 1.0

    @property
    def steps(self):
        return self.rounds * (len(self.levels) - 1)

    def place(self, i):
        turn, j = divmod(i, len(self.levels) - 1)
        return self.levels[j + 1], turn

    def start(self, x, noise):
        return x, x  # the state, and the input that guides it

    def step(self, denoiser, state, i, noise):
        (x, image), (turn, j) = state, divmod(i, len(self.levels) - 1)
        sigma, sigma_next = self.levels[j : j + 2]
        x = x + sigma * noise.normal("forward", turn, x) if j == 0 else x
        x0 = denoiser(x, level(sigma, x)).clamp(-1, 1)
        if sigma_next == 0:
            return x0, image
        mean, std = posterior(x, x0, sigma, sigma_next)
        target = image + sigma * noise.normal("forward", self.rounds + i, x)
        slope = 2 * (x - target) / math.sqrt((1 + sigma**2) * (1 + sigma_next**2))  # D's, in sigma units
        return mean - self.guidance * std**2 * slope + std * noise.normal("reverse", i, x), image
