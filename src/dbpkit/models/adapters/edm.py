"""EDM preconditioning around a raw network."""

from torch import Tensor, nn

from dbpkit.foundation.inputs import real
from dbpkit.models.adapters.base import OUR_RANGE, Adapter, column
from dbpkit.models.adapters.registry import denoiser_adapters


@denoiser_adapters.register("edm")
class EDMDenoiser(Adapter):
    """EDM preconditioning around a raw network.

    Args:
        network: predicts the preconditioned target from scaled images and log(sigma) / 4.
        sigma_data: standard deviation of the data in units of its range.
        image_range: smallest and largest pixel value of the images that the network was trained on.
        label: class that a conditional network is told, of all images.

    Source:
        Karras et al. 2022 (arXiv:2206.00364), table 1 and eq. 7.
    """

    def __init__(
        self,
        network: nn.Module,
        sigma_data: float = 0.5,
        image_range: tuple[float, float] = OUR_RANGE,
        label: int | None = None,
    ) -> None:
        super().__init__(network, image_range, label, "network(x, noise_label)")
        self.sigma_data = real(sigma_data, "sigma_data")

    def estimate(self, x: Tensor, levels: Tensor) -> Tensor:
        """Estimates u0 from ``u0 + sigma * z`` in the network's own range."""
        sigma = column(levels, x)
        total = (sigma**2 + self.sigma_data**2).sqrt()
        skip = (self.sigma_data / total) ** 2
        out = sigma * self.sigma_data / total
        return skip * x + out * self.ask(x / total, levels.log() / 4)
