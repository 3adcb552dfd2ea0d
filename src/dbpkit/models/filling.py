"""Networks without first weights, filled tensor by tensor from a file.

A network that is made on torch's device without memory costs neither time nor memory, whatever its size. The
thing people get wrong: what is not in a state dict, such as tables of constants. A network that has any stays
empty there, so it is made again the usual way.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dbpkit.foundation.checkpoints import Stored
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import seeded_generator
from dbpkit.foundation.options import call_with_options


def made_empty(make: Callable[..., Any], options: Mapping[str, Any], what: str) -> nn.Module:
    """Makes a network whose tensors have shapes and no memory, unless it has some that no file holds.

    Args:
        make: class or function.
        options: what it is called with.
        what: its name for errors.

    Raises:
        UserError: if an option is wrong.
    """
    if str(getattr(make, "__module__", "")).startswith(
        "dbpkit."
    ):  # others may compute with what is not there
        with torch.device("meta"):
            network: nn.Module = call_with_options(make, options, what)
        if not _constants(network):
            return network
    with seeded_generator(0):  # first weights are drawn from torch's global generator, then replaced
        made: nn.Module = call_with_options(make, options, what)
    return made


def fill_empty(network: nn.Module, tensors: Mapping[str, Stored | Tensor], where: str) -> None:
    """Puts a file's tensors into a network, one after the other, each in the type of its place.

    Raises:
        UserError: if names or shapes differ, or a value is not finite.
    """
    refuse_misfits(network.state_dict(), tensors, where)
    for path, module in network.named_modules():
        for table in (module._parameters, module._buffers):
            for leaf, own in table.items():
                name = f"{path}.{leaf}" if path else leaf
                if own is not None and name in tensors:
                    stored = tensors[name]
                    value = stored if isinstance(stored, Tensor) else stored.read()
                    table[leaf] = _like(own, value, name, where)


def _like(own: Tensor, value: Tensor, name: str, where: str) -> Tensor:
    """A tensor in the type of its place; UserError if it is not finite."""
    planes = own.ndim == 4 and own.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if planes and not own.is_contiguous() else torch.contiguous_format
    value = value.detach().to(own.dtype).contiguous(memory_format=layout)
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise UserError(f"weights '{where}' are not finite: '{name}'. The file is damaged; get it again.")
    return nn.Parameter(value, requires_grad=False) if isinstance(own, nn.Parameter) else value


def _constants(network: nn.Module) -> bool:
    """Whether a network has buffers that its state dict leaves out."""
    return any(module._non_persistent_buffers_set for module in network.modules())


def fill(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copies tensors into a model's state.

    Raises:
        UserError: if names or shapes differ; the first difference of each sort is named.
    """
    own = model.state_dict()
    refuse_misfits(own, tensors, where)
    fitted = {n: t.to(own[n].dtype) for n, t in tensors.items()}
    for name, tensor in fitted.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"weights '{where}' are not finite: '{name}'. The file is damaged; get it again.")
    model.load_state_dict(fitted)


def refuse_misfits(own: Mapping[str, Tensor], tensors: Mapping[str, Any], where: str) -> None:
    """Raises UserError if tensors, which may still lie in a file, have other names or shapes than a state."""
    missing = sorted(own.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - own.keys())
    misfits = [n for n in own.keys() & tensors.keys() if own[n].shape != tuple(tensors[n].shape)]
    problems = []
    if missing:
        problems.append(f"{len(missing)} tensors are missing (first '{missing[0]}')")
    if unexpected:
        problems.append(f"{len(unexpected)} are unknown (first '{unexpected[0]}')")
    if misfits:
        name = sorted(misfits)[0]
        problems.append(
            f"'{name}' is {tuple(tensors[name].shape)} where {tuple(own[name].shape)} was expected"
        )
    if wrong := [n for n in own.keys() & tensors.keys() if not _same_kind(own[n], tensors[n])]:
        name = sorted(wrong)[0]
        problems.append(f"'{name}' is {tensors[name].dtype} where {own[name].dtype} was expected")
    if problems:
        raise UserError(
            f"weights '{where}' do not fit the network: {'; '.join(problems)}. Use the options it"
            " was trained with."
        )


def _same_kind(own: Tensor, other: Any) -> bool:
    """Whether one tensor's type can stand for the other's: both of real numbers, or both the same."""
    return (own.dtype.is_floating_point and other.dtype.is_floating_point) or own.dtype == other.dtype
