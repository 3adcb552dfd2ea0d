"""What is asked of everything that a checkpoint holds: that it can be walked through, and its tensors."""

from collections.abc import Iterator
from typing import Any

from dbpkit.foundation.checkpoints.regions import RefusedError
from dbpkit.foundation.checkpoints.values import Name, Record, Stored
from dbpkit.foundation.errors import UserError, excerpt

DEEPEST = 400
"""Containers and objects within each other; a module within another is three of them."""

MOST_VISITS = 10_000_000
"""Values that are met on a walk which enters shared ones as often as they are named."""

MOST_NAMES = 2_000_000
"""Values that are met in search of tensors."""

_MODULE = ("_parameters", "_buffers", "_modules")


def _parts(value: Any) -> Any:
    """What a container or record holds; nothing for other values."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, Record) and not isinstance(value, Name):
        return value.parts
    return ()


def check_content(content: Any) -> None:
    """Raises RefusedError if something holds itself, is nested too deeply, or names values without end.

    Records may hold each other in a circle, as modules that know their parents do; the walk ends there.
    """
    visits: dict[int, int] = {}
    open_ones: set[int] = set()
    stack: list[tuple[Any, Iterator[Any], list[int]]] = [(content, iter(_parts(content)), [1])]
    open_ones.add(id(content))
    while stack:
        value, parts, total = stack[-1]
        part = next(parts, stack)
        if part is stack:
            stack.pop()
            open_ones.discard(id(value))
            visits[id(value)] = total[0]
            if total[0] > MOST_VISITS:
                raise RefusedError(f"it names the same values again and again, {MOST_VISITS:,} times")
            if stack:
                stack[-1][2][0] += total[0]
            continue
        total[0] += 1
        if id(part) in open_ones:
            if not any(isinstance(v, Record) for v, _, _ in stack[_place(stack, part) :]):
                raise RefusedError("it holds a container that holds itself")
        elif id(part) in visits:
            total[0] += visits[id(part)]
        elif inside := _parts(part):
            if len(stack) > DEEPEST:
                raise RefusedError(f"it is nested more than {DEEPEST} times")
            stack.append((part, iter(inside), [1]))
            open_ones.add(id(part))


def _place(stack: list[tuple[Any, Iterator[Any], list[int]]], part: Any) -> int:
    return next(i for i, (value, _, _) in enumerate(stack) if value is part)


def tensors_of(content: Any) -> dict[str, Stored]:
    """Returns the tensors in a dictionary, list or object of a checkpoint by dotted names.

    A module gives the names of its state dictionary: parameters and persistent buffers of it and of the
    modules in it. Of other objects the attributes are entered, of lists the places. Values that are no
    tensors of numbers are left out.

    Args:
        content: what `read_checkpoint` returned, or a part of it. An object within itself is entered once.

    Raises:
        UserError: if two tensors have the same name, or objects hold each other in too many ways.

    Example:
        >>> tensors_of({"step": 3, "ema": {"shadow_params": []}})
        {}
    """
    found: dict[str, Stored] = {}
    open_ones: set[int] = set()
    waiting: list[tuple[str, Any, bool]] = [("", content, False)]
    for _ in range(MOST_NAMES):
        if not waiting:
            return found
        name, value, is_done = waiting.pop()
        if is_done:
            open_ones.discard(id(value))
        elif isinstance(value, Stored) and value.dtype is not None:
            if found.setdefault(name, value) is not value:
                raise UserError(f"two tensors of this checkpoint are called '{excerpt(name)}'.")
        elif isinstance(value, dict | list | tuple | Record) and id(value) not in open_ones:
            open_ones.add(id(value))
            waiting.append((name, value, True))
            inside = [
                (f"{name}.{key}" if name else key, part, False)
                for key, part in _named(value)
                if isinstance(part, Stored) or _parts(part)
            ]
            waiting.extend(reversed(inside))
    raise UserError("the objects of this checkpoint hold each other without end. Choose a part of it.")


def _named(value: Any) -> Iterator[tuple[str, Any]]:
    """The names and values in a container, module or other object."""
    if isinstance(value, Record) and not isinstance(value, Name):
        state = value.state
        if isinstance(state, dict) and any(isinstance(state.get(part), dict) for part in _MODULE):
            yield from _of_module(state)
        else:
            yield from _named(state)
            yield from _named(value.items)
            yield from _named(value.elements)
    elif isinstance(value, dict):
        yield from ((str(key), inside) for key, inside in value.items() if isinstance(key, str | int))
    elif isinstance(value, list | tuple):
        yield from ((str(place), inside) for place, inside in enumerate(value))


def _of_module(state: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    """The parameters, persistent buffers and modules of a module."""
    left_out = state.get("_non_persistent_buffers_set")
    for part in _MODULE:
        for key, inside in _named(state.get(part)):
            if not (part == "_buffers" and isinstance(left_out, list | tuple) and key in left_out):
                yield key, inside


def size(content: Any) -> int:
    """Returns the bytes that all tensors of a checkpoint or a part of it take once they are read."""
    return sum(stored.nbytes for stored in tensors_of(content).values())
