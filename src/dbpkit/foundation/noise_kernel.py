"""A draw of a noise plan on CUDA, in one kernel; the same values as `drawing` computes elsewhere.

Written for Triton, which PyTorch's CUDA builds bring along. Only `drawing` imports this module, at the first
draw on a CUDA device, and goes on with PyTorch's operations where there is no Triton. Words, uniforms, and
normals in float32 and below are those of the CPU to the bit; the last bit of normals in float64 is that of
CUDA's logarithm and sine.
"""

import math
from typing import Any

import torch
from torch import Tensor

from dbpkit.foundation.philox import BLOCK_BITS, MULTIPLIERS, UNIFORM, WEYL


class _Absent:
    """Stands for Triton where it is not installed: this module can be read, and draws nothing."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *args: Any, **_: Any) -> Any:
        return args[0] if args else self


try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = _Absent()

LANES = 256
"""Blocks of four values that one program draws, of one row."""

_HIGH_SHIFT = tl.constexpr(BLOCK_BITS)
_M0, _M1 = (tl.constexpr(m) for m in MULTIPLIERS)
_W0, _W1 = (tl.constexpr(w) for w in WEYL)
_TURN = tl.constexpr(2 * math.pi * 2.0**-32)
_STEP = tl.constexpr(2.0**-32)
_FINE = tl.constexpr(2.0**-24)


@triton.jit
def _store(row, part, block, value, blocks, n, mask):  # type: ignore[no-untyped-def]
    """Writes one of the four values of each block: the row holds all first ones, then all second ones."""
    column = part * blocks + block
    if row.dtype.element_ty != tl.float64:
        value = value.to(tl.float32)  # narrower types are rounded from float32, as PyTorch rounds them
    if row.dtype.element_ty == tl.bfloat16:  # to the nearest, ties to even, which not every conversion does
        bits = value.to(tl.uint32, bitcast=True)
        value = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    tl.store(row + column, value.to(row.dtype.element_ty), mask=mask & (column < n))


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["seed", "lane", "last", "blocks", "n"],
    do_not_specialize_on_alignment=["ids", "draws"],  # slices of a plan begin anywhere
)
def _draw(out, ids, draws, seed, lane, last, blocks, n, UNIFORM: tl.constexpr, LANES: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803
    """Draws ``LANES`` blocks of the row of this program, (n,) values in all."""
    index = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * LANES + tl.arange(0, LANES)
    example = tl.load(ids + index)
    c0 = block.to(tl.uint32) | ((example >> 32).to(tl.uint32) << _HIGH_SHIFT)
    zero = tl.full([LANES], 0, tl.uint32)
    c1, c2 = zero + example.to(tl.uint32), zero + tl.load(draws + index).to(tl.uint32)
    c3 = zero + last.to(tl.uint32)
    k0, k1 = zero + seed.to(tl.uint32), zero + lane.to(tl.uint32)
    m0, m1 = tl.full([LANES], _M0, tl.uint32), tl.full([LANES], _M1, tl.uint32)
    w0, w1 = tl.full([LANES], _W0, tl.uint32), tl.full([LANES], _W1, tl.uint32)
    for _ in tl.static_range(10):
        high0, high1 = tl.umulhi(m0, c0), tl.umulhi(m1, c2)
        low0, low1 = m0 * c0, m1 * c2
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + w0, k1 + w1
    row = out + index * n
    mask = block < blocks
    if UNIFORM:
        _store(row, 0, block, (c0 >> 8).to(tl.float64) * _FINE, blocks, n, mask)
        _store(row, 1, block, (c1 >> 8).to(tl.float64) * _FINE, blocks, n, mask)
        _store(row, 2, block, (c2 >> 8).to(tl.float64) * _FINE, blocks, n, mask)
        _store(row, 3, block, (c3 >> 8).to(tl.float64) * _FINE, blocks, n, mask)
    else:
        turn = tl.full([LANES], _TURN, tl.float64)
        radius = tl.sqrt(tl.log((c0.to(tl.float64) + 0.5) * _STEP) * -2.0)
        angle = c1.to(tl.float64) * turn
        _store(row, 0, block, tl.cos(angle) * radius, blocks, n, mask)
        _store(row, 1, block, tl.sin(angle) * radius, blocks, n, mask)
        radius = tl.sqrt(tl.log((c2.to(tl.float64) + 0.5) * _STEP) * -2.0)
        angle = c3.to(tl.float64) * turn
        _store(row, 2, block, tl.cos(angle) * radius, blocks, n, mask)
        _store(row, 3, block, tl.sin(angle) * radius, blocks, n, mask)


def installed() -> bool:
    """Whether Triton is."""
    return not isinstance(triton, _Absent)


def fill(out: Tensor, ids: Tensor, draws: Tensor, key: tuple[int, int], last: int, kind: int) -> None:
    """Writes the values of a key for every row.

    Args:
        out: (B, ...) of floating point, contiguous, of at least one value.
        ids: example ids (B,) int64, on its device.
        draws: draw of each row (B,) int64, on its device.
        key: the stream's, two words of 32 bits.
        last: the counter's last word.
        kind: `UNIFORM`, or 0 for normals.
    """
    n = math.prod(out.shape[1:])
    blocks = -(-n // 4)
    grid = (len(out), triton.cdiv(blocks, LANES))
    words = (_signed(word) for word in (*key, last))
    ids, draws = ids.contiguous(), draws.contiguous()
    with torch.cuda.device_of(out):
        _draw[grid](
            out, ids, draws, *words, blocks, n, UNIFORM=kind == UNIFORM, LANES=LANES, enable_fp_fusion=True
        )


def _signed(word: int) -> int:
    """A word of 32 bits as the signed number of the same bits: of one type, whatever its value."""
    return word - (1 << 32) if word >> 31 else word
