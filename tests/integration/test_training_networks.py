"""The field's networks trained from random weights, in small: they learn, and their file needs no other."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dbpkit import Execution, TrainingSpec, load_classifier, load_dataset, load_denoiser, train
from dbpkit.foundation.spec import validate

DENOISERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ho_ddpm": (
        {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [4], "resolution": 8},
        {"denoiser": "vp"},
    ),
    "songunet": (
        {"img_resolution": 8, "model_channels": 16, "channel_mult": [1, 1], "attn_resolutions": [4]}
        | {"num_blocks": 1},
        {"denoiser": "edm"},
    ),
    "dhariwal": (
        {"img_resolution": 8, "model_channels": 16, "channel_mult": [1, 1], "attn_resolutions": [4]}
        | {"num_blocks": 1, "channels_per_head": 8},
        {"denoiser": "edm"},
    ),
}

LEARNED = 0.65
"""An error at t = 300 below that of first weights: 0.73 under ``edm``, and 1.24, or sigma, under ``vp``."""

CLASSIFIERS: dict[str, dict[str, Any]] = {
    "wideresnet": {"depth": 10, "widen_factor": 1, "mean": [0.3], "std": [0.4]},
    "preact_resnet18": {"channels": [8, 8, 16, 16], "blocks": [1, 1, 1, 1]},
    "resnet50_cifar": {"channels": [4, 4, 8, 8], "blocks": [1, 1, 1, 1], "mean": [0.3], "std": [0.4]},
}


def spec(objective: str, network: str, options: dict[str, Any], **changes: Any) -> TrainingSpec:
    table = {
        "objective": objective,
        "data": {"name": "digits", "options": {"split": "train"}},
        "test_data": "digits",
        "network": {"name": network, "options": options},
        "checkpoint_updates": 30,
    }
    return validate({**table, **changes}, TrainingSpec, "test")


@pytest.mark.parametrize("name", list(DENOISERS))
def test_denoiser_learns_and_comes_back_from_its_file(name: str, tmp_path: Path) -> None:
    if name == "ho_ddpm":
        pytest.importorskip("diffusers")
    options, changes = DENOISERS[name]
    made = spec(
        "denoising",
        name,
        options,
        objective_options={"levels": "ddpm", "report_times": [300]},
        dropout=0.1,
        optimiser={"updates": 20, "batch_size": 16, "lr": 3e-3},
        **changes,
    )
    trained = train(made, tmp_path / "run", execution=Execution("cpu"))
    error = trained.figures["denoising"]["300"]
    assert error["rms_error"] < LEARNED
    loaded = load_denoiser("weights", {"path": str(trained.weights)})
    assert loaded(torch.zeros(1, 1, 8, 8), torch.tensor(0.3)).shape == (1, 1, 8, 8)


@pytest.mark.parametrize("name", list(CLASSIFIERS))
def test_classifier_learns_and_comes_back_from_its_file(name: str, tmp_path: Path) -> None:
    made = spec(
        "classification",
        name,
        CLASSIFIERS[name],
        objective_options={"shift": 0, "cutout": 0, "flip": False},
        optimiser={"updates": 60, "batch_size": 32, "method": "sgd", "lr": 0.1, "ema_decay": 0.8},
    )
    trained = train(made, tmp_path / "run", execution=Execution("cpu"))
    assert trained.figures["accuracy"] > 0.5  # ten classes: chance is 0.1
    data = load_dataset("digits")
    loaded = load_classifier("weights", {"path": str(trained.weights)})
    accuracy = float((loaded(data.x()).argmax(1) == data.labels).float().mean())
    assert accuracy == pytest.approx(trained.figures["accuracy"])
