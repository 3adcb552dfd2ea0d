"""How far rounding moves the lead of a class, as a share of the spread of logits, which `verify` allows for.

    python -m benchmarks.rounding [--images 8] [--draws 2] [--out FILE]

Clean images are purified and classified by the embedded models with the same noise, in float32 in calls
of 32 rows (as a run records them), in calls of one row, and in float64. The last is farther from float32 than
another machine's kernels are, for it rounds nowhere that they do.
"""

import argparse
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from dbpkit import NoisePlan, PurifiedClassifier, Purifier, load_dataset, load_embedded
from dbpkit.bundles.tally import ROUNDING

SAMPLERS = {"ddim": 100, "ddpm": 1000}
"""Steps of the whole chain, of which t* = 0.1 walks a tenth."""


@torch.no_grad()
def logits(sampler: str, images: int, draws: int, rows: int, dtype: torch.dtype) -> torch.Tensor:
    """Logits (images * draws, K) in calls of so many rows."""
    denoiser, classifier = load_embedded()
    model = PurifiedClassifier(
        Purifier(denoiser.to(dtype), sampler, steps=SAMPLERS[sampler]), classifier.to(dtype)
    )
    data = load_dataset("embedded").select(slice(0, images))
    x = data.x().to(dtype).repeat_interleave(draws, dim=0)
    plan = NoisePlan.of(0, data.ids).repeat(draws)
    cuts = [slice(k, k + rows) for k in range(0, len(x), rows)]
    return torch.cat([model(x[cut], noise=plan.rows(cut)) for cut in cuts]).double()


def moved(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
    """By how much the lead of the largest logit over every other one changes, as a share of the spread."""
    top = a.argmax(dim=1, keepdim=True)
    leads = [own.gather(1, top) - own for own in (a, b)]
    share = (leads[0] - leads[1]).abs().amax(dim=1) / (a.amax(dim=1) - a.amin(dim=1))
    changed = int((a.argmax(dim=1) != b.argmax(dim=1)).sum())
    return {"median": float(share.median()), "largest": float(share.max()), "predictions_changed": changed}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    found: dict[str, Any] = {}
    for sampler in SAMPLERS:
        usual = logits(sampler, asked.images, asked.draws, 32, torch.float32)
        single = logits(sampler, asked.images, asked.draws, 1, torch.float32)
        double = logits(sampler, asked.images, asked.draws, 32, torch.float64)
        found[sampler] = {"rows_1": moved(usual, single), "float64": moved(usual, double)}
    about = {
        "machine": platform.machine(),
        "torch": metadata.version("torch"),
        "allowed": ROUNDING["float32"],
    }
    text = json.dumps({**about, "rows": asked.images * asked.draws, "samplers": found}, indent=1) + "\n"
    print(text)
    if asked.out:
        asked.out.write_text(text)


if __name__ == "__main__":
    main()
