"""JSON Schemas of what people and programs write and read: specs, and the files of a run directory.

``python docs/schemas.py`` writes ``docs/reference/schemas/NAME-VERSION.json`` from the types that read those
files; with ``--check`` it fails if one is out of date. A schema may grow by keys that nobody has to give.
Whoever changes anything else raises its version, keeps the file of the old one, and says in
``reference/run-directory.md`` how the old files are still read.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, create_model

from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.results import schemas
from dbpkit.results.checks_file import VERSION as CHECKS
from dbpkit.results.records import SCHEMA as LAYOUT
from dbpkit.statistics.estimates import Estimate
from dbpkit.training.spec import TrainingSpec

FOLDER = Path(__file__).parent / "reference" / "schemas"

WORDS = ("title", "description", "$id")
"""Keys of a schema that change nothing of what it admits."""


class Open(BaseModel):
    """An object that newer versions may write more keys into."""

    model_config = ConfigDict(extra="allow")


class RecordLine(Open):
    """One line of ``records.jsonl``: see `dbpkit.results.records.Record`."""

    row: str
    tape: int
    example: int
    label: int | None = None
    predicted: list[int] | None = None
    ensembles: list[int] | None = None
    error: str | None = None
    attack: str | None = None
    excess: float | None = None
    loss: list[float | None] | None = None
    grad_norm: list[float | None] | None = None
    claimed_success: bool | None = None
    distance: float | None = None
    forward_passes: int | None = None
    gradient_passes: int | None = None
    network_calls: int | None = None
    images: str | None = None
    queries: int | None = None
    failed_at: int | None = None
    control_failed_at: int | None = None


Estimated: Any = create_model(
    "Estimated", __base__=Open, **{k: (t, ...) for k, t in Estimate.__annotations__.items()}
)


class SummaryRow(Open):
    """One row of the table in ``summary.json``."""

    name: str
    title: str
    tapes: int
    estimates: list[Estimated]
    headline: Estimated
    control: Estimated | None
    forward_passes: float
    gradient_passes: float
    network_calls: float | None
    failed: int


class SummaryFile(Open):
    """``summary.json``: what `dbpkit.results.summary.Summary.as_json` returns."""

    name: str
    sentence: str
    protocol: str
    rows: list[SummaryRow]
    differences: dict[str, Estimated]
    flags: list[schemas.RecordedFlag]


def _of(kind: Any) -> Callable[[], dict[str, Any]]:
    adapter = kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)
    return adapter.json_schema


KINDS: dict[str, tuple[int, Callable[[], dict[str, Any]]]] = {
    "evaluation-spec": (1, _of(EvaluationSpec)),
    "training-spec": (1, _of(TrainingSpec)),
    "spec-file": (LAYOUT, _of(schemas.SPEC)),
    "env": (LAYOUT, _of(schemas.SESSIONS)),
    "record": (LAYOUT, _of(RecordLine)),
    "checks": (CHECKS, _of(schemas.CHECKS)),
    "summary": (LAYOUT, _of(SummaryFile)),
    "analysis-settings": (LAYOUT, _of(schemas.SETTINGS)),
    "analysis-result": (LAYOUT, _of(schemas.RESULT)),
}
"""Name of each schema, its version, and what makes it. Specs are TOML and carry no number."""


def made() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields where each schema belongs, and the schema of the types as they are now."""
    for name, (version, make) in KINDS.items():
        about = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": f"urn:dbpkit:schema:{name}:{version}",
        }
        yield FOLDER / f"{name}-{version}.json", {**about, **make()}


def broken(old: Any, new: Any, place: str = "") -> list[str]:
    """Returns where a schema changed in another way than by keys that nobody has to give.

    Args:
        old: a schema, or a part of one.
        new: what came of it.
        place: where it lies, for the answer.
    """
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [place]
    named = place.endswith(("/properties", "/$defs"))
    found = [f"{place}/{k}" for k in old.keys() - new.keys() - ({"required"} if not named else set())]
    if not named:
        found += [
            f"{place}/{k}" for k in new.keys() - old.keys() - {*WORDS, "$defs", "properties", "required"}
        ]
    for key in sorted(old.keys() & new.keys()):
        if named or key not in (*WORDS, "required"):
            found += _broken_list(old[key], new[key], f"{place}/{key}")
    if not named and set(new.get("required", ())) - set(old.get("required", ())):
        found.append(f"{place}/required")
    return found


def _broken_list(old: Any, new: Any, place: str) -> list[str]:
    """`broken`, of lists entry by entry: alternatives may be added at the end."""
    if not (isinstance(old, list) and isinstance(new, list)):
        return broken(old, new, place)
    more = place.endswith(("/anyOf", "/enum"))
    if len(new) < len(old) or (len(new) > len(old) and not more):
        return [place]
    pairs = enumerate(zip(old, new, strict=False))
    return [where for i, (a, b) in pairs for where in broken(a, b, f"{place}/{i}")]


def main(arguments: list[str]) -> None:
    """Writes the schemas, or checks them."""
    for path, schema in made():
        text = json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
        old = path.read_text(encoding="utf-8") if path.is_file() else ""
        if "--check" in arguments:
            if text != old:
                raise SystemExit(f"docs/reference/schemas/{path.name} is out of date: see docs/schemas.py.")
        elif old and (places := broken(json.loads(old), schema)):
            raise SystemExit(
                f"{path.name} would change at {', '.join(places)}, and files of this version would no longer"
                " fit. Raise the version of what it describes, and say how the old files are read."
            )
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
