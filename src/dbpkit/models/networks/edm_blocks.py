"""What the two U-Nets of EDM are made of: convolutions that resample with a filter, and one residual block.

The thing people get wrong: the rows of ``qkv`` are interleaved, so row 3 c + j of a head is channel c of q, k
or v; and a filter of four taps zero-pads before it blurs, so that the order of filter and convolution matters
at the border.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dbpkit.foundation.errors import UserError, shown
from dbpkit.models.networks.conventions import QkvOrder, TimeDivisor, TimeOrder, split_qkv, time_embedding
from dbpkit.models.networks.layers import attention

Resample = Literal["up", "down"]


class ResampledConv(nn.Module):
    """A convolution after a factor of two in size, by a filter that lies in the state dict.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: side of the convolution; 0 for none, which keeps the channels.
        resample: ``"up"``, ``"down"`` or None.
        taps: of the separable filter; it is normalised.
        conv_first: whether the convolution comes before the filter, padded for both.
    """

    resample_filter: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        resample: Resample | None = None,
        taps: Sequence[float] = (1, 1),
        conv_first: bool = False,
    ) -> None:
        super().__init__()
        self.resample, self.conv_first, self.pad = resample, conv_first, kernel // 2
        made = nn.Conv2d(inputs, outputs, kernel) if kernel else None  # its first weights are torch's own
        self.weight: Tensor | None = made.weight if made else None
        self.bias: Tensor | None = made.bias if made else None
        if resample:
            if len(taps) not in (2, 4) or not sum(taps):
                raise UserError(
                    f"resample_filter must have 2 or 4 taps that are not all 0, not {shown(taps)}."
                )
            row = torch.tensor(taps, dtype=torch.float32)
            self.register_buffer("resample_filter", (torch.outer(row, row) / row.sum() ** 2)[None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, inputs, H, W) to (B, outputs, H', W'), H' being H, 2 H or H / 2."""
        margin = (self.resample_filter.shape[-1] - 1) // 2 if self.resample else 0
        if self.conv_first and self.weight is not None:
            return self._resampled(functional.conv2d(x, self.weight, self.bias, padding=self.pad + margin), 0)
        x = self._resampled(x, margin)
        if self.weight is None:
            return x
        return functional.conv2d(x, self.weight, self.bias, padding=self.pad)

    def _resampled(self, x: Tensor, margin: int) -> Tensor:
        if not self.resample:
            return x
        channels = x.shape[1]
        taps = self.resample_filter.to(x.dtype).expand(channels, -1, -1, -1)
        if self.resample == "down":
            return functional.conv2d(x, taps, groups=channels, stride=2, padding=margin)
        return functional.conv_transpose2d(x, 4 * taps, groups=channels, stride=2, padding=margin)


