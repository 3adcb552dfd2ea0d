"""Variance-exploding networks of Score-SDE, which take sigma itself and return the score."""

from torch import Tensor, nn

from dbpkit.models.adapters.base import Adapter, column
from dbpkit.models.adapters.registry import denoiser_adapters


@denoiser_adapters.register("ve")
class VEDenoiser(Adapter):
    """A variance-exploding network of Score-SDE: x + sigma**2 network(x, sigma), images in [0, 1].

    Args:
        network: returns the score of ``u0 + sigma * z`` from that state and sigma.
        image_range: smallest and largest pixel value of the images that the network was trained on, and the
            units of its sigma.
        label: class that a conditional network is told, of all images.

    Source:
        Song et al. 2021 (arXiv:2011.13456), appendix C.
    """

    def __init__(
        self,
        network: nn.Module,
        image_range: tuple[float, float] = (0.0, 1.0),
        label: int | None = None,
    ) -> None:
        super().__init__(network, image_range, label, "network(x, sigma)")

    def estimate(self, x: Tensor, levels: Tensor) -> Tensor:
        """Estimates u0 from ``u0 + sigma * z`` in the network's own range."""
        return x + column(levels, x) ** 2 * self.ask(x, levels)
