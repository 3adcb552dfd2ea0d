"""One example of a finished run, computed again: equal where nothing changed, refused where something did."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from dbpkit import Execution, RunDirectory, UserError, evaluate, replay
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.spec import validate
from tests import parts
from tests.parts import TINY

Tiny = Callable[..., EvaluationSpec]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five examples in batches of three, so that micro-batches cross examples."""
    out = tmp_path_factory.mktemp("runs") / "a"
    spec = validate({**TINY, "examples": {"count": 5, "order": "file"}}, EvaluationSpec, "tiny")
    evaluate(spec, out, Execution(batch_size=3, micro_batch=4))
    return out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The same run, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("row", "tape"),
    [
        ("undefended_clean", 0),
        ("undefended", 0),
        ("clean", 0),
        ("noise_control", 0),
        ("transfer", 0),
        ("white_box", 0),
        ("dw_both", 0),
        ("fixed", 1),
    ],
)
def test_replay_every_row_gives_the_stored_logits(row: str, tape: int, finished: Path) -> None:
    found = replay(finished, 104, row, tape)
    assert found.difference is not None
    assert found.difference <= 1e-6
    assert found.predicted == found.recorded
    assert found.reproduced
    assert (found.attack is not None) == (row in ("undefended", "white_box", "dw_both", "fixed"))
    record = next(
        r for r in RunDirectory(finished).records() if (r["row"], r["tape"], r["example"]) == (row, tape, 104)
    )
    assert len(found.logits) == len(record["predicted"])


def test_replay_attack_alone_finds_the_stored_image(finished: Path) -> None:
    found = replay(finished, 101)
    assert found.attack is not None
    assert found.attack.difference <= 1e-6
    assert "finds the stored image" in found.verdict
    assert replay(finished, 101, attack=False).attack is None


def test_replay_purified_images_give_the_logits(finished: Path) -> None:
    found = replay(finished, 103)
    assert found.x_pure is not None
    assert torch.allclose(parts.ChannelMean()(found.x_pure), found.logits, atol=1e-5)
    assert float((found.x_adv - found.x).abs().max()) <= 8 / 255 + 1e-6


def test_replay_deterministic_run_is_exact(tiny: Tiny, tmp_path: Path) -> None:
    execution = Execution(batch_size=2, micro_batch=4, deterministic=True)
    evaluate(tiny(examples={"count": 3}, knowledge=["white_box"]), tmp_path / "run", execution)
    found = replay(tmp_path / "run", 102)
    assert found.difference == 0
    assert found.attack is not None
    assert found.attack.difference == 0


def test_replay_run_without_stored_logits_compares_predictions(copied: Path) -> None:
    shutil.rmtree(copied / "logits")
    found = replay(copied, 101)
    assert found.difference is None
    assert found.reproduced
    assert "stored no logits" in found.verdict


def test_replay_finds_a_changed_record_and_a_changed_image(copied: Path) -> None:
    run = RunDirectory(copied)
    lines = (copied / "records.jsonl").read_text().splitlines()
    changed = [json.loads(line) for line in lines]
    record = next(r for r in changed if r["row"] == "white_box" and r["example"] == 101)
    run.append([{**record, "predicted": [(p + 1) % 3 for p in record["predicted"]]}])
    found = replay(copied, 101, attack=False)
    assert not found.reproduced
    assert found.verdict.startswith("NOT reproduced")

    images = run.read_images(record["images"])
    ids = torch.tensor(list(images))
    name = record["images"].removesuffix(".safetensors")
    darker = run.write_images(name, ids, 0.9 * torch.stack(list(images.values())))
    with pytest.raises(
        UserError, match=r"100-102-3\.safetensors' is not the file its records were made with"
    ):
        replay(copied, 100)
    run.append([record], [darker])  # as if the run had made them
    assert (replay(copied, 100).difference or 0) > 1e-3
    again = replay(copied, 100).attack
    assert again is not None
    assert not again.reproduced


def test_replay_takes_the_logits_of_the_batch_that_was_recorded_last(tiny: Tiny, tmp_path: Path) -> None:
    spec = tiny(examples={"count": 4}, knowledge=["white_box"])
    evaluate(spec, tmp_path / "run", Execution(batch_size=4))
    lines = (tmp_path / "run" / "records.jsonl").read_text().splitlines()
    (tmp_path / "run" / "records.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    evaluate(spec, tmp_path / "run", Execution(batch_size=2))
    assert len(RunDirectory(tmp_path / "run").read_logits("white_box", 0, 103)) == 2
    assert replay(tmp_path / "run", 103).reproduced


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"example": 7}, r"has no example 7; it has ids 100, 101, 102, 103, 104"),
        (
            {"example": 100, "row": "white_bocks"},
            "unknown row in '.*': 'white_bocks'. Did you mean 'white_box'",
        ),
        ({"example": 100, "row": "fixed", "tape": 5}, "has no tape 5; it has 0, 1"),
    ],
)
def test_replay_of_what_is_not_there_says_what_is(words: dict, message: str, finished: Path) -> None:
    with pytest.raises(UserError, match=message):
        replay(finished, **words)


def test_replay_of_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run directory"):
        replay(tmp_path, 0)


def test_replay_with_other_weights_is_refused(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts.ChannelMean.__init__, "__defaults__", (41.0,))
    with pytest.raises(UserError, match=r"made with another classifier .* Restore it to replay"):
        replay(finished, 100)


def test_replay_of_a_failed_example_gives_the_error(copied: Path) -> None:
    record = {"row": "white_box", "tape": 0, "example": 102, "error": "RuntimeError: too bright"}
    RunDirectory(copied).append([record])
    with pytest.raises(UserError, match="failed in the run: RuntimeError: too bright"):
        replay(copied, 102)


def test_replay_command_shows_and_draws(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dbpkit.cli import main

    def command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["dbpkit", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    code, out, _ = command("replay", finished, "--example", 103, "--out", tmp_path / "strip.png")
    assert code == 0
    for words in ("predicted", "recorded", "Reproduced: example 103", "white_box"):
        assert words in out
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.width > 5 * 112  # clean, attacked and three draws
    code, out, err = command(
        "replay", finished, "--example", 103, "--row", "dw_both", "--no-attack", "--json"
    )
    found = json.loads(out)
    assert (code, err, found["reproduced"], found["attack"]) == (0, "", True, None)
    assert len(found["logits"]) == 1
    assert command("replay", finished, "--example", 3)[0] == 2
    RunDirectory(shutil.copytree(finished, tmp_path / "run")).append(
        [{"row": "dw_both", "tape": 0, "example": 103, "label": 0, "predicted": [9]}]
    )
    assert command("replay", tmp_path / "run", "--example", 103, "--row", "dw_both")[0] == 1
