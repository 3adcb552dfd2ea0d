"""JSON Schemas: they are those of the types, change only with their version, and fit what is written."""

import copy
import importlib.util
import json
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest

from dbpkit.foundation.packaged import specs
from dbpkit.results import records
from dbpkit.results.summary import Row

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "reference" / "schemas"
RUN = ROOT / "tests" / "golden" / "run-schema-2"
FROZEN: dict[str, dict[str, str]] = json.loads((ROOT / "tests/golden/specs-layout-2.json").read_text())


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("schemas_script", ROOT / "docs" / "schemas.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def schema(name: str) -> dict[str, Any]:
    """The newest schema of a name."""
    newest = max(FOLDER.glob(f"{name}-[0-9]*.json"), key=lambda p: int(p.stem.rpartition("-")[2]))
    found: dict[str, Any] = json.loads(newest.read_text())
    return found


def fits(content: Any, name: str) -> None:
    jsonschema.Draft202012Validator(schema(name)).validate(content)


def test_schemas_are_those_of_the_types(script: ModuleType) -> None:
    """A failure means: run ``python docs/schemas.py``, which says whether the version must be raised."""
    script.main(["--check"])
    assert {p.stem.rpartition("-")[0] for p in FOLDER.glob("*.json")} == set(script.KINDS)


def test_schemas_say_their_version_and_are_schemas(script: ModuleType) -> None:
    for path in FOLDER.glob("*.json"):
        name, _, version = path.stem.rpartition("-")
        found = json.loads(path.read_text())
        assert found["$id"] == f"urn:dbpkit:schema:{name}:{version}"
        assert int(version) <= script.KINDS[name][0]
        jsonschema.Draft202012Validator.check_schema(found)


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_specs_fit_their_schema(name: str) -> None:
    table = tomllib.loads(FROZEN[name]["toml"])
    fits(table, "training-spec" if "optimiser" in table else "evaluation-spec")


def test_published_specs_fit_their_schema_and_a_misspelt_key_does_not() -> None:
    for name, path in specs().items():
        fits(
            tomllib.loads(path.read_text()),
            "training-spec" if name.startswith("train/") else "evaluation-spec",
        )
    with pytest.raises(jsonschema.ValidationError):
        fits({"purifier": {"step": 20}}, "evaluation-spec")


def test_files_of_a_run_fit_their_schemas() -> None:
    for file, name in (("spec", "spec-file"), ("env", "env"), ("checks", "checks"), ("summary", "summary")):
        fits(json.loads((RUN / f"{file}.json").read_text()), name)
    for line in (RUN / "records.jsonl").read_text().splitlines():
        fits(json.loads(line), "record")
    for folder in (RUN / "analyses").iterdir():
        fits(json.loads((folder / "settings.json").read_text()), "analysis-settings")
        fits(json.loads((folder / "result.json").read_text()), "analysis-result")


def test_schemas_of_records_and_summaries_have_the_keys_that_are_written() -> None:
    keys = {**records.Record.__annotations__, **records.Attacked.__annotations__}
    assert schema("record")["properties"].keys() == keys.keys() | records.Watched.__annotations__.keys()
    assert schema("summary")["$defs"]["SummaryRow"]["properties"].keys() == set(Row._fields)


def changed(*path: str, value: Any) -> dict[str, Any]:
    """The schema of evaluation specs after a change at a place."""
    made = copy.deepcopy(schema("evaluation-spec"))
    part = made
    for step in path[:-1]:
        part = part[step]
    if value is None:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return made


@pytest.mark.parametrize(
    ("after", "where"),
    [
        (changed("properties", "patience", value={"type": "integer", "default": 3}), ""),
        (changed("description", value="Other words."), ""),
        (changed("$defs", "NewSpec", value={"type": "object"}), ""),
        (changed("properties", "seed", value=None), "/properties/seed"),
        (changed("properties", "seed", "default", value=7), "/properties/seed/default"),
        (changed("properties", "seed", "type", value="string"), "/properties/seed/type"),
        (changed("properties", "seed", "multipleOf", value=2), "/properties/seed/multipleOf"),
        (changed("required", value=["seed"]), "/required"),
        (changed("properties", "precision", "enum", value=["float32"]), "/properties/precision/enum"),
    ],
)
def test_only_keys_that_nobody_has_to_give_may_come_without_a_new_version(
    after: dict[str, Any], where: str, script: ModuleType
) -> None:
    assert script.broken(schema("evaluation-spec"), after) == ([where] if where else [])


def test_schema_that_would_no_longer_fit_is_not_written(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "FOLDER", tmp_path)
    script.main([])
    path = tmp_path / "evaluation-spec-1.json"
    now = path.read_text()
    path.write_text(json.dumps(changed("properties", "seed", "default", value=7)))
    with pytest.raises(
        SystemExit, match=re.escape("evaluation-spec-1.json would change at /properties/seed")
    ):
        script.main([])
    grown = json.loads(now)
    del grown["properties"]["precision"]
    path.write_text(json.dumps(grown))
    script.main([])
    assert path.read_text() == now
