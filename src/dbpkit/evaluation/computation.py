"""What a model made in Python computes beside its tensors, as far as calling it changes none of it.

A run is bound to this hash, so the same model must have it before and after it was called. A model that
counts its calls would be another one after each of them if every attribute were hashed; so what any of its
methods but ``__init__`` stores is left out, and so is every list, dictionary and tensor.
"""

import dis
import functools
import hashlib
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from dbpkit.evaluation.identity import LIBRARIES, OWN_TO_TORCH, PLAIN, said_by_code, text_of

_EXECUTION = frozenset({"memory_bytes", "verify_replay", "seed", "__module__", "__doc__", "__firstlineno__"})
"""Names that change no result of a call with a plan."""

_CACHED = functools.cached_property

_STORES = ("STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL", "STORE_DEREF")


def computation_sha256(model: Any) -> str:
    """Returns a sha256 of the types, settings and user's code of a module or function, or of a tuple of them.

    Tensors are not in it. Two models that share it may still differ in what a call can change.
    """
    first = _Reader(frozenset(), attributes=True)
    for _ in first.read(model):
        pass
    codes = [c for code in first.codes for c in _with_nested(code)]
    changed = {i.argval for c in codes for i in dis.get_instructions(c) if i.opname in _STORES}
    by_name = any({"setattr", "__dict__", "__setattr__"}.intersection(c.co_names) for c in codes)
    digest = hashlib.sha256()
    for part in _Reader(frozenset(changed), attributes=not by_name).read(model):
        digest.update(part if isinstance(part, bytes) else part.encode(errors="surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()


def _with_nested(code: types.CodeType) -> Iterator[types.CodeType]:
    """A code and those in it; of ``__init__`` only what is in it, which may run later."""
    if code.co_name != "__init__":
        yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _with_nested(constant)


class _Reader:
    """Walks through a model once.

    Args:
        changed: names that are not read.
        attributes: whether attributes of objects are read at all.

    Attributes:
        codes: the user's code that was met.
    """

    def __init__(self, changed: frozenset[str], attributes: bool) -> None:
        self.left_out = changed | OWN_TO_TORCH | _EXECUTION
        self.attributes = attributes
        self.codes: list[types.CodeType] = []
        self.seen: dict[int, Any] = {}

    def read(self, value: Any) -> Iterator[str | bytes]:
        """Everything about a value that a call does not change."""
        if isinstance(value, PLAIN):
            yield text_of(value)
            return
        yield f"{type(value).__module__}.{type(value).__qualname__}"
        if id(value) in self.seen:
            return
        self.seen[id(value)] = value
        if isinstance(value, torch.jit.ScriptModule):
            yield str(getattr(value, "inlined_graph", ""))
        elif isinstance(value, nn.Module):
            yield from self._object(value)
            yield from self._named(value._modules.items())
        elif isinstance(value, tuple):
            for entry in value:
                yield from self.read(entry)
        elif callable(value):
            yield from self._called(value)

    def _called(self, value: Any) -> Iterator[str | bytes]:
        """A function of any kind; an object of a library is told by its type alone."""
        if isinstance(value, functools.partial):
            yield from self.read((value.func, value.args))
            yield from self._named(value.keywords.items())
        elif isinstance(value, types.MethodType):
            yield from self.read((value.__func__, value.__self__))
        elif isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, type | types.BuiltinFunctionType):
            yield f"{value.__module__}.{value.__qualname__}"
        elif not _of_library(type(value)):
            yield from self._object(value)

    def _object(self, value: Any) -> Iterator[str | bytes]:
        """The user's methods and settings on its classes, and its own settings."""
        for base in type(value).__mro__:
            if not _of_library(base):
                own = {k: v for k, v in vars(base).items() if isinstance(v, (types.FunctionType, *PLAIN))}
                yield from self._named(own.items())
        if self.attributes:
            kept = {k for b in type(value).__mro__ for k, v in vars(b).items() if isinstance(v, _CACHED)}
            own = {k: v for k, v in getattr(value, "__dict__", {}).items() if k not in kept}
            yield from self._named(own.items())

    def _function(self, function: types.FunctionType) -> Iterator[str | bytes]:
        yield f"{function.__module__}.{function.__qualname__}"
        if _of_library(function):
            return
        code = function.__code__
        self.codes.append(code)
        yield from said_by_code(code)
        cells: dict[str, Any] = {}
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
            try:
                cells[name] = cell.cell_contents
            except ValueError:  # not filled yet
                continue
        names = {n: function.__globals__[n] for n in code.co_names if n in function.__globals__}
        for table in (cells, names, function.__kwdefaults__ or {}):
            yield from self._named(table.items())
        yield from self.read(function.__defaults__ or ())

    def _named(self, table: Iterable[tuple[str, Any]]) -> Iterator[str | bytes]:
        for name, value in sorted(table, key=lambda entry: repr(entry[0])):
            if name not in self.left_out:
                yield repr(name)
                yield from self.read(value)


def _of_library(part: type | Callable[..., Any]) -> bool:
    return (part.__module__ or "").partition(".")[0] in LIBRARIES
