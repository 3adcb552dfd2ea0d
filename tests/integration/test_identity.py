"""Run directories that were damaged, swapped, shared or continued with other parts: repaired or refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dbpkit import Execution, RunDirectory, UserError, check, evaluate
from dbpkit.analyses.run import analyse
from dbpkit.checks import Checked
from dbpkit.evaluation.quick_check import quick_check
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.locking import writing
from dbpkit.foundation.spec import validate
from dbpkit.results.completeness import unfinished
from tests import parts
from tests.integration.conftest import comparable
from tests.parts import TINY

Tiny = Callable[..., EvaluationSpec]
SMALL: dict[str, Any] = {"knowledge": ["white_box"], "examples": {"count": 5, "order": "file"}}
FOURS = Execution(batch_size=4)
CHOSEN = {"compression": {"images": 2, "tapes": 1}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "a"
    evaluate(validate({**TINY, **SMALL}, EvaluationSpec, "tiny"), out, FOURS)
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize("folder", ["x_adv", "logits"])
def test_swapped_or_lost_shard_is_made_again(folder: str, run: Path, finished: Path, tiny: Tiny) -> None:
    first, second = sorted((run / folder).glob("white_box-*"))
    whole = first.read_bytes()
    shutil.copy(second, first)
    evaluate(tiny(**SMALL), run, FOURS)
    assert first.read_bytes() == whole
    first.unlink()
    evaluate(tiny(**SMALL), run, FOURS)
    assert first.read_bytes() == whole
    assert comparable(run) == comparable(finished)


def test_deleted_logits_are_written_again(run: Path, finished: Path, tiny: Tiny) -> None:
    shutil.rmtree(run / "logits")
    evaluate(tiny(**SMALL), run, FOURS)
    names = [p.name for p in sorted((finished / "logits").iterdir())]
    assert [p.name for p in sorted((run / "logits").iterdir())] == names


def test_record_of_a_squeezed_logit_in_an_old_run_is_made_again(tmp_path: Path, tiny: Tiny) -> None:
    run = Path(shutil.copytree(Path(__file__).parents[1] / "golden" / "run-schema-1", tmp_path / "old"))
    path = run / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    assert '"example": 103, "label": 0, "predicted": [0]}' in lines[3]
    path.write_text("".join([*lines[:3], lines[3].replace("[0]", "0"), *lines[4:], "\n"]))
    old = {"draws": {"report": 2, "select": 1}, "examples": {"count": 4, "order": "file"}}
    summary = evaluate(tiny(knowledge=["white_box", "dw_both"], **old), run, FOURS)
    assert summary.row("undefended_clean").failed == 0
    assert summary.row("undefended_clean").estimates[0].examples == 4


class Squeezed(parts.ChannelMean):
    """Ends in ``.squeeze()``, so that a batch of one loses its first axis."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns (B, 3) logits, or (3,) of one image."""
        return super().forward(x).squeeze()


def test_logits_of_a_wrong_shape_are_a_failed_record_that_is_tried_again(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "Squeezed", Squeezed, raising=False)
    monkeypatch.setattr("dbpkit.evaluation.run.preflight", lambda *_: Checked([], ()))
    monkeypatch.setattr("dbpkit.evaluation.run.try_attacks", lambda *_: None)
    spec = tiny(classifier="tests.parts:Squeezed", **SMALL)
    summary = evaluate(spec, tmp_path / "run", FOURS)  # five examples: the last batch is one
    assert summary.row("undefended").failed == 1
    (failed,) = [r for r in RunDirectory(tmp_path / "run").columns().failed if r["row"] == "undefended"]
    assert "must return logits (1, K) for 1 image, got (3,) of float32. Correct it" in failed["error"]
    monkeypatch.setattr(Squeezed, "forward", parts.ChannelMean.forward)
    assert evaluate(spec, tmp_path / "run", FOURS).row("undefended").failed == 0


