"""The arithmetic that networks are called in: exact float32, TF32, or bfloat16 inside the network alone.

The thing people get wrong: cuDNN convolves in TF32 unless it is told not to, which keeps 10 of the 23 bits
of a float32 mantissa. So ``float32`` switches it off rather than leaving it alone.

The setting is that of the process, as torch's own switches are: backward passes run in threads of their own,
and steps that run again there must meet the precision that they first ran in.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, get_args

import torch

from dbpkit.foundation.errors import unknown_name

Precision = Literal["float32", "tf32", "bfloat16"]
"""``float32`` is exact; ``tf32`` rounds the factors of CUDA's products to 10 bits, and is float32 on a CPU;
``bfloat16`` calls networks under autocast, with all around them in float32."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)

EXACT: Precision = "float32"
"""The default, and what the others are compared with."""

_current: Precision = EXACT


def current_precision() -> Precision:
    """Returns what `precise` has set, or float32."""
    return _current


def checked_precision(name: Any) -> Precision:
    """Returns a precision; UserError if it is none."""
    if name not in PRECISIONS:
        raise unknown_name("precision", str(name), PRECISIONS)
    found: Precision = name
    return found


@contextlib.contextmanager
def precise(name: Precision) -> Iterator[None]:
    """Inside the block, networks are called in this precision; afterwards, also after an error, as before.

    Blocks may be nested. What is outside of networks is float32 in all of them, and TF32 is used in none but
    ``tf32``.

    Raises:
        UserError: if there is no such precision.

    Example:
        >>> with precise("bfloat16"):
        ...     print(current_precision())
        bfloat16
    """
    global _current
    name, before, switches = checked_precision(name), _current, _read()
    try:
        _switch(name == "tf32")
        _current = name
        yield
    finally:
        _current = before
        _write(switches)


@contextlib.contextmanager
def kept(name: Precision) -> Iterator[None]:
    """The same, at no cost where the precision is this one already."""
    if name == _current:
        yield
        return
    with precise(name):
        yield


def lowered(device: str) -> contextlib.AbstractContextManager[Any]:
    """Returns the block in which a network is called: under autocast in ``bfloat16``, as it is in the others.

    Args:
        device: type of the device, ``"cpu"`` or ``"cuda"``.
    """
    if _current != "bfloat16":
        return contextlib.nullcontext()
    return torch.autocast(device, torch.bfloat16, cache_enabled=False)  # frozen weights are never cached


# ------------------------------------------------------------------ torch's switches

_NEW = (
    ("cuda.matmul", "tf32"),
    ("cudnn.conv", "tf32"),
    ("cudnn.rnn", "tf32"),
    ("mkldnn.matmul", "ieee"),
    ("mkldnn.conv", "ieee"),
)
"""Where torch 2.9 and later keep them, and what each is where TF32 is on."""


def _places() -> list[tuple[Any, str]]:
    found = []
    for path, fast in _NEW:
        place: Any = torch.backends
        for part in path.split("."):
            place = getattr(place, part, None)
        if hasattr(place, "fp32_precision"):
            found.append((place, fast))
    return found


def _switch(tf32: bool) -> None:
    """Sets them all: the old ones, which libraries read, and the new ones, which count where both are."""
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    for place, fast in _places():
        place.fp32_precision = fast if tf32 else "ieee"


def _read() -> list[Callable[[], None]]:
    """Returns what puts each back; one that torch refuses to read, as both kinds were used, is left out."""
    undo: list[Callable[[], None]] = []
    with contextlib.suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
        undo.append(lambda: torch.set_float32_matmul_precision(matmul))
    with contextlib.suppress(RuntimeError):
        convolution = torch.backends.cudnn.allow_tf32
        undo.append(lambda: setattr(torch.backends.cudnn, "allow_tf32", convolution))
    for place, _ in _places():
        undo.append(partial(setattr, place, "fp32_precision", place.fp32_precision))
    return undo


def _write(undo: list[Callable[[], None]]) -> None:
    for one in undo:
        one()
