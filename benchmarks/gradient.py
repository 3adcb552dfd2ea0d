"""Cost and memory of one exact gradient through a purification, against its forward pass.

python -m benchmarks.gradient            time, against the forward pass, by memory budget
python -m benchmarks.gradient memory     peak memory with 10 and with 100 steps, a process each
python -m benchmarks.gradient noise      share of a purification that drawing its noise takes
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dbpkit import NoisePlan, Purifier, load_dataset, load_embedded
from dbpkit.foundation.machine import settle

ROWS = 16


def setting(steps: int, memory_bytes: int) -> tuple[Callable[[], object], Callable[[], object], NoisePlan]:
    """Forward and gradient of the purifier alone, ready to be called."""
    denoiser, _ = load_embedded()
    data = load_dataset("embedded").select(slice(0, ROWS))
    purifier = Purifier(denoiser, "ddpm", steps=steps, memory_bytes=memory_bytes)
    plan = NoisePlan.of(0, data.ids)
    x = data.x()

    def forward() -> object:
        with torch.no_grad():
            return purifier(x, noise=plan)

    def gradient() -> object:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(purifier(leaf, noise=plan).sum(), leaf)

    return forward, gradient, plan


def paired_ratio(
    a: Callable[[], object], b: Callable[[], object], pairs: int = 7
) -> tuple[float, float, float]:
    """Median seconds of both, and the median of the ratios b / a over alternating pairs."""
    a(), b()
    times = []
    for _ in range(pairs):
        start = time.perf_counter()
        a()
        middle = time.perf_counter()
        b()
        times.append((middle - start, time.perf_counter() - middle))
    first, second = zip(*times, strict=True)
    return statistics.median(first), statistics.median(second), statistics.median(t / s for s, t in times)


BUDGETS = {"last graph only": 0, "256 MiB": 2**28, "everything": 1 << 40}
"""Memory budgets by name."""


def seconds() -> None:
    """Gradient against forward, for two chain lengths and three budgets."""
    for steps, pairs in ((100, 7), (1000, 3)):
        for name, memory in BUDGETS.items():
            if steps == 100 or memory < 1 << 30:
                forward, gradient, _ = setting(steps, memory)
                f, g, ratio = paired_ratio(forward, gradient, pairs)
                print(f"S = {steps:4}, {name:16} forward {f:.3f} s  gradient {g:.3f} s  ratio {ratio:.2f}")


def noise(steps: int = 100) -> None:
    """Drawing all noise of a purification, against the purification."""
    forward, _, plan = setting(steps, 0)
    like = load_dataset("embedded").select(slice(0, ROWS)).x()
    calls = 11

    def draw() -> object:
        return [plan.normal("reverse", i, like) for i in range(calls)]

    f, d, ratio = paired_ratio(forward, draw, pairs=15)
    print(f"purification {f * 1e3:.1f} ms  its noise {d * 1e3:.2f} ms  share {ratio:.2%}")


def peak(steps: int, memory_bytes: int) -> None:
    """Prints the resident bytes before one gradient and at its peak (Linux)."""
    _, gradient, _ = setting(steps, memory_bytes)
    warm, _, _ = setting(20, 0)  # 3 calls without gradient: loads kernels and their scratch memory
    warm()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    gradient()
    print(before, resident("VmHWM"))


def resident(key: str) -> int:
    """A memory figure of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def memory() -> None:
    """Peak of one gradient with 11 and with 101 calls."""
    for name, budget in list(BUDGETS.items())[:2]:
        added, whole = [], []
        for steps in (100, 1000):
            command = [sys.executable, "-m", "benchmarks.gradient", "peak", str(steps), str(budget)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            before, after = map(int, printed.split())
            added.append(after - before)
            whole.append(after)
            print(
                f"S = {steps:4}, {name:16} peak {after / 2**20:.0f} MiB, gradient {added[-1] / 2**20:.0f} MiB"
            )
        print(f"101 to 11 calls: whole process {whole[1] / whole[0]:.2f}, gradient {added[1] / added[0]:.2f}")


if __name__ == "__main__":
    settle()  # as the command line does
    match sys.argv[1:]:
        case []:
            seconds()
        case ["memory"]:
            memory()
        case ["noise"]:
            noise()
        case ["peak", steps, memory_bytes]:
            peak(int(steps), int(memory_bytes))
        case other:
            sys.exit(f"unknown arguments {other}")
