"""``spec.json``: which run a directory holds, and whether another spec goes on with it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.locking import is_trace
from dbpkit.foundation.spec import differences
from dbpkit.results.layout import RESTORE, canonical_hash, checked, read_json
from dbpkit.results.records import SCHEMA
from dbpkit.results.schemas import SPEC


def read_spec_file(folder: Path) -> dict[str, Any]:
    """Returns ``schema``, ``hash`` and ``spec`` of a run directory.

    Raises:
        UserError: if it is not a run directory, one of another layout, or the spec was changed.
    """
    path = folder / "spec.json"
    old = read_json(path)
    if old is None:
        raise UserError(
            f"'{folder}' is not a run directory: it has no spec.json. Give one made by 'dbpkit evaluate'."
        )
    schema = old.get("schema") if isinstance(old, dict) else None
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise UserError(
            f"'{folder}' has layout version {str(schema)[:20]!r}; this dbpkit reads versions 1 to {SCHEMA}."
        )
    found: dict[str, Any] = checked(old, SPEC, f"'{path}'")
    spec = found["spec"]
    if found["hash"] != canonical_hash(identity_of(spec, schema)):
        raise UserError(f"'{path}' does not match its hash: it was changed after the run began. {RESTORE}")
    if schema == 1:  # runs made before there was an order took the data's own
        spec["examples"].setdefault("order", "file")
    return found


def spec_file(spec: Mapping[str, Any], schema: int = SCHEMA) -> dict[str, Any]:
    """Returns the content of ``spec.json`` for a resolved spec."""
    return {"schema": schema, "hash": canonical_hash(identity_of(spec, schema)), "spec": spec}


def identity_of(spec: Mapping[str, Any], schema: int) -> Mapping[str, Any]:
    """Returns what of a spec tells runs apart: all of it in layout 1, later all but how many examples."""
    return spec if schema == 1 else without_count(spec)


def refuse_other_spec(folder: Path, old: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    """Raises UserError unless a spec goes on with the run of another: equal but for a larger count."""
    if changed := ", ".join(differences(without_count(old), without_count(spec))):
        raise UserError(
            f"{folder} was made with another spec: {changed}. Use a new --out or delete the directory."
        )
    before, now = count_of(old), count_of(spec)
    if (now or math.inf) < (before or math.inf):
        raise UserError(
            f"{folder} is a run over {before or 'all'} examples, and examples.count = {now} is"
            " fewer: a run can grow and not shrink."
            f" {f'Set it to {before} or more' if before else 'Leave it out'}, or use a new --out."
        )


def refuse_other_folder(folder: Path) -> None:
    """Raises UserError if something else is where a run directory is to be made."""
    if folder.exists() and (not folder.is_dir() or not all(map(is_trace, folder.iterdir()))):
        raise UserError(f"'{folder}' exists and is not a run directory. Use a new --out.")


def without_count(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a resolved spec without the number of its examples."""
    examples = {k: v for k, v in spec.get("examples", {}).items() if k != "count"}
    return {**spec, "examples": examples}


def count_of(spec: Mapping[str, Any]) -> int | None:
    """Returns how many examples a resolved spec asks for; None is all."""
    count: int | None = spec.get("examples", {}).get("count")
    return count
