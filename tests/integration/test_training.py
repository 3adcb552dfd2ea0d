import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dbpkit import TrainingSpec, UserError, load_classifier, load_denoiser, load_weights, train
from dbpkit.foundation.spec import validate
from dbpkit.models.weights import read_tensors
from dbpkit.training.loop import ema_weight, learning_rate
from dbpkit.training.spec import OptimiserSpec
from tests.integration.conftest import environment

CLASSIFIER = {
    "objective": "classification",
    "objective_options": {"shift": 1, "cutout": 2},
    "data": {"name": "digits", "options": {"split": "train"}},
    "test_data": "digits",
    "network": {
        "name": "resnet9",
        "options": {"channels": [8, 8, 16, 16], "mean": [0.3], "std": [0.4]},
    },
    "optimiser": {
        "updates": 150,
        "batch_size": 32,
        "method": "sgd",
        "lr": 0.2,
        "ema_decay": 0.9,
        "grad_clip": 0.0,
    },
    "checkpoint_updates": 20,
}
DENOISER = {
    "objective": "denoising",
    "objective_options": {"report_times": [50, 100]},
    "data": {"name": "digits", "options": {"split": "train"}},
    "test_data": "digits",
    "network": {"name": "unet", "options": {"channels": [8, 16], "blocks": [1, 1], "embedding_size": 8}},
    "optimiser": {"updates": 40, "batch_size": 16, "lr": 2e-3},
    "checkpoint_updates": 10,
}


def spec(table: dict, **changes: object) -> TrainingSpec:
    return validate({**table, **changes}, TrainingSpec, "test")


def test_train_classifier_learns_and_its_card_and_weights_agree(tmp_path: Path) -> None:
    trained = train(spec(CLASSIFIER), tmp_path / "run")
    assert trained.figures["accuracy"] > 0.5  # ten classes: chance is 0.1
    card = (tmp_path / "run" / "card.md").read_text()
    assert f"{trained.figures['accuracy']:.2%}" in card
    assert trained.sha256 in card
    model = load_classifier("weights", {"path": str(trained.weights), "sha256": trained.sha256})
    from dbpkit import load_dataset

    data = load_dataset("digits")
    accuracy = float((model(data.x()).argmax(1) == data.labels).float().mean())
    assert accuracy == pytest.approx(trained.figures["accuracy"])


def test_train_denoiser_beats_the_noisy_image(tmp_path: Path) -> None:
    trained = train(spec(DENOISER, store="float16"), tmp_path / "run")
    for figures in trained.figures["denoising"].values():
        assert figures["rms_error"] < figures["sigma"]
    assert load_denoiser("weights", {"path": str(trained.weights)})(
        torch.zeros(1, 1, 8, 8), torch.tensor(0.3)
    ).shape == (1, 1, 8, 8)
    with pytest.raises(UserError, match="hold a denoiser; a classifier was expected"):
        load_classifier("weights", {"path": str(trained.weights)})


def test_train_killed_and_resumed_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = train(spec(DENOISER), tmp_path / "whole")
    code = (
        "import json, sys; from dbpkit import *; from dbpkit.foundation.spec import validate;"
        "train(validate(json.loads(sys.argv[1]), TrainingSpec, 'x'), sys.argv[2])"
    )
    out = tmp_path / "killed"
    for least in (10, 30):
        process = subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(DENOISER), str(out)], env=environment()
        )
        deadline = time.monotonic() + 120
        while updates(out) < least and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert updates(out) >= least
    train(spec(DENOISER), out)
    a, b = (load_weights(p / "weights.safetensors")[0].state_dict() for p in (tmp_path / "whole", out))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert whole.sha256 == load_sha(out)


def updates(out: Path) -> int:
    path = out / "checkpoint.safetensors"
    return int(json.loads(read_tensors(path)[1]["dbpkit"])["updates"]) if path.is_file() else 0


def load_sha(out: Path) -> str:
    import hashlib

    return hashlib.sha256((out / "weights.safetensors").read_bytes()).hexdigest()


def test_train_other_spec_in_the_directory_is_refused(tmp_path: Path) -> None:
    train(spec(DENOISER, optimiser={"updates": 2, "batch_size": 4, "lr": 1e-3}), tmp_path / "run")
    with pytest.raises(UserError, match=r"another spec: optimiser\.lr 0\.001 -> 0\.01\. Use a new --out"):
        train(spec(DENOISER, optimiser={"updates": 2, "batch_size": 4, "lr": 1e-2}), tmp_path / "run")


def test_train_loss_that_explodes_stops_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    wild = {"updates": 40, "batch_size": 16, "method": "sgd", "lr": 1e30, "warmup": 1.0, "grad_clip": 0.0}
    with pytest.raises(
        UserError, match=r"the training loss is (nan|inf) at update \d+\. Lower optimiser\.lr"
    ):
        train(spec(DENOISER, optimiser=wild, checkpoint_updates=1), tmp_path / "run")
    assert updates(tmp_path / "run") >= 1


def test_train_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, room = os.fsync, [9]  # train.json, two checkpoints, three lines of the curve, three pictures

    def fsync(descriptor: int) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(
        UserError, match=r"cannot write '.*checkpoint\.safetensors' \(No space left on device\)"
    ):
        train(spec(DENOISER), tmp_path / "run")
    assert updates(tmp_path / "run") == 20
    assert not list((tmp_path / "run").glob("*.tmp"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {"name": "unet9"}}, "unknown network 'unet9'. Did you mean 'unet'"),
        ({"network": {"name": "unet", "options": {"depth": 3}}}, "network 'unet' has no option 'depth'"),
        (
            {"network": {"name": "unet", "options": {"image_channels": 3}}},
            "image_channels is 3, but 'digits' has 1",
        ),
        ({"objective": "denoise"}, "unknown objective 'denoise'. Did you mean 'denoising'"),
        ({"objective_options": {"t_first": 3}}, "objective 'denoising' has no option 't_first'"),
        ({"optimiser": {"updates": 1, "batch_size": 10**6, "lr": 1e-3}}, "batch_size 1000000 exceeds the"),
        ({"denoiser": "edm2"}, "unknown denoiser adapter 'edm2'. Did you mean 'edm'"),
    ],
)
def test_train_wrong_settings_are_one_sentence(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        train(spec(DENOISER, **changes), tmp_path / "run")
    assert message in str(caught.value)


def test_learning_rate_rises_then_falls_to_zero() -> None:
    optimiser = OptimiserSpec(updates=100, batch_size=1, lr=1.0, warmup=0.1)
    rates = [learning_rate(u, optimiser) for u in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)  # half-way down the cosine
    assert rates[-1] < 1e-3


def test_ema_weight_warms_up_to_its_decay() -> None:
    assert ema_weight(0, 0.999) == 1.0  # the first state replaces the initial one
    assert ema_weight(15, 0.999) == pytest.approx(16**-0.75)
    assert ema_weight(10**6, 0.999) == pytest.approx(0.001)
