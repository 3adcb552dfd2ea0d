"""How an evaluation or a training is carried out: device, batch sizes, memory, determinism, processes.

Nothing here changes a result beyond rounding, so none of it is in a spec or in a spec's hash.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from dbpkit.foundation.errors import UserError, check_kind
from dbpkit.foundation.inputs import whole
from dbpkit.foundation.precision import EXACT, Precision, precise
from dbpkit.foundation.rows import RowLimit
from dbpkit.purification.replay import DEFAULT_MEMORY

DEFAULT_ROWS = 32
"""Rows in one call on a CPU, and wherever the number is fixed."""

BATCHES = {"cpu": 16, "cuda": 128}
"""Examples attacked together where "auto" is asked for; a rule of the kind of device, so that ranks agree."""

AUTO: Literal["auto"] = "auto"
"""Leaves a number to `dbpkit.experiment.sizing.settled`."""

_AUTOMATIC = {kind: torch.device(kind) for kind in ("cpu", "cuda")}
"""The very objects that an automatic device becomes: by them it stays one under `dataclasses.replace`."""

NOTED = ("device", "batch_size", "micro_batch", "deterministic", "memory_bytes", "reverse", "compile")
"""What a session of a run notes of its execution."""


@dataclass(frozen=True, init=False)
class Execution:
    """How work is carried out; none of it may change a result beyond rounding.

    Attributes:
        device: given as a `torch.device`, ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or ``"auto"`` for a GPU if
            there is one.
        batch_size: examples attacked together and recorded together, or ``"auto"``: 16 on a CPU and 128 on a
            GPU. Training has it in its spec.
        micro_batch: rows (examples times draws) in one call of the model, or ``"auto"``: what is fastest in
            the memory that is free when the work begins.
        deterministic: only kernels that give the same bits every time; and every call of an evaluated model
            has exactly ``micro_batch`` rows, so that records are bit-equal whatever the batch size and order.
            "auto" then stands for 32 rows and 2 GiB on every machine.
        memory_bytes: budget for kept graphs, see `dbpkit.purification.replay.Replay`, or ``"auto"``: what is
            of use, as far as it is free.
        reverse: whether the last example comes first.
        rank: number of this process among those that share the work, from 0 on; see `shared`.
        world: how many there are: of a training, an evaluation, or analyses.
        compile: whether evaluations, analyses and updates of a denoiser compile their networks, see
            `dbpkit.foundation.compiled.compiling`; the checks before them call them as they are.
        limit: ``micro_batch``, or 32 until that is chosen, as all who call the models share it; halved where
            memory runs out.
        device_is_auto: whether ``device`` was left to this.

    Raises:
        UserError: if the device is unknown or not there, or a number is out of range.

    Example:
        >>> Execution("cpu", batch_size=4).device, Execution("cpu", batch_size=4).micro_batch
        (device(type='cpu'), 'auto')
    """

    device: torch.device
    batch_size: int
    micro_batch: int | Literal["auto"]
    deterministic: bool
    memory_bytes: int | Literal["auto"]
    reverse: bool
    rank: int
    world: int
    compile: bool
    limit: RowLimit = field(init=False, compare=False, repr=False)
    device_is_auto: bool = field(init=False, compare=False, repr=False)

    def __init__(
        self,
        device: str | torch.device = AUTO,
        batch_size: int | Literal["auto"] = AUTO,
        micro_batch: int | Literal["auto"] = AUTO,
        deterministic: bool = False,
        memory_bytes: int | Literal["auto"] = AUTO,
        reverse: bool = False,
        rank: int = 0,
        world: int = 1,
        compile: bool = False,  # noqa: A002 - its name in torch
    ) -> None:
        automatic = device == AUTO or any(device is one for one in _AUTOMATIC.values())
        found = checked_device(device)
        if isinstance(batch_size, str) and batch_size == AUTO:
            batch_size = BATCHES.get(found.type, BATCHES["cuda"])
        checked = {
            "device": _AUTOMATIC[found.type] if automatic else found,
            "batch_size": whole(batch_size, "execution.batch_size", 1),
            "micro_batch": _whole_or_auto(micro_batch, "execution.micro_batch", 1),
            "deterministic": deterministic,
            "memory_bytes": _whole_or_auto(memory_bytes, "execution.memory_bytes"),
            "reverse": reverse,
            "world": (several := whole(world, "execution.world", 1)),
            "rank": whole(rank, "execution.rank", 0, several),
            "compile": bool(compile),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "device_is_auto", automatic)
        if deterministic:
            self._take("micro_batch", DEFAULT_ROWS)
            self._take("memory_bytes", DEFAULT_MEMORY)
        rows = DEFAULT_ROWS if self.micro_batch == AUTO else self.micro_batch
        object.__setattr__(self, "limit", RowLimit(rows, fixed=deterministic))

    def _take(self, name: str, value: int) -> None:
        """Puts a number in the place of "auto"."""
        if getattr(self, name) == AUTO:
            object.__setattr__(self, name, value)

    @property
    def is_auto(self) -> bool:
        """Whether a number is still to be chosen."""
        return AUTO in (self.micro_batch, self.memory_bytes)

    @property
    def budget(self) -> int:
        """``memory_bytes``, or 2 GiB until that is chosen."""
        return DEFAULT_MEMORY if self.memory_bytes == AUTO else self.memory_bytes

    def noted(self) -> dict[str, Any]:
        """Returns what a session notes of it, ready for JSON."""
        return {name: getattr(self, name) for name in NOTED} | {"device": str(self.device)}


def _whole_or_auto(value: Any, name: str, least: int = 0) -> int | Literal["auto"]:
    """Returns a whole number, or "auto"."""
    return AUTO if isinstance(value, str) and value == AUTO else whole(value, name, least)


def check_execution(execution: Any, *, shared: bool = False) -> Execution:
    """Returns an execution, the usual one for None; UserError if processes share it and must not."""
    execution = Execution() if execution is None else execution
    check_kind(execution, Execution, "execution", "Make one with Execution(batch_size=16).")
    if execution.world > 1 and not shared:
        raise UserError(
            f"execution.world is {execution.world}, but this runs in one process. Leave rank and world out."
        )
    checked: Execution = execution
    return checked


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


def shared(execution: Execution, shard: str | None = None) -> Execution:
    """Returns the execution of one of the processes that share an evaluation, on a GPU of its own.

    Args:
        execution: of all of them.
        shard: ``"3/16"`` for the third of sixteen; None takes what torchrun and ``accelerate launch`` say.

    Raises:
        UserError: if it is no such number, a launcher has numbered the process too, or several processes of
            one machine would share one GPU.

    Example:
        >>> found = shared(Execution(), "3/16")
        >>> found.rank, found.world
        (2, 16)
    """
    found = launched(execution)
    if shard is not None:
        numbers = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", shard)
        if not numbers or not 1 <= int(numbers[1]) <= int(numbers[2]):
            raise UserError(f"shard '{shard}' is none. Use K/N with K from 1 to N: 3/16 is the third of 16.")
        if found.world > 1:
            raise UserError(
                f"this process is {found.rank + 1}/{found.world} of a launcher (RANK, WORLD_SIZE), and"
                f" --shard {shard} says something else. Leave --shard out."
            )
        return replace(execution, rank=int(numbers[1]) - 1, world=int(numbers[2]))
    if found.world == 1 or found.device.type != "cuda":
        return found
    if found.device.index is not None:
        raise UserError(
            f"device '{found.device}' is one GPU, and {found.world} processes would share it. Use cuda: each"
            " process then takes its own."
        )
    local = os.environ.get("LOCAL_RANK", "0")
    if not local.isdecimal():
        raise UserError(f"LOCAL_RANK must be a whole number, not {local!r}. Unset it.")
    return replace(found, device=checked_device(f"cuda:{local}"))


def current_gpu(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Inside the block, a GPU that is given by its number is the current one."""
    return contextlib.nullcontext() if device.index is None else torch.cuda.device(device)


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
    tf32 = torch.backends.cudnn.allow_tf32 if deterministic and precision is None else None
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
