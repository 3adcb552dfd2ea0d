"""What an accelerator would have to be waited for is asked once, at the end, instead of at every call.

Whether a value is wrong is known on the device long before the host can know it. Inside `asked_at_the_end`
the answers are gathered there, and the block ends with the error that the first wrong value would have
raised. On a CPU, and outside of such a block, a question is answered at once.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

HOST = "cpu"
"""Type of the device whose values are at hand at once."""

_Asked = tuple[Tensor, tuple[Tensor, ...], Callable[..., Exception]]

_pending: ContextVar[dict[tuple[str, torch.device], _Asked] | None] = ContextVar("pending", default=None)


@contextlib.contextmanager
def asked_at_the_end() -> Iterator[None]:
    """Gathers what `refuse` is asked about tensors on accelerators; of nested blocks the outer one asks.

    Raises:
        Exception: the error of the first value that was refused, when the block ends without another error.
    """
    if _pending.get() is not None:
        yield
        return
    asked: dict[tuple[str, torch.device], _Asked] = {}
    token = _pending.set(asked)
    try:
        yield
    finally:
        _pending.reset(token)
    answers = [bad for bad, _, _ in asked.values()]
    if not answers or not bool(torch.stack([bad.to(answers[0].device) for bad in answers]).any()):
        return  # one wait for all of them
    for bad, told, error in asked.values():
        if bool(bad):
            raise error(*told)


def waits(device: torch.device) -> bool:
    """Whether questions about tensors on ``device`` are answered later: wrong values go on for a while."""
    return device.type != HOST and _pending.get() is not None


def refuse(bad: Tensor, error: Callable[..., Exception], *told: Tensor, about: str) -> None:
    """Raises ``error(*told)`` if ``bad`` is true, now or at the end of the block.

    Args:
        bad: one truth value, ().
        error: makes the exception.
        told: what it needs to know, tensors on the same device.
        about: what the question is; of several with one name the first that is true counts.
    """
    asked = _pending.get()
    if asked is None or bad.device.type == HOST:
        if bool(bad):
            raise error(*told)
        return
    bad, told = bad.detach(), tuple(t.detach() for t in told)
    key = about, bad.device
    if key in asked:
        before, first, error = asked[key]
        told = tuple(torch.where(before, a, b) for a, b in zip(first, told, strict=True))
        bad = before | bad
    asked[key] = bad, told, error
