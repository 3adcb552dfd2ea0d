"""Two processes that share an evaluation, against one, in turns.

    python -m benchmarks.ranks [--images 64] [--steps 50] [--rounds 3] [--world 2] [--out FILE]

Both run the embedded models with the same deterministic settings, one thread in each process, and are pinned
to a core each. A round runs one process alone and then the ranks, or the other way round, each in a directory
of its own from nothing to the table; the ratio is that of one round, and the median of the ratios is kept.
Records must be equal. ``work`` begins where the checks before the run end, which one process makes for all.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dbpkit.results.run_directory import RunDirectory

SPEC = """
name = "ranks"
data = "embedded"
classifier = "embedded"
denoiser = "embedded"
purifier = {{ sampler = "ddim", steps = {steps} }}
attacks = [{{ name = "pgd", options = {{ iterations = 5, eot = 2 }} }}]
draws = {{ report = 4, select = 1 }}
knowledge = ["white_box", "dw_both"]
examples = {{ count = {images} }}
"""


def run_once(spec: Path, out: Path, world: int, batch: int) -> dict[str, float]:
    """Evaluates with so many processes, each on a core of its own; seconds from the start to the end."""
    cores = sorted(os.sched_getaffinity(0))
    words = [sys.executable, "-m", "dbpkit", "evaluate", str(spec), "--out", str(out), "--deterministic"]
    words += ["--batch-size", str(batch), "--device", "cpu", "--quiet"]
    began, processes = time.perf_counter(), []
    for rank in range(world):
        place = {"RANK": str(rank), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
        core = cores[rank % len(cores)]
        processes.append(
            subprocess.Popen(
                ["taskset", "-c", str(core), *words],
                env={**os.environ, **place},
                stdout=subprocess.DEVNULL,
            )
        )
    assert [process.wait() for process in processes] == [0] * world
    whole = time.perf_counter() - began
    return {
        "whole_s": round(whole, 2),
        "work_s": round(time.perf_counter() - began - _before_work(out, began), 2),
    }


def _before_work(out: Path, began: float) -> float:
    """Seconds until the checks were written, which is when the first batch begins."""
    return (out / "checks.json").stat().st_mtime - (time.time() - (time.perf_counter() - began))


def same_records(a: Path, b: Path) -> bool:
    """Whether two runs have the same records in the same order of keys."""
    found = [
        sorted(RunDirectory(run).records(), key=lambda r: (r["row"], r["tape"], r["example"]))
        for run in (a, b)
    ]
    return json.dumps(found[0], sort_keys=True) == json.dumps(found[1], sort_keys=True)


def compared(images: int, steps: int, world: int, rounds: int, batch: int) -> dict[str, Any]:
    """Times and ratios of every round."""
    times: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "ranks.toml"
        spec.write_text(SPEC.format(images=images, steps=steps))
        for number in range(rounds):
            places = {n: Path(folder) / f"{number}-{n}" for n in (1, world)}
            order = (1, world) if number % 2 == 0 else (world, 1)
            took = {n: run_once(spec, places[n], n, batch) for n in order}
            times.append(
                {
                    "one": took[1],
                    "ranks": took[world],
                    "whole_ratio": round(took[1]["whole_s"] / took[world]["whole_s"], 3),
                    "work_ratio": round(took[1]["work_s"] / took[world]["work_s"], 3),
                    "same_records": same_records(places[1], places[world]),
                    "load": round(os.getloadavg()[0], 1),
                }
            )
            print(json.dumps(times[-1]), flush=True)
    ratios = {k: statistics.median(t[k] for t in times) for k in ("whole_ratio", "work_ratio")}
    return {**ratios, "same_records": all(t["same_records"] for t in times), "rounds": times}


def main() -> None:
    """Compares and prints the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--world", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    found = compared(asked.images, asked.steps, asked.world, asked.rounds, asked.batch)
    times = f"{found['whole_ratio']:.2f} times as fast ({found['work_ratio']:.2f} without start and checks)"
    print(f"{asked.world} processes are {times}, the same records: {found['same_records']}")
    content = {
        "what": f"one process against {asked.world} that share an evaluation: ratios of a round, medians",
        "command": "python -m benchmarks.ranks --out benchmarks/results/ranks.json",
        "machine": f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, {platform.system()}",
        **{name: value for name, value in vars(asked).items() if name != "out"},
        **found,
    }
    if asked.out:
        asked.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
