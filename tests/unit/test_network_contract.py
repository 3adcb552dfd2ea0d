"""Every registered network in a purified classifier, and trained from random weights.

Gradients are exact whatever is replayed, second ones too, and nothing of a computation outlives it.
"""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbpkit import Execution, TrainingSpec, load_denoiser, train
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.spec import validate
from dbpkit.models.networks import networks
from dbpkit.purification.classifier import PurifiedClassifier
from dbpkit.purification.diffusion import Purifier
from tests.leaks import Probed, observed
from tests.oracles import TinyClassifier, fill, uniform
from tests.parts import data
from tests.unit.test_networks import described, model_of

DENOISERS = [name for name in networks if described(name).kind == "denoiser"]
ADAPTERS = {"diffusers": ["vp"], "ho_ddpm": ["vp"], "adm": ["edm", "vp"], "ncsnpp": ["edm", "vp"]}
ADAPTERS["bias_free_unet"] = ["blind"]
"""What each denoiser is trained under; EDM's preconditioning if it is not here."""
ONCE_ONLY = {"diffusers"}
"""Its attention is torch's fused one, which has no second derivative."""
SIDE = 8
each_denoiser = pytest.mark.parametrize("name", DENOISERS)


def purified(name: str, memory_bytes: int, probe: bool = False) -> PurifiedClassifier:
    """A tiny classifier behind two steps of the network, whose weights are in float64 and nowhere 0."""
    denoiser: Any = model_of(described(name))
    fill(denoiser, 2)
    denoiser.network.register_forward_hook(lambda _m, _x, out: getattr(out, "sample", out))
    if probe:
        denoiser.network = Probed(denoiser.network)
    purifier = Purifier(denoiser, "ddpm", t_star=0.02, steps=100, memory_bytes=memory_bytes, clamp=False)
    classifier: Any = TinyClassifier(channels=3)
    return PurifiedClassifier(purifier, Probed(classifier) if probe else classifier)


def images() -> Tensor:
    return uniform(2, 3, SIDE, SIDE, low=0.2, high=0.8).requires_grad_()


def derivatives(model: nn.Module, second: bool = True) -> list[Tensor]:
    """The gradient of a function of the logits, and the product of its Hessian with a fixed direction."""
    x = images()
    loss = model(x, noise=NoisePlan.of(3, [4, 5])).logsumexp(1).sum()
    (grad,) = torch.autograd.grad(loss, x, create_graph=second)
    if not second:
        return [grad]
    return [grad.detach(), torch.autograd.grad((grad * uniform(*x.shape, seed=9)).sum(), x)[0]]


@each_denoiser
def test_derivatives_are_the_same_however_much_is_replayed(name: str) -> None:
    kept, replayed = (derivatives(purified(name, m), second=name not in ONCE_ONLY) for m in (2**30, 0))
    for a, b in zip(kept, replayed, strict=True):
        assert float(a.abs().max()) > 0
        assert float((a - b).abs().max() / a.abs().max()) < 1e-9


@each_denoiser
@pytest.mark.parametrize("memory_bytes", [0, 2**30], ids=["replayed", "kept"])
def test_no_graph_outlives_its_computation(name: str, memory_bytes: int) -> None:
    found = observed(partial(derivatives, purified(name, memory_bytes, probe=True), second=False), tries=1)
    assert found.made > 0
    assert found.left == 0


def spec(name: str, adapter: str) -> TrainingSpec:
    table = {
        "objective": "denoising",
        "objective_options": {"levels": "ddpm", "report_times": [300]},
        "data": "tests.parts:data",
        "test_data": "tests.parts:data",
        "network": {"name": name, "options": dict(described(name).options)},
        "denoiser": adapter,
        "optimiser": {"updates": 20, "batch_size": 12, "lr": 5e-3, "ema_decay": 0.5},
        "checkpoint_updates": 20,
    }
    return validate(table, TrainingSpec, "test")


def rms_error(denoiser: nn.Module, sigma: float = 0.5) -> float:
    """What is left of the noise at one level, on the images of training."""
    images = 2 * data().images - 1
    noise = NoisePlan.of(2, range(len(images))).normal("probe", 0, images)
    with torch.no_grad():
        return float((denoiser(images + sigma * noise, torch.tensor(sigma)) - images).square().mean().sqrt())


@pytest.mark.parametrize(("name", "adapter"), [(n, a) for n in DENOISERS for a in ADAPTERS.get(n, ["edm"])])
def test_trained_from_random_weights_it_learns_and_comes_back(
    name: str, adapter: str, tmp_path: Path
) -> None:
    """After twenty updates less of the noise is left than at first, when its last layer is 0 or random."""
    found = train(spec(name, adapter), tmp_path / "run", execution=Execution("cpu"))
    loaded = load_denoiser("weights", {"path": str(found.weights)})
    first = model_of(described(name)._replace(denoiser=adapter))
    assert rms_error(loaded) < 0.9 * rms_error(first)
