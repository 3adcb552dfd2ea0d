"""Large images in tiles: memory is that of a few tiles, and the result does not show where they met.

Three things make seams: tiles that know nothing of each other, noise that starts anew in each, and borders
that a network sees with nothing beyond. So tiles overlap and fade into each other, their share being least
where the border is nearest; and noise belongs to a place in the image, so that two tiles purify the same
noisy pixels where they overlap. Which tiles are purified together changes nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from dbpkit.foundation.errors import UserError, shown
from dbpkit.foundation.inputs import whole
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.rows import RowLimit

CELL = 32
"""Side of the squares that noise on a plane is drawn in."""

_PITCH = 1 << 16
"""Cells in a row of the plane; as many rows are the most that the number of a draw can tell."""

BATCH_PIXELS = 1 << 17
"""Pixels of the tiles that are purified together."""


@dataclass(frozen=True, eq=False)
class PlaneNoise(NoisePlan):
    """The noise of windows of one image: values belong to places in the image, not to positions in a window.

    The plane is drawn in cells of `CELL` x `CELL`, cell (r, c) as draw 65,536 r + c of the image. So sides
    may have 2 million pixels, and windows draw only the cells that they touch. What is drawn about levels or
    samplers, site ``level``, is one for all windows of the image.

    Attributes:
        corners: (B, 2) int64, top and left of each window in the image.
    """

    corners: Tensor = field(default_factory=lambda: torch.zeros(0, 2, dtype=torch.int64))

    @classmethod
    def over(cls, noise: NoisePlan, corners: list[tuple[int, int]]) -> "PlaneNoise":
        """Returns the noise of windows of the image that a plan of one row belongs to."""
        if len(noise) != 1:
            raise UserError(f"windows are of one image, and the plan is of {len(noise)}.")
        places = torch.tensor(corners, dtype=torch.int64)
        ids = noise.example_ids.expand(len(corners))
        return cls(noise.seed, ids, noise.stream, torch.zeros_like(ids), lane=noise.lane, corners=places)

    def rows(self, index: Tensor | list[int] | slice) -> "PlaneNoise":
        """Returns the noise of the chosen windows."""
        ids, draw, corners = self.example_ids[index], self.draw[index], self.corners[index]
        return replace(self, example_ids=ids, draw=draw, corners=corners)

    def _drawn(self, site: str, step: int, like: Tensor, kind: int) -> Tensor:
        if site == "level":
            image = NoisePlan(
                self.seed, self.example_ids, self.stream, torch.zeros_like(self.draw), lane=self.lane
            )
            return image._drawn(site, step, like, kind)
        if like.ndim != 4 or len(like) != len(self):
            raise UserError(f"noise of {len(self)} windows was drawn like {tuple(like.shape)}.")
        height, width = like.shape[-2:]
        windows = []
        for (top, left), own in zip(self.corners.tolist(), self.example_ids, strict=True):
            first, last = (
                (top // CELL, left // CELL),
                (-(-(top + height) // CELL), -(-(left + width) // CELL)),
            )
            down, across = torch.arange(first[0], last[0]), torch.arange(first[1], last[1])
            cells = (_PITCH * down[:, None] + across).flatten()
            plan = NoisePlan(self.seed, own.expand(len(cells)), self.stream, cells, lane=self.lane)
            drawn = plan._drawn(site, step, like.new_empty(len(cells), like.shape[1], CELL, CELL), kind)
            plane = (
                drawn.unflatten(0, (len(down), len(across))).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
            )
            y, x = top - CELL * first[0], left - CELL * first[1]
            windows.append(plane[:, y : y + height, x : x + width])
        return torch.stack(windows)


Tiling = Literal["auto", "whole"] | int
"""Whether large images are purified in tiles: by the network's size, never, or with tiles of this side."""


