"""Residual networks on small images, with a 3 x 3 stem and no pooling: RobustBench's ResNet-18.

`resnet50_cifar` is the same walk with bottlenecks. Normalisation is not in any of these files.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.options import Count, Length
from dbpkit.models.networks.layers import normalised
from dbpkit.models.networks.registry import networks
from dbpkit.models.networks.shapes import Shapes, counted, reads_shapes


class CifarResNet(nn.Module):
    """A stem, four stages of residual blocks, a mean over positions and a linear layer.

    Args:
        block: class of the residual blocks.
        image_channels: C of the image.
        classes: K.
        channels: widths of the four stages, before the block's expansion; the first is the stem's too.
        blocks: residual blocks of each stage.
        mean: per-channel mean subtracted from the input; None for pixels as they are.
        std: per-channel deviation it is divided by; None for 1.
    """

    def __init__(
        self,
        block: "type[BasicBlock]",
        image_channels: int,
        classes: int,
        channels: Sequence[int],
        blocks: Sequence[int],
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        super().__init__()
        if not len(channels) == len(blocks) == 4:
            raise UserError(
                "a residual network on small images has four stages: give four channels and blocks."
            )
        self.mean, self.std = mean, std
        self.conv1 = nn.Conv2d(image_channels, channels[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        inputs, stages = channels[0], []
        for stage, (width, count) in enumerate(zip(channels, blocks, strict=True)):
            made = []
            for i in range(count):
                made.append(block(inputs, width, 2 if stage and i == 0 else 1))
                inputs = width * block.expansion
            stages.append(nn.Sequential(*made))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (B, C, H, W) in [0, 1] to logits (B, K); UserError for other channels."""
        x = functional.relu(self.bn1(self.conv1(normalised(x, self.mean, self.std))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.linear(x.mean(dim=(2, 3)))


class BasicBlock(nn.Module):
    """Two normalised convolutions added to their input, then a rectifier."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self._add_convolutions(inputs, width, stride)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def _add_convolutions(self, inputs: int, width: int, stride: int) -> None:
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps features (B, inputs, H, W) to (B, width * expansion, H', W')."""
        return functional.relu(self._convolved(x) + self.shortcut(x))

    def _convolved(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))


@networks.register("resnet18_cifar")
class ResNet18(CifarResNet):
    """ResNet-18 on small images; takes pixels in [0, 1] and returns logits.

    Args:
        image_channels: C of the image.
        classes: K.
        channels: widths of the four stages.
        blocks: residual blocks of each stage; (3, 4, 6, 3) is ResNet-34.
        mean: per-channel mean subtracted from the input; None for pixels as they are.
        std: per-channel deviation it is divided by; None for 1.

    Source:
        He et al. 2016 (arXiv:1512.03385), with the stem that is usual on CIFAR.
    """

    def __init__(
        self,
        image_channels: Count = 3,
        classes: Count = 10,
        channels: tuple[Count, ...] = (64, 128, 256, 512),
        blocks: tuple[Count, ...] = (2, 2, 2, 2),
        mean: tuple[float, ...] | None = None,
        std: tuple[Length, ...] | None = None,
    ) -> None:
        super().__init__(BasicBlock, image_channels, classes, channels, blocks, mean, std)


def stages_from_shapes(shapes: Shapes) -> dict[str, Any]:
    """Options that residual networks on small images have in common, from the shapes of a file's tensors."""
    stages = range(1, 5)
    return {
        "image_channels": shapes["conv1.weight"][1],
        "classes": shapes["linear.weight"][0],
        "channels": tuple(shapes[f"layer{stage}.0.conv1.weight"][0] for stage in stages),
        "blocks": tuple(counted(shapes, f"layer{stage}.{{}}.conv1.weight") for stage in stages),
    }


@reads_shapes("resnet18_cifar")
def options_from_shapes(shapes: Shapes) -> dict[str, Any]:
    """Returns the options of a network from the shapes of its tensors; mean and deviation are in no file.

    Raises:
        UserError: if they are not of this network, which ``resnet50_cifar`` and ``preact_resnet18`` resemble.
    """
    if "layer1.0.conv3.weight" in shapes or shapes["bn1.weight"] != shapes["conv1.weight"][:1]:
        raise ValueError
    return stages_from_shapes(shapes)
