"""A diffusers network trained from random weights by a configuration: given, named, or in a file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dbpkit import Execution, TrainingSpec, UserError, load_denoiser, train
from dbpkit.foundation.spec import validate
from dbpkit.models.networks.diffusers import CONFIGS, diffusers_unet, spelled_out

pytest.importorskip("diffusers")

TINY = {
    "sample_size": 8,
    "block_out_channels": [4, 8],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}


def spec(config: Any, updates: int = 50) -> TrainingSpec:
    table = {
        "objective": "denoising",
        "objective_options": {"levels": "ddpm", "report_times": [300]},
        "data": {"name": "digits", "options": {"split": "train"}},
        "test_data": "digits",
        "network": {"name": "diffusers", "options": {"config": config}},
        "denoiser": "vp",
        "dropout": 0.1,
        "optimiser": {"updates": updates, "batch_size": 8, "lr": 5e-3},
        "checkpoint_updates": updates,
    }
    return validate(table, TrainingSpec, "test")


def test_named_configuration_is_the_published_size() -> None:
    with torch.device("meta"):
        network = diffusers_unet(**spelled_out({"config": "ddpm-cifar10"}))
    assert sum(p.numel() for p in network.parameters()) == 35_746_307  # of google/ddpm-cifar10-32


def test_trained_from_random_weights_learns_and_its_file_needs_no_other(tmp_path: Path) -> None:
    file = tmp_path / "network" / "config.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"_class_name": "UNet2DModel", "in_channels": 1, "out_channels": 1, **TINY}))
    by_path = train(spec(str(file.parent), 40), tmp_path / "by-path", execution=Execution("cpu"))
    error = by_path.figures["denoising"]["300"]
    assert error["rms_error"] < error["sigma"]  # the noisy image's own error; at first it is more
    assert spelled_out({"config": str(file)})["config"] == {"in_channels": 1, "out_channels": 1, **TINY}
    file.unlink()
    loaded = load_denoiser("weights", {"path": str(by_path.weights)})
    assert loaded(torch.zeros(1, 1, 8, 8), torch.tensor(0.3)).shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("ddpm-cifar", "unknown diffusers configuration 'ddpm-cifar'. Did you mean 'ddpm-cifar10'?"),
        ("nowhere/config.json", "no diffusers configuration: 'nowhere/config.json' is missing."),
        ("{tmp}/transformer.json", "is of a 'DiT'. Only a UNet2DModel can be trained."),
        ({"layers": 3}, "diffusers' UNet2DModel refuses the configuration"),
    ],
)
def test_wrong_configuration_is_one_sentence(config: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "transformer.json").write_text('{"_class_name": "DiT"}')
    named = config.replace("{tmp}", str(tmp_path)) if isinstance(config, str) else config
    with pytest.raises(UserError) as caught:
        train(spec(named, 1), tmp_path / "run", execution=Execution("cpu"))
    assert message in str(caught.value)


def test_configurations_are_copied_out() -> None:
    spelled_out({"config": "ddpm-cifar10"})["config"]["sample_size"] = 7
    assert CONFIGS["ddpm-cifar10"]["sample_size"] == 32
