"""Reading TOML specs: unknown keys, wrong types and overrides, each with an error that names the key.

The thing people get wrong: ``eps = "8/255"`` is kept as written, so that a report shows what was meant.
"""

import difflib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    WithJsonSchema,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from dbpkit.foundation.amounts import amount as amount
from dbpkit.foundation.errors import UserError, shown
from dbpkit.foundation.overrides import override
from dbpkit.foundation.packaged import find_spec
from dbpkit.foundation.toml import as_toml as as_toml
from dbpkit.foundation.toml import check_values, read_table


class Strict(BaseModel):
    """A spec that refuses unknown keys and cannot be changed once made.

    Its table, and with it its hash and what a run directory keeps of it, has every key of `always`, and of
    the others those whose value is not the one that their absence stands for. So a field that is added to a
    spec leaves tables and hashes of all earlier specs as they are, and directories made with them go on. A
    default that changes is another experiment: whoever changes that of a key of `always` changes the table
    of every spec that does not say it; whoever changes another writes the old one into `absent`.
    """

    always: ClassVar[frozenset[str] | None] = None
    """Keys of every table; None stands for all of them."""

    absent: ClassVar[Mapping[str, Any]] = {}
    """What a key that is not in a table stands for, where that is not the field's default."""

    shorter: ClassVar[Mapping[str, Any] | None] = None
    """JSON Schema of what stands for the table in a TOML file; None if nothing does."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        table = handler(core)
        return table if cls.shorter is None else {"anyOf": [dict(cls.shorter), table]}

    def __init__(self, **values: Any) -> None:
        """Makes a spec from its values; UserError names every wrong one."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _refusal(error, type(self), type(self).__name__) from error

    # Pydantic's own mark of an __init__ that does no more than validate: a spec inside another one is then
    # validated with it, and its errors keep their place.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def left_out(self) -> set[str]:
        """Returns the keys that this spec's table does not have."""
        fields = type(self).model_fields
        later = fields.keys() - (fields.keys() if self.always is None else self.always)
        default = {key: fields[key].get_default(call_default_factory=True) for key in later}
        return {key for key in later if getattr(self, key) == {**default, **self.absent}[key]}

    @model_serializer(mode="wrap")
    def _as_table(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        table: dict[str, Any] = handler(self)
        for key in self.left_out():
            table.pop(key, None)
        return table

    def identity(self) -> dict[str, Any]:
        """Returns what two specs of the same run have in common, ready for JSON; its hash is the spec's."""
        return self.model_dump(mode="json")


S = TypeVar("S", bound=Strict)


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _readable_amount(value: str) -> str:
    amount(value)
    return value


NAME_ALONE = {"type": "string"}
"""JSON Schema of a text, where a name stands for a table."""

Amount = Annotated[
    str,
    BeforeValidator(_as_text),
    AfterValidator(_readable_amount),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}]}),
]
"""A non-negative number as text: ``"8/255"`` or ``"0.5"``."""


class PartSpec(Strict):
    """A part by registered name or import path, with its keyword arguments.

    In TOML either ``part = "name"`` or a table with ``name`` and ``options``.

    Attributes:
        name: registered name or import path.
        options: its keyword arguments.
    """

    always: ClassVar[frozenset[str] | None] = frozenset({"name", "options"})
    shorter = NAME_ALONE

    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


def read_spec(path: str | Path, model: type[S], overrides: tuple[str, ...] | list[str] = ()) -> S:
    """Reads a TOML file into a validated spec.

    Args:
        path: the file, or the name of a published spec such as ``cifar10-ddpm``.
        model: what it describes.
        overrides: ``"purifier.steps=20"`` each; the value is read as TOML, or as text if it is none.

    Raises:
        UserError: if the file is missing, empty or no TOML, or a key or value is wrong.
    """
    path = find_spec(path)
    table = read_table(path)
    if not table and not overrides:
        raise UserError(f"spec '{path}' says nothing. 'dbpkit init my.toml' writes one that names its parts.")
    return overridden(table, model, overrides, str(path))


def overridden(
    table: dict[str, Any], model: type[S], overrides: tuple[str, ...] | list[str], where: str
) -> S:
    """Returns the spec that a table describes with some leaves changed, as `read_spec`; the table changes."""
    for text in overrides:
        override(table, text, model)
    return validate(table, model, where)


def validate(table: dict[str, Any], model: type[S], where: str) -> S:
    """Returns the spec a table describes; UserError lists every wrong key with what was expected."""
    try:
        check_values(table)
    except ValueError as error:
        raise UserError(f"spec '{where}': {error}.") from error
    try:
        return model.model_validate(table)
    except ValidationError as error:
        raise _refusal(error, model, f"spec '{where}'{_other_kind(table, model)}") from error


def _refusal(error: ValidationError, model: type[BaseModel], where: str) -> UserError:
    """Every wrong key of a spec, with what was expected, in one sentence."""
    problems: list[str] = []
    for found in error.errors():
        said, mark, names = _problem(found, model).partition(" Available: ")
        again = any(problem.endswith(mark + names) for problem in problems)
        problems.append(said.rstrip(".") if again and mark else said + mark + names)
    text = f"{where}: {'; '.join(problems)}"
    return UserError(text if text.endswith("?") else f"{text}.")


def _other_kind(table: dict[str, Any], model: type[BaseModel]) -> str:
    """Which command a spec is for, if its keys are those of another kind of spec; or nothing."""
    for key, kind, commands in (
        ("objective", "a training spec", "'dbpkit train'"),
        ("threat", "a spec of an evaluation", "'dbpkit evaluate', 'check' and 'analyse'"),
    ):
        if key in table and key not in model.model_fields:
            return f" looks like {kind}, which is for {commands}"
    return ""


def spec_hash(spec: Strict) -> str:
    """Returns the sha256 of the canonical JSON of a resolved spec's identity, hexadecimal."""
    return hashlib.sha256(json.dumps(spec.identity(), sort_keys=True).encode()).hexdigest()


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


_EXPECTED = {
    "bool_type": "it must be true or false",
    "bool_parsing": "it must be true or false",
    "dict_type": "it must be a table, such as { key = value }",
    "model_type": "it must be a table, such as { key = value }",
}
"""What a key takes, by the type of pydantic's error, where its own words name Python's types."""


def _problem(error: Any, model: type[BaseModel]) -> str:
    """One sentence for one validation error."""
    where = ".".join(shown(str(part))[1:-1] for part in error["loc"]) or "spec"
    if error["type"] == "extra_forbidden":
        known = _keys_at(model, error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1])[:80], known, n=1, cutoff=0.5)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        return f"unknown key '{where}'.{hint} Available: {', '.join(sorted(known))}"
    if error["type"] == "missing":
        return f"key '{where}' is missing"
    message = _EXPECTED.get(error["type"]) or error["msg"].removeprefix("Value error, ")
    came = error["input"]
    if not isinstance(came, str | int | float | bool):
        return f"{where} = ...: {message}"
    return f"{where} = {shown(came)[1:-1] if isinstance(came, str) else shown(came)}: {message}"


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
