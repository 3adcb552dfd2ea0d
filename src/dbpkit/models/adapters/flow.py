"""Flow matching: networks that return the velocity of a straight path between an image and noise."""

from typing import Literal

from torch import Tensor, nn

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.inputs import real
from dbpkit.models.adapters.base import OUR_RANGE, Adapter, above_zero, column, one_of
from dbpkit.models.adapters.registry import denoiser_adapters


@denoiser_adapters.register("flow")
class FlowDenoiser(Adapter):
    """A flow-matching network, which returns the velocity of a straight path between an image and noise.

    With the share s of the path that is noise, ``linear`` is (1 - s) x0 + s z and ``additive`` is
    x0 + sigma_max s z. The network's time is s, or 1 - s if the path is clean at 1.

    Args:
        network: returns the derivative of the path by its time, from the state and the time.
        path: ``linear``, of rectified flow and flow matching; or ``additive``, FlowPure's.
        clean_at: time where the path is the clean image, 0 or 1.
        sigma_max: noise level of the other end of an additive path, 0.3 in FlowPure; no higher one has a
            time.
        time_scale: what the time in [0, 1] is multiplied by.
        image_range: smallest and largest pixel value of the images that the network was trained on.
        label: class that a conditional network is told, of all images.

    Source:
        Liu et al. 2023 (arXiv:2209.03003), eq. 1; Lipman et al. 2023 (arXiv:2210.02747), section 4.
    """

    def __init__(
        self,
        network: nn.Module,
        path: Literal["linear", "additive"] = "linear",
        clean_at: Literal[0, 1] = 0,
        sigma_max: float = 0.3,
        time_scale: float = 1.0,
        image_range: tuple[float, float] = OUR_RANGE,
        label: int | None = None,
    ) -> None:
        super().__init__(network, image_range, label)
        self.path = one_of(path, "path", ("linear", "additive"))
        if clean_at not in (0, 1):
            raise UserError(f"clean_at must be 0 or 1, the time of the clean image, not {clean_at!r:.60}.")
        self.clean_at = clean_at
        self.sigma_max = above_zero(sigma_max, "sigma_max")
        self.time_scale = real(time_scale, "time_scale")

    @property
    def largest_level(self) -> float | None:
        """Largest noise level that has a time, in [-1, 1] units; None if all have."""
        return self.sigma_max / self.half_range[0] if self.path == "additive" else None

    def estimate(self, x: Tensor, levels: Tensor) -> Tensor:
        """Estimates u0 from ``u0 + sigma * z`` in the network's own range."""
        noisy = levels / (1 + levels) if self.path == "linear" else levels / self.sigma_max
        state = x / (1 + column(levels, x)) if self.path == "linear" else x
        velocity = self.ask(state, self.time_scale * (1 - noisy if self.clean_at else noisy))
        way = column(noisy, x)
        return state + way * velocity if self.clean_at else state - way * velocity
