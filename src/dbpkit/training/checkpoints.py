"""Checkpoints: the state between two updates as tensors by name, and back."""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dbpkit.foundation.errors import UserError
from dbpkit.models.weights import fill
from dbpkit.training.run import Run
from dbpkit.training.stored import AFRESH

log = logging.getLogger(__name__)

STATES = {"adamw": {"step", "exp_avg", "exp_avg_sq"}, "sgd": {"momentum_buffer"}}
"""What an optimiser keeps for each parameter, by method."""


def checkpoint(run: Run, done: int) -> None:
    """Replaces the checkpoint by the state after ``done`` updates; UserError if it is not finite."""
    tensors: dict[str, Tensor] = {f"model.{n}": t for n, t in run.bare.state_dict().items()}
    tensors |= {f"average.{n}": t for n, t in run.average.state_dict().items()}
    for index, state in run.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{n}": torch.as_tensor(t) for n, t in state.items() if t is not None}
    # One storage each: safetensors refuses views, and channels-last tensors must become contiguous.
    tensors = {n: t.detach().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
    run.directory.write_checkpoint(done, tensors)


def restore(run: Run) -> int:
    """Fills everything from the checkpoint, if there is one; returns the updates it has made.

    Raises:
        UserError: if the checkpoint is damaged, of another run, or does not fit.
    """
    found = run.directory.checkpoint(run.spec)
    done = found.updates if found else 0
    if found:
        where = f"checkpoint of {run.directory.path}"
        fill(run.bare, found.part("model"), where)
        fill(run.average, found.part("average"), where)
        parameters = [p for group in run.optimiser.param_groups for p in group["params"]]
        state = optimiser_state(found.part("optimiser"), parameters, run.spec.optimiser.method, where)
        groups = run.optimiser.state_dict()["param_groups"]
        run.optimiser.load_state_dict({"state": state, "param_groups": groups})
        log.info("resumed %s at update %s", run.directory.path, done)
    if run.accelerator.is_main_process:
        run.directory.cut_curve(done)
    return done


def optimiser_state(
    tensors: Mapping[str, Tensor], parameters: Sequence[Tensor], method: str, where: str
) -> dict[int, dict[str, Tensor]]:
    """Returns an optimiser's state by number of the parameter, from tensors named ``NUMBER.NAME``.

    Raises:
        UserError: if it is not the whole state of a method for these parameters.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        place = int(number) if number.isascii() and number.isdigit() and len(number) < 10 else len(parameters)
        shape = () if name == "step" else parameters[place].shape if place < len(parameters) else None
        if name not in STATES[method] or tensor.shape != shape or not tensor.is_floating_point():
            raise UserError(f"'optimiser.{key}' in the {where} does not fit the network. {AFRESH}")
        state.setdefault(place, {})[name] = _laid_out(tensor, parameters[place])
    for place, own in state.items():
        if missing := STATES[method] - own.keys():
            raise UserError(
                f"'optimiser.{place}.{min(missing)}' is missing, so the {where} does not fit. {AFRESH}"
            )
    return state


def _laid_out(tensor: Tensor, parameter: Tensor) -> Tensor:
    """The tensor in the memory layout of its parameter, which a fused optimiser asks for."""
    if tensor.shape != parameter.shape or tensor.stride() == parameter.stride():
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
