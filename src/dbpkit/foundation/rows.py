"""How many rows go through a model at once, and what happens where they do not fit into memory.

The thing people get wrong: going on with half the rows while the exception still holds the failed graph. Its
traceback knows every frame, and every frame its tensors; so the frames are cleared first.
"""

import gc
import logging
import traceback
from collections.abc import Callable
from typing import TypeVar

import torch

from dbpkit.foundation.errors import UserError, excerpt
from dbpkit.foundation.inputs import whole

log = logging.getLogger(__name__)

T = TypeVar("T")

_SAYINGS = (
    "out of memory",  # CUDA's driver, where torch does not raise its own exception
    "can't allocate memory",  # torch's allocator of the CPU
    "not enough memory",
    "Cannot allocate memory",
    "ALLOC_FAILED",  # cuDNN and cuBLAS
    "std::bad_alloc",
)
"""What a RuntimeError says that is one of memory."""


class MemoryShortageError(UserError):
    """A model's rows do not fit into memory, and cannot be fewer."""


class RowLimit:
    """How many rows go through a model at once; halved when they run out of memory.

    One object serves everything that calls the models of one execution, so that what one place has learnt
    holds for the others.

    Args:
        rows: to begin with, at least 1.
        fixed: whether the number stays as it is, because every call must have the same shape.

    Attributes:
        rows: how many it is now.
        asked: how many it was to begin with.

    Raises:
        UserError: if ``rows`` is no whole number from 1 on.

    Example:
        >>> limit = RowLimit(32)
        >>> limit.over(70, lambda part: (part.start, part.stop))
        [(0, 32), (32, 64), (64, 70)]
    """

    def __init__(self, rows: int = 32, *, fixed: bool = False) -> None:
        self.asked = self.rows = whole(rows, "micro_batch", 1)
        self.fixed = fixed

    @classmethod
    def of(cls, rows: "int | RowLimit", *, fixed: bool = False) -> "RowLimit":
        """Returns a limit as it is, or a new one of so many rows; a new one too where it has to be fixed."""
        if not isinstance(rows, RowLimit):
            return cls(rows, fixed=fixed)
        return cls(rows.rows, fixed=True) if fixed and not rows.fixed else rows

    @property
    def was_halved(self) -> bool:
        """Whether memory has run out."""
        return self.rows < self.asked

    def over(self, count: int, work: Callable[[slice], T]) -> list[T]:
        """Does ``count`` rows of work, part by part; a part that runs out of memory again with half the rows.

        Args:
            count: rows in all.
            work: does the rows of a slice; called again with fewer it must give the same for each.

        Returns:
            What it returned, in order.

        Raises:
            MemoryShortageError: if one row is too many, or the number is fixed.
        """
        found: list[T] = []
        done = 0
        while done < count:
            part = slice(done, min(done + self.rows, count))
            try:
                found.append(work(part))
                done = part.stop
            except Exception as error:
                self.halve(error, part.stop - part.start)
        return found

    def halve(self, error: Exception, tried: int | None = None) -> None:
        """Halves the rows after an error of memory, and frees what the failed call left.

        Args:
            error: raised again if it is another one.
            tried: how many rows were too many; `rows` if not given.

        Raises:
            MemoryShortageError: if there was one row only, or the number is fixed.
        """
        if isinstance(error, MemoryShortageError) or not is_out_of_memory(error):
            try:
                raise error
            finally:
                del error  # this frame is in its traceback: it would hold itself, and the failed graph
        said = excerpt(error, 120)
        free(error)
        tried = self.rows if tried is None else tried
        if self.fixed:
            raise MemoryShortageError(
                f"{self.rows} rows in one call of the model need more memory than there is, and with"
                " --deterministic every call has as many. Lower --micro-batch or --memory; runs that are to"
                f" be bit-equal need the same --micro-batch ({said})."
            ) from None
        if tried <= 1:
            raise MemoryShortageError(
                "one row of the model needs more memory than there is. Lower --memory, or use a smaller"
                f" network or a device with more memory ({said})."
            ) from None
        self.rows = max(1, min(self.rows, tried // 2))  # a call inside the failed one may know better
        log.warning("%d rows at a time ran out of memory; going on with %d", tried, self.rows)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, or one that it was raised from, says that memory has run out."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(seen, RuntimeError) and any(saying in str(seen) for saying in _SAYINGS):
            return True
        seen = seen.__cause__
    return False


def free(error: BaseException) -> None:
    """Frees the tensors that an exception keeps alive, and gives the cache back to a GPU."""
    seen: BaseException | None = error
    while seen is not None:
        if seen.__traceback__ is not None:
            traceback.clear_frames(seen.__traceback__)
            seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
