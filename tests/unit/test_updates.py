"""What an update costs beside its arithmetic: nothing is read back, nothing is seeded, nothing is walked.

Each part is compared with the plain way: losses with `float(loss)`, batches with `Dataset.x`, the average
with a loop over the state, masks with a generator seeded at every update.
"""

import itertools
import traceback
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from dbpkit import Dataset, Execution, TrainingSpec, UserError, load_dataset, load_weights, train
from dbpkit.foundation.noise import permutation, seeded_generator
from dbpkit.foundation.spec import validate
from dbpkit.models.networks import networks
from dbpkit.models.weights import read_tensors
from dbpkit.training import fit, loop
from dbpkit.training.average import Average
from dbpkit.training.checkpoints import optimiser_state
from dbpkit.training.directory import TrainingDirectory
from dbpkit.training.feed import Feed
from dbpkit.training.losses import Losses
from dbpkit.training.masks import Masks
from dbpkit.training.objectives import Classification
from tests import parts
from tests.oracles import uniform

CPU = torch.device("cpu")
HERE = "tests.unit.test_updates"
READ = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select"}
"""Operations that wait for the device, because the host needs to know a value."""
DIGITS = {"data": {"name": "digits", "options": {"split": "train"}}, "test_data": "digits"}
SGD = {"updates": 12, "batch_size": 8, "lr": 1e-3, "method": "sgd"}
"""On a CPU, AdamW reads its step from a tensor; its fused form on a GPU does not."""
UNET = {"name": "unet", "options": {"channels": [8, 8], "blocks": [1, 1], "embedding_size": 8}}
RESNET = {"name": "resnet9", "options": {"channels": [4, 4, 4, 4], "mean": [0.3], "std": [0.4]}}
TRAININGS = {
    "classification": {"objective": "classification", "objective_options": {"shift": 1}, "network": RESNET},
    "adversarial": {
        "objective": "classification",
        "objective_options": {"shift": 1, "adversarial": {"name": "pgd", "options": {"steps": 2}}},
        "network": RESNET,
    },
    **{
        name: {"objective": "denoising", "objective_options": options, "network": UNET}
        for name, options in {
            "none": {},
            "ddpm": {"levels": "ddpm"},
            "vpsde": {"levels": "vpsde"},
            "addt": {"perturbation": "addt", "guide": f"{HERE}:Brightness"},
            "linf": {"perturbation": "linf", "guide": f"{HERE}:Brightness"},
            "mse": {"perturbation": "mse"},
            "norm-rescaled": {"perturbation": "norm-rescaled", "guide": f"{HERE}:Brightness"},
        }.items()
    },
}


class Brightness(nn.Module):
    """A guide for digits that is right on most: logits from the image by a fixed linear map."""

    def __init__(self) -> None:
        super().__init__()
        data = load_dataset("digits")
        x = data.x().flatten(1).double()
        target = functional.one_hot(data.labels, 10).double()
        self.weight = nn.Parameter(torch.linalg.lstsq(x, target, driver="gelsd").solution.float())

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 10) logits."""
        return 20 * x.flatten(1) @ self.weight


class Poisoned(Classification):
    """Its loss is nan at the update that ``BAD`` names, and from then on."""

    BAD = 5

    @cached_property
    def made(self) -> Iterator[int]:
        """Numbers the losses that were made."""
        return itertools.count()

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Returns the loss, spoiled from the bad update on."""
        return super().loss(model, batch) * (float("nan") if next(self.made) >= self.BAD else 1.0)


def spec(table: dict[str, Any], **changes: Any) -> TrainingSpec:
    return validate({**DIGITS, "optimiser": SGD, **table, **changes}, TrainingSpec, "test")


# ------------------------------------------------------------------------------------- nothing is read back


