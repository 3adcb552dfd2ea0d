"""A plain stack of convolutions: another architecture of classifier to carry a result over to."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from dbpkit.foundation.options import Count, Length
from dbpkit.models.networks.layers import Normalise, channels_last, conv_bn
from dbpkit.models.networks.registry import networks


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
        stages = [nn.Sequential(conv_bn(a, b), conv_bn(b, b, pool=True)) for a, b in pairwise(widths)]
        self.normalise = Normalise(mean, std)
        self.body = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(channels[-1], classes)
        channels_last(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (B, C, H, W) in [0, 1] to logits (B, K)."""
        return self.head(self.body(self.normalise(x).contiguous(memory_format=torch.channels_last)))
