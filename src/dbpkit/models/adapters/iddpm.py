"""EDM's form of improved DDPM: the label is the index of a cosine table, sigma itself is not rounded."""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from dbpkit.foundation.inputs import whole
from dbpkit.models.adapters.base import OUR_RANGE, Adapter, above_zero, column
from dbpkit.models.adapters.registry import denoiser_adapters
from dbpkit.models.discrete import LONGEST


@denoiser_adapters.register("iddpm")
class IDDPMDenoiser(Adapter):
    """EDM's preconditioning of improved DDPM networks: x - sigma F(x / sqrt(1 + sigma**2); index).

    The level is rounded to the nearest one of a table for the network's label only. Of an output with
    variances the first half is taken.

    Args:
        network: predicts the noise, and perhaps variances, from scaled images and an index.
        train_steps: M, length of the table.
        smallest_ratio: C1, lower bound of the ratio of successive signal powers.
        offset: C2, offset of the cosine schedule.
        image_range: smallest and largest pixel value of the images that the network was trained on.
        label: class that a conditional network is told, of all images.

    Source:
        Karras et al. 2022 (arXiv:2206.00364), table 1, column iDDPM, and appendix C.3.
    """

    def __init__(
        self,
        network: nn.Module,
        train_steps: int = 1000,
        smallest_ratio: float = 0.001,
        offset: float = 0.008,
        image_range: tuple[float, float] = OUR_RANGE,
        label: int | None = None,
    ) -> None:
        super().__init__(network, image_range, label, "network(x, index)")
        self.train_steps = whole(train_steps, "train_steps", 2, LONGEST + 1)
        self.smallest_ratio = above_zero(smallest_ratio, "smallest_ratio")
        self.offset = above_zero(offset, "offset")

    def estimate(self, x: Tensor, levels: Tensor) -> Tensor:
        """Estimates u0 from ``u0 + sigma * z`` in the network's own range."""
        sigma = column(levels, x)
        table = levels_of(self.train_steps, self.smallest_ratio, self.offset, levels.device)[:-1]
        index = (levels.to(table)[:, None] - table).abs().argmin(dim=1)
        times = (self.train_steps - 1 - index).to(levels.dtype)
        out = self.answer(x * (1 + sigma**2).rsqrt(), times)
        return x - sigma * out[:, : x.shape[1]]


@lru_cache(maxsize=8)
def levels_of(steps: int, smallest_ratio: float, offset: float, device: torch.device) -> Tensor:
    """The levels u_0 > ... > u_M = 0 of the published table, (M + 1,), double where the device has it."""

    def power(j: int) -> float:
        return math.sin(0.5 * math.pi * j / steps / (offset + 1)) ** 2

    levels = [0.0]
    for j in range(steps, 0, -1):
        ratio = max(power(j - 1) / power(j), smallest_ratio)
        levels.append(math.sqrt((levels[-1] ** 2 + 1) / ratio - 1))
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.tensor(levels[::-1], dtype=dtype).to(device)
