"""EDM's form of the variance-preserving parametrisation."""

from torch import Tensor, nn

from dbpkit.foundation.inputs import real, whole
from dbpkit.models.adapters.base import OUR_RANGE, Adapter, column
from dbpkit.models.adapters.registry import denoiser_adapters
from dbpkit.models.schedule import BETA_MIN, vp_time


@denoiser_adapters.register("vp_precond")
class VPPrecondDenoiser(Adapter):
    """EDM's variance-preserving preconditioning: x - sigma F(x / sqrt(1 + sigma**2); 999 t).

    Args:
        network: predicts the noise from scaled images and (train_steps - 1) times the VP time.
        beta_d: beta at t = 1 minus that at t = 0.
        beta_min: beta at t = 0.
        train_steps: M, 1 more than the largest time.
        image_range: smallest and largest pixel value of the images that the network was trained on.
        label: class that a conditional network is told, of all images.

    Source:
        Karras et al. 2022 (arXiv:2206.00364), table 1, column VP.
    """

    def __init__(
        self,
        network: nn.Module,
        beta_d: float = 19.9,
        beta_min: float = BETA_MIN,
        train_steps: int = 1000,
        image_range: tuple[float, float] = OUR_RANGE,
        label: int | None = None,
    ) -> None:
        super().__init__(network, image_range, label)
        self.beta_d, self.beta_min = real(beta_d, "beta_d"), real(beta_min, "beta_min")
        self.train_steps = whole(train_steps, "train_steps", 2)

    def estimate(self, x: Tensor, levels: Tensor) -> Tensor:
        """Estimates u0 from ``u0 + sigma * z`` in the network's own range."""
        sigma = column(levels, x)
        times = (self.train_steps - 1) * vp_time(levels, self.beta_min, self.beta_min + self.beta_d)
        return x - sigma * self.ask(x * (1 + sigma**2).rsqrt(), times)
