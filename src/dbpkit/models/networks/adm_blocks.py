"""The layers that guided-diffusion's networks are made of, under the names that the published files have."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from dbpkit.models.networks.conventions import QkvOrder, split_qkv
from dbpkit.models.networks.layers import ZeroConv2d, attention, zero

Resampling = Literal["none", "down", "up"]
"""What a residual block does to the sides of its image: leaves, halves or doubles them."""

GROUPS = 32
"""Groups of every normalisation."""


class Residual(nn.Module):
    """Two normalised convolutions with the time between them; what resamples, resamples both ways.

    Args:
        inputs: channels.
        outputs: channels.
        resample: by mean or repetition, before the first convolution.
        embedding_size: width of the time's embedding.
        dropout: share that is dropped in training.
        scale_shift: whether the embedding scales and shifts the second norm, else it is added before.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        resample: Resampling = "none",
        *,
        embedding_size: int,
        dropout: float,
        scale_shift: bool,
    ) -> None:
        super().__init__()
        self.resample, self.scale_shift = resample, scale_shift
        self.in_layers = nn.Sequential(norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding_size, (1 + scale_shift) * outputs))
        self.out_layers = nn.Sequential(
            norm(outputs), nn.SiLU(), nn.Dropout(dropout), ZeroConv2d(outputs, outputs, 3, padding=1)
        )
        same = inputs == outputs
        self.skip_connection: nn.Module = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Maps features and the embedding of times (B, E) to features."""
        normalise, activate, convolve = self.in_layers
        h = convolve(resampled(activate(normalise(x)), self.resample))
        x = resampled(x, self.resample)
        added = self.emb_layers(embedding)[:, :, None, None]
        normalise, *rest = self.out_layers
        if self.scale_shift:
            scale, shift = added.chunk(2, dim=1)
            h = normalise(h) * (1 + scale) + shift
        else:
            h = normalise(h + added)
        for layer in rest:
            h = layer(h)
        return self.skip_connection(x) + h


class Attention(nn.Module):
    """Self-attention over positions, added to its input.

    Args:
        channels: of the image.
        heads: number of heads.
        order: how the rows of ``qkv`` are read.
        dims: 1 or 2, of the convolutions: a weight's number of axes less two.
    """

    def __init__(self, channels: int, heads: int, order: QkvOrder, dims: Literal[1, 2]) -> None:
        super().__init__()
        self.heads, self.qkv_order, self.dims = heads, order, dims
        self.norm = norm(channels)
        conv, last = (nn.Conv1d, ZeroConv1d) if dims == 1 else (nn.Conv2d, ZeroConv2d)
        self.qkv = conv(channels, 3 * channels, 1)
        self.proj_out = last(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps features (B, C, H, W) to features of that shape."""
        shape = x.flatten(2).shape if self.dims == 1 else x.shape
        qkv = self.qkv(self.norm(x).reshape(shape)).flatten(2)
        h = attention(*split_qkv(qkv, self.heads, self.qkv_order))  # (B, heads, N, C / heads)
        return x + self.proj_out(h.transpose(2, 3).reshape(shape)).reshape(x.shape)


class Downsample(nn.Module):
    """A convolution with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C, H / 2, W / 2)."""
        return self.op(x)


class Upsample(nn.Module):
    """Repetition of every pixel, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C, 2 H, 2 W)."""
        return self.conv(resampled(x, "up"))


class Block(nn.ModuleList):
    """Modules in a row, of which the residual ones are told the time."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(modules)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Maps features and the embedding of times (B, E) to features."""
        for module in self:
            x = module(x, embedding) if isinstance(module, Residual) else module(x)
        return x


class ZeroConv1d(nn.Conv1d):
    """A convolution of rows that starts at 0."""

    def reset_parameters(self) -> None:
        """Sets weights and bias to 0."""
        zero(self)


def norm(channels: int) -> nn.Module:
    """Group normalisation in 32 groups."""
    return nn.GroupNorm(GROUPS, channels)


def resampled(x: Tensor, way: Resampling) -> Tensor:
    """Images (B, C, H, W) as they are, at half their sides by means, or at twice by repetition."""
    if way == "down":
        return functional.avg_pool2d(x, 2)
    return functional.interpolate(x, scale_factor=2.0) if way == "up" else x
