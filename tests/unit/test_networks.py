"""What every registered network keeps to, whoever registered it."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbpkit.evaluation.computation import computation_sha256
from dbpkit.evaluation.given import Given
from dbpkit.evaluation.identity import model_sha256
from dbpkit.foundation.noise import seeded_generator
from dbpkit.models.networks import networks
from dbpkit.models.networks.layers import placed
from dbpkit.models.sources import state_sha256
from dbpkit.models.weights import Architecture, load_weights, save_weights
from tests.oracles import TinyNetwork, uniform
from tests.unit.test_device_loop import DEVICE, watched

RESIDUAL = {"channels": (4, 8, 8, 8), "blocks": (1, 1, 1, 1)}

SMALL: dict[str, dict[str, Any]] = {
    "bias_free_unet": {"channels": [16, 16], "blocks": [1, 1], "patch_size": 1, "embedding_size": 16},
    "dhariwal": {"img_resolution": 32, "model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1},
    "ho_ddpm": {"ch": 32, "ch_mult": (1, 1), "num_res_blocks": 1},
    "preact_resnet18": RESIDUAL,
    "resnet18_cifar": RESIDUAL,
    "resnet50_cifar": RESIDUAL,
    "songunet": {"model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1},
    "wideresnet": {"depth": 10, "widen_factor": 1},
    "diffusers": {
        "config": {
            "block_out_channels": [8, 8],
            "down_block_types": ["DownBlock2D"] * 2,
            "up_block_types": ["UpBlock2D"] * 2,
            "layers_per_block": 1,
            "norm_num_groups": 4,
        }
    },
    "adm": {"model_channels": 32, "channel_mult": [1, 1], "num_res_blocks": 1, "attention_resolutions": [2]}
    | {"num_head_channels": 16, "learn_sigma": False},
    "ncsnpp": {"nf": 8, "ch_mult": [1, 2], "num_res_blocks": 1},
    "unet": {"channels": [16, 16], "blocks": [1, 1], "patch_size": 1, "embedding_size": 16},
}
"""Options without a default, and those that make a network small."""

each_network = pytest.mark.parametrize("name", list(networks))


def described(name: str) -> Architecture:
    """A network that takes a noise label is a denoiser's, one of images alone a classifier's, or blind."""
    options = SMALL.get(name, {})
    network: nn.Module = networks.get(name)(**options)
    given = [p for p in inspect.signature(network.forward).parameters.values() if p.default is p.empty]
    denoiser = {"diffusers": "vp", "ho_ddpm": "vp", "bias_free_unet": "blind"}.get(name, "edm")
    is_denoiser = len(given) > 1 or denoiser == "blind"
    return Architecture("denoiser" if is_denoiser else "classifier", name, options, denoiser)


def model_of(architecture: Architecture) -> nn.Module:
    with seeded_generator(0):
        return architecture.build().eval()


def called(model: nn.Module, architecture: Architecture, x: Tensor) -> Tensor:
    if architecture.kind == "classifier":
        return model(x)
    return model(2 * x - 1, torch.full((len(x),), 0.3))


@each_network
def test_network_returns_images_or_logits(name: str) -> None:
    architecture = described(name)
    found = called(model_of(architecture), architecture, uniform(2, 3, 32, 32, seed=0).float())
    assert found.shape == ((2, 3, 32, 32) if architecture.kind == "denoiser" else (2, 10))
    assert bool(torch.isfinite(found).all())


@each_network
def test_network_treats_each_image_of_a_batch_alone(name: str) -> None:
    architecture, x = described(name), uniform(3, 3, 32, 32, seed=0).float()
    model = model_of(architecture)
    alone = torch.cat([called(model, architecture, x[b : b + 1]) for b in range(3)])
    assert torch.allclose(called(model, architecture, x), alone, atol=1e-5)  # float32 sums in another order


@each_network
def test_network_comes_back_from_its_weights_file(name: str, tmp_path: Path) -> None:
    architecture, x = described(name), uniform(2, 3, 32, 32, seed=0).float()
    model = model_of(architecture)
    save_weights(tmp_path / "weights.safetensors", model, architecture)
    loaded, read = load_weights(tmp_path / "weights.safetensors")
    assert read.network == name
    own, back = model.state_dict(), loaded.state_dict()
    assert own.keys() == back.keys()
    assert all(torch.equal(own[key], back[key]) for key in own)
    assert torch.allclose(called(loaded, architecture, x), called(model, architecture, x), atol=1e-6)


@each_network
def test_network_has_a_gradient_in_its_images(name: str) -> None:
    architecture, x = described(name), uniform(2, 3, 32, 32, seed=0).float().requires_grad_()
    called(model_of(architecture), architecture, x).square().sum().backward()
    assert x.grad is not None
    assert bool((x.grad.flatten(1).abs().sum(dim=1) > 0).all())


@each_network
def test_network_and_its_gradient_make_no_gpu_wait(name: str) -> None:
    with torch.device(DEVICE):
        network: nn.Module = networks.get(name)(**SMALL.get(name, {})).eval()
    x = torch.empty(2, 3, 32, 32, device=DEVICE).requires_grad_()
    is_told = described(name).kind == "denoiser" and described(name).denoiser != "blind"
    given = (x, torch.empty(2, device=DEVICE)) if is_told else (x,)
    with watched() as crossed:
        out = network(*given)
        getattr(out, "sample", out).sum().backward()
    assert not crossed


def test_network_placed_on_a_gpu_has_another_layout_and_the_same_identity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The move itself is left out: what is looked at is what becomes of the weights."""
    network, x = TinyNetwork(channels=3, width=4), uniform(2, 3, 8, 8)
    label = torch.tensor([0.1, 0.2], dtype=x.dtype)

    def identity() -> tuple[str, ...]:
        return state_sha256(network), model_sha256(network), computation_sha256(network)

    assert placed(network, torch.device("cpu")) is network
    before, expected, strides = identity(), network(x, label), network.first.weight.stride()
    assert strides == (27, 9, 3, 1)
    monkeypatch.setattr(nn.Module, "to", lambda self, _device: self)
    with Given.of(network).untouched():
        placed(network, torch.device("cuda"))
        assert network.first.weight.stride() == (27, 1, 9, 3)
        assert identity() == before
        torch.testing.assert_close(network(x, label), expected, rtol=1e-12, atol=1e-12)
    assert network.first.weight.stride() == strides


def test_function_is_placed_as_it_is() -> None:
    assert placed(abs, torch.device("cuda")) is abs
