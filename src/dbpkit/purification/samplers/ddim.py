"""DDIM: the same marginals as DDPM with as much randomness as wanted."""

from dataclasses import dataclass

from torch import Tensor

from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Share
from dbpkit.foundation.types import Denoiser, State
from dbpkit.purification.samplers.chain import clipped, level, samplers
from dbpkit.purification.samplers.columns import is_clean, plus, root
from dbpkit.purification.samplers.corrector import Corrected


@samplers.register("ddim")
@dataclass(frozen=True)
class DDIM(Corrected):
    """DDIM; with ``eta`` = 0 only the forward noise is random.

    Attributes:
        eta: 0 is deterministic, 1 has the variance of small-variance DDPM.
        clip: whether the clean estimate is limited to [-1, 1]; the noise direction keeps the unclipped one,
            as in the published pipeline.

    Source:
        Song, Meng & Ermon 2021 (arXiv:2010.02502), eq. 12 and 16, in sigma coordinates.
    """

    eta: Share = 0.0
    clip: bool = True
    by_row = True

    @property
    def sites(self) -> frozenset[str]:
        """Noise sites; the way back draws only if ``eta`` > 0."""
        return frozenset({"forward", "reverse"} if self.eta else {"forward"}) | self.corrector_sites

    def step(self, denoiser: Denoiser, state: State, i: int, noise: NoisePlan) -> State:
        """One generalised step; one call of the denoiser, and one for each corrector step."""
        return (self.down(denoiser, state[0], i, i, noise),)

    def down(self, denoiser: Denoiser, x: Tensor, start: int, i: int, noise: NoisePlan) -> Tensor:
        """Returns images (B, C, H, W) one level below that numbered ``start``, in step ``i`` of the walk."""
        sigma, sigma_next = self.levels[start : start + 2]
        x = self.corrected(denoiser, x, sigma, i, noise)
        estimate = denoiser(x, level(sigma, x))
        std = self.eta * sigma_next * root(1 - (sigma_next / sigma) ** 2)
        noise_pred = (x - estimate) / sigma
        x = plus(clipped(estimate, self.clip), noise_pred, root(sigma_next**2 - std**2))
        drawn = self.eta > 0 and not is_clean(sigma_next)
        return x + std * noise.normal("reverse", i, x) if drawn else x
