"""Size, time and memory of a bundle of a thousand images: packing, opening, verifying, and a board of three.

    python -m benchmarks.bundles DIR [--images 1000] [--out FILE]

The images are random 32 x 32 ones, the classifier is linear, and the denoiser that of Gaussian data, so that
the networks take next to nothing and what is measured is the bundle's own. The run has seven rows. Each
step is a process of its own: seconds of the processor, seconds by the clock, and the most memory held.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

STEPS = ("pack", "open", "verify", "verify 100", "board")


def data(count: int = 1000) -> Any:
    """Random images of ten classes."""
    import torch

    from dbpkit import Dataset, NoisePlan

    images = NoisePlan.of(1, range(count)).uniform("probe", 0, torch.zeros(count, 3, 32, 32))
    return Dataset("random", images, torch.arange(count) % 10, torch.arange(count), tuple("abcdefghij"))


def classifier() -> Any:
    """A linear classifier with fixed weights."""
    import torch

    from dbpkit import NoisePlan

    layer = torch.nn.Linear(3 * 32 * 32, 10)
    weights = NoisePlan.of(2, range(10)).normal("probe", 0, layer.weight)
    layer.weight.data.copy_(weights.detach() / 30)
    layer.bias.data.zero_()
    return torch.nn.Sequential(torch.nn.Flatten(), layer)


def denoiser(x: Any, sigma: Any) -> Any:
    """The exact denoiser of Gaussian data of variance 1/3 around grey."""
    sigma = sigma.reshape(-1, 1, 1, 1) if getattr(sigma, "ndim", 0) else sigma
    return x / (1 + 3 * sigma**2)


def make_denoiser() -> Any:
    """Returns it."""
    return denoiser


NAMED = {
    "data": "benchmarks.bundles:data",
    "classifier": "benchmarks.bundles:classifier",
    "denoiser": "benchmarks.bundles:make_denoiser",
}


def make(folder: Path, images: int) -> None:
    """Evaluates the run: seven rows, ten draws."""
    from dbpkit import EvaluationSpec, Execution, evaluate
    from dbpkit.checks import Checked

    table = {
        **NAMED,
        "name": "random images",
        "data": {"name": NAMED["data"], "options": {"count": images}},
        "purifier": {"sampler": "ddim", "steps": 20},
        "attacks": [{"name": "pgd", "options": {"iterations": 2, "eot": 2}}],
        "knowledge": ["white_box", "dw_both"],
        "examples": {"order": "file"},
    }
    spec = EvaluationSpec.model_validate(table)
    evaluate(spec, folder / "run", Execution("cpu", batch_size=50), checks=lambda *_: Checked([], ()))


def step(name: str, folder: Path) -> dict[str, Any]:
    """Does one step; returns what it says."""
    import dbpkit
    from dbpkit.bundles.opening import opened_bundle

    path = folder / "run.zip"
    match name:
        case "pack":
            return {"bytes": dbpkit.bundle(folder / "run", path).bytes}
        case "open":
            with opened_bundle(path) as opened:
                return {"members": len(opened.manifest.members)}
        case "board":
            return {"groups": len(dbpkit.board([path, path, path], folder / "board.html").groups)}
    found = dbpkit.verify(path, **NAMED, examples=100 if "100" in name else None, fresh_seed=0)
    gaps = [row.gap for row in found.rows if row.gap is not None]
    return {"verdict": found.verdict, "equal": found.equal, "largest_gap": max(gaps)}


def measured(name: str, folder: Path) -> dict[str, Any]:
    """A step in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bundles", str(folder), "--step", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    """Makes the run, measures the steps and writes what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--step", choices=STEPS)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.step:
        start = time.perf_counter(), time.process_time()
        told = step(asked.step, asked.folder)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        times = {"seconds": time.perf_counter() - start[0], "cpu_seconds": time.process_time() - start[1]}
        print(json.dumps({**told, **{k: round(v, 2) for k, v in times.items()}, "memory_bytes": memory}))
        return
    if not (asked.folder / "run" / "summary.json").is_file():
        make(asked.folder, asked.images)
    found = {
        "images": asked.images,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "torch": metadata.version("torch"),
        "steps": {name: measured(name, asked.folder) for name in STEPS},
    }
    text = json.dumps(found, indent=1) + "\n"
    print(text)
    if asked.out:
        asked.out.write_text(text)


if __name__ == "__main__":
    main()
