"""The training loop: updates, averaged weights, checkpoints that resume to the same trajectory.

A checkpoint holds weights, averaged weights, optimiser state and the number of updates; order,
augmentation and noise are functions of that number. The thing people get wrong: averaged weights need
averaged batch-norm statistics too, so the average covers buffers.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dbpkit.data import Dataset, load_dataset
from dbpkit.errors import UserError
from dbpkit.noise import NoisePlan, permutation, seeded_initialisation
from dbpkit.spec import differences, spec_hash
from dbpkit.training.card import model_card
from dbpkit.training.objectives import Batch, Objective, make_objective
from dbpkit.training.spec import OptimiserSpec, TrainingSpec
from dbpkit.weights import (
    Architecture,
    fill,
    read_tensors,
    save_weights,
    write_atomically,
    write_tensors,
)

log = logging.getLogger(__name__)

Progress = Callable[[int, int, float], None]
"""Called with updates done, updates in all, and the latest loss."""


class Trained(NamedTuple):
    """A finished training run: where its weights are, their sha256, and the figures of the model card."""

    weights: Path
    sha256: str
    figures: dict


def train(spec: TrainingSpec, out: str | Path, progress: Progress = lambda *_: None) -> Trained:
    """Trains a network, or goes on with the run in ``out``.

    Args:
        spec: what to train.
        out: run directory; a checkpoint in it is continued if its spec is the same.
        progress: called after every update.

    Returns:
        The averaged weights' file and the figures on the test data.

    Raises:
        UserError: if ``out`` holds a run of another spec, the parts do not fit, or the loss is not finite.
    """
    out = Path(out)
    _claim(out, spec)
    objective = make_objective(spec.objective, spec.objective_options)
    data = load_dataset(spec.data.name, spec.data.options)
    architecture = _architecture(spec, objective, data)
    with seeded_initialisation(spec.seed):
        model = architecture.build()
        average = architecture.build()
    average.load_state_dict(model.state_dict())
    average.requires_grad_(False)
    optimiser = _optimiser(model, spec.optimiser)
    done = _restore(out, model, average, optimiser)
    _run(spec, objective, data, model, average, optimiser, done, out, progress)
    return _finish(spec, objective, average.eval(), architecture, data.sha256, out)


def learning_rate(update: int, spec: OptimiserSpec) -> float:
    """Learning rate of update 0, 1, ...: linear rise, then half a cosine down to 0."""
    rise = spec.warmup * spec.updates
    if update < rise:
        return spec.lr * (update + 1) / (rise + 1)
    return spec.lr * 0.5 * (1 + math.cos(math.pi * (update - rise) / max(spec.updates - rise, 1)))


def ema_weight(update: int, decay: float) -> float:
    """Weight of the newest state in the average after update 0, 1, ...

    Source:
        Inverse-gamma warm-up with power 3/4, capped at ``decay``, as in diffusers' EMAModel.
    """
    return 1 - min(decay, 1 - (1 + update) ** -0.75)


def _run(
    spec: TrainingSpec,
    objective: Objective,
    data: Dataset,
    model: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
    done: int,
    out: Path,
    progress: Progress,
) -> None:
    """Makes the remaining updates."""
    model.train()
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=spec.optimiser.precision == "bfloat16")
    started = time.monotonic()
    losses: list[float] = []
    for update, batch in _batches(data, spec, done):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(update, spec.optimiser)
        with autocast:
            loss = objective.loss(model, batch)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise UserError(
                f"the training loss is {losses[-1]} at update {update}. Lower optimiser.lr or set"
                f" grad_clip; the last checkpoint in '{out}' is intact."
            )
        optimiser.zero_grad()
        loss.backward()
        if spec.optimiser.grad_clip:
            nn.utils.clip_grad_norm_(model.parameters(), spec.optimiser.grad_clip)
        optimiser.step()
        _average(average, model, ema_weight(update, spec.optimiser.ema_decay))
        progress(update + 1, spec.optimiser.updates, losses[-1])
        if (update + 1) % spec.checkpoint_updates == 0 or update + 1 == spec.optimiser.updates:
            _checkpoint(out, model, average, optimiser, update + 1)
            _log_losses(out, update + 1, losses, time.monotonic() - started)
            losses, started = [], time.monotonic()


def _batches(data: Dataset, spec: TrainingSpec, done: int) -> Iterator[tuple[int, Batch]]:
    """Numbered batches from update ``done`` on; a function of the spec alone."""
    size = spec.optimiser.batch_size
    per_epoch = len(data) // size
    if per_epoch == 0:
        raise UserError(f"batch_size {size} exceeds the {len(data)} training examples. Use a smaller one.")
    epoch, order = -1, torch.empty(0, dtype=torch.int64)
    for update in range(done, spec.optimiser.updates):
        if update // per_epoch != epoch:
            epoch = update // per_epoch
            order = permutation(spec.seed, len(data), epoch)
        index = order[(update % per_epoch) * size :][:size]
        noise = NoisePlan.of(spec.seed, data.ids[index], "train", draw=epoch)
        yield update, Batch(data.x(index), data.labels[index], noise)


def _optimiser(model: nn.Module, spec: OptimiserSpec) -> torch.optim.Optimizer:
    if spec.method == "sgd":
        return torch.optim.SGD(
            model.parameters(),
            lr=spec.lr,
            momentum=0.9,
            nesterov=True,
            weight_decay=spec.weight_decay,
        )
    return torch.optim.AdamW(
        model.parameters(), lr=spec.lr, betas=(0.9, 0.99), weight_decay=spec.weight_decay
    )


@torch.no_grad()
def _average(average: nn.Module, model: nn.Module, weight: float) -> None:
    """Moves the averaged state towards the newest one."""
    for old, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        old.lerp_(new, weight) if old.is_floating_point() else old.copy_(new)


def _architecture(spec: TrainingSpec, objective: Objective, data: Dataset) -> Architecture:
    """The weights file's description of the network, fitted to the data."""
    options = dict(spec.network.options)
    options.setdefault("image_channels", data.shape[0])
    class_names: tuple[str, ...] = ()
    if objective.kind == "classifier":
        options.setdefault("classes", len(data.class_names))
        class_names = data.class_names
        if options["classes"] != len(class_names):
            raise UserError(
                f"network.options.classes is {options['classes']}, but '{data.name}' has"
                f" {len(class_names)} classes."
            )
    if options["image_channels"] != data.shape[0]:
        raise UserError(
            f"network.options.image_channels is {options['image_channels']}, but '{data.name}' has"
            f" {data.shape[0]}."
        )
    return Architecture(
        objective.kind,
        spec.network.name,
        options,
        spec.denoiser,
        dict(spec.denoiser_options),
        data.shape,
        class_names,
    )


