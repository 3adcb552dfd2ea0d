"""What is left of a computation: live autograd graphs, counted one by one, and resident memory.

The thing people get wrong: `gc.collect()` before counting. A graph in a cycle of Python objects holds its
memory until the collector happens to run, and one in a cycle that leads through autograd is never found.
"""

import gc
import mmap
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from tests.oracles import GaussianDenoiser
from tests.parts import ChannelMean

REPETITIONS = 10
MAPPED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)
FLAT = 0.01
"""Growth of resident memory that is none."""


class Sentinel:
    """Lives as long as what holds it; a block of its own makes its life visible in resident memory.

    The block is mapped, so that no allocator hides it among what it has kept.
    """

    block = 0
    made = 0
    alive: ClassVar["weakref.WeakSet[Sentinel]"] = weakref.WeakSet()

    def __init__(self, block: bool = True) -> None:
        if block and Sentinel.block:
            self.memory = mmap.mmap(-1, Sentinel.block, flags=MAPPED)
        Sentinel.made += 1
        Sentinel.alive.add(self)


class Saved(Sentinel):
    """A tensor that autograd saved."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(block=False)
        self.tensor = tensor.detach()

    def unpack(self) -> Tensor:
        return self.tensor


class Probe(torch.autograd.Function):
    """The identity; its node in the graph holds a sentinel, whatever hooks others have set."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: bool) -> Tensor:
        ctx.sentinel = Sentinel(block)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class BlownError(Exception):
    """What goes wrong inside."""


class Fuse:
    """Counts calls of networks and raises at a chosen one."""

    left = -1

    @classmethod
    def burn(cls) -> None:
        cls.left -= 1
        if cls.left == 0:
            raise BlownError


def probed(x: Tensor, block: bool = False) -> Tensor:
    """The tensor itself, with a sentinel in its graph if it gets one."""
    return Probe.apply(x, block) if torch.is_grad_enabled() and x.requires_grad else x


class Probed(nn.Module):
    """A network with a sentinel before and behind it, and a fuse."""

    def __init__(self, network: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        Fuse.burn()
        return probed(self.network(probed(x, block=True), *more))


def channel_mean() -> nn.Module:
    """A classifier of three classes for specs."""
    return Probed(ChannelMean())


def gaussian() -> nn.Module:
    """A denoiser for specs."""
    return Probed(GaussianDenoiser(0.0, 0.05))


@contextmanager
def uncollected() -> Iterator[None]:
    """Starts with nothing alive, and without the collector; tensors that autograd saves get sentinels.

    Where others have set hooks of their own, theirs hold.
    """
    Sentinel.alive.clear()
    gc.disable()
    try:
        with torch.autograd.graph.saved_tensors_hooks(Saved, Saved.unpack):
            yield
    finally:
        gc.enable()


class Observed(NamedTuple):
    """Of ten runs after the second: sentinels made and left, and growth of resident memory as a share."""

    made: int
    left: int
    growth: float


def observed(once: Callable[[], object], block: int = 2**20, tries: int = 3) -> Observed:
    """Runs twice, then ten times, and says what is left after each result was dropped.

    The floors of the first and the last three runs are compared, for the allocator keeps up to 9 MB of freed
    pages at its pleasure. What grows once is looked at again: a leak grows every time.
    """
    Sentinel.block, growth = block, []
    try:
        with uncollected():
            Sentinel.made = 0
            for _ in range(2):
                once()
            Sentinel.alive.clear()  # what is made once, at the first call, is no leak
            for _ in range(tries):
                sizes = []
                for _ in range(REPETITIONS):
                    once()
                    sizes.append(resident())
                growth.append(min(sizes[-3:]) / max(min(sizes[:3]), 1) - 1)
                if growth[-1] <= FLAT:
                    break
            return Observed(Sentinel.made, len(Sentinel.alive), min(growth))
    finally:
        Sentinel.block = 0


def left_after_an_error(once: Callable[[], object], at: int) -> int | None:
    """Sentinels alive after an error at the given call of a network; None if there are fewer calls."""

    def stopped() -> bool:
        Fuse.left = at
        try:
            once()
        except BlownError:
            return True
        finally:
            Fuse.left = -1
        return False

    with uncollected():
        return len(Sentinel.alive) if stopped() else None


def resident() -> int:
    """Resident bytes of this process; 0 where that cannot be read."""
    if not sys.platform.startswith("linux"):
        return 0
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
