"""The reverse chain alone: the image is taken for a noisy state, no noise is added first."""

from dataclasses import dataclass

from torch import Tensor

from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.types import State
from dbpkit.purification.samplers.chain import samplers
from dbpkit.purification.samplers.columns import root
from dbpkit.purification.samplers.ddpm import DDPM


@samplers.register("reverse_only")
@dataclass(frozen=True)
class ReverseOnly(DDPM):
    """DDPM's reverse chain from the image itself, without forward noise.

    Attributes:
        scaled: whether the image is first multiplied by sqrt(alpha_bar), as forward noising would. Without
            it (the reading of the paper) the image is the variance-preserving state as it is.
        variance: as in ``ddpm``.
        clip: as in ``ddpm``.

    Source:
        Liu & Wei 2025 (arXiv:2505.22839), "reverse-only"; whether they scale is not published.
    """

    scaled: bool = False

    @property
    def sites(self) -> frozenset[str]:
        """Noise sites, with the corrector's if it runs."""
        return frozenset({"reverse"}) | self.corrector_sites

    def start(self, x: Tensor, noise: NoisePlan) -> State:
        """Returns the images as a state at the first level."""
        return (x if self.scaled else x * root(1 + self.levels[0] ** 2),)
