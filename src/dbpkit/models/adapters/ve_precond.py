"""EDM's form of the variance-exploding parametrisation."""

from torch import Tensor, nn

from dbpkit.models.adapters.base import OUR_RANGE, Adapter, column
from dbpkit.models.adapters.registry import denoiser_adapters


@denoiser_adapters.register("ve_precond")
class VEPrecondDenoiser(Adapter):
    """EDM's variance-exploding preconditioning: x + sigma F(x; log(sigma / 2)), images in [-1, 1].

    Args:
        network: predicts the negative noise from the unscaled state and log(sigma / 2).
        image_range: smallest and largest pixel value of the images that the network was trained on.
        label: class that a conditional network is told, of all images.

    Source:
        Karras et al. 2022 (arXiv:2206.00364), table 1, column VE.
    """

    def __init__(
        self,
        network: nn.Module,
        image_range: tuple[float, float] = OUR_RANGE,
        label: int | None = None,
    ) -> None:
        super().__init__(network, image_range, label, "network(x, noise_label)")

    def estimate(self, x: Tensor, levels: Tensor) -> Tensor:
        """Estimates u0 from ``u0 + sigma * z`` in the network's own range."""
        return x + column(levels, x) * self.ask(x, (levels / 2).log())
