"""What the embedded models reach on the original CIFAR-10 test images (needs DBPKIT_DATA).

    python -m benchmarks.embedded [MOST_IMAGES]

Purified accuracy is per draw: one purification with fresh noise of each image, no attack.
"""

import sys
import time

import torch

from dbpkit import NoisePlan, PurifiedClassifier, Purifier, load_dataset, load_embedded
from dbpkit.foundation.machine import settle
from dbpkit.statistics.intervals import wilson

SETTINGS = [
    ("ddim", 100, {}, 10_000),
    ("ddpm", 1000, {"variance": "large"}, 1_000),
    ("one_step", 1000, {}, 1_000),
    ("ddpm", 100, {"variance": "small"}, 1_000),
    ("ddpm", 100, {"variance": "large"}, 1_000),
    ("ddim", 1000, {}, 1_000),
]
"""Sampler, S, options and number of images; the calls are 11, 101, 1, 11, 11 and 101."""


@torch.no_grad()
def purified_accuracy(
    sampler: str, steps: int, options: dict[str, str], images: int
) -> tuple[float, int, float]:
    """Share of the first images that are right after one purification, network calls, seconds."""
    denoiser, classifier = load_embedded()
    purifier = Purifier(denoiser, sampler, steps=steps, options=options)
    model = PurifiedClassifier(purifier, classifier)
    data = load_dataset("cifar10").select(slice(0, images))
    start, right = time.perf_counter(), 0
    for index in torch.arange(images).split(64):
        logits = model(data.x(index), noise=NoisePlan.of(0, data.ids[index]))
        right += int((logits.argmax(1) == data.labels[index]).sum())
    return right / images, purifier.calls, time.perf_counter() - start


if __name__ == "__main__":
    settle()
    most = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    print("| sampler | S | options | calls | images | accuracy | 95 % interval | s |")
    print("|---|---|---|---|---|---|---|---|")
    for sampler, steps, options, count in SETTINGS:
        images = min(count, most)
        value, calls, seconds = purified_accuracy(sampler, steps, options, images)
        low, high = wilson(value, images)
        said = ", ".join(options.values()) or "–"
        cells = (
            sampler,
            steps,
            said,
            calls,
            images,
            f"{value:.1%}",
            f"{low:.1%} to {high:.1%}",
            f"{seconds:.0f}",
        )
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
