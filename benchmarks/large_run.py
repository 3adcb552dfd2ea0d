"""Writes a run directory of many images and measures what reads it.

    python -m benchmarks.large_run DIR [--images 10000] [--rounds 3] [--out FILE]

Ten thousand images and 14 rows are 117 MB of records. Every number is drawn from a fixed key; there are no
models, so the run can be read and not continued. Each command is a process of its own; of all rounds the
median is kept: seconds of the processor (which other processes disturb little), seconds by the clock, and the
most memory held. ``compare`` reads the run twice, as it reads two runs. The end of an evaluation, which has
torch already, is measured without its start: what it takes from the last record to the written page.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from dbpkit.results.kinds import BASELINE_ROWS
from dbpkit.results.run_directory import RunDirectory

ATTACKERS = (
    "white_box", "dw_fwd", "dw_rev", "dw_both", "bpda", "surrogate", "blind", "other_tape", "semi",
)  # fmt: skip
BATCH = 16
DRAWS = 10
ITERATIONS = 20


def spec(count: int) -> dict[str, Any]:
    """A resolved spec with 9 attackers, which with the baselines are 14 rows."""
    from dbpkit.experiment.knowledge import known
    from dbpkit.experiment.spec import EvaluationSpec

    knowledge = [k if k in known else {"name": k, "shared_sites": ["forward"]} for k in ATTACKERS]
    table = {"name": "large", "knowledge": knowledge, "examples": {"count": count}}
    return EvaluationSpec.model_validate(table).model_dump(mode="json")


def write(folder: Path, count: int) -> None:
    """Fills a run directory batch by batch, as an evaluation does."""
    run = RunDirectory(folder)
    run.claim(spec(count))
    run.write_json("env.json", [{"data_sha256": "0" * 64, "examples": count, "device": "cpu"}])
    run.write_json("checks.json", [])
    for first in range(0, count, BATCH):
        ids = range(first, min(first + BATCH, count))
        for number, row in enumerate((*BASELINE_ROWS, *ATTACKERS)):
            run.append(records(row, number, ids))


def records(row: str, number: int, ids: range) -> list[dict[str, Any]]:
    """The records of one unit: labels and predictions of 10 classes, and an attack's paths."""
    import torch  # only to write: a child's memory is counted from its parent's on

    from dbpkit.foundation.noise import NoisePlan

    draws = 1 if row in ("undefended_clean", "undefended", "dw_both") else DRAWS
    plan = NoisePlan.of(number, ids)
    chance = plan.uniform("probe", 0, torch.zeros(len(ids), draws)).numpy()
    paths = np.sort(plan.uniform("probe", 1, torch.zeros(len(ids), 2, ITERATIONS)).double().numpy())
    made = []
    for b, example in enumerate(ids):
        label, share = example % 10, 0.4 + 0.05 * (number % 5)
        predicted = [label if c < share else (label + 1) % 10 for c in chance[b].tolist()]
        head = {"row": row, "tape": 0, "example": example, "label": label, "predicted": predicted}
        if row not in ("undefended_clean", "clean", "noise_control", "transfer"):
            head |= {
                "attack": "pgd", "excess": 0.0,
                "loss": paths[b, 0].tolist(), "grad_norm": paths[b, 1].tolist(),
                "distance": 8 / 255, "forward_passes": 200, "gradient_passes": 200, "network_calls": 2000,
                "images": f"{row}-0-{ids[0]}-{ids[-1]}-{len(ids)}.safetensors",
            }  # fmt: skip
        made.append(head)
    return made


def measured(*words: str) -> dict[str, float]:
    """Runs Python with these words: seconds of the processor and by the clock, and MiB at most."""
    began = time.perf_counter()
    child = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    assert status == 0, words
    return {
        "processor_s": used.ru_utime + used.ru_stime,
        "clock_s": time.perf_counter() - began,
        "peak_MiB": used.ru_maxrss / 1024,
    }


END = """
import os, sys, time, resource
import dbpkit.evaluation.run, dbpkit.reporting.page
from dbpkit.reporting import write_report
from dbpkit.results.run_directory import RunDirectory
from dbpkit.results.summary import summarise
folder, page = sys.argv[1:]
held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
cpu, clock = time.process_time(), time.perf_counter()
run = RunDirectory(folder)
summarise(run).as_json()
write_report([run], page)
cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held
print(cpu, clock, more / 1024)
"""


def end_of_evaluation(folder: Path) -> dict[str, float]:
    """The same from the last record to the page, beyond what the process had before."""
    page = folder / "benchmark.html"
    said = subprocess.run(
        [sys.executable, "-c", END, str(folder), str(page)], check=True, capture_output=True, text=True
    )
    return dict(zip(("processor_s", "clock_s", "added_MiB"), map(float, said.stdout.split()), strict=True))


def table(folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Medians by command."""
    run, again = str(folder), str(folder / ".." / folder.resolve().name)
    commands = {
        "--version": ["--version"],
        "show": ["show", run],
        "findings": ["findings", run],
        "compare": ["compare", run, again],
        "report": ["report", run, "--out", str(folder / "benchmark.html")],
    }
    ways = {name: lambda words=words: measured("-m", "dbpkit", *words) for name, words in commands.items()}
    ways["end of evaluate"] = lambda: end_of_evaluation(folder)
    found: dict[str, dict[str, float]] = {}
    for name, way in ways.items():
        all_rounds = [way() for _ in range(rounds)]
        found[name] = {k: round(statistics.median(r[k] for r in all_rounds), 2) for k in all_rounds[0]}
        print(f"{name:16}", json.dumps(found[name]), flush=True)
    return found


def main() -> None:
    """Writes the run if it is not there, and measures the reading commands."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if not (asked.folder / "spec.json").exists():
        write(asked.folder, asked.images)
    content = {
        "what": "reading a run directory: median of the rounds, by command",
        "command": "python -m benchmarks.large_run DIR --out benchmarks/results/large-run.json",
        "images": asked.images,
        "records_MB": round((asked.folder / "records.jsonl").stat().st_size / 1e6, 1),
        "rounds": asked.rounds,
        "machine": f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, {platform.system()}",
        "load_before": round(os.getloadavg()[0], 1),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("numpy", "pydantic_core", "matplotlib", "torch")},
        },
        "commands": table(asked.folder, asked.rounds),
    }
    if asked.out:
        asked.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
