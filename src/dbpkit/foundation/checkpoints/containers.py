"""Python's own types in a pickle, and the dictionaries that other packages derive from them."""

from typing import Any

from dbpkit.foundation.checkpoints.numbers import numpy_encoded
from dbpkit.foundation.checkpoints.regions import RefusedError, Region
from dbpkit.foundation.checkpoints.values import Record

DICTIONARIES = frozenset(
    f"{module}.{name}"
    for module, names in {
        "collections": "OrderedDict defaultdict Counter",
        "dnnlib.util": "EasyDict",
        "dnnlib": "EasyDict",
        "easydict": "EasyDict",
        "munch": "Munch DefaultMunch",
        "addict.addict": "Dict",
        "addict": "Dict",
        "attrdict.dictionary": "AttrDict",
        "builtins": "dict",
        "__builtin__": "dict",
        "types": "MappingProxyType",  # and SimpleNamespace, which becomes a record
    }.items()
    for name in names.split()
)
"""Classes of dictionaries: all of them become plain ones."""

PLAIN = {
    f"{module}.{name}": kind
    for module in ("builtins", "__builtin__")
    for name, kind in {
        "set": list, "frozenset": tuple, "list": list, "tuple": tuple, "bytearray": bytes, "bytes": bytes,
        "complex": complex, "int": int, "float": float, "bool": bool, "str": str, "object": None,
        "slice": None, "getattr": None, "Ellipsis": None, "NotImplemented": None,
        "range": None, "xrange": None, "long": int, "unicode": str, "type": None,
    }.items()
}  # fmt: skip
"""Types of Python, and what stands for them; None becomes a record."""


def dictionary(path: str, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """A dictionary of any class; the default of a defaultdict is dropped."""
    if path.endswith(".defaultdict"):
        arguments = arguments[1:]
    given = arguments[0] if arguments else {}
    if isinstance(given, list | tuple) and all(isinstance(p, list | tuple) and len(p) == 2 for p in given):
        found: dict[Any, Any] = {}
        for key, value in given:
            if type(key) not in (str, int, float, bool):
                raise RefusedError("it has a key that is neither a text nor a number")
            found[key] = value
        return found
    if not isinstance(given, dict):
        raise RefusedError("it makes a dictionary of something else")
    return dict(given)


def plain(path: str, arguments: tuple[Any, ...]) -> Any:
    """A value of Python's own types."""
    kind = PLAIN[path]
    if kind is None:
        return Record(path, None, arguments)
    given = arguments[0] if arguments else None
    if given is None and len(arguments) <= 1:
        return kind()
    if kind in (list, tuple) and len(arguments) == 1 and isinstance(given, list | tuple):
        return kind(given)
    if kind is complex and len(arguments) == 2 and all(type(a) in (int, float) for a in arguments):
        return complex(*arguments)
    if kind is bytes and isinstance(given, bytes | bytearray | Region):
        return given if isinstance(given, Region) else bytes(given)
    if kind is bytes and isinstance(given, str):  # bytes and bytearray of protocol 2
        return numpy_encoded(given)
    if len(arguments) == 1 and type(given) is kind:
        return given
    if kind in (int, float, bool) and len(arguments) == 1 and isinstance(given, int | float):
        return _number(kind, given)
    raise RefusedError(f"it makes a value of '{path}' of something else")


def _number(kind: type, given: float) -> Any:
    try:
        return kind(given)
    except (ValueError, OverflowError) as error:
        raise RefusedError("it makes a number of something that is none") from error
