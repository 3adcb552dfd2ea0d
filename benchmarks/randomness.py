"""Purifiers with more randomness against a weak and a stronger attacker, at equal network calls.

    python -m benchmarks.randomness DIR [--only TEXT] [--seconds N]
    python -m benchmarks.randomness DIR summary [--out FILE]

Every purifier is attacked on the same images at Linf 4/255 by three attackers: a white box with EoT 10 and
few iterations; a white box that spends as many passes on more iterations of few mirrored draws; and one who
knows all noise (`dw_both`). The draws of the first gradient, at the clean images, tell its ratio of signal to
noise.
The study goes on where it stopped: DIR/results.jsonl has a line for every batch of images. Networks compute
in bfloat16, in attacks and judgements alike.
"""

import argparse
import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dbpkit import NoisePlan, PurifiedClassifier, Target, load_dataset, load_embedded, precise
from dbpkit.attacks import make_attack
from dbpkit.attacks.designs import Design
from dbpkit.experiment.knowledge import known
from dbpkit.purification.purifier import make_purifier
from dbpkit.threats.pixels import Linf

SMALL = {"variance": "small"}
RESTART = {"sampler": "restart", "steps": 10, "options": {"restarts": 1}}
DDPM = {"sampler": "ddpm", "steps": 20, "options": SMALL}
DDIM = {"sampler": "ddim", "steps": 20}
ROUNDS = {"inner": "ddpm", "inner_options": SMALL, "rounds": [[0.5, 1], [1.0, 1]]}
GUIDED = {**SMALL, "distance": "ssim", "compares": "estimate", "guidance": 0.1}
PURIFIERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("diffusion", DDPM),
    "t* 0.05 to 0.15": ("diffusion", {**DDPM, "t_star": [0.05, 0.15]}),
    "restart": ("diffusion", RESTART),
    "mixture": ("mixture", {"members": [DDPM, DDIM, RESTART]}),
    "one_step": ("diffusion", {"sampler": "one_step"}),
    "ddim": ("diffusion", DDIM),
    "corrector": ("diffusion", {"sampler": "ddim", "steps": 10, "options": {"corrector_steps": 1}}),
    "random grid": ("diffusion", {**DDPM, "grid": {"random": True}}),
    "ddim, eta 0.5": ("diffusion", {**DDIM, "options": {"eta": 0.5}}),
    "multi_stage": ("diffusion", {"sampler": "multi_stage", "steps": 20, "options": ROUNDS}),
    "gdmp": ("diffusion", {"sampler": "gdmp", "steps": 20, "options": SMALL}),
    "gdmp, SSIM": ("diffusion", {"sampler": "gdmp", "steps": 20, "options": GUIDED}),
    "likelihood": ("diffusion", {"sampler": "likelihood", "t_star": 0.173, "steps": 3}),
}
BASELINE = "ddpm"
EPS = 4 / 255
IMAGES, BATCH, REPORT = 128, 16, 4
PASSES = 20
"""Differentiated purifications of an image that each white box spends."""

