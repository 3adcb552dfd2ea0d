"""Fine-tuning from given weights, on one process and two, interrupted, and with parts that do not fit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dbpkit import TrainingSpec, UserError, load_classifier, load_dataset, load_denoiser, load_weights, train
from dbpkit.experiment.execution import Execution
from dbpkit.fidelity import Chain, make_features, quality
from dbpkit.foundation.spec import validate
from dbpkit.models.weights import Architecture, read_tensors, save_weights, sha256_of
from tests.integration.conftest import environment

CPU = Execution("cpu")
GUIDE = {
    "objective": "classification",
    "objective_options": {"shift": 0, "cutout": 0},
    "data": {"name": "digits", "options": {"split": "train"}},
    "test_data": "digits",
    "network": {"name": "resnet9", "options": {"channels": [8, 8, 16, 16], "mean": [0.3], "std": [0.4]}},
    "optimiser": {"updates": 100, "batch_size": 32, "method": "sgd", "lr": 0.2, "grad_clip": 0.0},
}
DENOISER = {
    "objective": "denoising",
    "objective_options": {"report_times": [100]},
    "data": {"name": "digits", "options": {"split": "train"}},
    "test_data": "digits",
    "network": {"name": "unet", "options": {"channels": [8, 16], "blocks": [1, 1], "embedding_size": 8}},
    "optimiser": {"updates": 150, "batch_size": 32, "lr": 5e-3},
}


def spec(table: dict, **changes: object) -> TrainingSpec:
    return validate({**table, **changes}, TrainingSpec, "test")


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(train(spec(GUIDE), tmp_path_factory.mktemp("guide"), execution=CPU).weights)


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(train(spec(DENOISER), tmp_path_factory.mktemp("denoiser"), execution=CPU).weights)


def weights(path: str, **options: object) -> dict:
    return {"name": "weights", "options": {"path": path, **options}}


def finetune(denoiser: str, guide: str, **optimiser: object) -> dict:
    return {
        "objective": "denoising",
        "objective_options": {"perturbation": "addt", "guide": weights(guide), "report_times": [100]},
        "data": {"name": "digits", "options": {"split": "train"}},
        "test_data": "digits",
        "init": weights(denoiser),
        "checkpoint_updates": 2,
        "optimiser": {"updates": 8, "batch_size": 16, "lr": 1e-3, "schedule": "constant", **optimiser},
    }


def states(*runs: Path) -> list[dict[str, Tensor]]:
    return [load_weights(run / "weights.safetensors")[0].state_dict() for run in runs]


def run(table: dict, out: Path, *launcher: str) -> subprocess.Popen:
    code = (
        "import json, sys; from dbpkit import *; from dbpkit.foundation.spec import validate;"
        "from dbpkit import Execution;"
        "train(validate(json.loads(sys.argv[1]), TrainingSpec, 'x'), sys.argv[2], execution=Execution('cpu'))"
    )
    script = out.parent / "run.py"
    script.write_text(code)
    return subprocess.Popen(
        [*(launcher or (sys.executable,)), str(script), json.dumps(table), str(out)], env=environment()
    )


def test_finetune_starts_from_the_given_weights_and_its_card_names_them(
    denoiser: str, guide: str, tmp_path: Path
) -> None:
    still = spec(finetune(denoiser, guide, updates=1, lr=1e-12))
    trained = train(still, tmp_path / "still", execution=CPU)
    before = load_weights(denoiser)[0].state_dict()
    (after,) = states(tmp_path / "still")
    assert all(torch.allclose(before[n], after[n], atol=1e-6) for n in before)
    card = (tmp_path / "still" / "card.md").read_text()
    assert trained.figures["guide_sha256"] in card
    assert trained.figures["init_sha256"] in card
    moved = train(spec(finetune(denoiser, guide)), tmp_path / "moved", execution=CPU)
    assert moved.sha256 != trained.sha256
    assert moved.figures["denoising"]["100"]["rms_error"] < moved.figures["denoising"]["100"]["sigma"]


def test_finetune_killed_and_resumed_ends_with_the_same_weights(
    denoiser: str, guide: str, tmp_path: Path
) -> None:
    table = finetune(denoiser, guide, updates=30)
    train(spec(table), tmp_path / "whole", execution=CPU)
    out = tmp_path / "killed"
    for least in (4, 12):
        process = run(table, out)
        deadline = time.monotonic() + 120
        while updates(out) < least and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert updates(out) >= least
    train(spec(table), out, execution=CPU)
    a, b = states(tmp_path / "whole", out)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert sha256_of(tmp_path / "whole" / "weights.safetensors") == sha256_of(out / "weights.safetensors")
    curves = [
        [
            {k: v for k, v in json.loads(line).items() if k in ("updates", "loss", "lr")}
            for line in (directory / "log.jsonl").read_text().splitlines()
        ]
        for directory in (tmp_path / "whole", out)
    ]
    assert curves[0] == curves[1]
    assert len(curves[0]) == 15


def updates(out: Path) -> int:
    path = out / "checkpoint.safetensors"
    return int(json.loads(read_tensors(path)[1]["dbpkit"])["updates"]) if path.is_file() else 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adamw", "sgd"])
def test_two_processes_make_the_update_of_one(denoiser: str, guide: str, tmp_path: Path, method: str) -> None:
    table = finetune(denoiser, guide, updates=1, method=method, warmup=0.0)
    train(spec(table), tmp_path / "one", execution=CPU)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    assert run(table, tmp_path / "two", *launcher).wait(timeout=240) == 0
    one, two = states(tmp_path / "one", tmp_path / "two")
    start = load_weights(denoiser)[0].state_dict()
    assert max(float((one[n] - start[n]).abs().max()) for n in one) > 1e-4  # the update is no small thing
    checkpoints = [read_tensors(tmp_path / name / "checkpoint.safetensors")[0] for name in ("one", "two")]
    moment = "exp_avg" if method == "adamw" else "momentum_buffer"
    for index, name in enumerate(one):
        a, b = (c[f"optimiser.{index}.{moment}"] for c in checkpoints)
        assert torch.allclose(a, b, atol=1e-6, rtol=1e-5), name
        # Biases before a group norm have no gradient but rounding, which Adam's first step blows up to lr.
        real = a.abs() > 1e-6
        assert torch.allclose(one[name][real], two[name][real], atol=1e-5, rtol=0), name


@pytest.mark.parametrize(
    ("device", "message"), [("gpu", "device 'gpu' is unknown"), ("cuda", "sees no CUDA device")]
)
def test_device_that_is_not_there_is_refused(
    denoiser: str, guide: str, tmp_path: Path, device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=message):
        train(spec(finetune(denoiser, guide)), tmp_path / "run", execution=Execution(device))


def test_batch_that_processes_cannot_share_is_refused(
    denoiser: str, guide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "num_processes", 3)
    with pytest.raises(UserError, match="batch_size 16 cannot be shared by 3 processes"):
        train(spec(finetune(denoiser, guide)), tmp_path / "run", execution=CPU)


def test_learning_curve_samples_and_tensorboard(denoiser: str, guide: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(spec(finetune(denoiser, guide)), out, execution=CPU, tensorboard=True)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["updates"] for line in lines] == [2, 4, 6, 8]
    assert all(line["loss"] > 0 and line["images_per_second"] > 0 for line in lines)
    assert {line["lr"] for line in lines} == {1e-3}
    picture = Image.open(out / "samples" / "0000008.png")
    assert picture.size == (8 * 8, 3 * 8)  # eight digits of 8 x 8, three rows
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = next((out / "tensorboard").rglob("events*")).parent
    events = EventAccumulator(str(folder)).Reload()
    assert [e.step for e in events.Scalars("loss")] == [2, 4, 6, 8]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([line["loss"] for line in lines])


def test_tensorboard_without_the_library_says_what_to_install(
    denoiser: str, guide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        train(spec(finetune(denoiser, guide)), tmp_path / "run", execution=CPU, tensorboard=True)


def test_full_disk_and_wild_rate_keep_the_last_checkpoint(
    denoiser: str, guide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "wild"
    with pytest.raises(UserError, match=r"not finite|the training loss is"):
        train(
            spec(finetune(denoiser, guide, lr=1e30, method="sgd", grad_clip=0.0, warmup=0.6)),
            out,
            execution=CPU,
        )
    real, room = os.fsync, [6]  # train.json, one checkpoint, two lines of the curve, two pictures

    def fsync(descriptor: int) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UserError, match=r"cannot write .*checkpoint.* \(No space left on device\)"):
        train(spec(finetune(denoiser, guide)), tmp_path / "full", execution=CPU)
    assert updates(tmp_path / "full") == 2


class Shifted(nn.Module):
    """A classifier that expects pixels in [0, 255]."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.model = load_classifier("weights", {"path": path})

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x / 255)


