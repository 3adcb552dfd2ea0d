"""The layers that the networks of Score-SDE are made of, under the names that the published files have."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dbpkit.models.networks.conventions import TimeOrder
from dbpkit.models.networks.layers import ZeroConv2d, attention

Resampling = Literal["none", "down", "up"]
"""What a residual block does to the sides of its image: leaves, halves or doubles them."""


class Residual(nn.Module):
    """Two normalised convolutions with the time added between them; what resamples, resamples both ways."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        resample: Resampling = "none",
        *,
        embedding_size: int,
        dropout: float,
        fir: bool,
        root: float,
    ) -> None:
        super().__init__()
        self.resample, self.fir, self.root = resample, fir, root
        self.GroupNorm_0 = norm(inputs)
        self.Conv_0 = Conv(inputs, outputs, 3, padding=1)
        self.Dense_0 = Dense(embedding_size, outputs)
        self.GroupNorm_1 = norm(outputs)
        self.Dropout_0 = nn.Dropout(dropout)
        self.Conv_1 = ZeroConv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs or resample != "none":
            self.Conv_2: nn.Module = Conv(inputs, outputs, 1)
        else:
            self.Conv_2 = nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Maps features and the activated embedding of times (B, E) to features."""
        h = functional.silu(self.GroupNorm_0(x))
        if self.resample != "none":
            halve = self.resample == "down"
            h, x = resampled(h, halve, self.fir), resampled(x, halve, self.fir)
        h = self.Conv_0(h) + self.Dense_0(embedding)[:, :, None, None]
        h = self.Conv_1(self.Dropout_0(functional.silu(self.GroupNorm_1(h))))
        return self.root * (self.Conv_2(x) + h)


class Attention(nn.Module):
    """Single-head self-attention over positions, added to its input."""

    def __init__(self, channels: int, root: float) -> None:
        super().__init__()
        self.root = root
        self.GroupNorm_0 = norm(channels)
        self.NIN_0 = NIN(channels, 0.1)
        self.NIN_1 = NIN(channels, 0.1)
        self.NIN_2 = NIN(channels, 0.1)
        self.NIN_3 = NIN(channels, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Maps features (B, C, H, W) to features of that shape."""
        h = self.GroupNorm_0(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        h = self.NIN_3(attention(self.NIN_0(h), self.NIN_1(h), self.NIN_2(h)))
        return self.root * (x + h.transpose(1, 2).reshape(x.shape))


class NIN(nn.Module):
    """A linear layer whose matrix stands on the right of its rows: (in, out), the transpose of torch's."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(channels, channels))
        self.b = nn.Parameter(torch.zeros(channels))
        if scale:
            nn.init.xavier_uniform_(self.W, gain=math.sqrt(scale))
        else:
            nn.init.zeros_(self.W)

    def forward(self, rows: Tensor) -> Tensor:
        """Maps rows (..., C) to rows (..., C)."""
        return rows @ self.W + self.b


class Fourier(nn.Module):
    """Sines and cosines at frequencies drawn once; not trained, so published averages lack them."""

    W: Tensor

    def __init__(self, size: int, scale: float, order: TimeOrder) -> None:
        super().__init__()
        self.time_order = order
        self.register_buffer("W", nn.init.normal_(torch.empty(size), std=scale))

    def forward(self, t: Tensor) -> Tensor:
        """Maps numbers (B,) to (B, 2 size)."""
        angles = 2 * math.pi * t[:, None] * self.W.to(t.dtype)
        waves = [angles.sin(), angles.cos()]
        return torch.cat(waves if self.time_order == "sin_cos" else waves[::-1], dim=1)


class Pyramid(nn.Module):
    """The image at half its size, for the next level: filtered, then convolved with stride 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.Conv2d_0 = Conv(inputs, outputs, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, outputs, H / 2, W / 2)."""
        return self.Conv2d_0(functional.conv2d(x, _filter(x, 1.0), padding=2, groups=x.shape[1]))


class Conv(nn.Conv2d):
    """A convolution with the first weights of Score-SDE."""

    def reset_parameters(self) -> None:
        """Draws the first weights."""
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Dense(nn.Linear):
    """A linear layer with the first weights of Score-SDE."""

    def reset_parameters(self) -> None:
        """Draws the first weights."""
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)


def norm(channels: int) -> nn.Module:
    """Group normalisation with at least four channels in a group, and no more than 32 groups."""
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


def _filter(x: Tensor, gain: float) -> Tensor:
    """The filter (1, 3, 3, 1) in two dimensions for every channel of ``x``, (C, 1, 4, 4), of sum ``gain``."""
    row = torch.ones(4, dtype=x.dtype, device=x.device)
    row[1:3] = 3  # filled there: a tensor of numbers would be copied at every call
    kernel = torch.outer(row, row)
    return (gain / kernel.sum() * kernel).expand(x.shape[1], 1, -1, -1)


def resampled(x: Tensor, halve: bool, fir: bool) -> Tensor:
    """Images (B, C, H, W) at half or twice their sides."""
    if halve and fir:
        return functional.conv2d(x, _filter(x, 1.0), stride=2, padding=1, groups=x.shape[1])
    if halve:
        return functional.avg_pool2d(x, 2)
    if fir:
        return functional.conv_transpose2d(x, _filter(x, 4.0), stride=2, padding=1, groups=x.shape[1])
    return functional.interpolate(x, scale_factor=2.0)
