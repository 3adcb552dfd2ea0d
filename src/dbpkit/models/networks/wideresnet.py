"""Wide residual networks on small images: the classifiers of most papers on purification.

One network under three namings. Its own names are RobustBench's, which TRADES shares; `own_names` renames the
others. The thing people get wrong: they are not the same function. bmsookim's has the stride in the second
convolution and a skip that is not activated; Gowal's pads at the right and bottom only.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

from torch import Tensor, nn
from torch.nn import functional

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.options import Count, Length, Share
from dbpkit.models.networks.layers import normalised
from dbpkit.models.networks.registry import networks
from dbpkit.models.networks.shapes import Shapes, counted, reads_shapes, times

T = TypeVar("T")

Naming = Literal["robustbench", "bmsookim", "gowal"]
"""Whose names the tensors of a wide residual network have."""

CONVENTIONS: Mapping[Naming, Mapping[str, Any]] = {
    "robustbench": {},
    "bmsookim": {"conv_bias": True, "stride_in": "conv2", "skip_from": "input"},
    "gowal": {"activation": "swish", "padding": "after"},
}
"""Options that a naming tells, as its code computes that way."""


@networks.register("wideresnet")
class WideResNet(nn.Module):
    """A wide residual network, WRN-28-10 by default; takes pixels in [0, 1] and returns logits.

    Args:
        image_channels: C of the image.
        classes: K.
        depth: layers, 6 n + 4.
        widen_factor: width of the three stages, in 16, 32 and 64 channels.
        mean: per-channel mean subtracted from the input; None for pixels as they are.
        std: per-channel deviation it is divided by; None for 1.
        activation: ``"relu"``, or ``"swish"`` for Gowal's.
        conv_bias: whether convolutions have biases, as bmsookim's have.
        stride_in: the convolution of a block that halves the side.
        skip_from: whether a projected skip starts from the activated input of a block or from the input.
        padding: ``"after"`` pads halving convolutions at the right and bottom only, as Gowal's do.
        sub_block1: whether the state has TRADES' second first stage, which computes nothing.
        dropout: share dropped inside a block.

    Source:
        Zagoruyko & Komodakis 2016 (arXiv:1605.07146); Gowal et al. 2020 (arXiv:2010.03593).
    """

    def __init__(
        self,
        image_channels: Count = 3,
        classes: Count = 10,
        depth: Count = 28,
        widen_factor: Count = 10,
        mean: tuple[float, ...] | None = None,
        std: tuple[Length, ...] | None = None,
        activation: Literal["relu", "swish"] = "relu",
        conv_bias: bool = False,
        stride_in: Literal["conv1", "conv2"] = "conv1",
        skip_from: Literal["activated", "input"] = "activated",
        padding: Literal["both", "after"] = "both",
        sub_block1: bool = False,
        dropout: Share = 0.0,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise UserError(f"wideresnet: depth {depth} must be 6 n + 4, such as 16, 28, 34 or 70.")
        self.mean, self.std, self.activation = mean, std, activation
        a, b, c = (16 * widen_factor * 2**i for i in range(3))

        def stage(inputs: int, outputs: int, stride: int) -> nn.Module:
            blocks = [
                _Block(
                    inputs if i == 0 else outputs, outputs, stride if i == 0 else 1,
                    activation, conv_bias, stride_in, skip_from, padding, dropout,
                )
                for i in range((depth - 4) // 6)
            ]  # fmt: skip
            return nn.ModuleDict({"layer": nn.Sequential(*blocks)})

        self.conv1 = nn.Conv2d(image_channels, 16, 3, padding=1, bias=conv_bias)
        self.block1 = stage(16, a, 1)
        self.sub_block1 = stage(16, a, 1) if sub_block1 else None
        self.block2, self.block3 = stage(a, b, 2), stage(b, c, 2)
        self.bn1 = nn.BatchNorm2d(c)
        self.fc = nn.Linear(c, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (B, C, H, W) in [0, 1] to logits (B, K); UserError for other channels."""
        x = self.conv1(normalised(x, self.mean, self.std))
        for stage in (self.block1, self.block2, self.block3):
            x = stage.get_submodule("layer")(x)
        return self.fc(_activated(self.bn1(x), self.activation).mean(dim=(2, 3)))


