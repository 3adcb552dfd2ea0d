"""Modules that are used and never trained: always in eval mode, and without memory shared with a caller.

Attack libraries put a model into train mode and back as they please, and models work on their input in place.
So eval mode is asserted again at every call.
"""

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from dbpkit.foundation.compiled import call
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.precision import current_precision, lowered

P = ParamSpec("P")
R = TypeVar("R")


def uncompiled(method: Callable[P, R]) -> Callable[P, R]:
    """Keeps a method out of the graphs of ``torch.compile``, which breaks them there and runs it as it is.

    The decorator of torch itself would import its compiler at once, which takes longer than this package.
    """

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            plain: Callable[P, R] = torch.compiler.disable(method)
            return plain(*args, **kwargs)
        return method(*args, **kwargs)

    return call


class Frozen(nn.Module):
    """A module that is in eval mode from the start, with all it holds, and stays so under ``train()``."""

    def __init__(self) -> None:
        super().__init__()
        self.training = False

    def train(self, mode: bool = True) -> "Frozen":
        """Puts everything in eval mode, whatever ``mode`` asks for."""
        del mode
        super().train(False)
        return self

    @uncompiled
    def settle(self) -> None:
        """Puts back into eval mode what somebody has taken out of it directly."""
        left: list[nn.Module | None] = [self]
        seen: set[int] = set()
        while left:  # `modules()` takes four times as long, before every step that runs again
            module = left.pop()
            if module is None or id(module) in seen:
                continue
            seen.add(id(module))
            if module.training:
                module.train(False)
            left.extend(module._modules.values())


class Function(nn.Module):
    """A plain function as a module.

    Args:
        function: called as the module would be.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Passes the call on."""
        return self.function(*args, **kwargs)


class Counter:
    """Counts calls, each number once, whichever thread asks.

    Args:
        start: the first number.
    """

    def __init__(self, start: int = 0) -> None:
        self.value = start
        self._lock = threading.Lock()

    def take(self) -> int:
        """Returns the next number."""
        with self._lock:
            self.value += 1
            return self.value - 1

    def __reduce__(self) -> tuple[Any, ...]:
        return Counter, (self.value,)


def as_frozen(part: Any, what: str) -> nn.Module:
    """Returns a network with fixed weights in eval mode; a plain function becomes a module.

    Raises:
        UserError: if it can be neither.
    """
    if isinstance(part, type) or not callable(part):
        hint = " Call it to make one." if isinstance(part, type) else ""
        name = part.__name__ if isinstance(part, type) else type(part).__name__
        raise UserError(f"{what} must be a torch.nn.Module or a function, not {name}.{hint}")
    module = part if isinstance(part, nn.Module) else Function(part)
    for weight in module.parameters():  # a scripted module has no requires_grad_
        weight.requires_grad_(False)
    return module.eval()


def own_dtype(module: Any) -> torch.dtype | None:
    """Returns the floating-point type of a module's first weight, or None if it has none."""
    weights = module.parameters() if isinstance(module, nn.Module) else ()
    return next((p.dtype for p in weights if p.is_floating_point()), None)


def own_device(module: Any) -> torch.device:
    """Returns the device of a module's first weight; the CPU if it has none."""
    weights = module.parameters() if isinstance(module, nn.Module) else ()
    return next((p.device for p in weights), torch.device("cpu"))


def call_apart(module: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Calls a network on a copy of ``x`` in the network's own precision; results in that of ``x``.

    A network that works in place (``x.sub_(mean)``) then changes nothing of the caller's, and neither a
    double image nor a half network is an error. Where `dbpkit.foundation.precision.precise` asks for
    bfloat16, the network runs under autocast, and nothing else does.
    """
    dtype, asked = own_dtype(module) or x.dtype, current_precision()
    with lowered(x.device.type):
        result = call(module, x.clone() if dtype == x.dtype else x.to(dtype), *args, **kwargs)
    if dtype == x.dtype and asked != "bfloat16":
        return result
    return result.to(x.dtype) if isinstance(result, Tensor) and result.is_floating_point() else result
