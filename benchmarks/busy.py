"""One gradient on a quiet machine and on a busy one, by how OpenMP's threads wait.

    python -m benchmarks.busy [--out FILE] [--rounds 3] [--only NAME ...]

The embedded purifier, 8 images, 6 network calls, two threads. Each number is the median of the calls of all
rounds; every round starts a process of its own for each way, so that ways take turns. Quiet: nothing else
runs, which the caller has to see to; the load before is noted. Busy: one process that only counts. Both: two
of the same at once. The table is printed, and kept with every single time in ``--out``.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from dbpkit import NoisePlan, Purifier, load_dataset, load_embedded
from dbpkit.foundation.machine import settle

WAYS: dict[str, dict[str, str]] = {
    "as a program": {},  # what `dbpkit` does: spin, and sleep while others take cores
    "as torch comes": {"GOMP_SPINCOUNT": ""},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}
"""What the environment says, by way."""

ROWS, STEPS, WARM, CALLS = 8, 50, 4, 5


def child() -> None:
    """Prints the seconds of each call as JSON."""
    plain = os.environ.get("DBPKIT_BUSY_PLAIN") == "1"
    if not plain:
        settle()
    denoiser, _ = load_embedded()
    data = load_dataset("embedded").select(slice(0, ROWS))
    purifier, noise, x = Purifier(denoiser, "ddim", steps=STEPS), NoisePlan.of(0, data.ids), data.x()
    assert purifier.calls == 6, purifier.calls
    seconds = []
    for _ in range(WARM + CALLS):
        start = time.perf_counter()
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(purifier(leaf, noise=noise).sum(), leaf)
        seconds.append(time.perf_counter() - start)
    print(json.dumps(seconds[WARM:]))


def started(way: str) -> subprocess.Popen[str]:
    """A process that measures one way."""
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment |= {"OMP_NUM_THREADS": "2", **WAYS[way]}
    if way == "as torch comes":
        environment = {**environment, "DBPKIT_BUSY_PLAIN": "1"}
        del environment["GOMP_SPINCOUNT"]
    command = [sys.executable, "-m", "benchmarks.busy", "--child"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def measured(way: str, condition: str) -> list[float]:
    """Seconds of the calls of one way in one condition."""
    counting = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(counting)] if condition == "busy" else []
    try:
        processes = [started(way) for _ in range(2 if condition == "both" else 1)]
        return [s for p in processes for s in json.loads(p.communicate()[0])]
    finally:
        for other in others:
            other.kill()
            other.wait()


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """Medians, and their ratios to the quiet time of torch as it comes."""
    quiet = statistics.median(found["as torch comes"]["quiet"]) if "as torch comes" in found else float("nan")
    lines = ["| how threads wait | quiet | one core taken | two at once |", "|---|---|---|---|"]
    for way, conditions in found.items():
        middle = {c: statistics.median(seconds) for c, seconds in conditions.items()}
        cells = [f"{middle[c]:.3f} s ({middle[c] / quiet:.2f} x)" for c in ("quiet", "busy", "both")]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures every way in every condition, round by round."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/busy-cpu.json"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(WAYS), choices=list(WAYS))
    chosen = parser.parse_args()
    load = os.getloadavg()
    found: dict[str, dict[str, list[float]]] = {way: {} for way in chosen.only}
    for _ in range(chosen.rounds):
        for condition in ("quiet", "busy", "both"):
            for way in chosen.only:
                found[way].setdefault(condition, []).extend(measured(way, condition))
                print(condition, way, [round(s, 3) for s in found[way][condition][-CALLS:]], flush=True)
    about: dict[str, Any] = {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": load,
        "images": ROWS,
        "network_calls": 6,
        "seconds": found,
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(about, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    child() if "--child" in sys.argv else main()
