"""What a draw of noise costs, against one bare call of the network that it is drawn for, in the same run.

    python -m benchmarks.noise [--device cuda] [--network embedded ddpm-cifar10] [--rows 16 64] [--out FILE]

``drawn`` is a draw as samplers make it, ``operations`` the same without the fused kernel, and ``call`` the
network under ``torch.no_grad()``. Each is timed in blocks of ten, the device is waited for after a block, and
the three take turns; medians over the blocks.
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
from torch import Tensor, nn

from dbpkit import load_embedded
from dbpkit.experiment.execution import checked_device
from dbpkit.foundation import drawing
from dbpkit.foundation.machine import settle
from dbpkit.foundation.noise import NoisePlan, seeded_generator
from dbpkit.foundation.philox import place, stream_key
from dbpkit.models.denoisers import VPDenoiser
from dbpkit.models.networks.diffusers import diffusers_unet, spelled_out

BLOCK = 10
"""Calls between two looks at the clock."""


def denoiser(network: str) -> nn.Module:
    """The embedded denoiser, or one of diffusers' configurations with random weights."""
    if network == "embedded":
        return load_embedded()[0]
    with seeded_generator(0):
        return VPDenoiser(diffusers_unet(**spelled_out({"config": network})))


def by_operations(plan: NoisePlan, step: int, like: Tensor) -> Tensor:
    """A draw without the kernel."""
    rows = plan.placed(like.device).twins.get(like.device) or drawing.Rows(plan.example_ids, plan.draw)
    key = stream_key(plan.seed, plan.stream, plan.lane)
    return drawing.by_operations(like, rows, key, place(0, "reverse", step), 0)


def compared(device: torch.device, network: str, rows: int, blocks: int) -> dict[str, Any]:
    """Median milliseconds of a draw and of a call, and their ratio."""
    net = denoiser(network).to(device).eval()
    x, sigma = torch.full((rows, 3, 32, 32), 0.1, device=device), torch.tensor(0.5, device=device)
    plan = NoisePlan.of(0, range(rows)).placed(device)
    with torch.no_grad():
        parts: dict[str, Callable[[int], object]] = {
            "drawn": lambda i: plan.normal("reverse", i, x),
            "operations": lambda i: by_operations(plan, i, x),
            "call": lambda _: net(x, sigma),
        }
        for _ in range(3):
            for part in parts.values():
                part(0)
        times: dict[str, list[float]] = {name: [] for name in parts}
        for _ in range(blocks):
            for name, part in parts.items():
                times[name].append(block(part, device))
    found = {name: 1e3 * statistics.median(seconds) for name, seconds in times.items()}
    share = {f"{name} share": found[name] / found["call"] for name in ("drawn", "operations")}
    return {"network": network, "rows": rows, **found, **share}


def block(part: Callable[[int], object], device: torch.device) -> float:
    """Seconds of one call, from a block of them."""
    wait(device)
    start = time.perf_counter()
    for i in range(BLOCK):
        part(i)
    wait(device)
    return (time.perf_counter() - start) / BLOCK


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--network", nargs="+", default=["embedded"])
    parser.add_argument("--rows", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    settle()  # as the command line does
    device = checked_device(asked.device)
    found = []
    for network in asked.network:
        for rows in asked.rows:
            found.append(row := compared(device, network, rows, asked.blocks))
            print(
                f"{network:14} {rows:5} rows  draw {row['drawn']:.3f} ms  by operations"
                f" {row['operations']:.3f} ms  call {row['call']:.2f} ms  share {row['drawn share']:.2%}"
            )
    if asked.out:
        card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        result = {"device": card, "kernel": bool(drawing._kernel()), **versions, "rows": found}
        asked.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
