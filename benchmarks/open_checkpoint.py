"""Opens a training state as large as Score-SDE's `checkpoint_8.pth`, and reads its averaged weights.

    python -m benchmarks.open_checkpoint DIR [--rounds 3] [--out FILE]

The file holds what that file holds: an optimiser of Adam with two moments, the network's state, the averages
as a list without names, and a count; 106.6 million numbers four times, 1.7 GB. A process of its own opens it
and reads every average, and another opens it as a denoiser and calls it once (the call is in the time of the
process only). Memory is what a process held at most beyond what it held before it began. The system may have
the file in memory already; a slow disk adds its own time.
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

NETWORK = {"nf": 128, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 8, "attn_resolutions": [16]}
"""Of vp/cifar10_ddpmpp_deep_continuous."""

READER = """
import re, sys, time
from pathlib import Path
import torch
from dbpkit.foundation.checkpoints import read_checkpoint, size, tensors_of
def held(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
torch.zeros(10).sum()
before, began = held("VmRSS"), time.perf_counter()
found = read_checkpoint(sys.argv[1])
opened = time.perf_counter()
ema = found.content["ema"]["shadow_params"]
weights = [stored.read() for stored in ema]
read = time.perf_counter()
names = [n for n in tensors_of(found.content["model"]) if not n.endswith("sigmas")]
assert len(names) == len(weights)
wanted = size(ema)
print(opened - began, read - began, (held("VmHWM") - before) / wanted, wanted / 1e6)
"""


DENOISER = """
import re, sys, time
from pathlib import Path
import torch
from dbpkit import open_model
def held(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
torch.zeros(10).sum()
before, began = held("VmRSS"), time.perf_counter()
model = open_model(sys.argv[1], role="denoiser")
opened, most = time.perf_counter(), held("VmHWM")
weights = sum(p.nbytes for p in model.parameters())
with torch.no_grad():
    assert model(torch.zeros(1, 3, 32, 32), torch.tensor(0.5)).shape == (1, 3, 32, 32)
print(opened - began, (most - before) / weights, most / 1e6, weights / 1e6)
"""


def write(path: Path) -> None:
    """Writes the file; needs as much memory as it has bytes."""
    import torch

    from dbpkit.models.networks import networks

    with torch.device("meta"):
        network = networks.get("ncsnpp")(**NETWORK)
    shapes = {f"module.{name}": parameter.shape for name, parameter in network.named_parameters()}

    def numbers(shift: int) -> list[Any]:
        made = (torch.arange(shape.numel(), dtype=torch.float32).add_(shift) for shape in shapes.values())
        return [values.sin_().reshape(shape) for values, shape in zip(made, shapes.values(), strict=True)]

    state = {
        i: {"step": 1, "exp_avg": first, "exp_avg_sq": second}
        for i, (first, second) in enumerate(zip(numbers(2), numbers(3), strict=True))
    }
    group = {"lr": 2e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False}
    sigmas = {"module.sigmas": torch.linspace(50, 0.01, 1000, dtype=torch.float64)}
    content = {
        "optimizer": {"state": state, "param_groups": [{**group, "params": list(range(len(shapes)))}]},
        "model": {**sigmas, **dict(zip(shapes, numbers(0), strict=True))},
        "ema": {"decay": 0.9999, "num_updates": 400_000, "shadow_params": numbers(1)},
        "step": 400_000,
    }
    torch.save(content, path)  # noqa: TID251 - the file that is to be read is one of torch.save


def measured(path: Path) -> dict[str, float]:
    """Opens the file in a process of its own: seconds, and memory by that of the averages."""
    done = subprocess.run(
        [sys.executable, "-c", READER, str(path)], check=True, capture_output=True, text=True
    )
    opened, read, memory, weights = map(float, done.stdout.split())
    return {"open_s": opened, "open_and_read_s": read, "memory_by_weights": memory, "weights_MB": weights}


def as_denoiser(path: Path) -> dict[str, float]:
    """Opens the file as a denoiser in a process of its own: seconds, with Python's start and without."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", DENOISER, str(path)], check=True, capture_output=True, text=True
    )
    whole = time.perf_counter() - began
    opened, memory, most, _ = map(float, done.stdout.split())
    return {
        "denoiser_s": opened,
        "process_s": whole,
        "denoiser_memory_by_weights": memory,
        "process_peak_MB": most,
    }


def main() -> None:
    """Writes the file if it is not there, and opens it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    path = asked.folder / "checkpoint_8.pth"
    if not path.exists():
        write(path)
    rounds = [measured(path) | as_denoiser(path) for _ in range(asked.rounds)]
    content = {
        "what": "a training state opened, its averages alone and as a denoiser: median and largest",
        "command": "python -m benchmarks.open_checkpoint DIR --out benchmarks/results/open-checkpoint.json",
        "file_MB": round(path.stat().st_size / 1e6, 1),
        "rounds": asked.rounds,
        "machine": f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, {platform.system()}",
        "load_before": round(os.getloadavg()[0], 1),
        "versions": {"python": platform.python_version(), "torch": metadata.version("torch")},
        "median": {k: round(statistics.median(r[k] for r in rounds), 3) for k in rounds[0]},
        "largest": {k: round(max(r[k] for r in rounds), 3) for k in rounds[0]},
    }
    print(json.dumps(content, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
