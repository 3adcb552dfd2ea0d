"""What an annotation of an option admits: the common types, reading a value as one, and saying it in words.

Python takes ``"False"`` for true and ``True`` for 1, and an infinite step goes unnoticed. Here a value is
what was asked for, or the error says what was expected.
"""

import math
import operator
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import Parameter
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from dbpkit.foundation.amounts import amount, is_amount
from dbpkit.foundation.errors import UserError, shown

Count = Annotated[int, Ge(1)]
"""How many, at least 1."""

Counts = Annotated[tuple[Count, ...], MinLen(1)]
"""A list of counts that is not empty."""

Several = Annotated[int, Ge(2)]
"""How many, at least 2."""

CountOrNone = Annotated[int, Ge(0)]
"""How many, or 0 for none."""

Length = Annotated[float, Gt(0)]
"""A finite number above 0."""

NonNegative = Annotated[float, Ge(0)]
"""A finite number of at least 0."""

Share = Annotated[float, Ge(0), Le(1)]
"""A number from 0 to 1."""

MOST = 2**31 - 1
"""Largest whole number that an option without a limit of its own takes."""


@dataclass(frozen=True)
class Named:
    """Annotates the name of a part: it must be registered, or be an import path.

    Attributes:
        parts: a `dbpkit.foundation.registry.Registry`.
    """

    parts: Any


@dataclass(frozen=True)
class Checked:
    """Annotates a value with a check of its own, which raises `UserError` or `ValueError`."""

    check: Callable[[Any], object]


def words(annotation: Any) -> str:
    """Says what an annotation admits, such as ``"a whole number of at least 1"``.

    Example:
        >>> words(Count | None), words(Literal["zero", "random"]), words(tuple[float, ...])
        ('a whole number of at least 1', "'zero' or 'random'", 'a list with each entry a number')
    """
    base, marks = _bare(annotation)
    if named := [m for m in marks if isinstance(m, Named)]:
        return f"a {named[0].parts.kind}'s name"
    origin, arguments = typing.get_origin(base), typing.get_args(base)
    plain = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    if base in plain:
        return plain[base] + _range_words(marks)
    if origin is Literal:
        return _either([repr(a) for a in arguments])
    if _is_union(origin):
        return _either(list(dict.fromkeys(words(a) for a in arguments if a is not type(None))))
    if base is Mapping or _is(origin or base, Mapping):
        return "a table"
    if _is(origin or base, Sequence):
        inner = [a for a in arguments if a is not Ellipsis]
        each = words(inner[0]) if inner else ""
        least = [f" of at least {m.min_length}" for m in marks if isinstance(m, MinLen)]
        fixed = origin is tuple and Ellipsis not in arguments and inner
        length = f" of {len(arguments)}" if fixed else "".join(least)
        return f"a list{length}" + (f" with each entry {each}" if each and each != "anything" else "")
    return "anything" if base in (Parameter.empty, Any) else getattr(base, "__name__", str(base))


def read_value(value: Any, annotation: Any, infinite: bool = False) -> Any:
    """A value as an annotation has it; ValueError, with the reason or empty, if it does not fit."""
    base, marks = _bare(annotation)
    read = _reader(base, infinite)(value)
    for mark in marks:
        _judge(read, mark)
    if base is int and not any(isinstance(m, Le | Lt) for m in marks) and abs(read) > MOST:
        raise ValueError(f"must be a whole number of at most {MOST}, not {shown(value)}")
    return read


def _reader(base: Any, infinite: bool) -> Callable[[Any], Any]:
    """What turns a value into an instance of a bare annotation."""
    origin, arguments = typing.get_origin(base), typing.get_args(base)
    simple: dict[Any, Callable[[Any], Any]] = {
        bool: _truth,
        int: _whole,
        float: partial(_number, infinite=infinite),
        str: _text,
    }
    if base in simple:
        return simple[base]
    if origin is Literal:
        return partial(_one_of, choices=arguments)
    if _is_union(origin):
        return partial(_alternative, annotations=arguments, infinite=infinite)
    if _is(origin or base, Mapping):
        return _table
    if _is(origin or base, Sequence):
        return partial(_entries, kind=origin or base, annotations=arguments)
    return lambda value: value  # a type of the part's own: what comes is the part's affair


