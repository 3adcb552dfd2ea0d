"""A training run writes nothing that is not finite, and goes on only with what it began with."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbpkit import Dataset, TrainingSpec, UserError, train
from dbpkit.experiment.execution import Execution
from dbpkit.foundation.locking import writing
from dbpkit.foundation.spec import validate
from dbpkit.models.weights import Architecture, read_tensors, save_weights, write_tensors
from dbpkit.training.directory import TrainingDirectory
from tests import parts

HERE = "tests.integration.test_training_safety"
CPU = Execution("cpu")
TINY = {
    "objective": "classification",
    "objective_options": {"shift": 1, "cutout": 2},
    "data": f"{HERE}:brighter",
    "test_data": "tests.parts:data",
    "network": f"{HERE}:Tiny",
    "optimiser": {"updates": 6, "batch_size": 4, "lr": 1e-2},
    "checkpoint_updates": 2,
}
SHIFT = "DBPKIT_TEST_SHIFT"


class Tiny(nn.Module):
    """A linear classifier of channel means; one weight may be too large for half precision."""

    def __init__(self, image_channels: int, classes: int, largest: float = 1.0) -> None:
        super().__init__()
        self.linear = nn.Linear(image_channels, classes)
        self.largest = nn.Parameter(torch.tensor(largest))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean(dim=(2, 3))) + 1e-9 * self.largest


class TinyDenoiser(nn.Module):
    """A linear noise predictor that is no better than nothing, for runs from random weights."""

    def __init__(self, image_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(image_channels, image_channels, 1)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.conv(x) + 0 * c_noise.reshape(-1, 1, 1, 1)


def brighter() -> Dataset:
    """The tiny images, changed by what the environment says."""
    data = parts.data()
    return Dataset(
        "tiny", data.images + float(os.environ.get(SHIFT, "0")), data.labels, data.ids, data.class_names
    )


def never() -> Dataset:
    raise AssertionError("data were loaded")


def spec(**changes: Any) -> TrainingSpec:
    return validate({**TINY, **changes}, TrainingSpec, "test")


def run(out: Path, progress: Callable[..., None] = lambda *_: None, **changes: Any) -> Any:
    return train(spec(**changes), out, progress, CPU)


def contents(out: Path) -> dict[str, Any]:
    """Every file's bytes; the learning curve without what a clock says."""
    found: dict[str, Any] = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    lines = [line.model_dump(include={"updates", "loss", "lr"}) for line in TrainingDirectory(out).curve()]
    return found | {"log.jsonl": lines}


def test_weights_too_large_for_float16_are_refused_and_stored_as_float32_without_training(
    tmp_path: Path,
) -> None:
    big = {"network": {"name": f"{HERE}:Tiny", "options": {"largest": 1e5}}}
    with pytest.raises(
        UserError, match=r"'largest' reach 100000, more than the 65504 that float16 can hold.*store=float32"
    ):
        run(tmp_path / "run", store="float16", **big)
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    updates: list[int] = []
    trained = run(tmp_path / "run", lambda done, *_: updates.append(done), store="float32", **big)
    assert updates == []
    assert read_tensors(trained.weights)[0]["largest"] == pytest.approx(1e5, abs=1)  # lr 1e-2 moves it little
    assert trained.sha256 == run(tmp_path / "whole", store="float32", **big).sha256


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_save_weights_refuses_what_is_not_finite(tmp_path: Path, dtype: torch.dtype) -> None:
    model = Tiny(3, 3, float("nan"))
    with pytest.raises(UserError, match="weights 'largest' are not finite"):
        save_weights(tmp_path / "w.safetensors", model, Architecture("classifier", "tiny"), dtype)
    assert not list(tmp_path.iterdir())


