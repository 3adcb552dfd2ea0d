"""What updates say of themselves, read a few updates later, so that the host never waits for a GPU.

A number that the host reads ends the queue of work on the device: it stands still until the next update is
queued. So losses are copied while the device works on, and read when they have long been there. What must not
happen in between is a checkpoint: `Losses.settle` reads everything first.
"""

import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dbpkit.foundation.errors import UserError

LAG = 4
"""Updates after which a GPU's loss is read: it is there by then, and the host is not far ahead."""

Expect = Callable[[Tensor, str], None]
"""Called with a condition, a bool of shape (), and with what to say if it does not hold."""


def at_once(fine: Tensor, message: str) -> None:
    """Raises UserError unless a condition holds, which the host waits for."""
    if not bool(fine):
        raise UserError(message)


class _Said(NamedTuple):
    """What one update said: values on their way to the host, the loss first, and what each means."""

    update: int
    values: Tensor
    there: torch.cuda.Event | None
    messages: list[str]


class Losses:
    """The losses since the last checkpoint, and conditions that must have held, of a run on one device.

    Args:
        device: where losses are made; on a CPU they are read at once.
        directory: of the run, for the error.
        lag: updates after which a loss is read; None takes what suits the device.

    Attributes:
        latest: the last loss that is known, nan before there is one.
    """

    def __init__(self, device: torch.device, directory: Path, lag: int | None = None) -> None:
        self.latest = math.nan
        self._lag = lag if lag is not None else 0 if device.type == "cpu" else LAG
        self._directory = directory
        self._waiting: deque[_Said] = deque()
        self._conditions: list[tuple[Tensor, str]] = []
        self._read: list[float] = []

    def expect(self, fine: Tensor, message: str) -> None:
        """Notes a condition of the update that is being made, a bool of shape ().

        If it does not hold, a later call of `add` or `settle` raises UserError with the message.
        """
        self._conditions.append((fine, message))

    def add(self, update: int, loss: Tensor) -> None:
        """Takes the loss of an update, shape (), and reads that of an earlier one.

        Raises:
            UserError: if the loss that is read is not finite, or a condition of its update did not hold.
        """
        values = torch.stack([loss.double(), *(fine.double() for fine, _ in self._conditions)])
        there = None
        if values.is_cuda:
            values = values.to("cpu", non_blocking=True)  # into pinned memory: the host does not wait
            there = torch.cuda.Event()
            there.record()
        self._waiting.append(_Said(update, values, there, [message for _, message in self._conditions]))
        self._conditions = []
        while len(self._waiting) > self._lag:
            self._take(self._waiting.popleft())

    def settle(self) -> list[float]:
        """Returns the losses since the last call, all of them, in the order of their updates.

        Raises:
            UserError: as `add`, for the first update that is at fault.
        """
        while self._waiting:
            self._take(self._waiting.popleft())
        read, self._read = self._read, []
        return read

    def _take(self, said: _Said) -> None:
        if said.there is not None:
            said.there.synchronize()
        loss, *conditions = said.values.tolist()
        for fine, message in zip(conditions, said.messages, strict=True):
            if not fine:
                raise UserError(message)
        if not math.isfinite(loss):
            raise UserError(
                f"the training loss is {loss} at update {said.update}. Lower optimiser.lr or set"
                f" grad_clip; what was saved in '{self._directory}' is intact."
            )
        self.latest = loss
        self._read.append(loss)
