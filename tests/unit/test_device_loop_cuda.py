"""The same on a GPU, as the profiler sees it: copies to the device and waits for it, by iteration."""

from collections import Counter
from typing import Any

import pytest
import torch

from dbpkit import NoisePlan, PurifiedClassifier, Purifier, load_dataset, load_embedded
from dbpkit.attacks import make_attack
from dbpkit.attacks.target import Target
from dbpkit.threats.pixels import Linf

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CROSSING = ("Memcpy HtoD", "Memcpy DtoH", "cudaStreamSynchronize")


def profiled(iterations: int, sampler: str, options: dict[str, Any]) -> Counter[str]:
    """How often each crossing happens in a PGD attack, after one that warmed everything up."""
    denoiser, classifier = load_embedded()
    purifier = Purifier(denoiser, sampler, steps=50, options=options)
    model = PurifiedClassifier(purifier, classifier).to("cuda")
    data = load_dataset("embedded").select(slice(0, 4))
    x, y = data.x().to("cuda"), data.labels.to("cuda")

    def attack() -> None:
        plan = NoisePlan.of(0, data.ids, "attack")
        pgd = make_attack("pgd", {"iterations": iterations, "eot": 2})
        pgd(Target(model, 4), x, y, threat=Linf(8 / 255), noise=plan)
        torch.cuda.synchronize()

    attack()
    with torch.profiler.profile() as seen:
        attack()
    found: Counter[str] = Counter()
    for event in seen.key_averages():
        for name in CROSSING:
            found[name] += event.count if event.key.startswith(name) else 0
    return found


@pytest.mark.parametrize(
    ("sampler", "options"),
    [("ddpm", {}), ("ddim", {}), ("vpsde", {"corrector_steps": 1}), ("heun", {"churn": 2.0})],
)
def test_iterations_cross_nothing(sampler: str, options: dict[str, Any]) -> None:
    few, many = (profiled(n, sampler, options) for n in (1, 4))
    assert few == many
