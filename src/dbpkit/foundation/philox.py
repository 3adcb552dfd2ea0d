"""Philox4x32-10, the generator behind all random numbers, on plain arrays; `noise` draws tensors.

It has no state: a value is a function of its counter and does not depend on what was drawn before. What reads
results needs the same numbers and no tensors.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

STREAMS = {"attack": 0, "select": 1, "report": 2, "train": 3, "control": 4}
"""Who draws: the attack, the selection among its candidates, the published score, training, controls."""

SITES = {
    "forward": 0,
    "reverse": 1,
    "churn": 2,
    "corrector": 3,
    "start": 4,
    "order": 5,
    "augment": 6,
    "level": 7,
    "probe": 8,
}
"""Where a draw is used: forward noising, reverse steps, EDM churn, Langevin corrector, an attack's
random start, shuffling, augmentation, a noise level (of training; a drawn t*, grid or sampler), a random
direction."""

LOW = 0xFFFFFFFF
"""The low 32 bits of a word."""

BLOCK_BITS = 20
"""A counter's first word holds the number of the block of four values, and above it the id's upper bits."""

UNIFORM = 1
"""Kind of draw, beside normal values: 0."""

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)

Words = TypeVar("Words", "Tensor", np.ndarray[Any, Any])


def philox4x32(counter: Sequence[Words], key: tuple[int, int]) -> tuple[Words, ...]:
    """Philox4x32-10: ten rounds of a keyed bijection of 128-bit counters.

    Args:
        counter: four arrays of 32-bit words that broadcast together: int64 tensors, or uint64 NumPy arrays.
        key: two 32-bit words.

    Returns:
        Four arrays of 32-bit random words of the same kind, of the broadcast shape.

    Source:
        Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0 = c0 * MULTIPLIERS[0]  # wraps modulo 2**64
        product1 = c2 * MULTIPLIERS[1]
        high0, high1 = product0 >> 32, product1 >> 32
        if not isinstance(high0, np.ndarray):  # a signed shift, which the mask makes a logical one
            high0, high1 = high0 & LOW, high1 & LOW
        c0, c2 = high1 ^ c1 ^ k0, high0 ^ c3 ^ k1
        c1, c3 = product1 & LOW, product0 & LOW
        k0 = (k0 + WEYL[0]) & LOW
        k1 = (k1 + WEYL[1]) & LOW
    return c0, c1, c2, c3  # after four rounds every word depends on every other, so all have the full shape


def place(kind: int, site: str, step: int) -> int:
    """Returns the last word of a counter: what is drawn, where it is used, and which use there it is."""
    return kind << 31 | SITES[site] << 24 | step


def stream_key(seed: int, stream: str, lane: int = 0) -> tuple[int, int]:
    """Returns the key of a stream."""
    return seed, lane << 8 | STREAMS[stream]


def uniforms(rows: int, count: int, site: str, step: int) -> np.ndarray:
    """Returns uniforms on [0, 1), (rows, count) float64, the same at every call.

    They are those of ``NoisePlan.of(0, range(rows), "report")`` of `dbpkit.foundation.noise`.
    """
    blocks = np.arange(-(-count // 4), dtype=np.uint64)[None]
    ids, zero = np.arange(rows, dtype=np.uint64)[:, None], np.zeros((1, 1), np.uint64)
    last = np.array([[place(UNIFORM, site, step)]], dtype=np.uint64)
    words = philox4x32((blocks, ids, zero, last), stream_key(0, "report"))
    parts = np.stack(words).astype(np.float64).transpose(1, 0, 2).reshape(rows, -1)[:, :count]
    return np.asarray(np.floor(parts * 2.0**-8) * 2.0**-24)
