"""What parts of a noise plan's key are checked for: ids, draws, rows, and the names of streams and sites."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dbpkit.foundation.errors import UserError, unknown_name
from dbpkit.foundation.inputs import whole
from dbpkit.foundation.philox import LOW, SITES, STREAMS

MAX_ID = 1 << 44
"""Example ids lie below this."""

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def checked_draw(draw: int) -> int:
    """The number of a draw; UserError unless it is in [0, 2**32)."""
    if not 0 <= whole(draw, "noise draw", low=-(1 << 200)) <= LOW:
        raise UserError(f"noise draw {draw} is outside [0, 2**32).")
    return int(draw)


def check_stream(stream: str) -> None:
    """Raises UserError unless there is such a stream."""
    if not isinstance(stream, str) or stream not in STREAMS:
        raise unknown_name("stream", str(stream), STREAMS)


def check_site(site: str) -> None:
    """Raises UserError unless there is such a site."""
    if not isinstance(site, str) or site not in SITES:
        raise unknown_name("noise site", str(site), SITES)


def checked_ids(example_ids: Iterable[int] | Tensor) -> Tensor:
    """Ids as int64 on the CPU; UserError unless they are flat, whole and in [0, 2**44)."""
    wrong = UserError("example ids must be a flat list of integers in [0, 2**44).")
    try:
        ids = torch.as_tensor(example_ids if isinstance(example_ids, Tensor) else list(example_ids))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise wrong from error
    if (ids.dtype not in _WHOLE and ids.numel()) or ids.ndim != 1:
        raise wrong
    ids = ids.to("cpu", torch.int64)
    if ids.numel() and (ids.min() < 0 or ids.max() >= MAX_ID):
        raise wrong
    return ids


def checked_rows(index: Any, count: int) -> Tensor:
    """Positions in a plan, on the CPU, from positions or a mask of its rows; UserError for anything else."""
    try:
        rows = torch.as_tensor(index).cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError("rows of a noise plan are chosen by a flat list of positions.") from error
    rows = rows if rows.numel() else rows.long()  # an empty list has no integer type of its own
    mask = rows.dtype == torch.bool
    inside = len(rows) == count if mask and rows.ndim == 1 else rows.dtype in _WHOLE
    if (
        rows.ndim != 1
        or not inside
        or (not mask and len(rows) and not -count <= rows.min() <= rows.max() < count)
    ):
        raise UserError(
            f"rows of a noise plan of {count} examples are chosen by a flat list of positions in it."
        )
    return rows.nonzero()[:, 0] if mask else rows
