"""What stands for the objects of a foreign pickle: tensors, containers and records.

A name is never looked up. The names in `_KNOWN` say how something is put together here; classes that are not
among them become records, and functions that are not are refused, as nothing can stand for their results.
"""

import re
from collections.abc import Callable
from typing import Any

import torch

from dbpkit.foundation.checkpoints.containers import DICTIONARIES, PLAIN, dictionary, plain
from dbpkit.foundation.checkpoints.machine import Budget
from dbpkit.foundation.checkpoints.numbers import number_of, numpy_array, numpy_buffer, numpy_encoded
from dbpkit.foundation.checkpoints.regions import RefusedError, Region
from dbpkit.foundation.checkpoints.values import DTYPES, MOST_AXES, Name, Record, Storage, Stored
from dbpkit.foundation.errors import excerpt

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.([A-Za-z_][A-Za-z0-9_]*|<locals>))*")
_SYSTEM = frozenset(
    {"os", "posix", "nt", "posixpath", "ntpath", "sys", "subprocess", "_posixsubprocess", "pty", "popen2"}
    | {"shutil", "socket", "_socket", "asyncio", "importlib", "_frozen_importlib", "imp", "runpy", "pkgutil"}
    | {"zipimport", "ctypes", "_ctypes", "cffi", "codeop", "marshal", "pickle", "_pickle", "cPickle", "dill"}
    | {"cloudpickle", "shelve", "webbrowser", "multiprocessing", "threading", "_thread", "signal", "gc"}
    | {"inspect", "types", "operator", "_operator", "timeit", "pdb", "bdb", "cProfile", "pip", "setuptools"}
    | {"urllib", "smtplib", "tempfile", "io", "_io", "builtins", "__builtin__", "__builtins__"}
)
"""Packages that no checkpoint has a use for, so that naming one is worth a refusal. It changes nothing about
what is run, which is nothing."""
_TENSORS = frozenset(
    {"torch.nn.parameter.Parameter", "torch.nn.Parameter", "torch.autograd.variable.Variable", "torch.Tensor"}
    | {"torch.nn.parameter.Buffer", "torch.tensor.Tensor", "torch._tensor.Tensor"}
)


