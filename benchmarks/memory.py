"""Resident memory (Linux): whether an evaluation's grows, and a gradient's peak against its budget.

python -m benchmarks.memory             an evaluation with the embedded models, batch by batch
python -m benchmarks.memory --count 256 --iterations 20 --eot 10        a published setting: hours
python -m benchmarks.memory gradient    35.7 M weights, the topology of CIFAR-10 DDPM, by budget

Printed at the end of each batch: what is resident, and what of it is in use. The command line keeps freed
memory for the next pass (`dbpkit.foundation.memory`), so that resident memory is the most there ever was; a
leak shows in what is in use. `--give-back` leaves glibc as it is.
"""

import argparse
import ctypes
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.subjects import DDPM_CIFAR10
from dbpkit import NoisePlan, Purifier, evaluate
from dbpkit.experiment.execution import Execution
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.machine import settle
from dbpkit.foundation.spec import validate
from dbpkit.models.denoisers import VPDenoiser
from dbpkit.models.diffusers import build_unet
from dbpkit.results.kinds import baseline_rows

MIB = 2**20


def evaluation(count: int, iterations: int, eot: int, batch: int, sampler: str = "ddpm") -> None:
    """Runs white box and DW_Both against the embedded models and prints what is resident after each batch."""
    attack = {"name": "pgd", "options": {"iterations": iterations, "eot": eot}}
    table = {
        "name": "memory",
        "examples": {"count": count},
        "purifier": {"sampler": sampler, "steps": 50},
        "attacks": [attack],
        "draws": {"report": 4, "select": 4},
        "knowledge": ["white_box", "dw_both"],
    }
    found: list[tuple[int, int]] = []
    first = baseline_rows(purified=True)[0]  # what every batch begins with
    began, batches = time.perf_counter(), 0

    def note(_share: float, what: str) -> None:
        nonlocal batches
        if what not in (first, "done"):
            return
        batches += 1
        if batches == 1:
            return
        found.append((resident("VmRSS"), in_use()))
        shown = "  ".join(
            f"{size / MIB:7.1f} MiB {size / before - 1:+.2%}"
            for size, before in zip(found[-1], found[0], strict=True)
        )
        seconds = time.perf_counter() - began
        print(f"batch {len(found):3}  resident, in use: {shown}  {seconds:5.0f} s", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        spec = validate(table, EvaluationSpec, "memory")
        evaluate(spec, Path(folder) / "run", Execution(batch_size=batch), note)


MALLINFO = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class _Mallinfo(ctypes.Structure):
    """What glibc tells of its heap."""

    _fields_ = [(name, ctypes.c_size_t) for name in MALLINFO.split()]


def resident(key: str) -> int:
    """A memory figure of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def in_use() -> int:
    """Bytes that were asked of glibc's allocator and not given back."""
    tell = ctypes.CDLL(None).mallinfo2
    tell.restype = _Mallinfo
    found = tell()
    return int(found.uordblks + found.hblkhd)


def large_purifier(steps: int, memory_bytes: int) -> Purifier:
    """A purifier around the large network with random weights."""
    return Purifier(VPDenoiser(build_unet(DDPM_CIFAR10)), "ddim", steps=steps, memory_bytes=memory_bytes)


def one_graph(rows: int) -> int:
    """Bytes that the graph of one step keeps, weights left out."""
    sizes: dict[int, int] = {}

    def pack(saved: torch.Tensor) -> torch.Tensor:
        if not isinstance(saved, torch.nn.Parameter):
            sizes[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    purifier = large_purifier(10, 0)
    x = torch.full((rows, 3, 32, 32), 0.5).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        pure = purifier(x, noise=NoisePlan.of(0, range(rows)))
    del pure
    return sum(sizes.values())


def gradient(budget: int, rows: int, repetitions: int) -> None:
    """Prints the peak above the resident memory before, of every repetition, and the floor after it."""
    purifier = large_purifier(50, 0)
    x, noise = torch.full((rows, 3, 32, 32), 0.5), NoisePlan.of(0, range(rows))
    leaf = x.clone().requires_grad_()
    torch.autograd.grad(purifier(leaf, noise=noise).sum(), leaf)  # loads kernels and their scratch memory
    purifier.memory_bytes = budget
    before = resident("VmRSS")
    for _ in range(repetitions):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(purifier(leaf, noise=noise).sum(), leaf)
        print((resident("VmHWM") - before) / MIB, (resident("VmRSS") - before) / MIB, flush=True)


def gradients(rows: int, repetitions: int) -> None:
    """Peaks of a few gradients of six calls by budget, a process each; freed blocks go back at once."""
    one = one_graph(rows)
    print(f"one step's graph: {one / MIB:.0f} MiB ({rows} images)")
    own = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    for name, budget in (("none", 0), ("2.5 graphs", int(2.5 * one)), ("everything", 100 * one)):
        command = [
            sys.executable,
            "-m",
            "benchmarks.memory",
            "peak",
            str(budget),
            str(rows),
            str(repetitions),
        ]
        printed = subprocess.run(command, check=True, capture_output=True, text=True, env=own).stdout
        peaks, floors = zip(*(map(float, line.split()) for line in printed.splitlines()), strict=True)
        bound = (min(budget, 6 * one) + one) / MIB
        print(
            f"budget {name:11} peaks {' '.join(f'{p:.0f}' for p in peaks)} MiB,"
            f" budget and one graph {bound:.0f} MiB, ratio {max(peaks) / bound:.2f},"
            f" afterwards {' '.join(f'{f:.0f}' for f in floors)} MiB"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:  # not settled: what is freed is to go back at once
        gradient(*map(int, sys.argv[2:]))
        sys.exit()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=["evaluation", "gradient"], default="evaluation")
    parser.add_argument("--count", type=int, default=48, help="images")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--eot", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16, help="examples attacked together")
    parser.add_argument("--sampler", default="ddpm", help="with 50 steps; one_step makes one call")
    parser.add_argument("--rows", type=int, default=2, help="images of a gradient")
    parser.add_argument("--repetitions", type=int, default=4, help="gradients")
    parser.add_argument("--give-back", action="store_true", help="do not keep freed memory")
    chosen = parser.parse_args()
    if not chosen.give_back:
        settle()  # as the command line does
    if chosen.what == "gradient":
        gradients(chosen.rows, chosen.repetitions)
    else:
        evaluation(chosen.count, chosen.iterations, chosen.eot, chosen.batch, chosen.sampler)
