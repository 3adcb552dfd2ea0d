"""``--set key.path=value``: one leaf of a spec, changed from outside; ``--set key.path=`` takes it out.

A spec may say ``denoiser = "embedded"`` for ``denoiser.name = "embedded"``, and may leave out what has a
default. A path leads through both.
"""

import re
import typing
from typing import Any

from pydantic import BaseModel

from dbpkit.foundation.errors import UserError, shown
from dbpkit.foundation.toml import parsed_value


def override(table: dict[str, Any], text: str, model: type[BaseModel]) -> None:
    """Sets one dotted key of a spec's table in place.

    Args:
        table: the spec as read.
        text: ``"purifier.steps=20"``; the value is read as TOML, or as text if it is none. With no value, as
            in ``"denoiser="``, the key is taken out, and its default holds; of a list, the entry.
        model: what the table describes.

    Raises:
        UserError: if there is no such place, or the value is not TOML.
    """
    key, separator, written = text.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not separator or not all(path):
        raise UserError(f"override '{text}' is not of the form key.path=value.")
    if not written.strip():
        _apply(table, path, _LEFT_OUT, model, text)
        return
    try:
        value = parsed_value(written)
    except ValueError as error:
        hint = f", as in --set {key}=" if "leave the key out" in str(error) else ""
        raise UserError(f"override '{text}': {error}{hint}.") from error
    _apply(table, path, value, model, text)


_LEFT_OUT = object()
"""Stands for no value: the key is taken out."""


def _apply(table: dict[str, Any], path: list[str], value: Any, model: type[BaseModel], text: str) -> None:
    """Sets the value at a path, or takes it out; UserError says where the path ends."""
    try:
        _set(table, path, value, model)
    except LookupError as error:
        raise UserError(
            f"override '{text}' does not lead to a key: {error.args[0]}. Lists take a position, as in"
            " attacks.0.name."
        ) from error


def _set(table: dict[str, Any], path: list[str], value: Any, model: type[BaseModel]) -> None:
    """Sets the value at a path; LookupError says where the path ends."""
    current: Any = table
    for depth, step in enumerate(path[:-1]):
        place: Any = _position(current, step) if isinstance(current, list) else step
        if isinstance(current, dict) and step not in current:
            current[step] = _default(model, path[: depth + 1])
        if not isinstance(current[place], dict | list):
            current[place] = _long_form(current[place], model, path[: depth + 1])
        current = current[place]
    last: Any = _position(current, path[-1]) if isinstance(current, list) else path[-1]
    if value is not _LEFT_OUT:
        current[last] = value
    elif isinstance(current, dict) and last not in current:
        raise LookupError(f"the spec does not have '{'.'.join(path)}', so it cannot be left out")
    else:
        del current[last]


def _position(items: list[Any], step: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", step) or int(step) >= len(items):
        have = f"it has 0 to {len(items) - 1}" if items else "it is empty"
        raise LookupError(f"{shown(step)} is not a position in the list, {have}")
    return int(step)


def _default(model: type[BaseModel], path: list[str]) -> Any:
    """What a spec that leaves this key out has there, as a table or list of what differs from defaults."""
    owner = _model_at(model, path[:-1])
    field = owner.model_fields.get(path[-1]) if owner else None
    if field is None or field.is_required():
        return {}
    made = field.get_default(call_default_factory=True)
    if isinstance(made, BaseModel):
        return _table(made)
    if isinstance(made, list):
        return [_table(entry) if isinstance(entry, BaseModel) else entry for entry in made]
    return {} if made is None else made


def _table(made: BaseModel) -> dict[str, Any]:
    """What differs from defaults, for those of another name may not be its keys."""
    return made.model_dump(mode="json", exclude_defaults=True)


def _long_form(value: Any, model: type[BaseModel], path: list[str]) -> dict[str, Any]:
    """The table that a name alone stands for."""
    there = _model_at(model, path)
    short_form = getattr(there, "of_name", None)
    if isinstance(value, str) and short_form is not None:
        try:
            return dict(short_form(value))
        except ValueError as error:
            raise LookupError(f"{'.'.join(path)}: {error}") from error
    if not isinstance(value, str) or there is None or "name" not in there.model_fields:
        raise LookupError(f"{'.'.join(path)} is {shown(value)}, not a table")
    return {"name": value}


def _model_at(model: type[BaseModel], path: list[str]) -> type[BaseModel] | None:
    """The model that describes the table at a path, or the entries of the list; None if no model does."""
    current: type[BaseModel] | None = model
    for step in path:
        if current is None:
            return None
        if step.isdigit() and step not in current.model_fields:
            continue
        field = current.model_fields.get(step)
        current = _inner_model(field.annotation) if field else None
    return current


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    """The first model among an annotation and its arguments."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_inner_model(a) for a in typing.get_args(annotation))
    return next((m for m in found if m is not None), None)
