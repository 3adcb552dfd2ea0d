"""The memory budget of a gradient: what is alive at any moment, counted to the byte."""

import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dbpkit.foundation.types import State
from dbpkit.purification.replay import Replay

KIB = 1024


class Ledger:
    """Bytes of memory blocks that are alive, and the most there ever were."""

    def __init__(self) -> None:
        self.alive = self.peak = 0

    def block(self, size: int) -> Tensor:
        """A tensor of ``size`` bytes that is on the ledger until its memory is freed."""
        array = np.zeros(size, np.uint8)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(array, self._freed, size)
        return torch.from_numpy(array)

    def _freed(self, size: int) -> None:
        self.alive -= size


class Keeping(torch.autograd.Function):
    """The identity with a graph of a chosen size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *saved: Tensor) -> Tensor:
        ctx.save_for_backward(*saved)
        ctx.count = len(saved)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        assert len(ctx.saved_tensors) == ctx.count
        return grad, *(None,) * ctx.count


def gradient(hook: Callable[..., State], sizes: list[int], ledger: Ledger, *shared: Tensor) -> None:
    """A chain of steps whose graphs have these sizes, and its backward pass."""

    def step_of(size: int) -> Callable[[State], State]:
        def step(state: State) -> State:
            kept = (ledger.block(size),) if torch.is_grad_enabled() else ()
            return (Keeping.apply(state[0], *kept, *shared),)

        return step

    x = torch.ones(1, requires_grad=True)
    state: State = (x,)
    for size in sizes:
        state = hook(step_of(size), state)
    assert torch.equal(torch.autograd.grad(state[0].sum(), x)[0], torch.ones(1))
    del state
    assert ledger.alive == 0


class FirstOnly:
    """What this package did before: the first graph decides how many of the last ones are kept."""

    def __init__(self, steps: int, memory_bytes: int, first: int) -> None:
        self.replay = Replay(steps, 0)
        self.kept, self.done = max(1, memory_bytes // first), 0

    def __call__(self, step: Callable[[State], State], state: State) -> State:
        self.done += 1
        return (
            step(state)
            if self.replay.steps - self.kept < self.done
            else self.replay._replayed(step, state, None)
        )


SIZES = {
    "even": [10] * 8,
    "growing": [10, 20, 30, 40, 50, 60, 70, 80],
    "shrinking": [80, 70, 60, 50, 40, 30, 20, 10],
    "one large": [10, 10, 10, 10, 90, 10, 10, 10],
    "last large": [10] * 7 + [90],
}
"""KiB of the graph of every step."""


@pytest.mark.parametrize("budget", [0, 1, 10, 25, 30, 79, 80, 120, 300, 361, 1000])
@pytest.mark.parametrize("name", list(SIZES))
def test_peak_is_at_most_the_budget_and_one_graph_whatever_the_sizes(name: str, budget: int) -> None:
    ledger, sizes = Ledger(), [size * KIB for size in SIZES[name]]
    gradient(Replay(len(sizes), budget * KIB), sizes, ledger)
    assert 0 < ledger.peak <= budget * KIB + max(sizes)


@pytest.mark.parametrize("count", range(1, 9))
def test_even_graphs_as_many_as_fit_are_kept_and_the_peak_is_the_budget(count: int) -> None:
    sizes = [10 * KIB] * 8
    for budget, kept in ((count * 10 * KIB, count), (count * 10 * KIB - 1, max(count - 1, 1))):
        ledger, hook = Ledger(), Replay(8, budget)
        gradient(hook, sizes, ledger)
        assert hook.kept == kept
        assert ledger.peak == kept * 10 * KIB


def test_measured_by_the_first_graph_alone_the_budget_does_not_hold() -> None:
    """So that the tests above can fail."""
    sizes = [size * KIB for size in SIZES["growing"]]
    ledger = Ledger()
    gradient(FirstOnly(8, 80 * KIB, sizes[0]), sizes, ledger)
    assert ledger.peak > 80 * KIB + max(sizes)


def test_larger_first_graph_takes_no_room_twice() -> None:
    """A first step with a table that all steps share: 30 + 7 x 10 KiB are everything."""
    ledger, hook = Ledger(), Replay(8, 100 * KIB)
    gradient(hook, [30 * KIB] + [10 * KIB] * 7, ledger)
    assert (hook.kept, ledger.peak) == (8, 100 * KIB)


@pytest.mark.parametrize("count", [4, 6, 8])
@pytest.mark.parametrize("wrap", [nn.Parameter, lambda t, **_: t], ids=["weights", "another tensor"])
def test_what_all_steps_share_counts_once_and_weights_not_at_all(wrap: Any, count: int) -> None:
    shared = wrap(torch.zeros(20 * KIB // 4), requires_grad=False)
    room = 0 if isinstance(shared, nn.Parameter) else 20 * KIB
    ledger, hook = Ledger(), Replay(8, count * 10 * KIB + room)
    gradient(hook, [10 * KIB] * 8, ledger, shared)
    assert (hook.kept, ledger.peak) == (count, count * 10 * KIB)


def test_further_steps_than_were_told_are_replayed_whatever_the_budget() -> None:
    ledger, hook = Ledger(), Replay(2, 10**9)
    gradient(hook, [10 * KIB] * 6, ledger)
    assert (hook.kept, ledger.peak) == (2, 3 * 10 * KIB)


RESIDENT = """
import sys
from pathlib import Path
import torch
from dbpkit import NoisePlan, Purifier, load_embedded
from tests.unit.test_replay_memory import graph_bytes

def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])

denoiser, _ = load_embedded()
x, noise = torch.full((4, 3, 32, 32), 0.5), NoisePlan.of(0, range(4))
one = graph_bytes(Purifier(denoiser, "ddpm", steps=10), x, noise)
print(one)
for graphs in (1, 0, 3, 100):
    purifier = Purifier(denoiser, "ddpm", steps=50, memory_bytes=int(graphs * one))
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    leaf = x.clone().requires_grad_()
    torch.autograd.grad(purifier(leaf, noise=noise).sum(), leaf)
    print(graphs, resident("VmHWM") - before)
"""


def graph_bytes(purifier: Any, x: Tensor, noise: Any) -> int:
    """Bytes that the graph of a one-step purification keeps, weights left out."""
    sizes: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        if not isinstance(saved, nn.Parameter):
            sizes[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        pure = purifier(x.clone().requires_grad_(), noise=noise)
    del pure
    return sum(sizes.values())


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_resident_peak_of_the_embedded_networks_is_at_most_the_budget_and_one_graph(tmp_path: Any) -> None:
    """Of the process itself, six steps; what the networks work on is a tenth of a graph more.

    glibc is told to give every freed block back. The first budget pays for what is loaded once.
    """
    script = tmp_path / "peak.py"
    script.write_text(RESIDENT, encoding="utf-8")
    path = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    own = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": path}
    printed = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, env=own)
    one, *lines = printed.stdout.split("\n")
    peaks = dict(map(int, line.split()) for line in lines if line)
    found = {graphs: peak / int(one) for graphs, peak in peaks.items()}
    assert 0.9 < found[0] < 1.1
    assert 2.7 < found[3] < 4.1
    assert 5.4 < found[100] < 7.1