def _claim(out: Path, spec: TrainingSpec) -> None:
    """Writes the spec into a new run directory, or checks that an old one has the same."""
    path = out / "train.json"
    if path.is_file():
        old = json.loads(path.read_text())
        if old["hash"] != spec_hash(spec):
            changed = ", ".join(differences(old["spec"], spec.model_dump(mode="json")))
            raise UserError(
                f"{out} was made with another spec: {changed}. Use a new --out or delete the directory."
            )
        return
    content = {"hash": spec_hash(spec), "spec": spec.model_dump(mode="json")}
    write_atomically(path, json.dumps(content, indent=1).encode())


def _checkpoint(
    out: Path, model: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, done: int
) -> None:
    """Replaces the checkpoint by the present state, in one atomic step."""
    tensors: dict[str, Tensor] = {f"model.{n}": t for n, t in model.state_dict().items()}
    tensors |= {f"average.{n}": t for n, t in average.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{n}": torch.as_tensor(t) for n, t in state.items() if t is not None}
    # One storage each: safetensors refuses views, and channels-last tensors must become contiguous.
    tensors = {n: t.detach().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
    write_tensors(out / "checkpoint.safetensors", tensors, {"updates": str(done)})


def _restore(out: Path, model: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Fills everything from the checkpoint, if there is one; returns the updates it has made."""
    path = out / "checkpoint.safetensors"
    if not path.is_file():
        return 0
    tensors, metadata = read_tensors(path)
    for name, module in (("model", model), ("average", average)):
        fill(
            module,
            {k.removeprefix(f"{name}."): t for k, t in tensors.items() if k.startswith(f"{name}.")},
            str(path),
        )
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimiser."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    log.info("resumed %s at update %s", out, metadata["updates"])
    return int(metadata["updates"])


def _log_losses(out: Path, done: int, losses: list[float], seconds: float) -> None:
    """Appends the mean loss since the last line."""
    line = {"updates": done, "loss": sum(losses) / len(losses), "seconds": round(seconds, 1)}
    with (out / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


@torch.no_grad()
def _finish(
    spec: TrainingSpec,
    objective: Objective,
    model: nn.Module,
    architecture: Architecture,
    data_sha256: str,
    out: Path,
) -> Trained:
    """Stores the averaged weights as they will be read, and evaluates exactly those."""
    weights = out / "weights.safetensors"
    sha256 = save_weights(weights, model, architecture, getattr(torch, spec.store))
    stored, _ = read_tensors(weights)
    fill(model, stored, str(weights))
    test = load_dataset(spec.test_data.name, spec.test_data.options)
    figures = objective.evaluate(model, test, spec.seed)
    figures |= {
        "sha256": sha256,
        "test_data_sha256": test.sha256,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    write_atomically(out / "figures.json", json.dumps(figures, indent=1).encode())
    write_atomically(out / "card.md", model_card(spec, figures, data_sha256).encode())
    return Trained(weights, sha256, figures)
