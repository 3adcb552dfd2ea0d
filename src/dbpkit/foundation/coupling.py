"""Draws of one example that depend on each other: mirror images, and normals at right angles.

Each draw alone is distributed as an independent one; only how the draws of an example vary together is
another. How a row depends on others is a part of its key, so that rows can be cut and sorted at will: above
the 32 bits of the number of a draw stand one bit for the mirror image, and the row's place in its group. A
row computes again what it depends on. The thing people get wrong: sums whose rounding depends on how many
rows there are; here they are added up by halves, one element at a time.
"""

import math

import torch
from torch import Tensor

from dbpkit.foundation.drawing import Rows, values
from dbpkit.foundation.philox import LOW, UNIFORM

MIRRORED = 1 << 32
"""The bit of a mirror image."""

_PLACE = 33
"""Bits from here on: the row's place in its group, which is how many draws before it belong to it."""

_LARGEST = 1 - 2.0**-24
"""The largest uniform, which is the mirror image of 0."""


def numbers(draws: int, antithetic: bool, orthogonal: bool, device: torch.device) -> Tensor:
    """Returns the numbers of draws (R,) int64 beyond that of the first, with what they depend on.

    Args:
        draws: R.
        antithetic: whether draw 2 k + 1 is the mirror image of draw 2 k; both have number k.
        orthogonal: whether they are at right angles.
        device: where they are made.
    """
    r = torch.arange(draws, device=device)
    number = r // 2 if antithetic else r
    place = number << _PLACE if orthogonal else torch.zeros_like(r)
    return number + place + (r % 2 * MIRRORED if antithetic else 0)


def coupled_values(
    like: Tensor, rows: Rows, key: tuple[int, int], last: int, kind: int, group: int
) -> Tensor:
    """Draws for every row as it depends on others; arguments and result as `drawing.values`.

    Args:
        like: (B, ...) gives shape, type and device.
        rows: of the B rows.
        key: of the stream.
        last: the counter's last word.
        kind: `UNIFORM`, or 0 for normals.
        group: the most rows that are at right angles; 1 where none are.
    """
    plain = Rows(rows.ids, rows.draws & LOW)
    mirrored = (rows.draws & MIRRORED).bool().reshape(-1, *[1] * (like.ndim - 1))
    if kind == UNIFORM:  # in a type that holds them exactly, so that 1 - u is rounded once
        wide = like if like.dtype == torch.float64 else like.float()
        u = values(wide, plain, key, last, kind)
        return torch.where(mirrored, _LARGEST - u, u).to(like.dtype)
    if group == 1:
        z = values(like, plain, key, last, kind)
    else:
        z = orthogonal_normals(like, plain, rows.draws >> _PLACE, key, last, group)
    return torch.where(mirrored, -z, z)


def orthogonal_normals(
    like: Tensor, rows: Rows, place: Tensor, key: tuple[int, int], last: int, group: int
) -> Tensor:
    """Normals whose directions within a group are at right angles, each draw alone exactly N(0, I).

    Of independent normals g_0, g_1, ... row j has the direction of what is left of g_j without its parts
    along g_0 to g_(j-1), and the length of g_j. That direction is uniform on the sphere, and the length has
    nothing to do with it: |g_j|^2 is the sum of independent parts along and across. With more rows than
    values in one, groups begin anew.

    Args:
        like: (B, ...) gives shape, type and device.
        rows: of the B rows.
        place: (B,) of each row in its group.
        key: of the stream.
        last: the counter's last word.
        group: the most rows of a group.

    Returns:
        (B, ...), computed in float64 and rounded.

    Source:
        Gram-Schmidt; orthogonal directions with chi lengths: Yu et al. 2016 (arXiv:1610.09072).
    """
    size = math.prod(like.shape[1:])
    if size < 2 or group < 2:
        return values(like, rows, key, last, 0)
    place = place % size
    first, wide = rows.draws - place, like.detach().double().flatten(1)
    directions: list[Tensor] = []
    out = torch.zeros_like(wide)
    for j in range(min(group, size)):
        # A row needs none of its group behind it; the number is kept in range, and the value not used.
        g = values(wide, Rows(rows.ids, torch.minimum(first + j, rows.draws)), key, last, 0)
        rest = g
        for direction in directions:
            rest = rest - inner(rest, direction) * direction
        directions.append(rest / inner(rest, rest).sqrt())
        z = directions[-1] * inner(g, g).sqrt() if j else g
        out = torch.where((place == j)[:, None], z, out)
    return out.reshape(like.shape).to(like.dtype)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner products (B, 1) of rows (B, n), added up by halves: rounded alike in any batch."""
    product = a * b
    while (n := product.shape[1]) > 1:
        half = n // 2
        folded = product[:, :half] + product[:, half : 2 * half]
        product = torch.cat([folded, product[:, 2 * half :]], dim=1) if n % 2 else folded
    return product
