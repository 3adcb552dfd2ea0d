"""A training run before its first update: its parts checked, loaded, and placed on devices and processes."""

import contextlib
import importlib.util
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from dbpkit.data import Dataset, load_dataset
from dbpkit.experiment.execution import Execution
from dbpkit.foundation.errors import UserError
from dbpkit.models.sources import state_sha256
from dbpkit.models.weights import Architecture, fill
from dbpkit.training.directory import TrainingDirectory
from dbpkit.training.fit import TUNED, laid_out
from dbpkit.training.objectives import Objective, make_objective
from dbpkit.training.spec import OptimiserSpec, TrainingSpec
from dbpkit.training.start import from_random, initial
from dbpkit.training.stored import Hashes


class Run(NamedTuple):
    """Everything a running training holds."""

    spec: TrainingSpec
    execution: Execution
    directory: TrainingDirectory
    objective: Objective
    data: Dataset
    test: Dataset
    architecture: Architecture
    accelerator: Accelerator
    model: nn.Module
    average: nn.Module
    optimiser: Any

    @property
    def bare(self) -> nn.Module:
        """The network without the wrapper of a run on several processes."""
        return self.accelerator.unwrap_model(self.model)


def prepared(
    spec: TrainingSpec, directory: TrainingDirectory, accelerator: Accelerator, execution: Execution
) -> Run:
    """Checks and loads every part of a run, what costs least first, and claims its directory."""
    objective = make_objective(spec.objective, spec.objective_options)
    loaded = initial(spec, objective)
    data = load_dataset(spec.data.name, spec.data.options)
    test = load_dataset(spec.test_data.name, spec.test_data.options)
    if spec.optimiser.batch_size > len(data):
        raise UserError(
            f"batch_size {spec.optimiser.batch_size} exceeds the {len(data)} training examples. Use a"
            " smaller one."
        )
    architecture, model = loaded or from_random(spec, objective, data)
    model = laid_out(model, accelerator.device)
    objective.check(model, data, trained=spec.init is not None)
    average = laid_out(architecture.build().requires_grad_(False), accelerator.device)
    fill(average, model.state_dict(), "to start from")
    hashes = Hashes(
        data=data.sha256,
        test_data=test.sha256,
        init=state_sha256(model) if spec.init else None,
        **getattr(objective, "hashes", dict)(),
    )
    with accelerator.main_process_first():
        directory.claim(spec, version(), hashes)
    wrapped, optimiser = accelerator.prepare(model, make_optimiser(model, spec.optimiser))
    return Run(
        spec,
        execution,
        directory,
        objective,
        data,
        test,
        architecture,
        accelerator,
        wrapped,
        average,
        optimiser,
    )


def accelerator_for(spec: TrainingSpec, out: Path, execution: Execution, tensorboard: bool) -> Accelerator:
    """Finds the devices and processes of a run.

    Raises:
        UserError: if the processes cannot share a batch, or TensorBoard is missing.
    """
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("writing for TensorBoard needs a library that is missing: pip install tensorboard.")
    AcceleratorState._reset_state()  # accelerate keeps the precision of the process's first run for good
    accelerator = Accelerator(
        cpu=execution.device.type == "cpu",
        mixed_precision="bf16" if spec.optimiser.precision == "bfloat16" else "no",
        log_with="tensorboard" if tensorboard else None,
        project_dir=str(out),
    )
    if spec.optimiser.batch_size % accelerator.num_processes:
        raise UserError(
            f"batch_size {spec.optimiser.batch_size} cannot be shared by {accelerator.num_processes}"
            " processes. Use a multiple."
        )
    return accelerator


def placed(execution: Execution, accelerator: Accelerator) -> Execution:
    """Returns the execution with the place among its launcher's processes that accelerate has found."""
    rank, world = accelerator.process_index, accelerator.num_processes
    if world > 1 and execution.device.index is not None:
        raise UserError(
            f"device '{execution.device}' is one GPU, and {world} processes would share it. Use cuda: each"
            " process then takes its own."
        )
    return replace(execution, rank=rank, world=world)


def current_gpu(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Inside the block, a GPU that is given by its number is the one that accelerate takes."""
    return contextlib.nullcontext() if device.index is None else torch.cuda.device(device)


def version() -> str:
    """Returns the version of this program, which a run must be continued with."""
    try:
        return metadata.version("dbpkit")
    except metadata.PackageNotFoundError:
        return "not installed"


def make_optimiser(model: nn.Module, spec: OptimiserSpec) -> torch.optim.Optimizer:
    """Returns the optimiser of a spec; on a GPU one kernel makes the whole step."""
    fused = True if next(model.parameters()).device.type in TUNED else None
    if spec.method == "sgd":
        return torch.optim.SGD(
            model.parameters(),
            lr=spec.lr,
            momentum=0.9,
            nesterov=True,
            weight_decay=spec.weight_decay,
            fused=fused,
        )
    return torch.optim.AdamW(
        model.parameters(), lr=spec.lr, betas=spec.betas, weight_decay=spec.weight_decay, fused=fused
    )