def _truth(value: Any) -> bool:
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        raise ValueError(f"must be true or false without quotes, not {shown(value)}")
    if type(value) is not bool and type(value).__name__ not in ("bool", "bool_"):  # NumPy's counts too
        raise ValueError
    return bool(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError
    try:
        return operator.index(value)
    except TypeError as error:  # a tensor that is not a whole number
        raise ValueError from error


def _number(value: Any, infinite: bool = False) -> float:
    if isinstance(value, str):
        if not is_amount(value):
            raise ValueError
        return amount(value)
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise ValueError
    try:
        read = float(value)
    except (OverflowError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError from error
    if math.isnan(read) or (math.isinf(read) and not infinite):
        raise ValueError
    return read


def _text(value: Any) -> str:
    if not isinstance(value, str | os.PathLike):
        raise ValueError
    return os.fsdecode(value)


def _one_of(value: Any, choices: tuple[Any, ...]) -> Any:
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ValueError
    return value


def _alternative(value: Any, annotations: tuple[Any, ...], infinite: bool) -> Any:
    """A value of the first alternative that it fits."""
    if value is None and type(None) in annotations:
        return None
    reasons = []
    for annotation in annotations:
        if annotation is type(None):
            continue
        try:
            return read_value(value, annotation, infinite)
        except ValueError as error:
            reasons.append(error)
    if len(reasons) == 1:
        raise reasons[0]
    raise ValueError


def _table(value: Any) -> Any:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError
    return value


def _entries(value: Any, kind: Any, annotations: tuple[Any, ...]) -> Any:
    """A list whose entries were read; a tuple where the part has one."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise ValueError
    fixed = kind is tuple and annotations and Ellipsis not in annotations
    if fixed and len(value) != len(annotations):
        raise ValueError
    each = annotations if fixed else annotations[:1] * len(value)
    try:
        read = [read_value(v, a) for v, a in zip(value, each, strict=True)] if each else list(value)
    except UserError:
        raise
    except ValueError as error:
        raise ValueError from error  # the sentence speaks of the whole list
    return read if kind is list else tuple(read)


def _judge(value: Any, mark: Any) -> None:
    """Raises ValueError unless a value keeps to one mark of its annotation."""
    if isinstance(mark, Named):
        mark.parts.resolve(value)
    elif isinstance(mark, Checked):
        mark.check(value)
    elif (
        (isinstance(mark, Ge) and not value >= mark.ge)
        or (isinstance(mark, Gt) and not value > mark.gt)
        or (isinstance(mark, Le) and not value <= mark.le)
        or (isinstance(mark, Lt) and not value < mark.lt)
        or (isinstance(mark, MinLen) and len(value) < mark.min_length)
    ):
        raise ValueError


def _range_words(marks: Sequence[Any]) -> str:
    """The limits among an annotation's marks, in words."""
    said = {Ge: "of at least {:g}", Gt: "above {:g}", Le: "of at most {:g}", Lt: "below {:g}"}
    limits = {type(m): getattr(m, type(m).__name__.lower()) for m in marks if type(m) in said}
    if Ge in limits and Le in limits:
        return f" from {limits[Ge]:g} to {limits[Le]:g}"
    parts = [said[kind].format(limits[kind]) for kind in (Ge, Gt, Le, Lt) if kind in limits]
    return f" {' and '.join(parts)}" if parts else ""


def _bare(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """An annotation without its marks, and the marks."""
    if typing.get_origin(annotation) is Annotated:
        base, *marks = typing.get_args(annotation)
        inner, more = _bare(base)
        return inner, (*more, *marks)
    return annotation, ()


def _is(kind: Any, of: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, of) and kind not in (str, bytes)


def _is_union(origin: Any) -> bool:
    return origin is typing.Union or origin is types.UnionType


def _either(choices: list[str]) -> str:
    return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"
