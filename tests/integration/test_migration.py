"""What earlier versions wrote still opens, says the same and goes on: one frozen run for every layout."""

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from dbpkit import (
    EvaluationSpec,
    Execution,
    RunDirectory,
    TrainingSpec,
    compare,
    evaluate,
    findings,
    report,
    summarise,
)
from dbpkit.foundation.spec import spec_hash, validate
from dbpkit.results.analysis import analysis_results
from dbpkit.results.records import SCHEMA

GOLDEN = Path(__file__).parents[1] / "golden"
LAYOUTS = sorted(GOLDEN.glob("run-schema-*"))
AS_FROZEN = Execution("cpu", batch_size=4, micro_batch=32, memory_bytes=2**31)
SPECS: dict[str, dict[str, str]] = json.loads((GOLDEN / "specs-layout-2.json").read_text())


@pytest.fixture(params=LAYOUTS, ids=lambda path: path.name)
def frozen(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a run that an earlier version made."""
    return Path(shutil.copytree(request.param, tmp_path / "frozen"))


def close(found: Any, stored: Any) -> bool:
    """Whether everything that was stored is found again; what came later may be there beside it."""
    if isinstance(stored, dict):
        return all(key in found and close(found[key], value) for key, value in stored.items())
    if isinstance(stored, list):
        return len(found) == len(stored) and all(map(close, found, stored))
    return found == pytest.approx(stored, abs=1e-12) if isinstance(stored, float) else bool(found == stored)


def test_there_is_a_frozen_run_of_every_layout_that_is_read() -> None:
    """Whoever raises the number freezes a run of the new layout and keeps those of the old ones."""
    assert [path.name for path in LAYOUTS] == [f"run-schema-{k}" for k in range(1, SCHEMA + 1)]
    assert [RunDirectory(path).schema for path in LAYOUTS] == list(range(1, SCHEMA + 1))


def test_frozen_run_has_the_numbers_that_were_written_with_it(frozen: Path) -> None:
    stored = json.loads((frozen / "summary.json").read_text())
    found = summarise(RunDirectory(frozen)).as_json()
    assert [row["name"] for row in found["rows"]] == [row["name"] for row in stored["rows"]]
    for now, then in zip(found["rows"], stored["rows"], strict=True):
        by_name = {e["estimand"]: e for e in now["estimates"]}
        for estimate in then["estimates"]:
            same = ("value", "examples", "draws")
            assert close(by_name[estimate["estimand"]], {k: estimate[k] for k in same}), now["name"]


def test_frozen_run_of_the_present_layout_has_every_number_interval_and_flag() -> None:
    stored = json.loads((LAYOUTS[-1] / "summary.json").read_text())
    assert close(summarise(RunDirectory(LAYOUTS[-1])).as_json(), stored)


def test_frozen_analyses_open_and_their_claims_are_judged(frozen: Path) -> None:
    run = RunDirectory(frozen)
    names = {result.name for result in analysis_results(run)}
    assert names >= {"eot", "shares"}
    assert {f.analysis for f in findings(run)} >= names - {"compression"}


@pytest.mark.slow  # figures of two runs, a few seconds of drawing
def test_frozen_runs_get_a_page(tmp_path: Path) -> None:
    page = report(LAYOUTS, tmp_path / "page.html").read_text(encoding="utf-8")
    for layout in LAYOUTS:
        assert RunDirectory(layout).spec()["hash"][:12] in page


def test_frozen_runs_are_compared_across_layouts() -> None:
    found = compare(LAYOUTS[0], LAYOUTS[-1])
    assert {"clean", "white_box", "dw_both"} <= found.differences.keys()
    assert all(e.value == 0 for e in compare(LAYOUTS[-1], LAYOUTS[-1]).differences.values())


def spec_of(run: Path, **examples: Any) -> EvaluationSpec:
    """The spec that a run directory keeps, of other examples."""
    table = RunDirectory(run).spec()["spec"]
    return EvaluationSpec.model_validate({**table, "examples": {**table["examples"], **examples}})


def test_frozen_run_is_finished_and_grows(frozen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN.parents[1])
    before = (frozen / "records.jsonl").read_bytes()
    evaluate(spec_of(frozen), frozen, AS_FROZEN)
    assert (frozen / "records.jsonl").read_bytes() == before, "everything was done"
    summary = evaluate(spec_of(frozen, count=6), frozen, AS_FROZEN)
    assert (frozen / "records.jsonl").read_bytes().startswith(before)
    assert all(row.estimates[0].examples == 6 and not row.failed for row in summary.rows)


def test_frozen_run_that_was_killed_goes_on_to_the_same_records(
    frozen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last unit is lost; what is made anew is what was there, on this machine's last digits."""
    monkeypatch.chdir(GOLDEN.parents[1])
    path = frozen / "records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-4]))
    evaluate(spec_of(frozen), frozen, AS_FROZEN)
    again = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert len(again) == len(lines)
    for now, then in zip(again, map(json.loads, lines), strict=True):
        same = ("row", "tape", "example", "label", "predicted", "attack")
        assert {k: now.get(k) for k in same} == {k: then.get(k) for k in same}
        assert now.get("loss", []) == pytest.approx(then.get("loss", []), rel=1e-4)


@pytest.mark.parametrize("name", SPECS)
def test_frozen_spec_file_still_means_the_same(name: str) -> None:
    """A failure means: a default or a key has changed, and every run of such a spec would be refused."""
    table = tomllib.loads(SPECS[name]["toml"])
    kind = TrainingSpec if "optimiser" in table else EvaluationSpec
    assert spec_hash(validate(table, kind, name)) == SPECS[name]["hash"]
