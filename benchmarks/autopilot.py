"""Autopilot against attacks set by hand, at the same budget of network passes, image by image.

    python -m benchmarks.autopilot DIR [headline | table] [--only TEXT] [--seconds N]
    python -m benchmarks.autopilot DIR summary [--out FILE]

`headline` is PGD20+EoT10 and autopilot on `ddpm` with 2 network calls and 128 images. `table` is eight
purifiers with a fifth of that budget, each on 16 images of its own, where hand-set attacks spend as much.
Both go on where they stopped: DIR/results.jsonl has a line for every attack on every batch of images, and
`--seconds` ends a call early. Attacks call the networks in bfloat16, which costs 0.6 of the time on the CPU
that this was run on, and all alike; images are judged in float32 on report draws, which no attack has seen.
"""

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dbpkit import NoisePlan, PurifiedClassifier, Purifier, Target, load_dataset, load_embedded, precise
from dbpkit.attacks import make_attack
from dbpkit.statistics.intervals import difference
from dbpkit.threats.pixels import Linf

SMALL = {"variance": "small"}
PURIFIERS: dict[str, dict[str, Any]] = {
    "ddpm, 2 calls": {"sampler": "ddpm", "t_star": 0.1, "steps": 10, "options": SMALL},
    "one_step, t* 0.1": {"sampler": "one_step", "t_star": 0.1},
    "one_step, t* 0.05": {"sampler": "one_step", "t_star": 0.05},
    "ddim, 2 calls": {"sampler": "ddim", "t_star": 0.1, "steps": 10},
    "ddpm, 2 calls, t* 0.05": {"sampler": "ddpm", "t_star": 0.05, "steps": 20, "options": SMALL},
    "vpsde, 3 calls": {"sampler": "vpsde", "t_star": 0.1, "steps": 20},
    "heun, 3 calls": {"sampler": "heun", "t_star": 0.1, "steps": 2},
    "reverse_only, 2 calls": {"sampler": "reverse_only", "t_star": 0.1, "steps": 10, "options": SMALL},
}
DRAWS = 16
"""Report draws of each image."""


class Work(NamedTuple):
    """One attack on one batch of images: names of purifier and attack, their settings, the images."""

    part: str
    purifier: str
    attack: str
    name: str
    options: dict[str, Any]
    eps: float
    first: int
    count: int

    @property
    def key(self) -> tuple[str, str, str, float, int]:
        """What tells it from other work."""
        return self.part, self.purifier, self.attack, self.eps, self.first


