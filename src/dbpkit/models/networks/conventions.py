"""What the field's networks do alike in several ways: time embeddings, and the rows of a qkv convolution.

The thing people get wrong: each of these fits every file. A network read under another convention has the
right shapes and returns plausible images. So a convention is an attribute of the modules that follow it, read
at every call, and `varied` gives the same weights another one to try.
"""

import copy
import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

TimeOrder = Literal["sin_cos", "cos_sin"]
"""Which half of a time embedding comes first."""

TimeDivisor = Literal["half", "half-1"]
"""By what the exponents of its n / 2 frequencies are divided: n / 2, or n / 2 - 1."""

QkvOrder = Literal["heads", "blocks", "interleaved"]
"""Rows of a qkv convolution: (head, q k v, channel), (q k v, head, channel), or (head, channel, q k v)."""

CONVENTIONS: Mapping[str, tuple[str, ...]] = {
    "time_order": ("sin_cos", "cos_sin"),
    "time_divisor": ("half", "half-1"),
    "qkv_order": ("heads", "blocks", "interleaved"),
}
"""Names of the attributes, and the values they may have."""


def time_embedding(t: Tensor, size: int, order: TimeOrder, divisor: TimeDivisor) -> Tensor:
    """Sines and cosines of times at frequencies from 1 down to 1 / 10,000.

    Args:
        t: (B,) times, whole or not.
        size: even width of the embedding.
        order: which half comes first.
        divisor: what exponents are divided by.

    Returns:
        (B, size) in the type of ``t``, at least single precision.

    Source:
        Vaswani et al. 2017 (arXiv:1706.03762), section 3.5; Ho et al. 2020, appendix B.
    """
    half = size // 2
    t = t.to(torch.promote_types(t.dtype, torch.float32))
    steps = torch.arange(half, dtype=t.dtype, device=t.device)
    frequencies = torch.exp(-math.log(10_000.0) * steps / (half if divisor == "half" else half - 1))
    angles = t[:, None] * frequencies
    waves = [angles.sin(), angles.cos()]
    return torch.cat(waves if order == "sin_cos" else waves[::-1], dim=1)


def split_qkv(qkv: Tensor, heads: int, order: QkvOrder) -> tuple[Tensor, Tensor, Tensor]:
    """Splits the result of a qkv convolution, (B, 3 C, N), into q, k and v, each (B, heads, N, C / heads)."""
    batch, rows, positions = qkv.shape
    width = rows // (3 * heads)
    if order == "heads":
        q, k, v = qkv.reshape(batch, heads, 3, width, positions).unbind(2)
    elif order == "blocks":
        q, k, v = qkv.reshape(batch, 3, heads, width, positions).unbind(1)
    else:
        q, k, v = qkv.reshape(batch, heads, width, 3, positions).unbind(3)
    return q.transpose(2, 3), k.transpose(2, 3), v.transpose(2, 3)


def varied(network: nn.Module, name: str, value: str) -> nn.Module | None:
    """Returns the network with the same weights under another convention, or None if it follows no such one.

    Args:
        network: stays as it is.
        name: of `CONVENTIONS`.
        value: what all of its modules that have the attribute get.
    """
    if not any(name in vars(module) for module in network.modules()):
        return None
    shared = {id(t): t for t in [*network.parameters(), *network.buffers()]}
    other = copy.deepcopy(network, shared)
    for module in other.modules():
        if name in vars(module):
            setattr(module, name, value)
    return other
