"""What an update of `dbpkit train` costs by its parts, beside the bare passes of the same network.

    python -m benchmarks.training --device cuda|cpu --out FILE [--network ddpm-cifar10|tiny] [--batch 128]

The bare bound is one forward pass of the same network on ready images and one backward pass to its weights,
in the same precision, layout and run, with nothing drawn, clipped, stepped or averaged. Parts are timed one
by one, and the device is waited for in between; the update as a whole is timed as it trains.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.subjects import TINY
from dbpkit.data import Dataset
from dbpkit.experiment.execution import checked_device
from dbpkit.foundation.compiled import compiling
from dbpkit.foundation.machine import settle
from dbpkit.foundation.noise import NoisePlan, seeded_generator
from dbpkit.models.denoisers import VPDenoiser
from dbpkit.models.networks.diffusers import diffusers_unet, spelled_out
from dbpkit.training.average import Average
from dbpkit.training.feed import Feed
from dbpkit.training.fit import laid_out
from dbpkit.training.losses import Losses
from dbpkit.training.objectives import Batch, make_objective
from dbpkit.training.run import make_optimiser
from dbpkit.training.spec import OptimiserSpec

IMAGES = 4096
"""Size of the data set; only its pixels' number matters."""


class Setting:
    """A network from random weights and everything around it, as the training loop has them."""

    def __init__(self, network: str, batch: int, device: torch.device, precision: str) -> None:
        config: Any = TINY if network == "tiny" else network
        with seeded_generator(0):
            model, average = (VPDenoiser(diffusers_unet(**spelled_out({"config": config}))) for _ in range(2))
        self.model = laid_out(model, device).train()
        self.spec = OptimiserSpec(updates=10**6, batch_size=batch, lr=2e-4, precision=precision)
        self.optimiser = make_optimiser(self.model, self.spec)
        self.average = Average(laid_out(average.requires_grad_(False), device), self.model)
        self.objective = make_objective("denoising", {"levels": "ddpm"})
        self.losses = Losses(device, Path("benchmark"))
        self.feed = Feed(pictures(), device, seed=0, batch_size=batch)
        self.batches = self.feed.batches(0, self.spec.updates)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
        self.batch: Batch = next(self.batches)[1]
        self.made = 0
        self.x = 2 * self.batch.x - 1
        self.sigma = torch.full((batch,), 0.2, device=device)
        self.loss = torch.zeros(())

    def data(self) -> None:
        """Chooses the next batch."""
        self.batch = next(self.batches)[1]

    def forward(self) -> None:
        """Draws, noises, denoises; the loss."""
        with self.autocast:
            self.loss = self.objective.loss(self.model, self.batch)
        self.losses.add(self.made, self.loss.detach())

    def backward(self) -> None:
        """The gradient of every weight."""
        self.optimiser.zero_grad()
        self.loss.backward()

    def step(self) -> None:
        """Clips and steps."""
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()

    def averaged(self) -> None:
        """Moves the average."""
        self.average.update(1e-4)
        self.made += 1

    def bare_forward(self) -> None:
        """The network on ready images."""
        with self.autocast:
            self.loss = self.model(self.x, self.sigma).float().square().mean()

    def update(self) -> None:
        """All parts one after the other, as in training."""
        for part in (self.data, self.forward, self.backward, self.step, self.averaged):
            part()

    def bare(self) -> None:
        """Both bare passes."""
        self.bare_forward()
        self.backward()


def pictures() -> Dataset:
    """Images of uniform noise as bytes."""
    u = NoisePlan.of(0, range(IMAGES), "control").uniform("probe", 0, torch.zeros(IMAGES, 3, 32, 32))
    images, zeros = (256 * u).to(torch.uint8), torch.zeros(IMAGES, dtype=torch.int64)
    return Dataset("noise", images, zeros, torch.arange(IMAGES), ("any",))


def milliseconds(function: Callable[[], None], device: torch.device, times: int = 1) -> float:
    """Of one call, the device waited for after the last."""
    wait(device)
    start = time.perf_counter()
    for _ in range(times):
        function()
    wait(device)
    return 1e3 * (time.perf_counter() - start) / times


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measured(setting: Setting, device: torch.device, rounds: int, updates: int) -> dict[str, Any]:
    """Medians over the rounds, in milliseconds, and what follows from them."""
    parts = {
        "data": setting.data,
        "forward": setting.forward,
        "backward": setting.backward,
        "optimiser": setting.step,
        "average": setting.averaged,
        "bare forward": setting.bare_forward,
        "bare backward": setting.backward,
    }
    for _ in range(2):
        setting.update()
        setting.bare()
    taken: dict[str, list[float]] = {name: [] for name in (*parts, "update", "bare bound")}
    for _ in range(rounds):
        for name, part in parts.items():
            taken[name].append(milliseconds(part, device))
        taken["update"].append(milliseconds(setting.update, device, updates))
        taken["bare bound"].append(milliseconds(setting.bare, device, updates))
    medians = {name: statistics.median(values) for name, values in taken.items()}
    ratio = statistics.median(u / b for u, b in zip(taken["update"], taken["bare bound"], strict=True))
    rows = len(setting.x)
    return {
        "milliseconds": {name: round(value, 3) for name, value in medians.items()},
        "images_per_second": round(1e3 * rows / medians["update"], 1),
        "bare_images_per_second": round(1e3 * rows / medians["bare bound"], 1),
        "update_over_bare_bound": round(ratio, 3),
    }


def main() -> None:
    """Times the parts and writes them down."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--network", default="ddpm-cifar10", choices=["ddpm-cifar10", "tiny"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--updates", type=int, default=5, help="updates of one round, timed together")
    asked = parser.parse_args()
    settle()
    device = checked_device(asked.device)
    setting = Setting(asked.network, asked.batch, device, asked.precision)
    with compiling(asked.compile):
        times = measured(setting, device, asked.rounds, asked.updates)
    found = {
        "network": asked.network,
        "parameters": sum(p.numel() for p in setting.model.parameters()),
        "batch": asked.batch,
        "precision": asked.precision,
        "compiled": asked.compile,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **times,
    }
    if device.type == "cuda":
        found["peak_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    text = json.dumps(found, indent=1)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