class Objects:
    """Makes what stands for the objects of one file.

    Args:
        budget: what the file may ask for.
        stored: makes the storage that a tensor's persistent identity names.
        nested: reads the storage in the bytes that `torch.storage._load_from_bytes` is given.
    """

    subject = "a checkpoint"
    more = frozenset(
        {"NEWOBJ", "NEWOBJ_EX", "BINPERSID", "EMPTY_SET", "ADDITEMS", "FROZENSET", "POP", "POP_MARK"}
    )

    def __init__(
        self, budget: Budget, stored: Callable[[Any], Any], nested: Callable[[Region | bytes], Storage]
    ) -> None:
        self._budget, self._stored, self.nested = budget, stored, nested
        self.unfilled: list[Stored] = []

    def named(self, module: Any, name: Any) -> Any:
        """What stands for a class or function; a type of torch for one of those."""
        path = f"{_text(module)}.{_text(name)}"
        if len(path) > 300 or not _NAME.fullmatch(path):
            raise RefusedError(f"it names something by '{excerpt(path, 60)}', which is no name")
        if path.startswith("torch.") and path[6:] in DTYPES:
            return DTYPES[path[6:]]
        if (
            path.split(".")[0] in _SYSTEM
            and path not in PLAIN
            and path not in DICTIONARIES
            and path not in _KNOWN
        ):
            raise _would_call(path)
        return Name(path)

    def made(self, function: Any, arguments: Any) -> Any:
        """What stands for the result of a call; a record if what is called seems to be a class."""
        if not isinstance(function, Name):
            raise RefusedError("it calls something that is not a name")
        path = function.name
        if path in _KNOWN and isinstance(arguments, tuple):
            self._budget.charge(arguments)
            try:
                return _KNOWN[path](self, *arguments)
            except TypeError as error:
                raise RefusedError(f"it calls '{path}' with other arguments than it takes") from error
        is_class = path.rsplit(".", 1)[-1].lstrip("_")[:1].isupper() or path in _LOWER_CLASSES
        if not (is_class or path in DICTIONARIES or path in PLAIN):
            raise _would_call(path)
        return self.new(function, arguments)

    def new(self, kind: Any, arguments: Any, keywords: Any = None) -> Any:
        """What stands for an instance of a class."""
        if not isinstance(kind, Name):
            raise RefusedError("it makes an instance of something that is not a name")
        if not isinstance(arguments, tuple) or not isinstance(keywords, dict | None):
            raise RefusedError("it calls something without arguments")
        self._budget.charge(arguments)
        path = kind.name
        if path in DICTIONARIES:
            return dictionary(path, arguments)
        if path in PLAIN:
            return plain(path, arguments)
        if path in _TENSORS and arguments and isinstance(arguments[0], Stored):
            return arguments[0]
        return Record(path, keywords, arguments)

    def completed(self, made: Any, state: Any) -> Any:
        """Gives an object its state."""
        if isinstance(made, Name) or not isinstance(made, Record | Stored | dict | list):
            raise RefusedError("it changes something that is not an object of its own")
        self._budget.charge(state if isinstance(state, tuple) else (state,))
        if isinstance(made, Record):
            parts = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
            if isinstance(parts[1], dict) and isinstance(parts[0], dict | None):
                state = {**(parts[0] or {}), **parts[1]}  # attributes in a dictionary and in slots
            made.state = state
        elif isinstance(made, Stored) and any(made is one for one in self.unfilled[-1:]):
            numpy_array(made, state)
            self.unfilled.pop()
        return made  # attributes of containers and of tensors are of no use here

    def stored(self, identity: Any) -> Any:
        """What stands for a storage beside the pickle."""
        return self._stored(identity)

    def key(self, key: Any) -> Any:
        """A dictionary's key: a text, number or record, or a tuple of texts and numbers."""
        parts = key if type(key) is tuple else (key,)
        if len(parts) > 64 or not all(
            part is None or type(part) in (str, int, float, bool, bytes, complex) or (part is key and
            isinstance(part, Record | Stored)) or isinstance(part, torch.dtype)
            for part in parts
        ):  # fmt: skip
            raise RefusedError("it has a key that is neither a text nor a number")
        return key

    def eight_bit(self, value: bytes) -> str | bytes:
        """A string of Python 2: a text, if it can be one."""
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value

    def inside(self, target: Any, kind: type) -> Any:
        """The items or elements of an object."""
        if isinstance(target, Record) and not isinstance(target, Name):
            return target.items if kind is dict else target.elements
        return None

    # ------------------------------------------------------------------ what is known

    def persistent(self, meta: Any) -> Record:
        """EDM's objects: class, state and arguments; the source code beside them is dropped."""
        if not isinstance(meta, dict):
            raise RefusedError("it holds an object of torch_utils.persistence without a description")
        kind, name, state = meta.get("type"), meta.get("class_name"), meta.get("state")
        meta.pop("module_src", None)
        if kind != "class" or not isinstance(name, str) or not isinstance(state, dict):
            raise RefusedError("it holds an object of torch_utils.persistence without a class or state")
        return Record(name, state)

    def tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *more: Any) -> Stored:
        """A tensor of torch: after its steps come two flags, and perhaps what was done to its numbers."""
        return self._tensor(storage, offset, shape, strides, None, more[2] if len(more) > 2 else None)

    def tensor_v3(self, storage: Any, offset: Any, shape: Any, strides: Any, *more: Any) -> Stored:
        """A tensor of torch whose storage has no type: it comes after the flags."""
        if len(more) < 3 or not isinstance(more[2], torch.dtype):
            raise RefusedError("it holds a tensor without a type")
        return self._tensor(storage, offset, shape, strides, more[2], more[3] if len(more) > 3 else None)

    def _tensor(
        self, storage: Any, offset: Any, shape: Any, strides: Any, dtype: Any, changes: Any
    ) -> Stored:
        """A view of numbers."""
        if not isinstance(storage, Storage):
            raise RefusedError("it holds a tensor without numbers")
        if changes:
            raise RefusedError("it holds a tensor that is stored conjugated or negated", "Store it plainly.")
        made = Stored.of(storage, _sides(shape), _sides(strides), offset, dtype)
        self._budget.numbers -= made.nbytes
        self._budget.charge(())
        return made

    def parameter(self, data: Any, *_: Any) -> Any:
        """A parameter is its tensor."""
        if not isinstance(data, Stored):
            raise RefusedError("it holds a parameter without numbers")
        return data

    def typed(self, function: Any, _kind: Any, arguments: Any, _state: Any) -> Any:
        """A tensor of a class of its own is its tensor."""
        return self.parameter(self.made(function, arguments))

    def array(self, *_: Any) -> Stored:
        """An array of NumPy before its state has come."""
        made = Stored()
        self.unfilled.append(made)
        return made

    def reconstructed(self, kind: Any, _base: Any, state: Any) -> Any:
        """An instance as protocols 0 and 1 make it."""
        if not isinstance(kind, Name):
            raise RefusedError("it calls something that is not a name")
        if kind.name in DICTIONARIES:
            return dictionary(kind.name, (state,) if isinstance(state, dict) else ())
        made = self.new(kind, ())
        if isinstance(made, Record) and isinstance(state, dict):
            made.items.update(state)
        elif isinstance(made, Record) and isinstance(state, list):
            made.elements.extend(state)
        elif isinstance(made, Record) and state is not None:
            made.arguments = state if isinstance(state, tuple) else (state,)
        return made

    def instance(self, kind: Any, *arguments: Any) -> Any:
        """An instance as copyreg makes it."""
        return self.new(kind, arguments)

    def nested_storage(self, content: Any) -> Storage:
        """The storage in a file within the file."""
        if not isinstance(content, bytes | Region):
            raise RefusedError("it holds a tensor without numbers")
        return self.nested(content)