def checked_tiling(value: Any) -> Tiling:
    """Returns a tiling; UserError for anything else."""
    if isinstance(value, str) and value in ("auto", "whole"):
        return "auto" if value == "auto" else "whole"
    if isinstance(value, str):
        raise UserError(f"tile is a side in pixels such as 256, 'auto' or 'whole', not {shown(value)}.")
    return whole(value, "tile", 1, 1 << 20)


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Returns where tiles begin along a side: evenly, from one end to the other, with at least the overlap.

    Raises:
        UserError: unless the overlap leaves a tile something of its own.
    """
    if not 0 <= whole(overlap, "overlap") < whole(tile, "tile", 1):
        raise UserError(f"tiles of {tile} cannot overlap by {overlap}. Choose less.")
    if length <= tile:
        return [0]
    count = -(-(length - tile) // (tile - overlap)) + 1
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def shares(begin: int, size: int, length: int, overlap: int) -> Tensor:
    """Returns how much each pixel of a tile counts along a side, (size,) float64 in (0, 1].

    It falls off evenly over the overlap, but not towards an end of the image.
    """
    position = torch.arange(size, dtype=torch.float64)
    share = torch.ones(size, dtype=torch.float64)
    if begin > 0:
        share = torch.minimum(share, (position + 1) / (overlap + 1))
    if begin + size < length:
        share = torch.minimum(share, (size - position) / (overlap + 1))
    return share


def in_tiles(
    purify: Callable[[Tensor, NoisePlan], Tensor],
    read: Callable[[int, int], Tensor],
    shape: tuple[int, int, int],
    noise: NoisePlan,
    *,
    tile: int,
    overlap: int,
    batch: int | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Purifies one large image, a band of rows at a time.

    Args:
        purify: purifies tiles (B, C, h, w) with the noise of their places.
        read: ``read(top, bottom)`` returns those rows of the image, (C, bottom - top, W) in [0, 1].
        shape: C, H and W of the image.
        noise: plan of the image, one row.
        tile: side of the tiles; of the image's where that is shorter.
        overlap: least number of pixels that neighbours share.
        batch: tiles that are purified together; None takes as many as `BATCH_PIXELS` hold. Halved if they
            are too many for the memory.

    Yields:
        From which row on, and finished rows (C, rows, W), from top to bottom.
    """
    _, height, width = shape
    rows, columns = starts(height, tile, overlap), starts(width, tile, overlap)
    h, w = min(tile, height), min(tile, width)
    limit = RowLimit(batch or max(1, BATCH_PIXELS // (h * w)))
    across = torch.stack([shares(left, w, width, overlap) for left in columns])
    for number, top in enumerate(rows):
        band = read(top, top + h)
        if number == 0:
            total, weight = band.new_zeros(band.shape, dtype=torch.float64), band.new_zeros(h, width).double()
        else:  # what the row of tiles above has left in the rows that both cover
            down = top - rows[number - 1]
            total, weight = _moved(total, down), _moved(weight, down)
        share = shares(top, h, height, overlap)[:, None]
        plan = PlaneNoise.over(noise, [(top, left) for left in columns])

        def purified(part: slice, band: Tensor = band, plan: PlaneNoise = plan) -> Tensor:
            tiles = torch.stack([band[:, :, left : left + w] for left in columns[part]])
            return purify(tiles, plan.rows(part))

        made = (one for part in limit.over(len(columns), purified) for one in part)
        for left, one, own in zip(columns, made, across, strict=True):
            counted = (share * own).to(one.device)
            total[:, :, left : left + w] += counted * one
            weight[:, left : left + w] += counted
        after = rows[number + 1] if number + 1 < len(rows) else height
        done = after - top
        yield top, (total[:, :done] / weight[:done]).to(band.dtype)


def _moved(x: Tensor, down: int) -> Tensor:
    """Rows of (..., h, W) further up by some, and zeros below."""
    return torch.cat([x[..., down:, :], torch.zeros_like(x[..., :down, :])], dim=-2)
