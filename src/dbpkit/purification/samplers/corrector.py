"""Langevin corrector steps before every step of a chain: noise that moves a state along its own level."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import CountOrNone, Length
from dbpkit.foundation.types import Denoiser
from dbpkit.purification.samplers.chain import Chain, level
from dbpkit.purification.samplers.columns import Level


@dataclass(frozen=True)
class Corrected(Chain):
    """A chain whose state ``x0 + sigma * z`` may take Langevin steps at every level, before the step down.

    Attributes:
        corrector_steps: Langevin steps at every level, each one more call of the denoiser; 0 takes none.
        corrector_size: length of each as a share of sigma squared; small ones keep the distribution of a
            level, large ones widen it: that of variance V becomes V / (1 - size sigma^2 / 2 V).

    Source:
        Song & Ermon 2019 (arXiv:1907.05600), algorithm 1, with step size alpha / 2 = corrector_size *
        sigma^2; Song et al. 2021 (arXiv:2011.13456), section 4.2, for its place in a chain.
    """

    corrector_steps: CountOrNone = 0
    corrector_size: Length = 0.1

    @property
    def corrector_sites(self) -> frozenset[str]:
        """The corrector's noise site, if it runs."""
        return frozenset({"corrector"} if self.corrector_steps else ())

    @property
    def calls(self) -> int:
        """Network calls: one a step, and one for each corrector step."""
        return self.steps * (1 + self.corrector_steps)

    def corrected(self, denoiser: Denoiser, x: Tensor, sigma: Level, i: int, noise: NoisePlan) -> Tensor:
        """Returns a state (B, C, H, W) of level ``sigma`` after the corrector steps before step ``i``."""
        for j in range(self.corrector_steps):
            z = noise.normal("corrector", i * self.corrector_steps + j, x)
            towards = denoiser(x, level(sigma, x)) - x  # sigma^2 times the score
            x = torch.add(x, towards, alpha=self.corrector_size)
            x = x + (2 * self.corrector_size) ** 0.5 * sigma * z
        return x