class Reads(TorchDispatchMode):
    """Counts operations whose result the host waits for, by the place that called them."""

    def __init__(self) -> None:
        super().__init__()
        self.update = 0
        self.found: list[tuple[int, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in READ:
            places = [f"{f.filename}:{f.lineno}" for f in traceback.extract_stack() if "dbpkit" in f.filename]
            on_a_cpu = any("foundation/drawing.py" in place for place in places)  # noise has tests of its own
            if not on_a_cpu:
                self.found.append((self.update, places[-1]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", list(TRAININGS))
def test_updates_read_nothing_back_between_two_checkpoints(name: str, tmp_path: Path) -> None:
    reads = Reads()

    def progress(done: int, *_: object) -> None:
        reads.update = done
        if done == 2:
            reads.__enter__()
        if done == 12:  # what a finished model is measured with may read what it likes
            reads.__exit__(None, None, None)

    train(spec(TRAININGS[name], checkpoint_updates=11), tmp_path / "run", progress, Execution("cpu"))
    assert [place for update, place in reads.found if update <= 10] == []
    assert {update for update, _ in reads.found} == {11}  # the checkpoint after update 11 is seen


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", list(TRAININGS))
def test_updates_on_a_gpu_do_not_wait_between_two_checkpoints(name: str, tmp_path: Path) -> None:
    def progress(done: int, *_: object) -> None:
        torch.cuda.set_sync_debug_mode("error" if 2 <= done <= 9 else "default")

    try:
        table = {"checkpoint_updates": 12, "optimiser": {**SGD, "method": "adamw"}}
        train(spec(TRAININGS[name], **table), tmp_path / "run", progress, Execution("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ----------------------------------------------------------------------------------------- losses, read late


@pytest.mark.parametrize("lag", [0, 3])
def test_losses_come_in_the_order_of_their_updates_each_once(lag: int) -> None:
    losses = Losses(CPU, Path("run"), lag)
    values = [0.1 * k for k in range(6)]
    for update, value in enumerate(values):
        losses.add(update, torch.tensor(value))
        known = update - lag
        assert losses.latest == pytest.approx(values[known]) if known >= 0 else losses.latest != losses.latest
    assert losses.settle() == [float(torch.tensor(value)) for value in values]
    assert losses.settle() == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_is_an_error_that_names_the_first_update(bad: float) -> None:
    losses = Losses(CPU, Path("run"), lag=4)
    for update in range(7):
        losses.add(update, torch.tensor(bad if update >= 3 else 1.0))
    with pytest.raises(UserError, match=r"the training loss is (nan|inf) at update 3\. .*'run' is intact"):
        losses.add(7, torch.tensor(bad))


def test_condition_that_does_not_hold_is_said_before_the_loss_of_its_update() -> None:
    losses = Losses(CPU, Path("run"), lag=1)
    losses.expect(torch.tensor(True), "first")
    losses.add(0, torch.tensor(1.0))
    losses.expect(torch.tensor(True), "second")
    losses.expect(torch.tensor(False), "third.")
    losses.add(1, torch.tensor(float("nan")))
    with pytest.raises(UserError, match=r"^third\.$"):
        losses.settle()


@pytest.mark.parametrize("lag", [0, 4])
def test_nan_between_two_checkpoints_never_reaches_one(
    lag: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "Losses", lambda device, path: Losses(device, path, lag))
    table = {**TRAININGS["classification"], "objective": f"{HERE}:Poisoned", "checkpoint_updates": 4}
    with pytest.raises(UserError, match=r"the training loss is nan at update 5\."):
        train(spec(table), tmp_path / "run", execution=Execution("cpu"))
    held = TrainingDirectory(tmp_path / "run")
    found = held.checkpoint(spec(table))
    assert found is not None
    assert found.updates == 4
    assert all(bool(t.isfinite().all()) for t in found.tensors.values())
    assert [line.updates for line in held.curve()] == [4]


# --------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (0, 2), (1, 2)])
def test_feed_gives_the_examples_of_the_epochs_order(rank: int, world: int) -> None:
    data = load_dataset("digits")
    feed = Feed(data, CPU, seed=3, batch_size=500, rank=rank, world=world)
    per_epoch = len(data) // 500
    seen = list(feed.batches(1, 2 * per_epoch))
    assert [update for update, _ in seen] == list(range(1, 2 * per_epoch))
    for update, batch in seen:
        epoch, place = divmod(update, per_epoch)
        index = permutation(3, len(data), epoch)[500 * place : 500 * (place + 1)][rank::world]
        assert torch.equal(batch.x, data.x(index))
        assert torch.equal(batch.y, data.labels[index])
        assert torch.equal(batch.noise.example_ids, data.ids[index])
        assert batch.noise.draw.tolist() == [epoch] * len(index)


def test_feed_pixels_are_those_of_the_data_set_for_every_byte() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    data = Dataset("bytes", images, torch.zeros(1, dtype=torch.int64), torch.tensor([7]), ("a",))
    ((_, batch),) = Feed(data, CPU, seed=0, batch_size=1).batches(0, 1)
    assert torch.equal(batch.x, data.x())


def test_feed_takes_images_of_real_numbers_as_they_are() -> None:
    data = parts.data()
    ((_, batch),) = Feed(data, CPU, seed=0, batch_size=len(data)).batches(0, 1)
    assert torch.equal(batch.x.sum(dim=(1, 2, 3)).sort().values, data.x().sum(dim=(1, 2, 3)).sort().values)


# -------------------------------------------------------------------------------------------------- average


def test_average_is_that_of_a_loop_over_the_state_bit_by_bit() -> None:
    with seeded_generator(0):
        model, average, plain = (networks.get("resnet9")(channels=[4, 4, 4, 4]) for _ in range(3))
    plain.load_state_dict(average.state_dict())
    averaging = Average(average, model)
    for k in range(3):
        for step, tensor in enumerate(model.state_dict().values()):
            if tensor.is_floating_point():
                tensor.copy_(uniform(*tensor.shape, seed=100 * k + step) if tensor.ndim else tensor)
            else:
                tensor.fill_(k + 1)
        averaging.update(0.3)
        for old, new in zip(plain.state_dict().values(), model.state_dict().values(), strict=True):
            old.lerp_(new, 0.3) if old.is_floating_point() else old.copy_(new)
    found, expected = average.state_dict(), plain.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not any(torch.equal(found[n], t) for n, t in model.state_dict().items() if t.is_floating_point())


# ---------------------------------------------------------------------------------------------------- masks


class Drops(nn.Module):
    """Draws by a function, which no layer shows."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Returns x with a share of its values dropped."""
        return functional.dropout(x, self.share, self.training)


def outputs(model: nn.Module, around: Callable[[int], Any]) -> Iterator[Tensor]:
    for update in (0, 1, 2, 7):
        with around(update):
            yield model(torch.ones(64))


@pytest.mark.parametrize("model", [nn.Dropout(0.5), Drops(0.5), nn.Sequential(nn.Linear(64, 64), nn.RReLU())])
def test_masks_are_those_of_a_generator_seeded_at_every_update(model: nn.Module) -> None:
    masks = Masks(model, seed=5, rank=2, device=CPU)
    found = list(outputs(model, masks.of))
    expected = list(outputs(model, lambda update: seeded_generator(5 << 32 | update << 8 | 2)))
    assert masks.drawn
    assert all(map(torch.equal, found, expected))
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("model", [nn.Linear(64, 64), nn.Dropout(0.0), Drops(0.0).eval()])
def test_masks_network_that_draws_nothing_is_seeded_at_no_later_update(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = Masks(model, seed=5, rank=0, device=CPU)
    before = torch.get_rng_state()
    list(outputs(model, masks.of))
    assert masks.drawn is False
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr("dbpkit.training.masks.seeded_generator", None)  # a call of it would fail
    list(outputs(model, masks.of))


# ------------------------------------------------------------------------------------- compiled networks


class OneConvolution(nn.Module):
    """The smallest network of a denoiser, with a mode that the search of ADDT turns off."""

    def __init__(self, image_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(image_channels, image_channels, 3, padding=1)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        """Returns (B, C, H, W)."""
        return self.drop(self.conv(x)) + 0.1 * noise_label[:, None, None, None]


@pytest.mark.parametrize("name", ["ddpm", "addt"])
def test_compiled_updates_train_to_the_same_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs are those of the compiler, without its kernels; pictures and figures are not compiled."""
    real, calls = torch.compile, []

    def traced(function: Callable[..., Any], **_: object) -> Callable[..., Any]:
        compiled = real(function, backend="aot_eager")
        return lambda *args: calls.append(len(args[0])) or compiled(*args)

    monkeypatch.setattr(torch, "compile", traced)
    table = spec(TRAININGS[name], network=f"{HERE}:OneConvolution")
    runs = [
        train(table, tmp_path / str(wanted), execution=Execution("cpu", compile=wanted))
        for wanted in (False, True)
    ]
    assert calls == [8] * (12 if name == "ddpm" else 72)  # of the update, and five more of the search
    a, b = (read_tensors(run.weights)[0] for run in runs)
    for key, value in a.items():
        torch.testing.assert_close(b[key], value, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------- a GPU's layout


class StoppedError(Exception):
    """What stops a run in a test."""


@pytest.mark.parametrize("name", ["classification", "addt"])
def test_layout_and_steps_of_a_gpu_train_to_the_same_weights_and_resume_to_the_same_bytes(
    name: str, tmp_path: Path
) -> None:
    """On a CPU, where both can be had; float32 sums in another order."""

    def stop(done: int, *_: object) -> None:
        if done == 5:
            raise StoppedError

    table = spec(TRAININGS[name], checkpoint_updates=3, optimiser={**SGD, "method": "adamw", "updates": 8})
    plain = train(table, tmp_path / "plain", execution=Execution("cpu"))
    fit.TUNED.add("cpu")
    try:
        tuned = train(table, tmp_path / "tuned", execution=Execution("cpu"))
        with pytest.raises(StoppedError):
            train(table, tmp_path / "resumed", stop, Execution("cpu"))
        resumed = train(table, tmp_path / "resumed", execution=Execution("cpu"))
    finally:
        fit.TUNED.discard("cpu")
    assert tuned.sha256 == resumed.sha256
    (a, _), (b, _) = (load_weights(run.weights) for run in (plain, tuned))
    for name, value in a.state_dict().items():
        torch.testing.assert_close(b.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    assert tuned.sha256 != plain.sha256, "another way of computing was taken"


def test_optimiser_state_takes_the_memory_layout_of_its_parameter() -> None:
    parameter = nn.Parameter(torch.zeros(4, 3, 2, 2).contiguous(memory_format=torch.channels_last))
    moment = uniform(4, 3, 2, 2, seed=1)
    tensors = {"0.step": torch.tensor(3.0), "0.exp_avg": moment, "0.exp_avg_sq": moment**2}
    state = optimiser_state(tensors, [parameter], "adamw", "checkpoint")[0]
    assert state["exp_avg"].stride() == state["exp_avg_sq"].stride() == parameter.stride()
    assert torch.equal(state["exp_avg"], moment)
    assert float(state["step"]) == 3.0
