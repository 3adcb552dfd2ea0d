"""Writes a run directory of many images and times what reads it: ``python benchmarks/large_run.py DIR [N]``.

Ten thousand images and 14 rows are 113 MB of records. Every number is drawn from a fixed key; there are no
models, so the run can be read and not continued.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dbpkit.evaluation.knowledge import known
from dbpkit.evaluation.spec import EvaluationSpec
from dbpkit.noise import NoisePlan
from dbpkit.results.flags import BASELINE_ROWS
from dbpkit.results.run_directory import RunDirectory

ATTACKERS = (
    "white_box", "dw_fwd", "dw_rev", "dw_both", "bpda", "surrogate", "blind", "other_tape", "semi",
)  # fmt: skip
BATCH = 16
DRAWS = 10
ITERATIONS = 20


def spec(count: int) -> dict[str, Any]:
    """A resolved spec with 9 attackers, which with the baselines are 14 rows."""
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


def timed(*words: str) -> str:
    """Runs a command and returns its seconds and the most memory it held."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "dbpkit.cli", *words], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return f"{words[0]:9} {seconds:5.1f} s   {peak:5.0f} MiB at most so far"


def main() -> None:
    """Writes the run if it is not there, and times the reading commands."""
    folder, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    if not (folder / "spec.json").exists():
        write(folder, count)
    size = (folder / "records.jsonl").stat().st_size / 1e6
    print(json.dumps({"images": count, "records_MB": round(size, 1)}))
    began = time.perf_counter()
    columns = RunDirectory(folder).columns()
    print(f"columns   {time.perf_counter() - began:5.1f} s   {sum(map(len, columns.rows.values()))} records")
    print(timed("list"))  # what starting takes
    for words in (["show", "--json"], ["findings", "--json"], ["compare", str(folder)], ["report"]):
        print(timed(*words, str(folder)))


if __name__ == "__main__":
    main()