def test_last_update_that_explodes_is_an_error_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    # The loss of every update is finite; only what the last update makes is not: lr 3e38 times the gradient.
    sgd = {"updates": 2, "batch_size": 4, "method": "sgd", "grad_clip": 0.0, "warmup": 0.0, "lr": 3e38}
    with pytest.raises(UserError, match=r"not finite after update 1\. Lower optimiser\.lr or set grad_clip"):
        run(
            tmp_path / "run",
            optimiser=sgd,
            checkpoint_updates=1,
            objective_options={"label_smoothing": 0.0, "shift": 0},
            network={"name": f"{HERE}:Steep"},
        )
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


class Steep(nn.Module):
    """Its gradient is so large that one update overflows, and its loss is not."""

    def __init__(self, image_channels: int, classes: int) -> None:
        super().__init__()
        assert image_channels == 3
        self.weight = nn.Parameter(torch.zeros(classes))

    def forward(self, x: Tensor) -> Tensor:
        return (100 * self.weight).expand(len(x), -1)


@pytest.mark.parametrize("name", ["model.a", "average.a", "optimiser.0.exp_avg"])
def test_checkpoint_that_is_not_finite_is_not_written(tmp_path: Path, name: str) -> None:
    run(tmp_path / "run")
    directory = TrainingDirectory(tmp_path / "run")
    before = (tmp_path / "run" / "checkpoint.safetensors").read_bytes()
    for value in (float("nan"), float("inf")):
        with pytest.raises(UserError, match=rf"'{name}' is not finite after update 3\. Lower optimiser\.lr"):
            directory.write_checkpoint(3, {"model.b": torch.ones(2), name: torch.tensor([0.0, value])})
    assert (tmp_path / "run" / "checkpoint.safetensors").read_bytes() == before


def test_figures_that_are_not_finite_are_an_error_and_no_weights_are_written(tmp_path: Path) -> None:
    table = {
        "objective": "denoising",
        "objective_options": {"report_times": [100]},
        "denoiser": f"{HERE}:Blinded",
    }
    network = {"name": f"{HERE}:TinyDenoiser"}
    with pytest.raises(UserError, match=r"the figure 'denoising\.100\.rms_error' is nan on the test data"):
        run(tmp_path / "run", network=network, **table)
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    assert not (tmp_path / "run" / "figures.json").exists()