class _Block(nn.Module):
    """Two convolutions after norm and activation, added to their input."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        activation: str,
        bias: bool,
        stride_in: str,
        skip_from: str,
        padding: str,
        dropout: float,
    ) -> None:
        super().__init__()
        self.activation, self.skip_from = activation, skip_from
        first, second = (stride, 1) if stride_in == "conv1" else (1, stride)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv(inputs, outputs, first, bias, padding)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _conv(outputs, outputs, second, bias, padding)
        plain = inputs == outputs and stride == 1
        self.convShortcut = None if plain else nn.Conv2d(inputs, outputs, 1, stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        h = _activated(self.bn1(x), self.activation)
        skip = x
        if self.convShortcut is not None:
            skip = self.convShortcut(h if self.skip_from == "activated" else x)
        h = self.dropout(_activated(self.bn2(self.conv1(h)), self.activation))
        return skip + self.conv2(h)


class _PaddedAfter(nn.Conv2d):
    """A 3 x 3 convolution that halves the side, padded by one at the right and bottom only."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, (0, 1, 0, 1)))


def _conv(inputs: int, outputs: int, stride: int, bias: bool, padding: str) -> nn.Conv2d:
    if stride == 2 and padding == "after":
        return _PaddedAfter(inputs, outputs, 3, stride, bias=bias)
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias)


def _activated(x: Tensor, activation: str) -> Tensor:
    return functional.relu(x) if activation == "relu" else functional.silu(x)


def naming_of(names: Iterable[str]) -> Naming:
    """Returns whose names tensors have, without wrapper prefixes.

    Raises:
        UserError: if they are not of a wide residual network.
    """
    known = set(names)
    if "block1.layer.0.conv1.weight" in known:
        return "robustbench"
    if "layer.0.block.0.conv_0.weight" in known:
        return "gowal"
    if "layer1.0.conv1.weight" in known and "bn1.weight" in known and "layer4.0.conv1.weight" not in known:
        return "bmsookim"
    raise UserError("these tensors are not of the network 'wideresnet'. Name the network it is.")


def own_names(tensors: Mapping[str, T]) -> dict[str, T]:
    """Returns the same values, in their order, under the names of `WideResNet`, whatever naming they have.

    Raises:
        UserError: if they are not of a wide residual network.
    """
    naming = naming_of(tensors)
    return {_own_name(name, naming): value for name, value in tensors.items()}


def _own_name(name: str, naming: Naming) -> str:
    if naming == "bmsookim":
        name = re.sub(r"^layer(\d)\.", r"block\1.layer.", name).replace(".shortcut.0.", ".convShortcut.")
        return re.sub(r"^linear\.", "fc.", name)
    if naming == "gowal":
        name = re.sub(r"^layer\.(\d)\.block\.", lambda m: f"block{int(m[1]) + 1}.layer.", name)
        name = re.sub(r"\.(batchnorm|conv)_(\d)\.", lambda m: f".{_SHORT[m[1]]}{int(m[2]) + 1}.", name)
        name = name.replace(".shortcut.", ".convShortcut.")
        for theirs, ours in (("init_conv.", "conv1."), ("batchnorm.", "bn1."), ("logits.", "fc.")):
            name = ours + name.removeprefix(theirs) if name.startswith(theirs) else name
    return name


_SHORT = {"batchnorm": "bn", "conv": "conv"}


@reads_shapes("wideresnet")
def options_from_shapes(shapes: Shapes) -> dict[str, Any]:
    """Returns the options of a network from names and shapes of its tensors, in any of the namings.

    Mean, deviation and dropout are in no file.

    Raises:
        UserError: if they are not of this network.
    """
    naming, own = naming_of(shapes), own_names(shapes)
    return {
        "image_channels": own["conv1.weight"][1],
        "classes": own["fc.weight"][0],
        "depth": 6 * counted(own, "block1.layer.{}.conv1.weight") + 4,
        "widen_factor": times(own["block1.layer.0.conv1.weight"][0], 16),
        **CONVENTIONS[naming],
        "conv_bias": "conv1.bias" in own,
        "sub_block1": any(name.startswith("sub_block1.") for name in own),
    }
