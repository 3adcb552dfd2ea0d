"""Files in the containers that the field has, made of reference weights, and contents without numbers.

The thing people get wrong: tests that only read what the same code wrote. These files are written by torch.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dbpkit.foundation.checkpoints import Record, Stored

UNTRAINED = ("sigmas", "all_modules.0.W")
"""Tensors that Score-SDE's averages leave out."""

LAYERS = (
    "GroupNorm_0",
    "Conv_0",
    "Dense_0",
    "GroupNorm_1",
    "Conv_1",
    "Conv_2",
    "NIN_0",
    "NIN_1",
    "NIN_2",
    "NIN_3",
)
"""Layers of a numbered module of Score-SDE in the order of its parameters."""


def save(content: Any, path: Path, *, legacy: bool = False) -> Path:
    """Writes what torch.save writes."""
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)  # noqa: TID251 - the subject
    return path


def score_sde(state: Mapping[str, Tensor], path: Path, *, legacy: bool = False) -> Path:
    """A training checkpoint of Score-SDE: the averages are right, and the weights beside them are not."""
    names = sorted(state, key=place)
    trained = [name for name in names if not name.endswith(UNTRAINED)]
    content = {
        "optimizer": {"state": {0: {"exp_avg": state[trained[0]]}}, "param_groups": [{"lr": 2e-4}]},
        "model": OrderedDict((n, state[n] + 1 if n in trained else state[n]) for n in names),
        "ema": {"decay": 0.9999, "num_updates": 7, "shadow_params": [state[n] for n in trained]},
        "step": 1200,
    }
    return save(content, path, legacy=legacy)


def place(name: str) -> tuple[Any, ...]:
    """Where a tensor of Score-SDE stands in the order of the original's state."""
    numbered = re.match(r"(?:module\.)?all_modules\.(\d+)\.(?:(\w+)\.)?(\w+)$", name)
    if not numbered:
        return (-1,)
    layer = LAYERS.index(numbered[2]) if numbered[2] in LAYERS else 0
    return int(numbered[1]), layer, numbered[3] not in ("weight", "W")


def shapes_only(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Stored]:
    """A state dict without numbers."""
    return {name: Stored(shape, torch.float32) for name, shape in shapes.items()}


def as_module(name: str, state: Mapping[str, Tensor], classes: Mapping[str, str], **settings: Any) -> Record:
    """A pickled module as the reader returns it: a record that holds records, down to the tensors."""
    own = {k: t for k, t in state.items() if "." not in k}
    inside: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        if "." in key:
            first, _, rest = key.partition(".")
            inside.setdefault(first, {})[rest] = tensor
    modules = {
        part: as_module(classes.get(part, "torch.nn.Module"), tensors, {}, **settings.get(part, {}))
        for part, tensors in inside.items()
    }
    kept = {k: v for k, v in settings.items() if k not in inside}
    parameters = {k: Kept(t) for k, t in own.items()}
    return Record(
        name, {"_parameters": parameters, "_buffers": {}, "_modules": modules, "_init_kwargs": kept}
    )


class Kept(Stored):
    """A stored tensor that lies in memory."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tuple(tensor.shape), tensor.dtype)
        self.tensor = tensor

    def read(self) -> Tensor:
        """The tensor."""
        return self.tensor.clone()


def numbers(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many numbers tensors of these shapes have."""
    return sum(math.prod(shape) for shape in shapes.values())
