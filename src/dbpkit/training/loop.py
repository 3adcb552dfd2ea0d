"""The training loop: updates, averaged weights, and what is written after every so many of them.

It runs on `accelerate`: one process or several, on CPU or GPU. Order, augmentation and noise are functions of
the update and the example alone, so the number of processes changes nothing but rounding. The thing people
get wrong: between two checkpoints the host must not read a number from a GPU, nor copy one to it, because the
GPU stands still meanwhile.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from dbpkit.experiment.execution import Execution, kernels
from dbpkit.foundation.compiled import compiling
from dbpkit.foundation.errors import check_kind, check_progress
from dbpkit.foundation.files import write_atomically
from dbpkit.foundation.locking import writing
from dbpkit.foundation.png import eight_bits, png_bytes
from dbpkit.foundation.precision import Precision
from dbpkit.models.weights import fill, rounded, save_weights
from dbpkit.training.average import Average
from dbpkit.training.average import ema_weight as ema_weight
from dbpkit.training.card import figures_in_words, model_card
from dbpkit.training.checkpoints import checkpoint, restore
from dbpkit.training.directory import TrainingDirectory
from dbpkit.training.feed import Feed
from dbpkit.training.losses import Losses
from dbpkit.training.masks import Masks
from dbpkit.training.run import Run, accelerator_for, current_gpu, placed, prepared, version
from dbpkit.training.spec import OptimiserSpec, TrainingSpec
from dbpkit.training.stored import Line, require_finite_figures

Progress = Callable[[int, int, float], None]
"""Called with updates done, updates in all, and the latest loss that is known: on a GPU that of a few updates
before, and nan at first."""

_SAMPLED = 10
"""How many times in a run sample images are written."""


class Trained(NamedTuple):
    """A finished training run: where its weights are, their sha256, and the figures of the model card."""

    weights: Path
    sha256: str
    figures: dict

    @property
    def words(self) -> str:
        """The figures in sentences, a line each."""
        return "\n".join(figures_in_words(self.figures))


def train(
    spec: TrainingSpec,
    out: str | Path,
    progress: Progress = lambda *_: None,
    execution: Execution | None = None,
    *,
    tensorboard: bool = False,
) -> Trained:
    """Trains a network, or goes on with the run in ``out``.

    Under ``accelerate launch`` every process takes its share of each batch.

    Args:
        spec: what to train.
        out: run directory; a checkpoint in it is continued if its spec is the same.
        progress: called after every update.
        execution: on what; None takes a GPU if there is one. Its rank and world are those of the launcher;
            ``compile`` is for denoisers, whose updates have one shape.
        tensorboard: whether the learning curve also goes to ``tensorboard/`` in the run directory.

    Returns:
        The averaged weights' file and the figures on the test data.

    Raises:
        UserError: if ``out`` holds a run of another spec, the parts do not fit, or the loss is not finite.
    """
    check_kind(spec, TrainingSpec, "train: spec", "Make one with read_spec(path, TrainingSpec).")
    check_progress(progress, "train")
    execution = execution or Execution("auto")
    check_kind(execution, Execution, "train: execution", 'Make one with Execution("cuda").')
    directory = TrainingDirectory(out)
    directory.refuse_other(spec, version())
    precision: Precision | None = "tf32" if spec.optimiser.precision == "tf32" else None
    with kernels(execution.deterministic, precision), current_gpu(execution.device):
        accelerator = accelerator_for(spec, directory.path, execution, tensorboard)
        with writing(out, "dbpkit train") if accelerator.is_main_process else contextlib.nullcontext():
            run = prepared(spec, directory, accelerator, placed(execution, accelerator))
            if tensorboard:
                accelerator.init_trackers("tensorboard")
            done = restore(run)
            with compiling(execution.compile):
                _updates(run, done, progress)
            if accelerator.is_main_process:
                _finish(run)
            accelerator.wait_for_everyone()
            accelerator.end_training()
    figures = directory.figures()
    return Trained(directory.path / "weights.safetensors", figures["sha256"], figures)


def learning_rate(update: int, spec: OptimiserSpec) -> float:
    """Learning rate of update 0, 1, ...: linear rise, then constant or half a cosine down to 0."""
    rise = spec.warmup * spec.updates
    if update < rise:
        return spec.lr * (update + 1) / (rise + 1)
    if spec.schedule == "constant":
        return spec.lr
    return spec.lr * 0.5 * (1 + math.cos(math.pi * (update - rise) / max(spec.updates - rise, 1)))


def _updates(run: Run, done: int, progress: Progress) -> None:
    """Makes the remaining updates."""
    spec, accelerator, rank = run.spec, run.accelerator, run.execution.rank
    size, world, device = spec.optimiser.batch_size, run.execution.world, accelerator.device
    run.model.train()
    started = time.monotonic()
    losses = Losses(device, run.directory.path)
    feed = Feed(run.data, device, spec.seed, size, rank, world)
    average, masks = Average(run.average, run.bare), Masks(run.bare, spec.seed, rank, device)
    for update, batch in feed.batches(done, spec.optimiser.updates, losses.expect):
        for group in run.optimiser.param_groups:
            group["lr"] = learning_rate(update, spec.optimiser)
        with accelerator.autocast(), masks.of(update):
            loss = run.objective.loss(run.model, batch)
        losses.add(update, accelerator.reduce(loss.detach(), "mean"))
        run.optimiser.zero_grad()
        accelerator.backward(loss)
        if spec.optimiser.grad_clip:
            accelerator.clip_grad_norm_(run.model.parameters(), spec.optimiser.grad_clip)
        run.optimiser.step()
        average.update(ema_weight(update, spec.optimiser.ema_decay))
        progress(update + 1, spec.optimiser.updates, losses.latest)
        if (update + 1) % spec.checkpoint_updates == 0 or update + 1 == spec.optimiser.updates:
            _record(run, update + 1, losses.settle(), time.monotonic() - started)
            started = time.monotonic()


def _record(run: Run, done: int, losses: list[float], seconds: float) -> None:
    """Writes learning curve, sample images and checkpoint."""
    loss, rate = sum(losses) / len(losses), learning_rate(done - 1, run.spec.optimiser)
    run.accelerator.log({"loss": loss, "learning_rate": rate}, step=done)
    if run.accelerator.is_main_process:
        speed = len(losses) * run.spec.optimiser.batch_size / seconds
        run.directory.append_curve(
            Line(
                updates=done,
                loss=loss,
                lr=rate,
                seconds=round(seconds, 1),
                images_per_second=round(speed, 1),
            )
        )
        if done * _SAMPLED // run.spec.optimiser.updates > (done - len(losses)) * _SAMPLED // (
            run.spec.optimiser.updates
        ):
            _sample(run, done)
        checkpoint(run, done)
    run.accelerator.wait_for_everyone()


def _sample(run: Run, done: int) -> None:
    """Writes the objective's sample picture of the averaged network, if it has one."""
    with torch.no_grad(), compiling(False):
        picture = run.objective.picture(run.average.eval(), run.test, run.spec.seed)
    if picture is None:
        return
    png = png_bytes(eight_bits(picture.cpu()), smallest=False)
    write_atomically(run.directory.path / "samples" / f"{done:07d}.png", png)


@torch.no_grad()
def _finish(run: Run) -> None:
    """Stores the averaged weights as they will be read, and evaluates exactly those."""
    spec, model, out = run.spec, run.average.eval(), run.directory.path
    dtype = getattr(torch, spec.store)
    fill(model, rounded(model.state_dict(), dtype), "to store")
    figures = run.objective.evaluate(model, run.test, spec.seed)
    require_finite_figures(figures, "No weights were written; train with a lower optimiser.lr.")
    sha256 = save_weights(out / "weights.safetensors", model, run.architecture, dtype)
    trains = run.directory.trains()
    figures |= {
        "init_sha256": trains.hashes.init if trains else None,
        "sha256": sha256,
        "test_data_sha256": run.test.sha256,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    write_atomically(out / "figures.json", json.dumps(figures, indent=1).encode())
    write_atomically(out / "card.md", model_card(spec, figures, run.data.sha256).encode())
