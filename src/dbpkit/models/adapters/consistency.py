"""Consistency models: one call is a sample, whatever the noise level."""

from typing import Literal

from torch import Tensor, nn

from dbpkit.foundation.inputs import real
from dbpkit.models.adapters.base import OUR_RANGE, Adapter, above_zero, column, one_of
from dbpkit.models.adapters.registry import denoiser_adapters


@denoiser_adapters.register("consistency")
class ConsistencyDenoiser(Adapter):
    """A consistency model, which maps every noise level to a clean image in one call.

    Args:
        network: predicts from scaled images and 250 log(sigma).
        sigma_data: standard deviation of the data in units of its range.
        sigma_min: level where the model is the identity.
        scalings: ``boundary`` of consistency models, or ``edm`` of their teacher.
        image_range: smallest and largest pixel value of the images that the network was trained on.
        label: class that a conditional network is told, of all images.

    Source:
        Song et al. 2023 (arXiv:2303.01469), appendix C.
    """

    def __init__(
        self,
        network: nn.Module,
        sigma_data: float = 0.5,
        sigma_min: float = 0.002,
        scalings: Literal["boundary", "edm"] = "boundary",
        image_range: tuple[float, float] = OUR_RANGE,
        label: int | None = None,
    ) -> None:
        super().__init__(network, image_range, label, "network(x, noise_label)")
        self.sigma_data = above_zero(sigma_data, "sigma_data")
        self.sigma_min = real(sigma_min, "sigma_min")
        self.scalings = one_of(scalings, "scalings", ("boundary", "edm"))

    def estimate(self, x: Tensor, levels: Tensor) -> Tensor:
        """Estimates u0 from ``u0 + sigma * z`` in the network's own range."""
        sigma = column(levels, x)
        total = (sigma**2 + self.sigma_data**2).sqrt()
        above = sigma - self.sigma_min if self.scalings == "boundary" else sigma
        skip = self.sigma_data**2 / (above**2 + self.sigma_data**2)
        out = above * self.sigma_data / total
        return skip * x + out * self.ask(x / total, 250 * (levels + 1e-44).log())
