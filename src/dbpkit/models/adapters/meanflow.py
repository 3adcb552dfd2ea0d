"""MeanFlow: networks that return the average velocity between two times, so that one call is a sample."""

from typing import Literal

import torch
from torch import Tensor, nn

from dbpkit.models.adapters.base import OUR_RANGE, Adapter, column, one_of
from dbpkit.models.adapters.registry import denoiser_adapters


@denoiser_adapters.register("meanflow")
class MeanFlowDenoiser(Adapter):
    """A MeanFlow network: one call leads along the whole way from (1 - t) x0 + t z to a clean image.

    Args:
        network: called as ``network(state, (t, t - r))``; returns the average velocity between r and t.
        velocity: ``average`` over the whole way, r = 0, which gives a sample in one call; or that of the
            ``instant``, r = t, which gives the mean of all clean images.
        image_range: smallest and largest pixel value of the images that the network was trained on.
        label: class that a conditional network is told, of all images.

    Source:
        Geng et al. 2025 (arXiv:2505.13447), eq. 4 and section 4.
    """

    def __init__(
        self,
        network: nn.Module,
        velocity: Literal["average", "instant"] = "average",
        image_range: tuple[float, float] = OUR_RANGE,
        label: int | None = None,
    ) -> None:
        super().__init__(network, image_range, label, "network(x, (t, t - r))")
        self.velocity = one_of(velocity, "velocity", ("average", "instant"))

    def estimate(self, x: Tensor, levels: Tensor) -> Tensor:
        """Estimates u0 from ``u0 + sigma * z`` in the network's own range."""
        t = levels / (1 + levels)
        state = x / (1 + column(levels, x))
        way = t if self.velocity == "average" else torch.zeros_like(t)
        return state - column(t, x) * self.ask(state, (t, way))