def hand_set(gradients: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Attacks as people set them, each of at most the passes of ``gradients`` differentiated draws."""
    tenth, fourth = gradients // 10, gradients // 4
    return {
        f"PGD{tenth}+EoT10": ("pgd", {"iterations": tenth, "eot": 10}),
        f"PGD{fourth}+EoT4, margin": ("pgd", {"iterations": fourth, "eot": 4, "loss": "margin"}),
        "APGD+EoT4": ("apgd", {"iterations": fourth - 2, "eot": 4, "judge_draws": 4}),
    }


def headline() -> Iterator[Work]:
    """128 images at the published budget."""
    attacks = {"PGD20+EoT10": ("pgd", {}), "autopilot": ("autopilot", {})}
    for first in range(0, 128, 16):
        for attack, (name, options) in attacks.items():
            yield Work("headline", "ddpm, 2 calls", attack, name, options, 8 / 255, first, 16)


def table(gradients: int = 40, count: int = 16) -> Iterator[Work]:
    """Eight purifiers, each on images of its own, and a fifth of the published budget."""
    attacks = {"autopilot": ("autopilot", {"gradients": gradients}), **hand_set(gradients)}
    for number, purifier in enumerate(PURIFIERS):
        for attack, (name, options) in attacks.items():
            yield Work("table", purifier, attack, name, options, 8 / 255, number * count, count)


def done(folder: Path) -> dict[tuple[str, str, str, float, int], dict[str, Any]]:
    """The results so far, by key."""
    path, found = folder / "results.jsonl", {}
    for line in path.read_text().splitlines() if path.exists() else []:
        row = json.loads(line)
        found[row["part"], row["purifier"], row["attack"], row["eps"], row["first"]] = row
    return found


def measure(work: Work) -> dict[str, Any]:
    """Runs an attack and judges it; accuracy over report draws and passes of every image."""
    denoiser, classifier = load_embedded()
    model = PurifiedClassifier(Purifier(denoiser, **PURIFIERS[work.purifier]), classifier)
    data, rows = load_dataset("embedded"), slice(work.first, work.first + work.count)
    x, y, ids = data.images[rows].float() / 255, data.labels[rows], data.ids[rows]
    target, start = Target(model), time.perf_counter()
    with precise("bfloat16"):
        attack = make_attack(work.name, work.options)
        found = attack(target, x, y, threat=Linf(work.eps), noise=NoisePlan.of(0, ids, "attack"))
    seconds = time.perf_counter() - start
    logits = Target(model).draws(found.x_adv, noise=NoisePlan.of(0, ids, "report"), count=DRAWS)
    right = (logits.argmax(dim=2) == y[:, None]).float().mean(dim=1)
    return {
        **work._asdict(),
        "calls": target.calls,
        "right": right.tolist(),
        "passes": [target.spent[i] for i in ids.tolist()],
        "seconds": seconds,
    }


def paired(here: np.ndarray, there: np.ndarray) -> tuple[float, float, float]:
    """Mean difference in points and its 95 % interval over images."""
    found = difference(here - there).scaled(100)
    return found.value, found.low, found.high


def summary(folder: Path) -> list[dict[str, Any]]:
    """One row per part and purifier: accuracy of each attack, and autopilot less each of the others."""
    columns: dict[tuple[str, str], dict[str, dict[int, dict[str, Any]]]] = {}
    for (part, purifier, attack, _, first), row in done(folder).items():
        columns.setdefault((part, purifier), {}).setdefault(attack, {})[first] = row
    rows = []
    for (part, purifier), attacks in columns.items():
        common = sorted(set.intersection(*(set(batches) for batches in attacks.values())))
        if "autopilot" not in attacks or not common:
            continue
        right = {a: np.concatenate([b[k]["right"] for k in common]) for a, b in attacks.items()}
        row: dict[str, Any] = {"part": part, "purifier": purifier, "images": len(right["autopilot"])}
        for attack, values in right.items():
            spent = [p for k in common for p in attacks[attack][k]["passes"]]
            entry = {
                "accuracy": 100 * float(values.mean()),
                "passes": float(np.mean(spent)),
                "most": max(spent),
            }
            if attack != "autopilot":
                entry["autopilot_less_this"] = paired(right["autopilot"], values)
            row[attack] = entry
        rows.append(row)
    return [*rows, *pooled(done(folder))]


def pooled(results: dict[tuple[str, str, str, float, int], dict[str, Any]]) -> list[dict[str, Any]]:
    """Over all images of the table, whose purifiers differ: autopilot less each other, and less the best."""
    right: dict[str, list[list[float]]] = {}
    every = len(hand_set(40)) + 1
    whole = [p for p in PURIFIERS if sum(k[:2] == ("table", p) for k in results) == every]
    for (part, purifier, attack, _, _), row in results.items():
        if part == "table" and purifier in whole:
            right.setdefault(attack, []).append(row["right"])
    if not whole:
        return []
    means = {a: [float(np.mean(r)) for r in rows] for a, rows in right.items() if a != "autopilot"}
    best = [min(means, key=lambda a, k=k: means[a][k]) for k in range(len(whole))]
    right["best of each purifier, chosen after looking"] = [right[a][k] for k, a in enumerate(best)]
    ours = np.concatenate(right.pop("autopilot"))
    row: dict[str, Any] = {"part": "table", "purifier": f"all {len(whole)}", "images": len(ours)}
    row["autopilot"] = {"accuracy": 100 * float(ours.mean())}
    for attack, rows in right.items():
        values = np.concatenate(rows)
        row[attack] = {"accuracy": 100 * float(values.mean()), "autopilot_less_this": paired(ours, values)}
    return [row]


def main() -> None:
    """Does what is left, or shows what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("part", choices=["headline", "table", "summary"], nargs="?", default="headline")
    parser.add_argument("--only", default="", help="attacks or purifiers whose name has this text")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing after so many")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    if chosen.part == "summary":
        rows = summary(chosen.folder)
        print(json.dumps(rows, indent=1))
        if chosen.out:
            commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
            about = {"command": "python -m benchmarks.autopilot DIR headline; ... table; ... summary"}
            about |= {
                "commit": commit.stdout.strip(),
                "torch": torch.__version__,
                "machine": platform.machine(),
            }
            chosen.out.write_text(json.dumps({**about, "draws": DRAWS, "rows": rows}, indent=1) + "\n")
        return
    chosen.folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    for work in headline() if chosen.part == "headline" else table():
        late = time.perf_counter() - start > chosen.seconds
        if late or chosen.only not in f"{work.attack} on {work.purifier}" or work.key in done(chosen.folder):
            continue
        row = measure(work)
        with (chosen.folder / "results.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{work.key}: {100 * np.mean(row['right']):.1f} %, {row['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
