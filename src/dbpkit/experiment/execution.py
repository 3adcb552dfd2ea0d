"""How an evaluation or a training is carried out: device, batch sizes, memory, determinism, processes.

Nothing here changes a result beyond rounding, so none of it is in a spec or in a spec's hash.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from dbpkit.foundation.errors import UserError, check_kind
from dbpkit.foundation.inputs import whole
from dbpkit.foundation.precision import EXACT, Precision, precise
from dbpkit.foundation.rows import RowLimit
from dbpkit.purification.replay import DEFAULT_MEMORY

NOTED = ("device", "batch_size", "micro_batch", "deterministic", "memory_bytes", "reverse")
"""What a session of a run notes of its execution."""


@dataclass(frozen=True, init=False)
class Execution:
    """How work is carried out; none of it may change a result beyond rounding.

    Attributes:
        device: given as a `torch.device`, ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or ``"auto"`` for a GPU if
            there is one.
        batch_size: examples attacked together and recorded together; training has it in its spec.
        micro_batch: rows (examples times draws) in one call of the model.
        deterministic: only kernels that give the same bits every time; and every call of an evaluated model
            has exactly ``micro_batch`` rows, so that records are bit-equal whatever the batch size and order.
        memory_bytes: budget for kept graphs, see `dbpkit.purification.replay.Replay`.
        reverse: whether the last example comes first.
        rank: number of this process among those that share the work, from 0 on.
        limit: ``micro_batch`` as all who call the models share it; halved where memory runs out.
        world: how many there are. Only training is shared, and there ``accelerate launch`` decides both.

    Raises:
        UserError: if the device is unknown or not there, or a number is out of range.

    Example:
        >>> Execution(batch_size=4).device, Execution(batch_size=4).micro_batch
        (device(type='cpu'), 32)
    """

    device: torch.device
    batch_size: int
    micro_batch: int
    deterministic: bool
    memory_bytes: int
    reverse: bool
    rank: int
    world: int
    limit: RowLimit = field(init=False, compare=False, repr=False)

    def __init__(
        self,
        device: str | torch.device = "cpu",
        batch_size: int = 16,
        micro_batch: int = 32,
        deterministic: bool = False,
        memory_bytes: int = DEFAULT_MEMORY,
        reverse: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        checked = {
            "device": checked_device(device),
            "batch_size": whole(batch_size, "execution.batch_size", 1),
            "micro_batch": whole(micro_batch, "execution.micro_batch", 1),
            "deterministic": deterministic,
            "memory_bytes": whole(memory_bytes, "execution.memory_bytes"),
            "reverse": reverse,
            "world": (several := whole(world, "execution.world", 1)),
            "rank": whole(rank, "execution.rank", 0, several),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "limit", RowLimit(self.micro_batch, fixed=deterministic))

    def noted(self) -> dict[str, Any]:
        """Returns what a session notes of it, ready for JSON."""
        return {name: getattr(self, name) for name in NOTED} | {"device": str(self.device)}


def check_execution(execution: Any) -> None:
    """Raises UserError unless it is an `Execution` in one process, as every evaluation and analysis is."""
    check_kind(execution, Execution, "execution", "Make one with Execution(batch_size=16).")
    if execution.world > 1:
        raise UserError(
            f"execution.world is {execution.world}, but only training is shared by processes. Leave it out,"
            " and give each process examples and a directory of its own."
        )


def checked_device(name: str | torch.device) -> torch.device:
    """Returns a device; UserError if it is unknown or not there. There is no quiet fall-back.

    Args:
        name: ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or ``"auto"``, which asks for CUDA if there is any.
    """
    text = str(name) if isinstance(name, torch.device) else name
    if not isinstance(text, str) or not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", text):
        raise UserError(f"device '{text}' is unknown. Use auto, cpu, cuda or cuda:N.")
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    if text == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            f"device '{text}' was asked for, but this torch ({torch.__version__}) sees no CUDA"
            " device. Use --device cpu."
        )
    number = text.partition(":")[2]
    if number and int(number) >= torch.cuda.device_count():
        raise UserError(
            f"device '{text}' was asked for, but there are {torch.cuda.device_count()} CUDA devices, from"
            " cuda:0 on."
        )
    return torch.device(text)


def launched(execution: Execution) -> Execution:
    """Returns the execution of this process as ``accelerate launch`` and torchrun number it.

    Raises:
        UserError: if they set anything but numbers.
    """
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and world.isdecimal()):
        raise UserError(f"RANK and WORLD_SIZE must be whole numbers, not {rank!r} and {world!r}. Unset them.")
    return replace(execution, rank=int(rank), world=int(world))


DEFAULT_EXECUTION = Execution()


@contextlib.contextmanager
def kernels(deterministic: bool, precision: Precision | None = EXACT) -> Iterator[None]:
    """Inside the block, kernels of a precision, reproducible ones if asked for; settings are restored.

    Args:
        deterministic: whether kernels must give the same bits every time.
        precision: what networks compute in; None leaves torch's own settings as they are.

    Raises:
        UserError: if there is no such precision.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    tf32 = torch.backends.cudnn.allow_tf32 if precision is None else None
    with precise(precision) if precision else contextlib.nullcontext():
        try:
            if deterministic:
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
                torch.use_deterministic_algorithms(True)
                if tf32 is not None:
                    torch.backends.cudnn.allow_tf32 = False
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warns)
            if tf32 is not None:
                torch.backends.cudnn.allow_tf32 = tf32
