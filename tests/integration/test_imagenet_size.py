"""The path of ImageNet's papers: 224 x 224 pixels, bilinear to a network of 256 x 256, back, mean and std.

The networks have the published layout and random weights, with fewer channels.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbpkit import EvaluationSpec, NoisePlan, PurifiedClassifier, RunDirectory, VPDenoiser, evaluate
from dbpkit.checks import Checked
from dbpkit.data import Dataset
from dbpkit.experiment.build import build
from dbpkit.foundation.spec import validate
from dbpkit.models.networks import networks
from dbpkit.purification.replay import directional_derivatives
from tests.oracles import uniform

SPEC = {
    "name": "imagenet size",
    "data": f"{__name__}:data",
    "classifier": {"name": f"{__name__}:classifier", "normalise": "imagenet"},
    "denoiser": f"{__name__}:denoiser",
    "purifier": {"sampler": "ddpm", "t_star": 0.1, "steps": 20, "resize": 256, "pad": "auto"},
    "attacks": [{"name": "pgd", "options": {"iterations": 1, "eot": 1}}],
    "threat": {"norm": "linf", "eps": "4/255"},
    "knowledge": ["white_box"],
    "examples": {"count": 2},
    "draws": {"report": 1, "select": 1},
}


def data(side: int = 224, count: int = 2) -> Dataset:
    """Two images of smooth colours."""
    x = nn.functional.interpolate(uniform(count, 3, 7, 7).float(), (side, side), mode="bicubic").clamp(0, 1)
    return Dataset("smooth", x, torch.arange(count) % 5, torch.arange(count), tuple("abcde"))


def filled(network: nn.Module) -> nn.Module:
    """The network with small reproducible weights everywhere, in the layers that start at zero too."""
    for k, weight in enumerate(network.parameters()):
        scale = 1.5 / max(1, weight[0].numel()) ** 0.5 if weight.ndim > 1 else 0.2
        weight.data = uniform(*weight.shape, seed=k, low=-scale, high=scale).to(weight.dtype)
    return network.eval()


def denoiser(resolutions: int = 6) -> VPDenoiser:
    """A guided-diffusion U-Net of so many resolutions, learned variance included, 32 channels wide."""
    network = networks.get("adm")(
        model_channels=32, channel_mult=(1,) * resolutions, num_res_blocks=1, attention_resolutions=(32,),
        num_head_channels=32,
    )  # fmt: skip
    return VPDenoiser(filled(network), variance="drop")


def classifier() -> nn.Module:
    """A small convolutional network of 224 x 224, or of any size, that wants normalised images."""
    layers = [nn.Conv2d(3, 8, 7, stride=4), nn.GELU(), nn.Conv2d(8, 16, 3, stride=4, padding=1), nn.GELU()]
    return filled(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)))


@pytest.mark.parametrize(
    ("side", "inner", "checks"),
    [
        (28, 32, None),
        pytest.param(224, 256, lambda *_: Checked([], ()), marks=pytest.mark.slow),
    ],
)
def test_evaluate_runs_from_end_to_end(side: int, inner: int, checks: Any, tmp_path: Path) -> None:
    """The published size takes 10 s, and is run without the checks before, which would take minutes."""
    parts = {"name": SPEC["denoiser"], "options": {"resolutions": 6 if inner == 256 else 4}}
    changes: dict[str, Any] = {"denoiser": parts, "data": {"name": SPEC["data"], "options": {"side": side}}}
    changes["purifier"] = {"sampler": "one_step", "resize": inner, "pad": "auto"}
    spec = validate({**SPEC, **changes}, EvaluationSpec, "imagenet")
    summary = evaluate(spec, tmp_path / "run", checks=checks)
    assert summary.row("white_box").headline.examples == 2
    assert RunDirectory(tmp_path / "run").spec()["spec"]["purifier"]["resize"]["size"] == inner


@pytest.mark.parametrize("inner", [16, 24])
def test_exact_gradient_through_resize_pad_and_normalise_is_that_of_differences(inner: int) -> None:
    """In float64, at a small size: 14 x 14 to the network's size, 24 with a margin to a multiple of 32."""
    small = {"data": {"name": SPEC["data"], "options": {"side": 14}}}
    small["purifier"] = {**SPEC["purifier"], "resize": inner}
    spec = validate({**SPEC, **small}, EvaluationSpec, "imagenet")
    model: PurifiedClassifier = build(spec, "cpu").model
    model.double()
    x, noise = uniform(2, 3, 14, 14, low=0.2, high=0.8), NoisePlan.of(0, [0, 1])
    model.purifier.clamp = False
    direction = uniform(2, 3, 14, 14, seed=3, low=-1)

    def loss(x: Tensor) -> Tensor:
        return (model(x, noise=noise) * torch.linspace(-1, 1, 5)).sum(dim=1)

    exact, numeric = directional_derivatives(loss, x, direction, 1e-5)
    assert bool((exact.abs() > 1e-7).all()), exact
    assert torch.allclose(exact, numeric, rtol=1e-5, atol=1e-12), (exact, numeric)
