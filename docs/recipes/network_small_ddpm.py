"""A network in one file: a small U-Net in the manner of DDPM, which is told the noise level."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from dbpkit.foundation.options import Count
from dbpkit.models.networks import networks


class Block(nn.Module):
    """Two convolutions, the noise level added between them, added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(4, width) for _ in range(2)])
        self.convolutions = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(2)])
        self.shift = nn.Linear(width, width)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Maps features (B, C, H, W) and an embedding (B, C) to features (B, C, H, W)."""
        h = self.convolutions[0](functional.silu(self.norms[0](x))) + self.shift(embedding)[:, :, None, None]
        return x + self.convolutions[1](functional.silu(self.norms[1](h)))


@networks.register("small_ddpm")
class SmallDDPM(nn.Module):
    """A U-Net of two resolutions for images of even sides.

    Args:
        image_channels: C of the image.
        width: channels inside, four times this number.
    """

    def __init__(self, image_channels: Count = 3, width: Count = 8) -> None:
        super().__init__()
        inside = 4 * width
        self.register_buffer("frequencies", torch.linspace(0.5, 8.0, inside // 2))
        self.embed = nn.Sequential(nn.Linear(inside, inside), nn.SiLU())
        self.stem = nn.Conv2d(image_channels, inside, 3, padding=1)
        self.down, self.middle, self.up = Block(inside), Block(inside), Block(inside)
        self.head = nn.Conv2d(inside, image_channels, 3, padding=1)

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        """Maps scaled images (B, C, H, W) and noise labels (B,) to (B, C, H, W)."""
        angles = noise_label[:, None] * self.frequencies
        embedding = self.embed(torch.cat([angles.sin(), angles.cos()], dim=1))
        skip = self.down(self.stem(x), embedding)
        h = self.middle(functional.avg_pool2d(skip, 2), embedding)
        h = functional.interpolate(h, scale_factor=2.0) + skip
        return self.head(self.up(h, embedding))
