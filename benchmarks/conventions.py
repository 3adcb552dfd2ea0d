"""How often the trial of neighbouring conventions is wrong, and which planted mistakes it finds.

    python -m benchmarks.conventions [--seed 1] [--updates 450] [--out FILE]

Small networks are trained on scikit-learn's digits (8 x 8 pixels), a minute or two each on a CPU: `adm`, with
its embedding and qkv rows, diffusers' `UNet2DModel`, and `adm` on pixels in [0, 1], which stands for an
MNIST-like network of somebody else. Each mistake is planted in the trained network and tried on disjoint sets
of test images. The limits of the trial were set after a look at networks of seed 0; other seeds are other
weights, batches and sets of images.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dbpkit import NoisePlan, VPDenoiser, load_dataset
from dbpkit.checks.conventions import trial
from dbpkit.foundation.noise import permutation, seeded_generator
from dbpkit.models.adapters import reinterpreted
from dbpkit.models.discrete import linear_schedule
from dbpkit.models.neighbours import rescaled
from dbpkit.models.networks import networks
from dbpkit.models.networks.conventions import varied

LEVELS = (0.085, 0.17, 0.34)
"""Those of `dbpkit check` at t* = 0.1."""

SETS = (8, 16, 32)
"""Images of a trial."""


def adm() -> nn.Module:
    """A small network of guided-diffusion with attention."""
    return networks.get("adm")(
        image_channels=1, model_channels=32, channel_mult=(1, 1), num_res_blocks=1, learn_sigma=False,
        attention_resolutions=(1, 2), num_heads=4, num_head_channels=None,
    )  # fmt: skip


def unet() -> nn.Module:
    """A small `UNet2DModel` with the conventions of the DDPM paper's."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(32, 32), layers_per_block=1,
        norm_num_groups=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), flip_sin_to_cos=False, freq_shift=1,
    )  # fmt: skip


def trained(make: Callable[[], nn.Module], updates: int, unit: bool = False, seed: int = 0) -> VPDenoiser:
    """Trains a network to predict noise at levels up to 1.5; on pixels in [0, 1] if ``unit``."""
    with seeded_generator(seed):
        network = make()
    images = load_dataset("digits", {"split": "train"}).x()
    images = images if unit else 2 * images - 1
    sigmas = linear_schedule().levels().float()
    last = int((sigmas < 1.5).sum())
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    average = {k: v.clone() for k, v in network.state_dict().items()}
    for update in range(updates):
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1.0, (update + 1) / 50) * (1 - update / updates)
        x = images[permutation(seed, len(images), update)[:32]]
        noise = NoisePlan.of(1000 * seed + update, range(len(x)), "train")
        times = (last * noise.uniform("level", 0, x[:, 0, 0, 0])).long()
        z, sigma = noise.normal("forward", 0, x), sigmas[times][:, None, None, None]
        out = network((x + sigma * z) * (1 + sigma**2).rsqrt(), times)
        loss = (getattr(out, "sample", out) - z).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        for key, value in network.state_dict().items():
            average[key].lerp_(value, 0.02) if value.is_floating_point() else None
    network.load_state_dict(average)
    network.requires_grad_(False).eval()
    return VPDenoiser(network, image_range=(0.0, 1.0) if unit else (-1.0, 1.0))


def mistakes(denoiser: VPDenoiser) -> dict[str, Any]:
    """The denoiser as it is, and under each convention that is not its own."""
    found: dict[str, Any] = {"none": denoiser}
    if denoiser.image_range == (0.0, 1.0):
        wrong = reinterpreted(denoiser, image_range=(-1.0, 1.0))
        inside = reinterpreted(denoiser, image_range=(-1.0, 1.0))
        return found | {
            "given [-1, 1] where [0, 1] is meant": wrong,
            "range right, noise level not halved": rescaled(inside, 0.5, 0.5, 1.0, (2.0, -1.0)),
            "input right, output not brought back": rescaled(inside, 0.5, 0.5, 0.5, (1.0, 0.0)),
            "foreign wrapper, right": rescaled(inside, 0.5, 0.5, 0.5, (2.0, -1.0)),
        }
    attributes = {
        "time_order": ("sin_cos",), "time_divisor": ("half-1",), "qkv_order": ("blocks", "interleaved"),
        "flip_sin_to_cos": (True,), "downscale_freq_shift": (0,),
    }  # fmt: skip
    for name, values in attributes.items():
        for value in values:
            other = varied(denoiser, name, value)
            if other is not None:
                found[f"{name} {value}"] = other
    changes: dict[str, dict[str, Any]] = {
        "image_range [0, 1]": {"image_range": (0.0, 1.0)},
        "schedule cosine": {"schedule": "cosine"},
        "time 1 t": {"time": "continuous", "time_scale": 1.0},
        "time 999 t": {"time": "continuous", "time_scale": 999.0},
        "time + 1": {"time_shift": 1.0},
        "time - 1": {"time_shift": -1.0},
        "time_index floor": {"time_index": "floor"},
        **{f"prediction {p}": {"prediction": p} for p in ("v", "x0", "score")},
    }
    return found | {name: reinterpreted(denoiser, **change) for name, change in changes.items()}


def rates(denoiser: Any, images: Tensor, seed: int) -> dict[str, Any]:
    """Shares of trials that flag, by images of a trial; what they name, and by how much it is better."""
    found: dict[str, Any] = {}
    for size in SETS:
        named: dict[str, int] = {}
        ratios = []
        starts = range(0, len(images) - size + 1, size)
        for start in starts:
            noise = NoisePlan.of(7 + seed, range(start, start + size), "select")
            made = trial(denoiser, images[start : start + size], noise, LEVELS)
            better = made.better
            name = better.neighbour.name if better else ""
            named[name] = named.get(name, 0) + 1
            ratios.append(better.ratio if better else 1.0)
        found[str(size)] = {
            "trials": len(starts),
            "flagged": 1 - named.get("", 0) / len(starts),
            "named": dict(sorted(named.items(), key=lambda item: -item[1])),
            "median ratio": sorted(ratios)[len(ratios) // 2],
        }
    return found


NETWORKS = {"adm": (adm, False), "UNet2DModel": (unet, False), "adm [0, 1]": (adm, True)}
"""How each is made, and whether it is trained on pixels in [0, 1]."""


def measured(updates: int, most: int, chosen: list[str], seed: int) -> dict[str, Any]:
    """Trains each network and tries every mistake."""
    images = load_dataset("digits", {"split": "test"}).x()
    images = images[permutation(seed, len(images), 1000)[:most]]
    found: dict[str, Any] = {}
    for name in chosen:
        make, unit = NETWORKS[name]
        start = time.perf_counter()
        right = trained(make, updates, unit, seed)
        print(f"{name}: trained in {time.perf_counter() - start:.0f} s", flush=True)
        found[name] = {}
        for mistake, wrong in mistakes(right).items():
            found[name][mistake] = rates(wrong, images, seed)
            said = {
                n: (f"{r['flagged']:.0%}", next(iter(r["named"]))) for n, r in found[name][mistake].items()
            }
            print(f"  {mistake}: {said}", flush=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--updates", type=int, default=450)
    parser.add_argument("--images", type=int, default=360)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--network", choices=list(NETWORKS), action="append")
    given = parser.parse_args()
    made = measured(given.updates, given.images, given.network or list(NETWORKS), given.seed)
    if given.out:
        given.out.write_text(json.dumps({"seed": given.seed, "networks": made}, indent=1) + "\n", "utf-8")