ATTACKS: dict[str, tuple[dict[str, Any], Design, str]] = {
    "white_box": ({"iterations": PASSES // 10, "eot": 10, "step_size": EPS}, Design(), "white_box"),
    "strong": (
        {"iterations": PASSES // 2, "eot": 2, "step_size": EPS / 4},
        Design(antithetic=True),
        "white_box",
    ),
    "dw_both": ({"iterations": 8, "eot": 1, "step_size": EPS / 3}, Design(), "dw_both"),
}


class Listening(Target):
    """A target that keeps the draws of its first gradient."""

    first: Tensor | None = None

    def per_draw(self, x: Tensor, y: Tensor, **options: Any) -> Any:
        """Passes the question on."""
        found = super().per_draw(x, y, **options)
        if self.first is None:
            self.first = found.grad.detach()
        return found


def signal_and_all(grads: Tensor) -> tuple[list[float], list[float]]:
    """Squared length of the mean gradient, without bias, and of one draw's; two lists (B)."""
    flat = grads.flatten(2).double()
    count = flat.shape[1]
    one = flat.square().sum(dim=2).mean(dim=1)
    of_sum = flat.sum(dim=1).square().sum(dim=1)
    signal = (of_sum - count * one) / (count * (count - 1))
    return signal.tolist(), one.tolist()


def measured(name: str, first: int) -> dict[str, Any]:
    """All attacks of one purifier on one batch of images."""
    kind, options = PURIFIERS[name]
    denoiser, classifier = load_embedded()
    model = PurifiedClassifier(make_purifier(kind, options, denoiser=denoiser), classifier)
    data, rows, threat = load_dataset("embedded"), slice(first, first + BATCH), Linf(EPS)
    x, y = data.images[rows].float() / 255, data.labels[rows]
    report = NoisePlan.of(0, data.ids[rows])
    found: dict[str, Any] = {"purifier": name, "first": first, "clean": _right(model, x, y, report, REPORT)}
    for lane, (attack, (settings, design, attacker)) in enumerate(ATTACKS.items()):
        target = Listening(model)
        target.design = design
        noise = known[attacker].apply(report.on("attack").in_lane(lane), 0)
        outcome = make_attack("pgd", settings)(target, x, y, threat=threat, noise=noise)
        x_adv = threat.project(x, outcome.x_adv)
        judge = 1 if attacker == "dw_both" else REPORT
        found[attack] = _right(model, x_adv, y, report, judge)
        if attack == "white_box" and target.first is not None:
            found["signal"], found["one"] = signal_and_all(target.first)
    return found


def _right(model: PurifiedClassifier, x: Tensor, y: Tensor, noise: NoisePlan, count: int) -> list[float]:
    """The share of report draws on which each image is right; of one draw, draw 0, which `dw_both` knows."""
    if count == 1:
        with torch.no_grad():
            return (model(x, noise=noise).argmax(dim=1) == y).double().tolist()
    logits = model.draws(x, noise=noise, count=count)
    return (logits.argmax(dim=2) == y[:, None]).double().mean(dim=1).tolist()


def interval(values: np.ndarray, draws: int = 10_000) -> list[float]:
    """Mean and 95 % bootstrap interval over images."""
    rows = np.random.default_rng(0).integers(0, len(values), (draws, len(values)))  # noqa: TID251
    means = values[rows].mean(axis=1)
    return [float(values.mean()), *np.quantile(means, [0.025, 0.975]).tolist()]


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """One row for each purifier: accuracies, paired differences to the baseline, and the gradient."""
    rows: dict[str, Any] = {}
    per: dict[str, dict[str, np.ndarray]] = {}
    for name in PURIFIERS:
        own = sorted((line for line in lines if line["purifier"] == name), key=lambda line: line["first"])
        if sum(len(line["clean"]) for line in own) == IMAGES:
            columns = ("clean", *ATTACKS, "signal", "one")
            per[name] = {c: np.concatenate([line[c] for line in own]) for c in columns}
    for name, own in per.items():
        row: dict[str, Any] = {"images": len(own["clean"]), "calls": calls(name)}
        row |= {c: interval(own[c]) for c in ("clean", *ATTACKS)}
        shared = min(len(own["clean"]), len(per[BASELINE]["clean"]))
        base = {c: v[:shared] for c, v in per[BASELINE].items()}
        row["minus baseline"] = {c: interval(own[c][:shared] - base[c]) for c in ("clean", *ATTACKS)}
        row["gained by attacking harder"] = interval(own["white_box"] - own["strong"])
        row["noise over signal"] = float((own["one"].mean() - own["signal"].mean()) / own["signal"].mean())
        rows[name] = row
    return rows


def calls(name: str) -> float:
    """Network calls of one purification, counted."""
    kind, options = PURIFIERS[name]
    asked = 0

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal asked
        del sigma
        asked += len(x)
        return x

    purifier = make_purifier(kind, options, denoiser=denoiser)
    with torch.no_grad():
        purifier(torch.zeros(60, 1, 2, 2), noise=NoisePlan.of(0, range(60)))
    return asked / 60


def main() -> None:
    """Runs the study, or sums it up."""
    parser = argparse.ArgumentParser()
    parser.add_argument("dir", type=Path)
    parser.add_argument("what", nargs="?", default="run", choices=["run", "summary"])
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    given.dir.mkdir(parents=True, exist_ok=True)
    path = given.dir / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if given.what == "summary":
        asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        about = {
            "command": "python -m benchmarks.randomness DIR; python -m benchmarks.randomness DIR summary",
            "commit": asked.stdout.strip(),
            "machine": f"{platform.machine()}, torch {torch.__version__}, one thread, bfloat16",
            "budget": "Linf 4/255",
            "passes": PASSES,
            "draws": REPORT,
        }
        text = json.dumps({**about, "purifiers": summary(lines)}, indent=1)
        (given.out or given.dir / "summary.json").write_text(text + "\n")
        print(text)
        return
    done = {(line["purifier"], line["first"]) for line in lines}
    begun = time.monotonic()
    for name in PURIFIERS:
        for first in range(0, IMAGES, BATCH):
            if (name, first) in done or given.only not in name or time.monotonic() - begun > given.seconds:
                continue
            start = time.monotonic()
            with precise("bfloat16"):
                found = measured(name, first)
            with path.open("a") as file:
                file.write(json.dumps({**found, "seconds": time.monotonic() - start}) + "\n")
            print(name, first, f"{time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
