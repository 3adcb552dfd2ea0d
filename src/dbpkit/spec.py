"""Reading TOML specs: unknown keys, wrong types and overrides, each with an error that names the key.

The thing people get wrong: ``eps = "8/255"`` is kept as written, so that a report shows what was meant.
"""

import difflib
import hashlib
import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from dbpkit.amounts import amount
from dbpkit.errors import UserError


class Strict(BaseModel):
    """A spec that refuses unknown keys and cannot be changed once made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Strict)


def _readable_amount(value: str) -> str:
    amount(value)
    return value


Amount = Annotated[str, BeforeValidator(str), AfterValidator(_readable_amount)]
"""A non-negative number as text: ``"8/255"`` or ``"0.5"``."""


class PartSpec(Strict):
    """A part by registered name or import path, with its keyword arguments.

    In TOML either ``part = "name"`` or a table with ``name`` and ``options``.
    """

    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


def read_spec(path: str | Path, model: type[S], overrides: tuple[str, ...] | list[str] = ()) -> S:
    """Reads a TOML file into a validated spec.

    Args:
        path: the file.
        model: what it describes.
        overrides: ``"purifier.steps=20"`` each; the value is read as TOML, or as text if it is none.

    Raises:
        UserError: if the file is missing or no TOML, or a key or value is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"spec '{path}' does not exist. Give the path of a TOML file, such as specs/cifar10-ddpm.toml."
        )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"spec '{path}' is no valid TOML: {error}.") from error
    for override in overrides:
        _override(table, override)
    return validate(table, model, str(path))


def validate(table: dict[str, Any], model: type[S], where: str) -> S:
    """Returns the spec a table describes; UserError lists every wrong key with what was expected."""
    try:
        return model.model_validate(table)
    except ValidationError as error:
        problems = [_problem(e, model) for e in error.errors()]
        raise UserError(f"spec '{where}': {'; '.join(problems)}.") from error


def spec_hash(spec: Strict) -> str:
    """Returns the sha256 of a resolved spec's canonical JSON, hexadecimal."""
    return hashlib.sha256(json.dumps(spec.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Returns ``"threat.eps 8/255 -> 4/255"`` for every leaf in which two resolved specs differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [
            d for k in keys for d in differences(old.get(k), new.get(k), f"{prefix}.{k}" if prefix else k)
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            d
            for i, (a, b) in enumerate(zip(old, new, strict=True))
            for d in differences(a, b, f"{prefix}[{i}]")
        ]
    return [] if old == new else [f"{prefix} {_shown(old)} -> {_shown(new)}"]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _override(table: dict[str, Any], override: str) -> None:
    """Sets one dotted key of a table in place."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise UserError(f"override '{override}' is not of the form key.path=value.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *parents, leaf = key.strip().split(".")
    current: Any = table
    try:
        for parent in parents:
            current = current[int(parent)] if isinstance(current, list) else current.setdefault(parent, {})
        current[int(leaf) if isinstance(current, list) else leaf] = value
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise UserError(
            f"override '{override}' does not lead to a key: {error}. Lists take a position, as in"
            " attacks.0.name."
        ) from error


def _problem(error: Any, model: type[BaseModel]) -> str:
    """One sentence for one validation error."""
    where = ".".join(str(part) for part in error["loc"]) or "spec"
    if error["type"] == "extra_forbidden":
        known = _keys_at(model, error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        return f"unknown key '{where}'.{hint} Available: {', '.join(sorted(known))}"
    if error["type"] == "missing":
        return f"key '{where}' is missing"
    message = error["msg"].removeprefix("Value error, ")
    return (
        f"{where} ="
        f" {_shown(error['input']) if isinstance(error['input'], (str, int, float, bool)) else '...'}:"
        f" {message}"
    )


def _keys_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """The field names of the spec at a location."""
    current: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        field = current.model_fields.get(part)
        if field is None:
            return list(current.model_fields)
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if inner is None:
            break
        current = inner
    return list(current.model_fields)


def as_toml(table: dict[str, Any], prefix: str = "") -> str:
    """Returns a resolved spec as TOML text; keys whose value is None are left out, as TOML has no null."""
    plain, nested = [], []
    for key, value in table.items():
        if isinstance(value, dict) and value:
            nested.append(f"\n[{prefix}{_toml_key(key)}]\n{as_toml(value, f'{prefix}{_toml_key(key)}.')}")
        elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
            nested += [
                f"\n[[{prefix}{_toml_key(key)}]]\n{as_toml(v, f'{prefix}{_toml_key(key)}.')}" for v in value
            ]
        elif value is not None:
            plain.append(f"{_toml_key(key)} = {_toml_value(value)}\n")
    return "".join(plain + nested)


def _toml_value(value: Any) -> str:
    """A value in TOML's inline form; JSON agrees with it on strings, numbers, booleans and lists."""
    if isinstance(value, dict):
        return (
            "{ " + ", ".join(f"{_toml_key(k)} = {_toml_value(v)}" for k, v in value.items()) + " }"
            if value
            else "{}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_key(key: str) -> str:
    """A key, quoted unless it is bare."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)