@pytest.mark.parametrize("preflight", [True, False])
def test_classifier_that_squeezes_one_image_is_named_and_no_attack_is_blamed(
    preflight: bool, tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the look before a run it is the attacks' trial that meets the batch of one."""
    monkeypatch.setattr(parts, "Squeezed", Squeezed, raising=False)
    if not preflight:
        monkeypatch.setattr("dbpkit.evaluation.run.preflight", lambda *_: Checked([], ()))
    spec = tiny(classifier="tests.parts:Squeezed", **SMALL)
    with pytest.raises(UserError, match=r"^the classifier .*logits.*\(3,\)") as refused:
        evaluate(spec, tmp_path / "run", FOURS)
    assert "attack" not in str(refused.value)
    assert ".py" not in str(refused.value)


def test_check_asks_for_one_image_too(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "Squeezed", Squeezed, raising=False)
    wrong = r"^the classifier must return logits \(1, K\) for 1 image, got \(3,\)"
    with pytest.raises(UserError, match=wrong):
        quick_check(tiny(classifier="tests.parts:Squeezed", **SMALL), examples=4)
    images = torch.full((9, 3, 8, 8), 0.5)
    with pytest.raises(UserError, match=wrong):
        check(Squeezed(), images, torch.zeros(9, dtype=torch.int64))


def test_blank_last_line_of_the_records_changes_nothing(run: Path, tiny: Tiny) -> None:
    path = run / "records.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b"\n")
    evaluate(tiny(**SMALL), run, FOURS)
    path.write_bytes(whole[: whole[: len(whole) // 2].rfind(b"\n") + 1] + b"\n")
    evaluate(tiny(**SMALL), run, FOURS)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("work", [evaluate, analyse])
def test_second_writer_is_refused_with_who_holds_it(work: Callable[..., Any], run: Path, tiny: Tiny) -> None:
    refused = pytest.raises(
        UserError, match=r"is being written by process \d+ on .* \(another command, since"
    )
    with writing(run, "another command"), refused:
        work(tiny(**SMALL), run)


@pytest.mark.parametrize("work", [evaluate, analyse])
def test_foreign_directory_is_refused_before_parts_are_built(
    work: Callable[..., Any], tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("parts were built")

    monkeypatch.setattr("dbpkit.evaluation.run.build", never)
    monkeypatch.setattr("dbpkit.analyses.run.build", never)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a run directory"):
        work(tiny(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_only_who_adds_records_is_noted_as_a_session(
    run: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer dbpkit that only shows a finished run raises no doubt in it; one that goes on does."""
    monkeypatch.setattr("dbpkit.evaluation.session.code_sha256", lambda: "b" * 64)
    before = (run / "env.json").read_bytes()
    assert "unverified" not in {flag.name for flag in evaluate(tiny(**SMALL), run, FOURS).flags}
    assert (run / "env.json").read_bytes() == before
    grown = evaluate(tiny(**{**SMALL, "examples": {"count": 6, "order": "file"}}), run, FOURS)
    assert [session["code_sha256"] for session in json.loads((run / "env.json").read_text())][1:] == [
        "b" * 64
    ]
    assert "unverified" in {flag.name for flag in grown.flags}


@pytest.mark.parametrize("name", ["strip.safetensors", "checks.json"])
def test_who_makes_a_file_of_a_finished_run_is_noted(
    name: str, run: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures are purified by the models, and checks attack them; what is there is kept to the byte."""
    monkeypatch.setattr("dbpkit.evaluation.session.code_sha256", lambda: "b" * 64)
    before = (run / name).stat()
    evaluate(tiny(**SMALL), run, FOURS)
    sessions = json.loads((run / "env.json").read_text())
    if name == "strip.safetensors":
        assert (run / name).stat().st_ino == before.st_ino
    assert len(sessions) == 1
    (run / name).unlink()
    evaluate(tiny(**SMALL), run, FOURS)
    added = json.loads((run / "env.json").read_text())[1:]
    assert [session["code_sha256"] for session in added] == ["b" * 64]


def test_a_damaged_or_older_picture_is_made_again(run: Path, tiny: Tiny) -> None:
    whole = (run / "strip.safetensors").read_bytes()
    (run / "strip.safetensors").write_bytes(b"damaged")
    evaluate(tiny(**SMALL), run, FOURS)
    assert (run / "strip.safetensors").read_bytes() == whole
    evaluate(tiny(**{**SMALL, "examples": {"count": 6, "order": "file"}}), run, FOURS)
    assert len(RunDirectory(run).read_strip()[0]["ids"]) == 6


def test_analyse_refuses_other_weights_than_the_evaluation(
    run: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts.ChannelMean.__init__, "__defaults__", (41.0,))
    with pytest.raises(UserError, match="was made with another classifier"):
        analyse(tiny(**SMALL), run, CHOSEN)
    assert not (run / "analyses").exists()


def test_evaluate_refuses_other_weights_than_the_analyses(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    analyse(tiny(**SMALL), tmp_path / "run", CHOSEN)
    monkeypatch.setattr(parts.ChannelMean.__init__, "__defaults__", (41.0,))
    with pytest.raises(UserError, match=r"analysis 'compression' in .* was made with another classifier"):
        evaluate(tiny(**SMALL), tmp_path / "run")


@pytest.mark.parametrize("schema", [1, 2])
def test_missing_session_of_a_run_with_records_is_no_new_beginning(
    schema: int, run: Path, tmp_path: Path, tiny: Tiny
) -> None:
    spec = tiny(**SMALL)
    if schema == 1:
        run = Path(shutil.copytree(Path(__file__).parents[1] / "golden" / "run-schema-1", tmp_path / "old"))
        old = {"draws": {"report": 2, "select": 1}, "examples": {"count": 4, "order": "file"}}
        spec = tiny(knowledge=["white_box", "dw_both"], **old)
    (run / "env.json").unlink()
    with pytest.raises(UserError, match=r"env\.json' (is missing|beside it)"):
        evaluate(spec, run, FOURS)
    assert not (run / "env.json").exists()


def test_result_of_an_analysis_that_was_edited_is_refused(tmp_path: Path, tiny: Tiny) -> None:
    from dbpkit.results.findings import findings

    analyse(tiny(**SMALL), tmp_path / "run", CHOSEN)
    path = tmp_path / "run" / "analyses" / "compression" / "result.json"
    content = json.loads(path.read_text())
    content["numbers"][0]["value"] = 0.5
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"result\.json' is damaged \(it does not match its hash\)"):
        findings(RunDirectory(tmp_path / "run"))


def test_failed_analysis_keeps_its_traceback_and_goes_on(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dbpkit.analyses.compression import Compression

    measure = Compression.measure

    def fails(self: Compression, subject: Any, unit: str) -> Any:
        raise ValueError("too many values to unpack (expected 2)")

    monkeypatch.setattr(Compression, "measure", fails)
    with pytest.raises(
        UserError, match=r"analysis 'compression' failed at unit .*analysis-compression\.txt'"
    ):
        analyse(tiny(**SMALL), tmp_path / "run", CHOSEN)
    kept = (tmp_path / "run" / "errors" / "analysis-compression.txt").read_text()
    assert "in fails" in kept
    monkeypatch.setattr(Compression, "measure", measure)
    analyse(tiny(**SMALL), tmp_path / "run", CHOSEN)
    assert not (tmp_path / "run" / "errors").exists()


def test_unfinished_run_says_how_much_is_done(run: Path, tiny: Tiny) -> None:
    assert unfinished(RunDirectory(run)) == ""
    path = run / "records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:12]))  # the first unit: three rows of four examples
    assert unfinished(RunDirectory(run)).startswith(
        "Unfinished: 12 of 30 results are recorded (one for each row"
    )
    path.unlink()
    assert unfinished(RunDirectory(run)) == "Unfinished: no result of an evaluation is recorded yet."


def test_rows_that_fail_together_are_named_together(tmp_path: Path, tiny: Tiny, monkeypatch: Any) -> None:
    class Infinite(parts.ChannelMean):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) / 0

    monkeypatch.setattr(parts, "Infinite", Infinite, raising=False)
    monkeypatch.setattr("dbpkit.evaluation.run.preflight", lambda *_: Checked([], ()))
    monkeypatch.setattr("dbpkit.evaluation.run.try_attacks", lambda *_: None)
    with pytest.raises(
        UserError,
        match=r"^rows undefended_clean, clean, noise_control \(made together\) failed on every one of 5"
        r" examples: NonFiniteError: row 'undefended_clean': the model returned logits that are not finite",
    ):
        evaluate(tiny(classifier="tests.parts:Infinite", **SMALL), tmp_path / "run")
