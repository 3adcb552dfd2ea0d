"""Blind denoisers: networks that are not told how much noise there is."""

from typing import Any, Literal

from torch import Tensor, nn

from dbpkit.models.adapters.base import OUR_RANGE, Adapter, one_of
from dbpkit.models.adapters.registry import denoiser_adapters


@denoiser_adapters.register("blind")
class BlindDenoiser(Adapter):
    """A network that gets the noisy image ``x0 + sigma z`` as it is and nothing else; sigma is not looked at.

    Image restoration has many: DnCNN and its bias-free kin, for images in [0, 1] (``image_range = [0, 1]``).

    Args:
        network: called as ``network(x)``, or ``network(x, label)`` with a label.
        prediction: ``image``: it returns the clean image; ``residual``: what is to be taken away from x.
        image_range: smallest and largest pixel value of the images that the network was trained on.
        label: class that the network is told, of all images.

    Source:
        Zhang et al. 2017 (arXiv:1608.03981), eq. 1, for the residual; Mohan et al., ICLR 2020
        (arXiv:1906.05478), for denoisers that find the level themselves.
    """

    def __init__(
        self,
        network: nn.Module,
        prediction: Literal["image", "residual"] = "residual",
        image_range: tuple[float, float] = OUR_RANGE,
        label: int | None = None,
    ) -> None:
        super().__init__(network, image_range, label, "network(x)")
        self.prediction: Any = one_of(prediction, "prediction", ("image", "residual"))

    def estimate(self, x: Tensor, levels: Tensor) -> Tensor:
        """Estimates u0 from ``u0 + sigma * z`` in the network's own range; ``levels`` is not used."""
        del levels
        out = self.ask(x, None)
        return x - out if self.prediction == "residual" else out