class EDMBlock(nn.Module):
    """Two normalised convolutions with a noise level between them, added to their input; then self-attention.

    Args:
        inputs: channels.
        outputs: channels.
        embedding: width of the noise-level embedding.
        resample: ``"up"``, ``"down"`` or None.
        taps: of the resampling filter.
        heads: of self-attention; 0 for none.
        dropout: share dropped before the second convolution.
        scales: whether the embedding scales and shifts, rather than shifts alone before the norm.
        skip_scale: factor of each sum.
        eps: of the group norms.
        always_project: whether the skip of a resampling block has a 1 x 1 convolution anyway.
        qkv_order: how rows of ``qkv`` are read.

    Source:
        Karras et al. 2022 (arXiv:2206.00364), appendix F.1.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        *,
        resample: Resample | None = None,
        taps: Sequence[float] = (1, 1),
        heads: int = 0,
        dropout: float = 0.0,
        scales: bool = False,
        skip_scale: float = 1.0,
        eps: float = 1e-5,
        always_project: bool = False,
        qkv_order: QkvOrder = "interleaved",
    ) -> None:
        super().__init__()
        self.inputs, self.outputs, self.heads = inputs, outputs, heads
        self.scales, self.skip_scale = scales, skip_scale
        self.norm0 = group_norm(inputs, eps)
        self.conv0 = ResampledConv(inputs, outputs, 3, resample, taps)
        self.affine = nn.Linear(embedding, 2 * outputs if scales else outputs)
        self.norm1 = group_norm(outputs, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip: nn.Module | None = None
        if resample or inputs != outputs:
            kernel = 1 if always_project or inputs != outputs else 0
            self.skip = ResampledConv(inputs, outputs, kernel, resample, taps)
        if heads:
            self.qkv_order: QkvOrder = qkv_order
            self.norm2 = group_norm(outputs, eps)
            self.qkv = nn.Conv2d(outputs, 3 * outputs, 1)
            self.proj = nn.Conv2d(outputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Maps features (B, inputs, H, W) and an embedding (B, embedding) to (B, outputs, H', W')."""
        h = self.conv0(functional.silu(self.norm0(x)))
        told = self.affine(embedding)[:, :, None, None].to(h.dtype)
        if self.scales:
            scale, shift = told.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm1(h), 1 + scale)
        else:
            h = self.norm1(h + told)
        h = self.conv1(self.dropout(functional.silu(h)))
        x = (h + (x if self.skip is None else self.skip(x))) * self.skip_scale
        return (x + self._attended(x)) * self.skip_scale if self.heads else x

    def _attended(self, x: Tensor) -> Tensor:
        q, k, v = split_qkv(self.qkv(self.norm2(x)).flatten(2), self.heads, self.qkv_order)
        return self.proj(attention(q, k, v).transpose(2, 3).reshape(x.shape))


class TimeFeatures(nn.Module):
    """Sines and cosines of noise labels at fixed frequencies; nothing of it is in a file.

    Args:
        size: even width.
        order: which half comes first.
        divisor: what the exponents of the frequencies are divided by.
    """

    def __init__(self, size: int, order: TimeOrder, divisor: TimeDivisor) -> None:
        super().__init__()
        self.size = size
        self.time_order, self.time_divisor = order, divisor

    def forward(self, t: Tensor) -> Tensor:
        """Maps noise labels (B,) to (B, size)."""
        return time_embedding(t, self.size, self.time_order, self.time_divisor)


class FourierFeatures(nn.Module):
    """Sines and cosines of noise labels at random frequencies, which are in the file and are not trained.

    Args:
        size: even width.
        scale: deviation of the frequencies.
        order: which half comes first.
    """

    freqs: Tensor

    def __init__(self, size: int, scale: float = 16.0, order: TimeOrder = "sin_cos") -> None:
        super().__init__()
        self.time_order = order
        if size > 2**16:  # a buffer, which no file's count of weights limits
            raise UserError(f"a noise-level embedding of {size} features is too wide. Use at most 65536.")
        self.register_buffer("freqs", nn.init.normal_(torch.empty(size // 2), std=scale))

    def forward(self, t: Tensor) -> Tensor:
        """Maps noise labels (B,) to (B, size)."""
        angles = t.to(self.freqs)[:, None] * (2 * math.pi * self.freqs)
        waves = [angles.sin(), angles.cos()]
        return torch.cat(waves if self.time_order == "sin_cos" else waves[::-1], dim=1)


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """A group norm of at most 32 groups of at least 4 channels."""
    return nn.GroupNorm(max(1, min(32, channels // 4)), channels, eps=eps)


def class_features(layer: nn.Linear, label: Tensor | None, like: Tensor, factor: float = 1.0) -> Tensor:
    """What a linear layer makes of ``factor`` times one-hot classes (B,), or of zeros if there are none."""
    if label is None:
        return like.new_zeros(()) if layer.bias is None else layer.bias
    told = functional.embedding(label, layer.weight.t()) * factor  # one-hot times a matrix picks a column
    return told if layer.bias is None else told + layer.bias
