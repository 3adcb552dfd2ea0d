"""The package's own small networks: a U-Net that denoises and residual classifiers.

They carry no schedule and no preconditioning (`denoiser.py` adds those). The thing people get wrong:
the U-Net works on 2x2 patches, so image sides must be divisible by ``patch_size * 2**(levels - 1)``.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.options import Count, Length
from dbpkit.foundation.registry import Registry

networks: Registry = Registry("network")


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
        _zero(self.head[2])
        _channels_last(self)

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


@networks.register("resnet9")
class ResNet9(nn.Module):
    """A nine-layer residual classifier for 32x32 images; takes pixels in [0, 1] and returns logits.

    Args:
        image_channels: C of the image.
        classes: K.
        channels: widths of the stem and the three stages.
        mean: per-channel mean subtracted from the input.
        std: per-channel deviation it is divided by.
        scale: factor on the final logits, as is usual for networks of this kind.
        mirror: whether, once trained, logits are averaged over the image and its mirror image.
    """

    def __init__(
        self,
        image_channels: Count = 3,
        classes: Count = 10,
        channels: tuple[Count, Count, Count, Count] = (32, 64, 128, 192),
        mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465),
        std: tuple[Length, ...] = (0.2470, 0.2435, 0.2616),
        scale: float = 0.25,
        mirror: bool = False,
    ) -> None:
        super().__init__()
        a, b, c, d = channels
        self.normalise = _Normalise(mean, std)
        self.body = nn.Sequential(
            _conv_bn(image_channels, a),
            _conv_bn(a, b, pool=True),
            _Residual(b),
            _conv_bn(b, c, pool=True),
            _conv_bn(c, d, pool=True),
            _Residual(d),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(d, classes, bias=False)
        self.scale = scale
        self.mirror = mirror
        _channels_last(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (B, C, H, W) in [0, 1] to logits (B, K)."""
        x = self.normalise(x).contiguous(memory_format=torch.channels_last)
        if self.mirror and not self.training:
            return self.scale / 2 * self.head(self.body(x) + self.body(x.flip(-1)))
        return self.scale * self.head(self.body(x))


@networks.register("vgg")
class VGG(nn.Module):
    """A plain stack of convolutions without skip connections: another architecture to carry a result over to.

    Args:
        image_channels: C of the image.
        classes: K.
        channels: widths of the stages, two convolutions each; every stage halves the side.
        mean: per-channel mean subtracted from the input.
        std: per-channel deviation it is divided by.

    Source:
        Simonyan & Zisserman 2015 (arXiv:1409.1556), with batch norm and average pooling.
    """

    def __init__(
        self,
        image_channels: Count = 3,
        classes: Count = 10,
        channels: tuple[Count, ...] = (48, 96, 160),
        mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465),
        std: tuple[Length, ...] = (0.2470, 0.2435, 0.2616),
    ) -> None:
        super().__init__()
        widths = [image_channels, *channels]
        stages = [nn.Sequential(_conv_bn(a, b), _conv_bn(b, b, pool=True)) for a, b in pairwise(widths)]
        self.normalise = _Normalise(mean, std)
        self.body = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(channels[-1], classes)
        _channels_last(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (B, C, H, W) in [0, 1] to logits (B, K)."""
        return self.head(self.body(self.normalise(x).contiguous(memory_format=torch.channels_last)))


@networks.register("diffusers")
def diffusers_unet(config: Mapping[str, Any], image_channels: Count = 3) -> nn.Module:
    """A diffusers ``UNet2DModel`` by its configuration, such as a paper-sized DDPM; for the ``vp`` denoiser.

    Args:
        config: keyword arguments of ``UNet2DModel``.
        image_channels: C of the image, unless the configuration says it.

    Raises:
        UserError: if diffusers is not installed or refuses the configuration.
    """
    from dbpkit.models.diffusers import build_unet

    return build_unet({"in_channels": image_channels, "out_channels": image_channels, **config})


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
        _zero(self.conv2)

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
        _zero(self.out)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)  # each (B, HW, C)
        weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[2]), dim=2)
        return x + self.out((weights @ v).transpose(1, 2).reshape(x.shape))


class _Residual(nn.Module):
    """Two convolutions added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv_bn(channels, channels), _conv_bn(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class _Normalise(nn.Module):
    """Subtracts a mean and divides by a deviation, per channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[None, :, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[None, :, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.mean.shape[1]:  # broadcasting would turn one channel into three without a word
            raise UserError(f"the classifier was made for {self.mean.shape[1]} channels, not {x.shape[1]}.")
        return (x - self.mean) / self.std


def _zero(layer: nn.Module) -> None:
    """Sets a layer's weights to 0, so that its block starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _channels_last(network: nn.Module) -> None:
    """Lays convolution weights out as CPU and GPU kernels like them best."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _level(channels: int, blocks: int, embedding_size: int) -> nn.ModuleList:
    return nn.ModuleList([_ResidualBlock(channels, embedding_size) for _ in range(blocks)])


def _conv_bn(inputs: int, outputs: int, *, pool: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)]
    if pool:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.BatchNorm2d(outputs), nn.ReLU())
