"""How the values of a noise plan are computed: on NumPy's integers, on PyTorch's, or in one kernel on CUDA.

All three are one function of the key. `noise` says what a key is; this module knows devices.
"""

import logging
import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from dbpkit.foundation.philox import BLOCK_BITS, LOW, UNIFORM, philox4x32

log = logging.getLogger(__name__)

CHUNK = 1 << 16
"""Blocks of four values that are drawn at once on a CPU: what one needs on the way stays in its cache."""

Kernel = Callable[[Tensor, Tensor, Tensor, tuple[int, int], int, int], None]


class Rows(NamedTuple):
    """Whose values are drawn: example ids (B,) and draws (B,), int64, on one device."""

    ids: Tensor
    draws: Tensor

    def to(self, device: torch.device) -> "Rows":
        """Returns the same rows on a device, by one copy."""
        return self if device.type == "cpu" else Rows(*torch.stack(self).to(device).unbind())

    @property
    def lasts(self) -> bool:
        """Whether these are plain tensors; those that a transform or a mode has wrapped end with it."""
        return type(self.ids) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(self.ids)


def values(like: Tensor, rows: Rows, key: tuple[int, int], last: int, kind: int) -> Tensor:
    """Draws for every row.

    Args:
        like: (B, ...) gives shape, type and device.
        rows: of the B rows, on that device.
        key: of the stream, two words of 32 bits.
        last: the counter's last word, see `dbpkit.foundation.philox.place`.
        kind: `UNIFORM` for [0, 1) in multiples of 2**-24, or 0 for N(0, 1).

    Returns:
        (B, ...), computed in float64 and rounded.

    Source:
        Salmon et al. 2011, Philox4x32-10; Box & Muller 1958.
    """
    made = torch.arange(0)  # wrapped inside a transform of torch.func, which knows neither kernel nor NumPy
    plain = not torch._C._functorch.is_functorch_wrapped_tensor(made)
    if like.device.type == "cuda" and plain and type(like) in (Tensor, torch.nn.Parameter):
        out = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        if not out.numel() or _fused(out, rows, key, last, kind):
            return out
    if like.device.type != "cpu" or not plain:
        return by_operations(like, rows, key, last, kind)
    compute, n = _uniforms if kind == UNIFORM else _normals, math.prod(like.shape[1:])
    block = torch.arange(-(-n // 4))[None]
    step = max(1, CHUNK // max(1, block.numel()))
    # Joined, not written into place: what watches operations may hand out a copy where a view is asked for.
    parts = [
        _shaped(compute(_on_cpu(rows.ids[i : i + step], rows.draws[i : i + step], block, last, key)), n)
        for i in range(0, len(like), step)
    ]
    return torch.cat([part.to(like.dtype) for part in parts] or [like[:0].detach()]).reshape(like.shape)


def by_operations(like: Tensor, rows: Rows, key: tuple[int, int], last: int, kind: int) -> Tensor:
    """Draws by PyTorch's operations, about a hundred of them; arguments and result as `values`."""
    compute, n = _uniforms if kind == UNIFORM else _normals, math.prod(like.shape[1:])
    block = torch.arange(-(-n // 4), device=like.device)[None]
    ids, draws = rows.ids[:, None], rows.draws[:, None]
    counter = (block | ids >> 32 << BLOCK_BITS, ids & LOW, draws, last)
    words = torch.stack(philox4x32(cast(Any, counter), key)).double()
    return _shaped(compute(words), n).to(like.dtype).reshape(like.shape)


def _on_cpu(ids: Tensor, draws: Tensor, block: Tensor, last: int, key: tuple[int, int]) -> Tensor:
    """Random words (4, B, n) as float64, by NumPy, whose integers are three times as fast as PyTorch's."""
    high = ids >> 32 << BLOCK_BITS
    first = block | high[:, None] if bool(high.any()) else block
    counter = (first, (ids & LOW)[:, None], draws[:, None], torch.tensor([[last]]))
    words = philox4x32([c.numpy().view(np.uint64) for c in counter], key)
    together = np.empty((4, *words[0].shape))
    for part, word in zip(together, words, strict=True):
        part[...] = word
    return torch.from_numpy(together)


def _normals(words: Tensor) -> Tensor:
    """Normals of random words, (4, B, n) float64, which are overwritten."""
    radius = words[0::2].add(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = words[1::2].mul(2 * math.pi * 2.0**-32)
    return torch.stack([angle.cos().mul_(radius), angle.sin_().mul_(radius)], dim=1).flatten(0, 1)


def _uniforms(words: Tensor) -> Tensor:
    """Uniforms of random words, (4, B, n) float64, which are overwritten."""
    return words.mul_(2.0**-8).floor_().mul_(2.0**-24)


def _shaped(parts: Tensor, n: int) -> Tensor:
    """Four (B, blocks) parts side by side, the first n of each row, (B, n)."""
    return parts.transpose(0, 1).flatten(1)[:, :n]


@cache
def _kernel() -> list[Kernel]:
    """The kernel, if Triton is there; the list is emptied when it turns out not to run here."""
    try:
        from dbpkit.foundation import noise_kernel
    except Exception as error:  # a Triton for another PyTorch
        log.info("noise is drawn without Triton: %s", error)
        return []
    return [noise_kernel.fill] if noise_kernel.installed() else []


def _fused(out: Tensor, rows: Rows, key: tuple[int, int], last: int, kind: int) -> bool:
    """Fills ``out`` by the kernel; says whether there is one that runs."""
    kernels = _kernel()
    if not kernels:
        return False
    try:
        kernels[0](out, rows.ids, rows.draws, key, last, kind)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # no compiler, an old device
        log.warning("noise is drawn without Triton's kernel, at more than ten times its cost: %s", error)
        kernels.clear()
    return bool(kernels)
