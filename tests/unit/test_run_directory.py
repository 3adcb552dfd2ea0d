"""Run directories: read by one typed reader for each file, bound together by hashes, of every layout."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dbpkit import RunDirectory, UserError, summarise
from dbpkit.analyses.law.law import combine
from dbpkit.results.analysis import AnalysisRecords
from dbpkit.results.findings import findings
from tests.unit.test_compare import SPEC

OLD = Path(__file__).parents[1] / "golden" / "run-schema-1"


def record(row: str, example: int, predicted: list[int] | None = None, **more: Any) -> dict[str, Any]:
    return {"row": row, "tape": 0, "example": example, "label": 1, "predicted": predicted or [1, 0], **more}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path / "run")
    made.claim(SPEC)
    made.write_json("env.json", [{"data_sha256": "d", "examples": 4}])
    made.write_json("checks.json", [])
    return made


def edited(run: RunDirectory, name: str, change: Callable[[Any], object]) -> RunDirectory:
    """The run as it is read after a change of one of its JSON files."""
    content = json.loads((run.path / name).read_text())
    change(content)
    (run.path / name).write_text(json.dumps(content))
    return RunDirectory(run.path)


def test_run_of_layout_1_opens_with_the_same_numbers_and_says_it_is_not_verified(tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path / "old")
    run = RunDirectory(tmp_path / "old")
    stored = json.loads((OLD / "summary.json").read_text())
    found = summarise(run)
    assert [(r.name, r.estimates[0].value) for r in found.rows] == [
        (r["name"], r["estimates"][0]["value"]) for r in stored["rows"]
    ]
    flags = [f for f in found.flags if f.name == "unverified"]
    assert [f.severity for f in flags] == ["warning"]
    assert "carry no digest" in flags[0].message
    assert {f.analysis for f in findings(run)} >= {"compression", "eot", "shares"}


def test_run_of_an_unknown_layout_is_refused(run: RunDirectory) -> None:
    for schema in (3, 0, -1, None, "2", True, 1.0):
        with pytest.raises(UserError, match="this dbpkit reads versions 1 to 2"):
            edited(run, "spec.json", lambda c, s=schema: c.update(schema=s)).spec()


def test_spec_that_was_edited_does_not_match_its_hash(run: RunDirectory) -> None:
    run.append([record("clean", 0)])
    edited(run, "spec.json", lambda c: c["spec"]["threat"].update(eps="1/255"))
    with pytest.raises(UserError, match=r"spec\.json' does not match its hash"):
        summarise(RunDirectory(run.path))


def test_spec_of_another_run_does_not_fit_the_records(run: RunDirectory, tmp_path: Path) -> None:
    run.append([record("clean", 0)])
    other = RunDirectory(tmp_path / "other")
    other.claim({**SPEC, "threat": {"norm": "linf", "eps": "1/255"}})
    shutil.copy(other.path / "spec.json", run.path)
    with pytest.raises(UserError, match=r"records\.jsonl' was not made with the 'spec\.json' beside it"):
        RunDirectory(run.path).records()


def test_session_of_another_run_does_not_fit_the_records(run: RunDirectory) -> None:
    run.append([record("clean", 0)])
    with pytest.raises(UserError, match=r"was not made with the 'env\.json' beside it"):
        edited(run, "env.json", lambda c: c[0].update(data_sha256="e")).columns()
    (run.path / "env.json").unlink()
    with pytest.raises(UserError, match=r"has no 'env\.json' beside it"):
        RunDirectory(run.path).columns()


def test_checks_that_were_edited_are_an_error_flag(run: RunDirectory) -> None:
    run.append([record("clean", 0)])
    assert summarise(run).flags == []
    (run.path / "checks.json").unlink()
    flags = summarise(RunDirectory(run.path)).flags
    assert [(f.name, f.severity) for f in flags] == [("unverified", "error")]
    assert "checks.json is not the one the records were made with" in flags[0].message


def test_checks_say_which_ran_and_a_list_of_flags_alone_does_not(run: RunDirectory) -> None:
    flag = {"name": "near_chance", "severity": "error", "message": "m", "row": ""}
    run.write_checks([flag], {"probabilities": "the classifier returns logits"})
    assert (run.checks(), run.checks_run()) == ([flag], {"probabilities": "the classifier returns logits"})
    run.write_json("checks.json", [flag])  # the file's first version
    assert (run.checks(), run.checks_run()) == ([flag], None)


def test_checks_of_either_version_belong_to_the_same_records(run: RunDirectory) -> None:
    run.append([record("clean", 0)])
    run.write_checks([], {"probabilities": "the classifier returns logits"})
    assert summarise(RunDirectory(run.path)).flags == []


def test_checks_of_an_unknown_version_are_refused(run: RunDirectory) -> None:
    run.write_json("checks.json", {"version": 3, "flags": [], "ran": {}})
    with pytest.raises(UserError, match=r"checks\.json' is damaged \(version"):
        run.checks()


def test_run_continued_by_other_code_is_flagged(run: RunDirectory) -> None:
    run.write_json(
        "env.json", [{"data_sha256": "d", "code_sha256": "a"}, {"data_sha256": "d", "code_sha256": "b"}]
    )
    run.append([record("clean", 0)])
    (flag,) = summarise(run).flags
    assert flag.message.startswith("The run was continued with other code of dbpkit (2 versions)")


def test_record_that_was_edited_is_refused(run: RunDirectory) -> None:
    run.append([record("clean", i) for i in range(4)])
    path = run.path / "records.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"predicted": [1, 0]', b'"predicted": [1, 1]', 1))
    with pytest.raises(UserError, match="changed after it was written"):
        summarise(RunDirectory(run.path))


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("predicted", 0, "'predicted' is not a list of classes"),  # a classifier that ends in .squeeze()
        ("predicted", [], "'predicted'"),
        ("predicted", [1, -1], "'predicted'"),
        ("predicted", [1.0], "'predicted'"),
        ("predicted", [True], "'predicted'"),
        ("predicted", [2**31], "'predicted'"),
        ("label", "1", "'label'"),
        ("label", -1, "'label'"),
        ("excess", "x", "'excess'"),
        ("excess", float("nan"), "'excess'"),
        ("loss", [1.0, float("inf")], "'loss'"),
        ("loss", [True], "'loss'"),
        ("loss", 1.0, "'loss'"),
        ("queries", 3, "'queries', 'failed_at'"),
        ("claimed_success", 1, "'claimed_success'"),
        ("attack", 1, "'attack'"),
        ("images", "../../etc/passwd", "'images'"),
        ("images", "/etc/passwd.safetensors", "'images'"),
        ("images", "..safetensors", "'images'"),
    ],
)
def test_record_that_is_damaged_counts_as_failed_and_is_made_again(
    name: str, value: Any, why: str, run: RunDirectory
) -> None:
    bad = {**record("white_box", 1), "excess": 0.0, "loss": [1.0], name: value}
    run.append([record("white_box", 0), bad])
    assert [r["example"] for r in run.records() if "error" in r] == [1]
    (failed,) = run.columns().failed
    assert why in failed["error"]
    assert {key.example for key in run.done()} == {0}
    run.append([record("white_box", 1)])
    assert {key.example for key in run.done()} == {0, 1}


@pytest.mark.parametrize(
    "key", [{"row": 1}, {"row": "a\x1b[31m"}, {"tape": -1}, {"tape": True}, {"example": 0.5}]
)
def test_record_without_a_key_is_one_sentence(key: dict[str, Any], run: RunDirectory) -> None:
    run.append([{**record("clean", 0), **key}])
    with pytest.raises(
        UserError, match=r"records\.jsonl' line 1 is damaged \(row, tape or example cannot be read"
    ):
        run.columns()


def test_columns_hold_what_the_records_say(run: RunDirectory) -> None:
    attacked = {"excess": -0.5, "loss": [1.0, None, 3.0], "grad_norm": [0.5], "queries": 7, "failed_at": 2}
    records = [
        record("clean", 5),
        record("white_box", 5, [1, 1, 0], **attacked, control_failed_at=None, claimed_success=True),
        {**record("white_box", 3, [0]), "tape": 1},
        {"row": "white_box", "tape": 0, "example": 9, "error": "boom"},
        record("clean", 5, [0, 0]),
    ]
    run.append(records[:3])
    run.append(records[3:])
    columns = run.columns()
    assert columns.failed == [records[3]]
    clean, white = columns.rows["clean"], columns.rows["white_box"]
    assert clean.predicted.tolist() == [[0, 0]], "the newest line is valid"
    assert clean.append.tolist() == [1]
    assert white.example.tolist() == [5, 3]
    assert white.tape.tolist() == [0, 1]
    assert white.predicted.tolist() == [[1, 1, 0], [0, -1, -1]]
    assert white.draws.tolist() == [3, 1]
    assert white.right.tolist() == [2 / 3, 0]
    assert white.queries["failed_at"].tolist() == [2, -1]
    assert white.queries["control_failed_at"].tolist() == [0, -1]
    assert white.claimed_success.tolist() == [1, -1]
    np.testing.assert_array_equal(white.measures["excess"], [-0.5, np.nan])
    np.testing.assert_array_equal(white.paths["loss"].padded(), [[1, np.nan, 3], [np.nan] * 3])
    np.testing.assert_array_equal(white.select(np.array([1, 0])).paths["loss"].padded()[1], [1, np.nan, 3])
    assert run.records() == [records[4], records[1], records[2], records[3]]


def test_images_that_were_swapped_or_lost_make_their_records_undone(run: RunDirectory) -> None:
    for first in (0, 2):
        ids = torch.tensor([first, first + 1])
        stored = run.write_images(f"white_box-{first}", ids, torch.zeros(2, 1, 2, 2) + first)
        run.append([record("white_box", i, images=stored.name) for i in ids.tolist()], [stored])
    assert {key.example for key in run.done()} == {0, 1, 2, 3}
    shard = run.path / "x_adv" / "white_box-0.safetensors"
    shutil.copy(run.path / "x_adv" / "white_box-2.safetensors", shard)
    assert {key.example for key in run.done()} == {2, 3}
    with pytest.raises(
        UserError, match=r"white_box-0\.safetensors' is not the file its records were made with"
    ):
        run.read_images("white_box-0.safetensors")
    shard.unlink()
    shard.symlink_to("/etc/passwd")
    assert {key.example for key in run.done()} == {2, 3}
    with pytest.raises(UserError, match="is missing or no plain file"):
        run.read_images("white_box-0.safetensors")
    with pytest.raises(UserError, match="is not the name of a file"):
        run.read_images("../spec.json")


def test_lost_images_of_layout_1_make_their_records_undone(tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path / "old")
    run = RunDirectory(tmp_path / "old")
    before = run.done()
    (run.path / "x_adv" / "white_box-0-100-103-4.safetensors").unlink()
    assert {key.row for key in before - run.done()} == {"white_box"}


def test_claim_a_larger_count_is_the_same_run_and_a_smaller_one_is_not(run: RunDirectory) -> None:
    run.append([record("clean", 0)])
    grown = {**SPEC, "examples": {**SPEC["examples"], "count": 9}}
    run.claim(grown)
    again = RunDirectory(run.path)
    assert again.spec()["spec"]["examples"]["count"] == 9
    assert len(again.records()) == 1
    with pytest.raises(UserError, match=r"a run can grow and not shrink\. Set it to 9"):
        again.claim(SPEC)


@pytest.mark.parametrize("measured", [1, None, {}, {"eps": 1}, {"eps": [0.1], "lengths": [], "tapes": [{}]}])
def test_records_of_the_law_that_make_no_sense_are_one_sentence(measured: Any, run: RunDirectory) -> None:
    records = AnalysisRecords(run, "law")
    records.claim({"options": {}, "hashes": {}})
    records.append("ddpm 0-7", measured)
    with pytest.raises(UserError, match="are damaged or of another version"):
        combine([run.path])