class UnitRange(nn.Module):
    """A denoiser that takes and returns images in [0, 1]."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.model, self.architecture = load_weights(path)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.model(2 * x - 1, 2 * torch.as_tensor(sigma)) / 2 + 0.5


HERE = "tests.integration.test_finetune"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guide": "embedded"}, r"the guide does not accept images of shape \(1, 8, 8\): .*3 channels"),
        ({"guide": f"{HERE}:Shifted"}, r"the guide is right on \d+ of 64 training images, near chance"),
        ({"guide": "five"}, r"the guide returns \(64, 5\) for 64 images, but 'digits.*' has 10 classes"),
        ({"perturbation": "adt"}, "unknown perturbation 'adt'. Did you mean 'addt'"),
        ({"guide": None}, "perturbation 'addt' is guided by a classifier. Set objective_options.guide"),
        ({"init": "embedded"}, r"the denoiser does not accept images of shape \(1, 8, 8\)"),
        ({"init": f"{HERE}:UnitRange"}, "it does not remove noise. It must take images in"),
        ({"init": "guide"}, "hold a classifier; a denoiser was expected"),
        ({"init": f"{HERE}:plain"}, "cannot be trained: it has no 'architecture'"),
        ({"dropout": 0.1}, "dropout 0.1 has no effect: the network has no dropout layer"),
        ({"network": "unet"}, "give either 'network' .* or 'init'"),
        ({"denoiser": "vp"}, "'denoiser' comes with 'init'; leave it out"),
    ],
)
def test_parts_that_do_not_fit_are_named(
    denoiser: str, guide: str, tmp_path: Path, changes: dict, message: str
) -> None:
    table = finetune(denoiser, guide)
    named = {f"{HERE}:Shifted": guide, f"{HERE}:UnitRange": denoiser}
    if "guide" in changes and changes["guide"] == "five":
        architecture = load_weights(guide)[1]._replace(class_names=tuple("abcde"))
        architecture = architecture._replace(options={**architecture.options, "classes": 5})
        save_weights(tmp_path / "five.safetensors", architecture.build(), architecture)
        changes = {"guide": weights(str(tmp_path / "five.safetensors"))}
    for key, value in changes.items():
        part = weights(guide) if value == "guide" else value
        if isinstance(value, str) and value in named:
            part = {"name": value, "options": {"path": named[value]}}
        if key in ("guide", "perturbation"):
            table["objective_options"] = {**table["objective_options"], key: part}
        else:
            table[key] = part
    with pytest.raises(UserError, match=message):
        train(spec(table), tmp_path / "run", execution=CPU)


def plain() -> nn.Module:
    return nn.Identity()


def test_other_weights_behind_the_same_spec_are_refused(denoiser: str, guide: str, tmp_path: Path) -> None:
    moved = tmp_path / "start.safetensors"
    moved.write_bytes(Path(denoiser).read_bytes())
    table = finetune(str(moved), guide, updates=2)
    train(spec(table), tmp_path / "run", execution=CPU)
    model, architecture = load_weights(denoiser)
    next(model.parameters()).data.add_(0.001)
    save_weights(moved, model, architecture)
    with pytest.raises(UserError, match="another spec: the weights that 'init' names"):
        train(spec(table), tmp_path / "run", execution=CPU)


def test_diffusers_network_is_finetuned_with_dropout_and_comes_back(guide: str, tmp_path: Path) -> None:
    config = {
        "sample_size": 8,
        "block_out_channels": [8, 8],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "dropout": 0.1,
    }
    scratch = {**DENOISER, "network": {"name": "diffusers", "options": {"config": config}}, "denoiser": "vp"}
    first = train(
        spec(scratch, optimiser={"updates": 150, "batch_size": 32, "lr": 5e-3}),
        tmp_path / "scratch",
        execution=CPU,
    )
    model = load_denoiser("weights", {"path": str(first.weights)})
    assert isinstance(model, nn.Module)
    model.network.save_pretrained(tmp_path / "hub")
    table = finetune("", guide, updates=4)
    table |= {"init": {"name": "diffusers", "options": {"path": str(tmp_path / "hub")}}, "dropout": 0.2}
    table["objective_options"] = {"levels": "ddpm", "report_times": [100]}
    for out in ("a", "b"):
        train(spec(table), tmp_path / out, execution=CPU)
    a, b = states(tmp_path / "a", tmp_path / "b")
    assert all(torch.equal(a[n], b[n]) for n in a)  # dropout masks are a function of the update
    architecture = load_weights(tmp_path / "a" / "weights.safetensors")[1]
    assert architecture.network == "diffusers"
    assert architecture.image_shape == (1, 8, 8)
    before = model.network.state_dict()
    after = load_denoiser("weights", {"path": str(tmp_path / "a" / "weights.safetensors")}).network
    change = max(float((after.state_dict()[n] - before[n]).abs().max()) for n in before)
    assert 0 < change < 0.1
    assert isinstance(architecture, Architecture)


def test_quality_of_a_finetuned_denoiser(denoiser: str, guide: str) -> None:
    features = make_features("classifier", {"classifier": "weights", "options": {"path": guide}})
    made = load_denoiser("weights", {"path": denoiser})
    data = load_dataset("digits")
    found = quality(made, data, features, Chain(0.1), images=100)
    assert found.metric != "FID"
    assert found.value > 0
    assert found.floor is not None
