"""Writes run directories with all their files and measures what continues and reads them.

    python -m benchmarks.large_resume DIR [--images 1000 10000] [--rounds 3] [--ranks 1] [--out FILE]

Eight rows: five baselines and three attackers, with images of CIFAR-10's size and the logits of ten draws:
7,500 files and half a gigabyte for ten thousand images. Numbers and pixels are drawn from fixed keys; there
are no models. Each reading is a process of its own and is timed after its imports; of all rounds the median
is kept. ``open`` reads the records, ``resume`` finds out what is done, for which it hashes every file, and
``summarise`` counts. ``processor`` is what all three take of the processor, which other processes disturb
less. The files are in the machine's cache, as those of a run are that has just stopped.
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.large_run import BATCH, records, spec
from dbpkit.foundation.locking import Shard
from dbpkit.results.kinds import BASELINE_ROWS
from dbpkit.results.run_directory import RunDirectory
from dbpkit.results.shards import Stored

ATTACKERS = ("white_box", "dw_fwd", "dw_both")

ATTACKED = ("undefended", *ATTACKERS)
"""Rows with images of their own."""

READ = """
import json, resource, sys, time
from dbpkit.reporting import write_report
from dbpkit.results.run_directory import RunDirectory
from dbpkit.results.summary import summarise
folder, page = sys.argv[1:]
found, before, processor = {}, time.perf_counter(), time.process_time()
def took(name):
    global before
    now = time.perf_counter()
    found[name], before = now - before, now
run = RunDirectory(folder)
run.columns()
took("open_s")
count = len(run.done())
took("resume_s")
summarise(run).as_json()
took("summarise_s")
found["continue_s"] = sum(found.values())
found["processor_s"] = time.process_time() - processor
if page:
    write_report([folder], page)
    took("report_s")
found["peak_MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
found["done"] = count
print(json.dumps(found))
"""


def eight_rows(count: int) -> dict[str, Any]:
    """The spec of `benchmarks.large_run` with three attackers."""
    table = spec(count)
    table["knowledge"] = [k for k in table["knowledge"] if k["name"] in ATTACKERS]
    return table


def write(folder: Path, count: int, ranks: int) -> None:
    """Fills a run directory batch by batch, as an evaluation or the ranks of one do."""
    run = RunDirectory(folder)
    for rank in range(ranks):
        run.write_as(Shard(rank, ranks))
        run.claim(eight_rows(count), range(count))
        run.write_json("env.json", [{"data_sha256": "0" * 64, "examples": count, "device": "cpu"}])
        run.write_json("checks.json", [])
        for first in range(rank * BATCH, count, ranks * BATCH):
            ids = range(first, min(first + BATCH, count))
            for number, row in enumerate((*BASELINE_ROWS, *ATTACKERS)):
                made = records(row, number, ids)
                run.append(made, files(folder, row, ids, len(made[0]["predicted"])))


def files(folder: Path, row: str, ids: range, draws: int) -> list[Stored]:
    """Writes the logits of a batch, and its images if the row was attacked."""
    import torch
    from safetensors.torch import save

    from dbpkit.foundation.noise import NoisePlan

    plan, made = NoisePlan.of(0, ids), []
    tensors = {"logits": ("logits", plan.normal("probe", 0, torch.zeros(len(ids), draws, 10)))}
    if row in ATTACKED:
        tensors["x_adv"] = ("x_adv", plan.uniform("probe", 1, torch.zeros(len(ids), 3, 32, 32)))
    for place, (key, tensor) in tensors.items():
        last = f"{ids[-1]}-{len(ids)}"
        path = f"{place}/{row}-0-{ids[0]}-{last}.safetensors"
        content = save({"ids": torch.tensor(list(ids)), key: tensor}, {"how": "{}"})
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(content)  # not flushed to the disk, as an evaluation does
        made.append(Stored(Path(path).name, path, hashlib.sha256(content).hexdigest()))
    return made


def measured(folder: Path, rounds: int) -> dict[str, float]:
    """Medians of reading a run, and of all but the report."""
    found: list[dict[str, float]] = []
    for number in range(rounds + 1):
        page = str(folder / "benchmark.html")
        said = subprocess.run(
            [sys.executable, "-c", READ, str(folder), page], check=True, capture_output=True, text=True
        )
        if number:  # the first fills the machine's cache
            found.append(json.loads(said.stdout))
    return {name: round(float(np.median([one[name] for one in found])), 3) for name in found[0]}


def main() -> None:
    """Writes the runs that are not there, and measures them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    runs = {}
    for images in asked.images:
        for ranks in asked.ranks:
            folder = asked.folder / f"{images}-{ranks}"
            if not (folder / "written").exists():
                folder.mkdir(parents=True, exist_ok=True)
                write(folder, images, ranks)
                (folder / "written").touch()
            name = f"{images} images, {ranks} ranks" if ranks > 1 else f"{images} images"
            runs[name] = measured(folder, asked.rounds)
            print(f"{name:28}", json.dumps(runs[name]), flush=True)
    content = {
        "what": "continuing and reading a run directory with its images and logits: medians",
        "command": "python -m benchmarks.large_resume DIR --out benchmarks/results/large-resume.json",
        "rounds": asked.rounds,
        "machine": f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, {platform.system()}",
        "load_before": round(statistics.mean(os.getloadavg()[:1]), 1),
        "runs": runs,
    }
    if asked.out:
        asked.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
