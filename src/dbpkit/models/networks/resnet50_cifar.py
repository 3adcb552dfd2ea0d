"""ResNet-50 on small images, as DiffPure's classifier. Its file does not hold the normalisation."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from dbpkit.foundation.options import Count, Length
from dbpkit.models.networks.registry import networks
from dbpkit.models.networks.resnet18_cifar import BasicBlock, CifarResNet, stages_from_shapes
from dbpkit.models.networks.shapes import Shapes, reads_shapes


class Bottleneck(BasicBlock):
    """Three normalised convolutions, the middle one narrow, added to their input; then a rectifier."""

    expansion = 4

    def _add_convolutions(self, inputs: int, width: int, stride: int) -> None:
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)

    def _convolved(self, x: Tensor) -> Tensor:
        h = functional.relu(self.bn1(self.conv1(x)))
        return self.bn3(self.conv3(functional.relu(self.bn2(self.conv2(h)))))


@networks.register("resnet50_cifar")
class ResNet50(CifarResNet):
    """ResNet-50 on small images; takes pixels in [0, 1] and returns logits.

    Args:
        image_channels: C of the image.
        classes: K.
        channels: widths of the four stages; each returns four times as many.
        blocks: residual blocks of each stage.
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
        blocks: tuple[Count, ...] = (3, 4, 6, 3),
        mean: tuple[float, ...] | None = (0.4914, 0.4822, 0.4465),
        std: tuple[Length, ...] | None = (0.2471, 0.2435, 0.2616),
    ) -> None:
        super().__init__(Bottleneck, image_channels, classes, channels, blocks, mean, std)


@reads_shapes("resnet50_cifar")
def options_from_shapes(shapes: Shapes) -> dict[str, Any]:
    """Returns the options of a network from the shapes of its tensors; mean and deviation are in no file.

    Raises:
        UserError: if they are not of this network.
    """
    if "layer1.0.conv3.weight" not in shapes:
        raise KeyError("layer1.0.conv3.weight")
    return stages_from_shapes(shapes)
