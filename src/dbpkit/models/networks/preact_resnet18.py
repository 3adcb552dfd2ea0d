"""RobustBench's PreActResNet-18: norm and rectifier come before each convolution of a block."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.options import Count, Length
from dbpkit.models.networks.layers import normalised
from dbpkit.models.networks.registry import networks
from dbpkit.models.networks.resnet18_cifar import stages_from_shapes
from dbpkit.models.networks.shapes import Shapes, reads_shapes


@networks.register("preact_resnet18")
class PreActResNet18(nn.Module):
    """PreActResNet-18 on small images; takes pixels in [0, 1] and returns logits.

    Args:
        image_channels: C of the image.
        classes: K.
        channels: widths of the four stages; the first is the stem's too.
        blocks: residual blocks of each stage.
        mean: per-channel mean subtracted from the input; None for pixels as they are.
        std: per-channel deviation it is divided by; None for 1.
        out_shortcut: whether a projected skip starts from the activated input of a block.
        bn_before_fc: whether norm and rectifier come before the mean over positions.

    Source:
        He et al. 2016 (arXiv:1603.05027).
    """

    def __init__(
        self,
        image_channels: Count = 3,
        classes: Count = 10,
        channels: tuple[Count, ...] = (64, 128, 256, 512),
        blocks: tuple[Count, ...] = (2, 2, 2, 2),
        mean: tuple[float, ...] | None = None,
        std: tuple[Length, ...] | None = None,
        out_shortcut: bool = False,
        bn_before_fc: bool = False,
    ) -> None:
        super().__init__()
        if not len(channels) == len(blocks) == 4:
            raise UserError("preact_resnet18 has four stages: give four channels and four blocks.")
        self.mean, self.std = mean, std
        self.conv1 = nn.Conv2d(image_channels, channels[0], 3, padding=1, bias=False)
        inputs, stages = channels[0], []
        for stage, (width, count) in enumerate(zip(channels, blocks, strict=True)):
            widths = [inputs, *[width] * count]
            strides = [2 if stage else 1, *[1] * (count - 1)]
            made = [_Block(a, width, s, out_shortcut) for a, s in zip(widths[:-1], strides, strict=True)]
            stages.append(nn.Sequential(*made))
            inputs = width
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn = nn.BatchNorm2d(inputs) if bn_before_fc else None
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (B, C, H, W) in [0, 1] to logits (B, K); UserError for other channels."""
        x = self.conv1(normalised(x, self.mean, self.std))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        if self.bn is not None:
            x = functional.relu(self.bn(x))
        return self.linear(x.mean(dim=(2, 3)))


class _Block(nn.Module):
    """Two convolutions, each after norm and rectifier, added to their input."""

    def __init__(self, inputs: int, outputs: int, stride: int, out_shortcut: bool) -> None:
        super().__init__()
        self.out_shortcut = out_shortcut
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.bn1(x))
        skip = x
        if self.shortcut is not None:
            skip = self.shortcut(h if self.out_shortcut else x)
        return skip + self.conv2(functional.relu(self.bn2(self.conv1(h))))


@reads_shapes("preact_resnet18")
def options_from_shapes(shapes: Shapes) -> dict[str, Any]:
    """Returns the options of a network from the shapes of its tensors.

    Mean, deviation and where a projected skip starts (``out_shortcut``) are in no file.

    Raises:
        UserError: if they are not of this network.
    """
    if "bn1.weight" in shapes or "layer1.0.conv3.weight" in shapes:
        raise ValueError
    return {**stages_from_shapes(shapes), "bn_before_fc": "bn.weight" in shapes}
