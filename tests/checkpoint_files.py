"""Files in the containers that the field has, made of reference weights, and contents without numbers.

The thing people get wrong: tests that only read what the same code wrote. These files are written by torch.
"""

import math
import pickle  # noqa: TID251 - the container of the originals is the subject
import re
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbpkit.foundation.checkpoints import Stored

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


def as_module(state: Mapping[str, Tensor], classes: Mapping[str, type[nn.Module]]) -> nn.Module:
    """A module whose state dict this is, with classes of one's own at some paths (``""`` for the whole)."""
    whole = classes.get("", nn.Module)()
    for name, tensor in state.items():
        *path, leaf = name.split(".")
        module = whole
        for depth, part in enumerate(path):
            if part not in module._modules:
                module.add_module(part, classes.get(".".join(path[: depth + 1]), nn.Module)())
            module = module._modules[part]  # type: ignore[assignment]
        if tensor.is_floating_point():
            module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
        else:
            module.register_buffer(leaf, tensor)
    return whole


def edm_class(name: str, **kept: Any) -> type[nn.Module]:
    """A class that pickles as EDM's do: by the source of its class, which any loader but a safe one runs."""

    def reduce(self: nn.Module) -> tuple[Any, ...]:
        source = "raise SystemExit('the source in the file was executed')"
        state = {**self.__dict__, "_init_args": (), "_init_kwargs": kept}
        about = {"type": "class", "version": 6, "module_src": source, "class_name": name, "state": state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (about,)

    return type(name, (nn.Module,), {"__reduce__": reduce})


def lend_persistence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adds a module under the name of EDM's that restores objects; it is there for the writer alone."""
    package, module = ModuleType("torch_utils"), ModuleType("torch_utils.persistence")

    def restore(about: Any) -> None:
        raise AssertionError("nothing in a file is called")

    restore.__module__, restore.__qualname__ = module.__name__, "_reconstruct_persistent_obj"
    restore.__name__ = restore.__qualname__
    module._reconstruct_persistent_obj = restore  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_utils", package)
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", module)


def pickled(content: Any, path: Path) -> Path:
    """Writes a plain pickle."""
    path.write_bytes(pickle.dumps(content))
    return path


def numbers(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many numbers tensors of these shapes have."""
    return sum(math.prod(shape) for shape in shapes.values())
