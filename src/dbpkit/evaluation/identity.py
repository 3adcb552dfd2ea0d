"""What tells two models apart that are made in Python: weights, settings and code.

The thing people get wrong: taking weights for the model. Two classes, two temperatures or two functions can
share every tensor, and a result stored under the tensors' hash alone is then returned for both.
"""

import functools
import hashlib
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice, torch.dtype, torch.device, Enum)
"""Types of settings whose text says all of them."""

LIBRARIES = ("torch", "numpy", "builtins", "dbpkit")
"""Packages whose code is named, not read: the run's environment has their versions."""

OWN_TO_TORCH = frozenset(vars(nn.Module())) | {"training"}
"""Attributes of a module that torch keeps its tables in."""

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def model_sha256(model: Callable[..., Any]) -> str:
    """Returns a sha256 of a module or function: its tensors, its settings, and the user's code.

    What a function closes over, has as defaults or reads from its module counts too. Objects that are none of
    these count by their type.
    """
    digest = hashlib.sha256()
    for part in _parts(model, {}):
        digest.update(part if isinstance(part, bytes) else part.encode(errors="surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()


def _parts(value: Any, seen: dict[int, Any]) -> Iterator[str | bytes]:
    """Everything about a value that decides what it computes."""
    if isinstance(value, PLAIN):
        yield text_of(value)
        return
    kind = type(value)
    yield f"{kind.__module__}.{kind.__qualname__}"
    if id(value) in seen:
        return
    seen[id(value)] = value  # kept, so that no other value gets its id
    if isinstance(value, nn.Module):
        yield from _module(value, seen)
    elif isinstance(value, functools.partial):
        yield from _several((value.func, value.args, value.keywords), seen)
    elif isinstance(value, types.MethodType):
        yield from _several((value.__func__, value.__self__), seen)
    elif isinstance(value, types.FunctionType):
        yield from _function(value, seen)
    elif isinstance(value, type | types.BuiltinFunctionType):
        yield f"{value.__module__}.{value.__qualname__}"
    elif callable(value):
        yield from _callable(value, seen)
    else:
        yield from _data(value, seen)


def _callable(value: Any, seen: dict[int, Any]) -> Iterator[str | bytes]:
    """An object that is called; one of a library is told by its type alone."""
    kind = type(value)
    if kind.__module__.partition(".")[0] not in LIBRARIES:
        yield from _methods(kind, seen)
        yield from _named(getattr(value, "__dict__", {}), seen)


def _data(value: Any, seen: dict[int, Any]) -> Iterator[str | bytes]:
    if isinstance(value, Tensor):
        yield from _tensor(value)
    elif isinstance(value, Mapping):
        yield from _named(value, seen)
    elif isinstance(value, list | tuple):
        yield from _several(value, seen)
    elif isinstance(value, set | frozenset):
        yield from sorted(repr(v) for v in value if isinstance(v, PLAIN))


def _tensor(value: Tensor) -> Iterator[str | bytes]:
    yield f"{value.dtype} {tuple(value.shape)}"
    if value.layout == torch.strided and value.device.type != "meta":
        plain = value.detach().cpu().contiguous().reshape(-1)
        yield plain.view(torch.uint8).numpy().tobytes()


def _module(module: nn.Module, seen: dict[int, Any]) -> Iterator[str | bytes]:
    """Its own settings, weights and code, then those of its parts."""
    if isinstance(module, torch.jit.ScriptModule):
        yield str(getattr(module, "inlined_graph", ""))
        yield from _named(module.state_dict(), seen)
        return
    yield from _methods(type(module), seen)
    settings = {k: v for k, v in vars(module).items() if k not in OWN_TO_TORCH}
    yield from _named(settings, seen)
    for table in (module._parameters, module._buffers, module._modules):
        yield from _named(table, seen)
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        yield from _several(hooks.values(), seen)


def _methods(kind: type, seen: dict[int, Any]) -> Iterator[str | bytes]:
    """The code of a class, and of those it inherits from, as far as the user wrote them."""
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] not in LIBRARIES:
            own = {n: f for n, f in vars(base).items() if isinstance(f, (types.FunctionType, *PLAIN))}
            yield from _named({n: f for n, f in own.items() if n not in _UNREAD}, seen)


_UNREAD = {"__module__", "__doc__", "__qualname__", "__firstlineno__"}
"""Of a class, what computes nothing."""


def _function(function: types.FunctionType, seen: dict[int, Any]) -> Iterator[str | bytes]:
    yield f"{function.__module__}.{function.__qualname__}"
    if function.__module__ and function.__module__.partition(".")[0] in LIBRARIES:
        return
    yield from said_by_code(function.__code__)
    cells = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            cells[name] = cell.cell_contents
        except ValueError:  # not filled yet
            continue
    read = {n: function.__globals__[n] for n in function.__code__.co_names if n in function.__globals__}
    for table in (cells, read, function.__kwdefaults__ or {}):
        yield from _named(table, seen)
    yield from _several(function.__defaults__ or (), seen)


def said_by_code(code: types.CodeType) -> Iterator[str | bytes]:
    """Everything about a code that decides what it does."""
    yield code.co_code
    yield repr((code.co_names, code.co_varnames, code.co_freevars))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from said_by_code(constant)
        else:
            yield text_of(constant)


def text_of(value: Any) -> str:
    """A setting or constant as text that is the same in every process: no address, and sets in order."""
    if isinstance(value, frozenset):
        return f"frozenset {sorted(map(text_of, value))}"
    return _ADDRESS.sub("", repr(value))


def _named(table: Mapping[Any, Any], seen: dict[int, Any]) -> Iterator[str | bytes]:
    for name in sorted(table, key=repr):
        yield repr(name)
        yield from _parts(table[name], seen)


def _several(values: Iterable[Any], seen: dict[int, Any]) -> Iterator[str | bytes]:
    for value in values:
        yield from _parts(value, seen)
