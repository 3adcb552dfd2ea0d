"""One-step denoising of the embedded test images against t: a denoiser of a file beside the embedded one.

    python -m benchmarks.blind WEIGHTS [--images 128] [--times 10 50 100 200] [--out FILE]

Both denoise the same noisy images. Error is the root mean square over pixels of [-1, 1]; accuracy is that of
the embedded classifier on the estimates, clipped to pixels. Intervals are those of the package: paired ones
for what the embedded denoiser is better.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from dbpkit import NoisePlan, load_dataset
from dbpkit.models.schedule import discrete_sigmas
from dbpkit.models.sources import load_classifier, load_denoiser, source, state_sha256
from dbpkit.statistics.intervals import difference, share

BATCH = 32


@torch.no_grad()
def compared(weights: str, images: int, times: list[int]) -> list[dict[str, Any]]:
    """Error and accuracy of both denoisers at every time."""
    data = load_dataset("embedded").select(slice(0, images))
    classifier = load_classifier("embedded")
    denoisers = {"given": load_denoiser(*source(weights)), "embedded": load_denoiser("embedded")}
    x0 = 2 * data.x() - 1
    found = []
    for t in times:
        sigma = discrete_sigmas()[t].float()
        noisy = x0 + sigma * NoisePlan.of(0, data.ids).normal("forward", 0, x0)
        row: dict[str, Any] = {"t": t, "sigma": round(float(sigma), 4)}
        right = {}
        for name, denoiser in denoisers.items():
            estimate = torch.cat([denoiser(part, sigma) for part in noisy.split(BATCH)]).clamp(-1, 1)
            logits = torch.cat([classifier(part / 2 + 0.5) for part in estimate.split(BATCH)])
            right[name] = (logits.argmax(1) == data.labels).double().numpy()
            error = float((estimate - x0).square().mean().sqrt())
            row[name] = {"error": round(error, 4), "accuracy": rounded(share(right[name]))}
        row["embedded minus given"] = rounded(difference(right["embedded"] - right["given"]))
        found.append(row)
    return found


def rounded(found: Any) -> list[float]:
    """Value and ends of an interval."""
    return [round(float(number), 4) for number in found[:3]]


def main() -> None:
    """Compares, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("weights")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--times", type=int, nargs="+", default=[10, 50, 100, 200])
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    result = {
        "what": "one-step denoising error and accuracy against t, and paired differences of accuracy",
        "command": "python -m benchmarks.blind WEIGHTS",
        "sha256": state_sha256(load_denoiser(*source(asked.weights))),
        "images": asked.images,
        "rows": compared(asked.weights, asked.images, asked.times),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
