"""A nine-layer residual classifier."""

import torch
from torch import Tensor, nn

from dbpkit.foundation.options import Count, Length
from dbpkit.models.networks.layers import Normalise, channels_last, conv_bn
from dbpkit.models.networks.registry import networks


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
        self.normalise = Normalise(mean, std)
        self.body = nn.Sequential(
            conv_bn(image_channels, a),
            conv_bn(a, b, pool=True),
            _Residual(b),
            conv_bn(b, c, pool=True),
            conv_bn(c, d, pool=True),
            _Residual(d),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(d, classes, bias=False)
        self.scale = scale
        self.mirror = mirror
        channels_last(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (B, C, H, W) in [0, 1] to logits (B, K)."""
        x = self.normalise(x).contiguous(memory_format=torch.channels_last)
        if self.mirror and not self.training:
            return self.scale / 2 * self.head(self.body(x) + self.body(x.flip(-1)))
        return self.scale * self.head(self.body(x))


class _Residual(nn.Module):
    """Two convolutions added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(channels, channels), conv_bn(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)
