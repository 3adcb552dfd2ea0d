"""Layers and helpers that several of the package's networks are made of."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dbpkit.foundation.errors import UserError


class Normalise(nn.Module):
    """Subtracts a mean and divides by a deviation, per channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[None, :, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[None, :, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (B, C, H, W) in [0, 1] to normalised ones; UserError for other channels."""
        if x.shape[1] != self.mean.shape[1]:  # broadcasting would turn one channel into three without a word
            raise UserError(f"the classifier was made for {self.mean.shape[1]} channels, not {x.shape[1]}.")
        return (x - self.mean) / self.std


def normalised(x: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """Images (B, C, H, W) less a mean, over a deviation, per channel; None for 0 and 1.

    Unlike `Normalise` it keeps no tensors, so that a network can be made without first weights.

    Raises:
        UserError: if the images have other channels.
    """
    for values in (mean, std):
        if values is not None and len(values) != x.shape[1]:
            raise UserError(f"the classifier was made for {len(values)} channels, not {x.shape[1]}.")
    if mean is not None:
        x = x - _column(mean, x)
    return x if std is None else x / _column(std, x)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """Numbers as (C, 1, 1); filled on the device, since a copy to it would make the GPU wait."""
    return torch.cat([like.new_full((1, 1, 1), value) for value in values])


def conv_bn(inputs: int, outputs: int, *, pool: bool = False) -> nn.Sequential:
    """A 3 x 3 convolution, halved in size by a maximum if ``pool``, then batch norm and ReLU."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)]
    if pool:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.BatchNorm2d(outputs), nn.ReLU())


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot products, softmax and mean of values: each (..., N, C) to (..., N, C).

    Written out because torch's fused attention has no second derivative.

    Source:
        Vaswani et al. 2017 (arXiv:1706.03762), eq. 1.
    """
    return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), dim=-1) @ v


def checked_sides(network: str, x: Tensor, multiple: int) -> None:
    """Raises UserError if a side of images (B, C, H, W) is no multiple of what a network divides it by."""
    if x.shape[-1] % multiple or x.shape[-2] % multiple:
        raise UserError(f"{network}: image sides must be multiples of {multiple}, not {tuple(x.shape[-2:])}.")


def refuse_label(network: str, label: Tensor | None) -> None:
    """Raises UserError if a network that knows no classes is given one."""
    if label is not None:
        raise UserError(f"{network}: this network takes no class label. Leave the label out.")


def zero(layer: nn.Module) -> None:
    """Sets a layer's weights to 0, so that its block starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class ZeroConv2d(nn.Conv2d):
    """A convolution of images that starts at 0."""

    def reset_parameters(self) -> None:
        """Sets weights and bias to 0."""
        zero(self)


def channels_last(network: nn.Module) -> None:
    """Lays convolution weights out as CPU and GPU kernels like them best; no value, name or hash changes."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def placed(part: Any, device: torch.device) -> Any:
    """Returns a network on a device, its weights laid out as a GPU's kernels want them; functions as is.

    On a CPU the layout stays what it was: no gain is to be shown there, and the last digits of records would
    change. What follows a convolution takes its layout over, so images need no care.
    """
    if not isinstance(part, nn.Module):
        return part
    part.to(device)
    if device.type == "cuda" and not isinstance(part, torch.jit.ScriptModule):
        channels_last(part)
    return part
