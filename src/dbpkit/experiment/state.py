"""Whether a run leaves its models as it found them: weights, buffers, modes, what is trainable.

The thing people get wrong: a batch norm in train mode rewrites its statistics while it is evaluated, so that
the last example meets another model than the first, and so does the next user of the model.
"""

import hashlib
from typing import Any

import torch
from torch import nn

from dbpkit.experiment.build import Parts
from dbpkit.results.flags import Flag

State = dict[str, str]
"""What identifies each tensor and each mode, by name."""

SHOWN = 3
"""How many of the changed names a message lists."""


def state_of(*models: Any) -> State:
    """Returns the state of modules; of anything else there is none to see."""
    found: State = {}
    for model in models:
        if not isinstance(model, nn.Module):
            continue
        for name, module in model.named_modules():
            found[f"mode of {name or type(model).__name__}"] = "train" if module.training else "eval"
        for name, weight in model.named_parameters():
            found[name] = f"{_digest(weight)} {'trainable' if weight.requires_grad else 'frozen'}"
        for name, buffer in model.named_buffers():
            found[name] = _digest(buffer)
    return found


def parts_state(parts: Parts) -> State:
    """Returns the state of an evaluation's models."""
    return state_of(parts.model, parts.undefended, parts.denoiser)


def state_changes(before: State, after: State) -> list[Flag]:
    """Returns the flag `state_changed` if two states differ, and nothing otherwise."""
    changed = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
    if not changed:
        return []
    names = ", ".join(f"'{name}'" for name in changed[:SHOWN])
    more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
    message = (
        f"The run changed {names}{more} of the model: its examples did not meet one and the same model. Keep"
        " what a forward pass writes (running statistics, counters) out of its buffers and weights."
    )
    return [Flag("state_changed", "error", message)]


@torch.no_grad()
def _digest(tensor: torch.Tensor) -> str:
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(content.tobytes()).hexdigest()[:16]