class Blinded(nn.Module):
    """Not finite at t = 100 of more than four images: only the figures meet that."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        made = self.network(x, torch.as_tensor(sigma).expand(len(x)))
        return made * float("nan") if len(x) == parts.COUNT and not self.network.training else made


def test_stopped_anywhere_and_run_again_leaves_the_same_bytes(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    for stop in range(1, 7):

        def interrupt(done: int, *_: Any, stop: int = stop) -> None:
            if done == stop:
                raise KeyboardInterrupt

        out = tmp_path / f"stopped-{stop}"
        with pytest.raises(KeyboardInterrupt):
            run(out, interrupt)
        run(out)
        assert contents(out) == whole, stop


def test_finished_run_again_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path / "run")
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    run(tmp_path / "run")
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("torn", [b'{"updates": 2, "lo', b"\0\0\0", b'{"updates": 2}\n', b"\xff\xfe"])
def test_torn_curve_before_the_first_checkpoint_is_forgiven(tmp_path: Path, torn: bytes) -> None:
    out = tmp_path / "run"
    run(out)
    whole = contents(out)
    for name in ("checkpoint.safetensors", "weights.safetensors", "figures.json", "card.md"):
        (out / name).unlink()
    (out / "log.jsonl").write_bytes(torn)
    run(out)
    assert contents(out) == whole


@pytest.mark.parametrize("torn", [b'{"updates": 6, "lo', b"\0\0\0", b"\n", b"\xff\xfe"])
def test_torn_curve_after_a_checkpoint_is_cut(tmp_path: Path, torn: bytes) -> None:
    out = tmp_path / "run"
    run(out)
    whole = contents(out)
    with (out / "log.jsonl").open("ab") as file:
        file.write(torn)
    run(out)
    assert contents(out) == whole
    assert (out / "log.jsonl").read_bytes().endswith(b'"}\n')


def test_curve_that_was_changed_is_one_sentence(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out)
    path = out / "log.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"updates": 4', b'"updates": 5'))
    with pytest.raises(
        UserError, match=r"log\.jsonl' line 2 is damaged.*delete the file: the curve then begins"
    ):
        run(out)


def test_curve_has_no_line_twice_when_the_first_checkpoint_was_never_written(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out)
    (out / "checkpoint.safetensors").unlink()
    run(out)
    assert [line.updates for line in TrainingDirectory(out).curve()] == [2, 4, 6]


@pytest.mark.parametrize("held", ["notes.txt", "spec.json", "sub/a.png"])
def test_foreign_directory_is_refused_before_anything_is_loaded(tmp_path: Path, held: str) -> None:
    (tmp_path / held).parent.mkdir(exist_ok=True)
    (tmp_path / held).write_text("mine")
    with pytest.raises(UserError, match=r"exists and is not a training run\. Use a new --out"):
        run(tmp_path, data=f"{HERE}:never")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / held]


def test_file_as_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a training run"):
        run(tmp_path / "file", data=f"{HERE}:never")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {"name": "resnet9", "options": {"depth": 3}}}, "'resnet9' has no option 'depth'"),
        ({"network": "resnet8"}, "unknown network 'resnet8'"),
        ({"network": "unet", "objective": "denoising", "objective_options": {}, "denoiser": "edn"},
         "unknown denoiser adapter 'edn'"),
        ({"objective_options": {"label_smoothing": 1.0}}, r"label_smoothing must be .* below 1"),
        ({"objective_options": {"shift": -1}}, "shift"),
        ({"objective": "denoising", "objective_options": {"report_times": [1000]}},
         r"report_times must be .* below 1000"),
        ({"objective": "denoising", "objective_options": {"report_times": [-1]}}, "report_times"),
        ({"dropout": 0.1}, "the network has no dropout layer"),
        ({"network": None, "init": "runs/none.safetensors"}, "'runs/none.safetensors' is missing"),
    ],
)  # fmt: skip
def test_wrong_options_are_found_before_data_are_loaded(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path / "run", data=f"{HERE}:never", **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "optimiser",
    [{"lr": float("inf")}, {"lr": float("nan")}, {"betas": [0.9, 1.0]}, {"betas": [-0.1, 0.9]},
     {"grad_clip": float("inf")}, {"weight_decay": float("nan")}],
)  # fmt: skip
def test_optimiser_values_that_cannot_train_are_refused(optimiser: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"optimiser|infinite or nan"):
        spec(optimiser={**TINY["optimiser"], **optimiser})


def test_shift_across_the_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"shift 8 reaches across images of 8 x 8 pixels"):
        run(tmp_path / "run", objective_options={"shift": 8})
    assert not (tmp_path / "run").exists()


def test_batch_larger_than_the_data_leaves_no_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"batch_size 13 exceeds the 12 training examples"):
        run(tmp_path / "run", optimiser={"updates": 1, "batch_size": 13, "lr": 1e-3})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("part", "said"), [("data", "the training data"), ("test_data", "the test data")])
def test_other_data_behind_the_same_spec_are_refused(
    tmp_path: Path, part: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"data": "tests.parts:data", "test_data": "tests.parts:data", part: f"{HERE}:brighter"}
    run(tmp_path / "run", **named)
    monkeypatch.setenv(SHIFT, "0.01")
    with pytest.raises(UserError, match=f"was made with another spec: {said}. Use a new --out"):
        run(tmp_path / "run", **named)


def test_other_guide_behind_the_same_spec_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"perturbation": "addt", "guide": f"{HERE}:guide", "report_times": [100]}
    table = {
        "data": "tests.parts:data",
        "objective": "denoising",
        "objective_options": options,
        "network": {"name": f"{HERE}:TinyDenoiser"},
    }
    monkeypatch.setenv(SHIFT, "40")
    run(tmp_path / "run", **table)
    monkeypatch.setenv(SHIFT, "41")
    with pytest.raises(UserError, match="another spec: the weights that the guide names"):
        run(tmp_path / "run", **table)


def guide() -> nn.Module:
    return parts.ChannelMean(float(os.environ[SHIFT]))


def test_other_version_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "run")
    with pytest.raises(UserError, match=r"was made with dbpkit .* and this is 99\.0: the weights would come"):
        TrainingDirectory(tmp_path / "run").refuse_other(spec(), "99.0")


def test_edited_spec_in_train_json_is_found(tmp_path: Path) -> None:
    run(tmp_path / "run")
    path = tmp_path / "run" / "train.json"
    path.write_text(path.read_text().replace('"lr": 0.01', '"lr": 0.5'))
    with pytest.raises(UserError, match=r"train\.json' was changed or is damaged"):
        run(tmp_path / "run", data=f"{HERE}:never", optimiser={**TINY["optimiser"], "lr": 0.5})


def test_directory_of_an_earlier_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(json.dumps({"hash": "0", "spec": {}, "init_sha256": None}))
    with pytest.raises(UserError, match=r"has training layout 1; this dbpkit continues layout 2"):
        run(tmp_path, data=f"{HERE}:never")


def test_damaged_checkpoint_is_one_sentence_and_without_it_training_begins_again(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out)
    whole, path = contents(out), out / "checkpoint.safetensors"
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", content[:-4] + b"\0\0\0\1"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"checkpoint\.safetensors' is (damaged|not a readable)"):
            run(out)
    path.unlink()
    run(out)
    assert contents(out) == whole


def test_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "a")
    run(tmp_path / "b", seed=1)
    (tmp_path / "a" / "checkpoint.safetensors").write_bytes(
        (tmp_path / "b" / "checkpoint.safetensors").read_bytes()
    )
    with pytest.raises(UserError, match=r"belongs to another training run"):
        run(tmp_path / "a")


def test_checkpoint_of_other_weights_does_not_fit(tmp_path: Path) -> None:
    run(tmp_path / "run")
    directory = TrainingDirectory(tmp_path / "run")
    found = directory.checkpoint(spec())
    assert found is not None
    assert found.updates == 6
    for name, tensor in (
        ("optimiser.9.exp_avg", torch.zeros(1)),
        ("optimiser.0.exp_avg", torch.zeros(7)),
        ("model.linear.weight", torch.zeros(7)),
    ):
        directory.write_checkpoint(6, {**found.tensors, name: tensor})
        with pytest.raises(UserError, match="fit the network"):
            run(tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.safetensors"
    write_tensors(path, found.tensors, {"updates": "6"})  # as an earlier version wrote it
    with pytest.raises(UserError, match="is not a checkpoint of this dbpkit"):
        run(tmp_path / "run")


def test_second_writer_is_refused_and_told_who_holds_the_directory(tmp_path: Path) -> None:
    run(tmp_path / "run")
    with (
        writing(tmp_path / "run", "dbpkit train"),
        pytest.raises(UserError, match=rf"is being written by process {os.getpid()} .*dbpkit train"),
    ):
        run(tmp_path / "run")


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / "samples").mkdir(parents=True)
    for name in (".train.json.4194305.tmp", "samples/.0000002.png.4194305.tmp"):
        (out / name).write_bytes(b"torn")  # no process has a number above 2**22
    (out / "samples" / "x").touch()
    with pytest.raises(UserError, match="is not a training run"):
        run(out)
    (out / "samples" / "x").unlink()
    (out / "samples" / ".0000002.png.4194305.tmp").unlink()
    (out / "samples").rmdir()
    run(out)
    assert not list(out.rglob(".*"))