def _would_call(path: str) -> RefusedError:
    return RefusedError(
        f"it would call '{excerpt(path, 100)}', which has no place in a checkpoint",
        "Nothing of it was run; get the weights as .safetensors from somebody you trust.",
    )


def _text(value: Any) -> str:
    if isinstance(value, bytes) and len(value) < 300:
        return value.decode("utf-8", errors="replace")
    if not isinstance(value, str):
        raise RefusedError("it names something by a value that is not a text")
    return value


def _sides(value: Any) -> tuple[int, ...]:
    if (
        not isinstance(value, tuple | list)
        or len(value) > MOST_AXES
        or any(type(n) is not int for n in value)
    ):
        raise RefusedError("it holds a tensor without a proper shape")
    return tuple(value)


def _refuse(words: str, hint: str) -> Callable[..., Any]:
    def refuse(*_: Any) -> Any:
        raise RefusedError(words, hint)

    return refuse


_QUANTISED = _refuse("it holds quantised tensors", "Store them as float32, with tensor.dequantize().")
_SPARSE = _refuse("it holds tensors that are not dense", "Store them as dense ones, with tensor.to_dense().")
_META = _refuse("it holds tensors without numbers", "Store them with their numbers.")
_KNOWN: dict[str, Callable[..., Any]] = {
    "torch_utils.persistence._reconstruct_persistent_obj": Objects.persistent,
    "torch._utils._rebuild_tensor": Objects.tensor,
    "torch._utils._rebuild_tensor_v2": Objects.tensor,
    "torch._utils._rebuild_tensor_v3": Objects.tensor_v3,
    "torch._utils._rebuild_parameter": Objects.parameter,
    "torch._utils._rebuild_parameter_with_state": Objects.parameter,
    "torch._utils._rebuild_device_tensor_from_numpy": Objects.parameter,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": Objects.parameter,
    "torch._utils._rebuild_qtensor": _QUANTISED,
    "torch._utils._rebuild_sparse_tensor": _SPARSE,
    "torch._utils._rebuild_sparse_csr_tensor": _SPARSE,
    "torch._utils._rebuild_nested_tensor": _SPARSE,
    "torch._utils._rebuild_meta_tensor_no_storage": _META,
    "torch._tensor._rebuild_from_type": Objects.typed,
    "torch._tensor._rebuild_from_type_v2": Objects.typed,
    "torch.storage._load_from_bytes": Objects.nested_storage,
    "torch.Size": lambda _, sides=(): _sides(sides),
    "torch.device": lambda _, kind, *__: excerpt(_text(kind), 60),
    "torch.serialization._get_layout": lambda _, name: Name(_text(name)),
    "numpy.core.multiarray._reconstruct": Objects.array,
    "numpy._core.multiarray._reconstruct": Objects.array,
    "numpy.core.multiarray.scalar": lambda _, dtype, content=None: number_of(dtype, content),
    "numpy._core.multiarray.scalar": lambda _, dtype, content=None: number_of(dtype, content),
    "numpy.core.numeric._frombuffer": lambda _, *a: numpy_buffer(*a),
    "numpy._core.numeric._frombuffer": lambda _, *a: numpy_buffer(*a),
    "numpy.dtype": lambda _, *a: Record("numpy.dtype", None, a),
    "_codecs.encode": lambda _, text, encoding="latin1": numpy_encoded(text, encoding),
    "copy_reg._reconstructor": Objects.reconstructed,
    "copyreg._reconstructor": Objects.reconstructed,
    "copy_reg.__newobj__": Objects.instance,
    "copyreg.__newobj__": Objects.instance,
}
_LOWER_CLASSES = frozenset(
    {f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")}
    | {
        "logging.getLogger",
        "re._compile",
        "functools.partial",
        "collections.deque",
        "numpy.random._pickle.__randomstate_ctor",
    }
    | {"numpy.random._pickle.__generator_ctor", "numpy.random._pickle.__bit_generator_ctor"}
    | {"numpy.random.__RandomState_ctor", "numpy.ma.core._mareconstruct"}
)
"""Classes, and functions that only make an object, whose names begin in lower case."""
