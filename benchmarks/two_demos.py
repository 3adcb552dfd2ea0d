"""What two demos at once cost, in units of one alone.

    python -m benchmarks.two_demos [--out FILE] [--rounds 5] [--images 8] [--apart 2]

A round is one demo alone, then two whose starts are some seconds apart, each a process and a run directory of
its own. The number that counts is the median over rounds of the time from the first start to the last end of
two, over that of one; two cores that are used well give 2, and at most 2.3 is wanted. Nothing else may run
meanwhile, which the caller has to see to; the load before is noted.
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

import torch

from dbpkit.foundation.packaged import asset


def demos(count: int, images: int, apart: float) -> tuple[float, list[int]]:
    """Seconds from the first start to the last end of so many demos, and the threads that each used."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "MKL_", "GOMP_"))}
    with tempfile.TemporaryDirectory() as folder:
        runs = [Path(folder) / str(k) for k in range(count)]
        start, processes = time.perf_counter(), []
        for number, run in enumerate(runs):
            time.sleep(apart if number else 0.0)
            words = [
                "evaluate",
                str(asset("demo.toml")),
                "--out",
                str(run),
                "--set",
                f"examples.count={images}",
                "-q",
            ]
            command = [sys.executable, "-m", "dbpkit.cli", *words]
            processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
        codes = [process.wait() for process in processes]
        seconds = time.perf_counter() - start
        if any(codes):
            raise SystemExit(f"a demo ended with exit codes {codes}")
        return seconds, [json.loads((run / "env.json").read_text())[0]["threads"] for run in runs]


def main() -> None:
    """Measures round by round, prints the ratio and keeps every time."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/two-demos-cpu.json"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--apart", type=float, default=2.0)
    chosen = parser.parse_args()
    load, rounds = os.getloadavg(), []
    for _ in range(chosen.rounds):
        (one, alone), (two, both) = (demos(k, chosen.images, chosen.apart) for k in (1, 2))
        rounds.append({"one": one, "two": two, "threads_one": alone, "threads_two": both})
        print(f"one {one:.1f} s ({alone} threads), two {two:.1f} s ({both}): {two / one:.2f}", flush=True)
    ratio = statistics.median(r["two"] / r["one"] for r in rounds)
    about: dict[str, Any] = {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": load,
        "images": chosen.images,
        "apart": chosen.apart,
        "ratio": ratio,
        "rounds": rounds,
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(about, indent=1) + "\n")
    print(f"two demos at once take {ratio:.2f} times one (median of {len(rounds)} rounds; at most 2.3)")


if __name__ == "__main__":
    main()
