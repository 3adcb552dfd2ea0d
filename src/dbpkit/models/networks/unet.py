"""A U-Net that denoises: convolutions on image patches, conditioned on a noise level.

It carries no schedule and no preconditioning; `dbpkit.models.denoisers` adds those.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.options import Count
from dbpkit.models.networks.layers import channels_last, zero
from dbpkit.models.networks.registry import networks


@networks.register("unet")
class UNet(nn.Module):
    """A convolutional U-Net on image patches, conditioned on a noise level.

    Args:
        image_channels: C of the image.
        channels: width of each resolution, the finest first.
        blocks: residual blocks of each resolution on the way down, and again on the way up; the
            coarsest resolution has them once.
        patch_size: side of the patches that are folded into channels before the first layer.
        embedding_size: width of the noise-level embedding.
        attention: whether the coarsest resolution ends with self-attention.
    """

    def __init__(
        self,
        image_channels: Count = 3,
        channels: tuple[Count, ...] = (96, 128),
        blocks: tuple[Count, ...] = (2, 3),
        patch_size: Count = 2,
        embedding_size: Count = 64,
        attention: bool = True,
    ) -> None:
        super().__init__()
        if len(channels) != len(blocks):
            raise UserError(f"unet: channels {channels} and blocks {blocks} must have the same length.")
        self.image_channels = image_channels
        self.side_multiple = patch_size * 2 ** (len(channels) - 1)
        self.embed = nn.Sequential(
            _Fourier(embedding_size), nn.Linear(embedding_size, embedding_size), nn.SiLU()
        )
        self.fold = nn.PixelUnshuffle(patch_size)
        self.stem = nn.Conv2d(image_channels * patch_size**2, channels[0], 3, padding=1)
        levels = list(zip(channels, blocks, strict=True))
        self.down = nn.ModuleList([_level(c, n, embedding_size) for c, n in levels[:-1]])
        self.shrink = nn.ModuleList([nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(channels)])
        self.middle = _level(channels[-1], blocks[-1], embedding_size)
        self.attend = _SelfAttention(channels[-1]) if attention else nn.Identity()
        self.grow = nn.ModuleList([nn.Conv2d(b, a, 1) for a, b in pairwise(channels)])
        self.up = nn.ModuleList([_level(c, n, embedding_size) for c, n in levels[:-1]])
        self.head = nn.Sequential(
            nn.GroupNorm(8, channels[0]),
            nn.SiLU(),
            nn.Conv2d(channels[0], image_channels * patch_size**2, 3, padding=1),
        )
        self.unfold = nn.PixelShuffle(patch_size)
        zero(self.head[2])
        channels_last(self)

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        """Maps scaled images (B, C, H, W) and noise labels (B,) to (B, C, H, W).

        Raises:
            UserError: if H or W is not a multiple of ``side_multiple``.
        """
        if x.shape[-1] % self.side_multiple or x.shape[-2] % self.side_multiple:
            raise UserError(
                f"unet: image sides must be multiples of {self.side_multiple}, not {tuple(x.shape[-2:])}."
            )
        embedding = self.embed(noise_label)
        x = self.stem(self.fold(x).contiguous(memory_format=torch.channels_last))
        skips = []
        for level, shrink in zip(self.down, self.shrink, strict=True):
            for block in level.children():
                x = block(x, embedding)
            skips.append(x)
            x = shrink(x)
        for block in self.middle:
            x = block(x, embedding)
        x = self.attend(x)
        for level, grow in zip(reversed(self.up), reversed(self.grow), strict=True):
            x = functional.interpolate(grow(x), scale_factor=2.0) + skips.pop()
            for block in level.children():
                x = block(x, embedding)
        return self.unfold(self.head(x))


class _Fourier(nn.Module):
    """Sines and cosines of a noise label at fixed frequencies."""

    frequencies: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        frequencies = torch.exp(torch.linspace(math.log(0.5), math.log(64.0), size // 2))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, label: Tensor) -> Tensor:
        angles = label[:, None] * self.frequencies[None]
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class _ResidualBlock(nn.Module):
    """Two normalised convolutions with a noise-level scale and shift between them."""

    def __init__(self, channels: int, embedding_size: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(embedding_size, 2 * channels)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        zero(self.conv2)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(functional.silu(self.norm1(x)))
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        return x + self.conv2(functional.silu(h))


class _SelfAttention(nn.Module):
    """Single-head self-attention over positions, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        zero(self.out)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)  # each (B, HW, C)
        weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[2]), dim=2)
        return x + self.out((weights @ v).transpose(1, 2).reshape(x.shape))


def _level(channels: int, blocks: int, embedding_size: int) -> nn.ModuleList:
    return nn.ModuleList([_ResidualBlock(channels, embedding_size) for _ in range(blocks)])
