"""What "auto" becomes: rows at a time, memory for graphs and batch size, from this machine and this model.

What a row needs is measured, by running the first step of a purification with its graph and looking at what
autograd saved. The thing people get wrong: a formula of the parameters. A U-Net of 36 M keeps 43 MiB for one
step of one 32 x 32 image, a third of its weights; another of as many keeps ten times that.

Neither rows nor memory change a result beyond rounding, and memory does not change it at all.
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dbpkit.experiment.build import Parts
from dbpkit.experiment.execution import AUTO, DEFAULT_ROWS, Execution
from dbpkit.foundation.frozen import own_device
from dbpkit.foundation.memory import free_memory
from dbpkit.foundation.noise import NoisePlan, seeded_generator
from dbpkit.foundation.types import State
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.replay import DEFAULT_MEMORY

CPU_GRAPH = 512 * 2**20
"""Bytes of one step's graph above which fewer rows are faster on a CPU: it no longer meets its caches."""

MOST_ROWS = 1024
"""On a GPU: where the embedded network, the smallest in use, has left the launches of kernels behind."""

MOST_EXAMPLES = 256
"""Examples attacked together on a GPU, so that not too much is lost when a run is killed."""

SHARE = {"cpu": 0.4, "cuda": 0.8}
"""Of the free memory, how much is planned with; the rest is the user's, or fragments."""

WORK = 1.5
"""What a step takes while it is differentiated, in units of what its graph keeps."""

_GRAIN = 2**28  # memory that is noted in whole quarters of a GiB does not differ from session to session


class Need(NamedTuple):
    """What a model takes for one row, in bytes.

    Attributes:
        step: saved by autograd for one step of the purification.
        rest: the states before every step, and the classifier's graph.
        steps: of a purification; 1 without one.
    """

    step: int
    rest: int
    steps: int

    def rows(self, count: int) -> int:
        """Bytes that a gradient of so many rows takes if every step is replayed."""
        return int(count * (WORK * self.step + self.rest))

    def kept(self, count: int) -> int:
        """Budget with which no step of so many rows is replayed."""
        return self.steps * count * self.step


def settled(execution: Execution, parts: Parts, *, given: bool = False) -> Execution:
    """Returns an execution in which nothing is "auto" any more.

    Args:
        execution: how it was asked for.
        parts: what will run; memory that is chosen becomes that of its purifier.
        given: whether the parts are the caller's, who has chosen their device and their memory.
    """
    if given and execution.device_is_auto and any(True for _ in parts.model.parameters()):
        execution = replace(execution, device=own_device(parts.model))
    if not execution.is_auto:
        return execution
    free, need = free_on(execution.device), measured(parts, execution.device)
    if free is None or need is None:
        return _with(execution, DEFAULT_ROWS, DEFAULT_MEMORY)
    kind = execution.device.type
    memory = int(SHARE[kind] * free) // _neighbours(execution.device)
    rows = execution.micro_batch
    if rows == AUTO:
        rows = rows_that_fit(need, memory, kind)
    budget = execution.memory_bytes
    if budget == AUTO:
        purifier = getattr(parts.model, "purifier", None)
        own = purifier.memory_bytes if isinstance(purifier, Purifier) and given else None
        budget = memory_for(need, rows, memory) if own is None else own
        if isinstance(purifier, Purifier):
            purifier.memory_bytes = budget
    return _with(execution, rows, budget)


def rows_that_fit(need: Need, memory: int, kind: str) -> int:
    """Rows at a time for a kind of device, from the memory that is planned with."""
    rows = DEFAULT_ROWS if kind == "cpu" else MOST_ROWS
    while rows > 1 and need.rows(rows) > memory / 2:
        rows //= 2
    while kind == "cpu" and rows > 1 and rows * need.step > CPU_GRAPH:
        rows //= 2
    return rows


def memory_for(need: Need, rows: int, memory: int) -> int:
    """Budget for kept graphs: what is of use, as far as it fits beside one step; in quarters of a GiB."""
    useful = max(DEFAULT_MEMORY, -(-need.kept(rows) // _GRAIN) * _GRAIN)
    left = max(0, memory - need.rows(rows))
    return min(useful, left // _GRAIN * _GRAIN)


def measured(parts: Parts, device: torch.device) -> Need | None:
    """Returns what one row of a model takes, from one step of two rows; None if it cannot be called.

    What does not work here fails again where it is used, and is told there.
    """
    x = parts.data.x(torch.arange(min(2, len(parts.data)))).to(device)
    with seeded_generator(0, device):  # a model that draws numbers of its own is as it was
        try:
            return _need(parts.model, x, NoisePlan.of(0, range(len(x)), "select"))
        except Exception:
            return None


def _need(model: Any, x: Tensor, noise: NoisePlan) -> Need:
    purifier, count, weights = getattr(model, "purifier", None), len(x), _weights(model)
    leaf = x.detach().clone().requires_grad_()
    if not isinstance(purifier, Purifier):
        graph, _ = _saved(lambda: model(leaf, noise=noise), weights)
        return Need(graph // count, 0, 1)
    first = _FirstStep(weights)
    with contextlib.suppress(_EnoughError):
        purifier.driven(leaf, noise=noise, hook=first)
    classifier, _ = _saved(lambda: model.classifier(leaf.clone()), weights)
    rest = classifier // count + purifier.calls * first.state // count
    return Need(first.graph // count, rest, purifier.calls)


class _EnoughError(Exception):
    """The first step is done."""


class _FirstStep:
    """A step hook that weighs the first step's graph and its state, and then stops the purification."""

    def __init__(self, weights: Mapping[int, int]) -> None:
        self.weights = weights
        self.graph = self.state = 0

    def __call__(self, step: Callable[[State], State], state: State) -> State:
        self.state = sum(x.nbytes for x in state)
        self.graph, _ = _saved(lambda: step(state), self.weights)
        raise _EnoughError


def _saved(work: Callable[[], Any], weights: Mapping[int, int]) -> tuple[int, Any]:
    """The bytes that autograd saves for its backward pass, weights apart, and what the work returned."""
    sizes: dict[int, int] = {}

    def weigh(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return saved.detach()

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(weigh, lambda saved: saved):
        result = work()
    return sum(size for place, size in sizes.items() if place not in weights), result


def _weights(model: Any) -> dict[int, int]:
    """Bytes of every storage of a module's weights and buffers, by its address."""
    if not isinstance(model, nn.Module):
        return {}
    own = [*model.parameters(), *model.buffers()]
    return {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in own}


def free_on(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where the system does not say."""
    if device.type != "cuda":
        return free_memory()
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def _neighbours(device: torch.device) -> int:
    """Processes of one launch that share the device's memory: on a CPU those of this machine."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(count)) if device.type == "cpu" and count.isdecimal() else 1


def _with(execution: Execution, rows: int, memory_bytes: int) -> Execution:
    """The execution with these in the place of what is "auto"."""
    own_rows, own_bytes = execution.micro_batch, execution.memory_bytes
    return replace(
        execution,
        micro_batch=rows if own_rows == AUTO else own_rows,
        memory_bytes=memory_bytes if own_bytes == AUTO else own_bytes,
    )
