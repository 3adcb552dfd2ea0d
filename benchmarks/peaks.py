"""Most memory of one gradient, by steps, images and budget: each in a process of its own.

python -m benchmarks.peaks NETWORK CALLS IMAGES BUDGET_BYTES ours|plain      prints bytes before, and at most
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import costs
from benchmarks.subjects import KEEP_ALL, bare_backward, subject
from dbpkit.foundation.machine import settle

MIB = 2**20


def resident(key: str) -> int:
    """A memory figure of this process in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def child(name: str, calls: int, images: int, budget: int, way: str) -> tuple[int, int]:
    """Resident bytes before one gradient and at its peak."""
    one = subject(name, images)
    purifier = one.purifier(calls, budget)
    bare_backward(one.first(1), 1)()  # loads kernels and their scratch memory
    made = costs.plain_purifier_gradient if way == "plain" else costs.purifier_gradient
    gradient = made(one, purifier)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    gradient()
    return before, resident("VmHWM")


def row(name: str, calls: int, images: int, budget: int, way: str) -> dict[str, Any]:
    """A row: one gradient in a new process."""
    words = [name, str(calls), str(images), str(budget), way]
    command = [sys.executable, "-m", "benchmarks.peaks", *words]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    before, peak = map(int, printed.split())
    kept = {0: "last graph", KEEP_ALL: "all graphs"}.get(budget, f"{budget / MIB:.0f} MiB")
    return {
        "network": name,
        "calls N": calls,
        "images": images,
        "kept": kept if way == "ours" else "plain",
        "gradient, MiB": round((peak - before) / MIB, 1),
        "process, MiB": round(peak / MIB, 1),
    }


def measured(name: str, few: int, many: int, images: tuple[int, ...]) -> dict[str, Any]:
    """Rows by steps and by images, and how many times as much memory ten times the steps take."""
    cases = [(n, images[0], budget) for budget in (0, 128 * MIB) for n in (few, many)]
    cases += [(few, b, budget) for b in images[1:] for budget in (0,)]
    cases += [(few, b, KEEP_ALL) for b in images]
    rows = [row(name, n, b, budget, "ours") for n, b, budget in cases]
    rows += [row(name, n, images[0], 0, "plain") for n in (few, many)]
    found = {}
    for kept in ("last graph", "128 MiB", "plain"):
        one, ten = (r for r in rows if r["kept"] == kept and r["images"] == images[0])
        grown = {k: round(ten[f"{k}, MiB"] / one[f"{k}, MiB"], 3) for k in ("process", "gradient")}
        found[f"{many} calls over {few}, {kept}"] = grown
    return {"rows": rows, "found": found}


if __name__ == "__main__":
    settle()  # as the command line does
    called, *numbers, chosen = sys.argv[1:]
    print(*child(called, *map(int, numbers), chosen))
