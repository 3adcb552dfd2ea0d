"""Several processes fill one run directory; what they leave is what one process leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dbpkit import UserError
from dbpkit.analyses.run import analyse
from dbpkit.checks import Checked
from dbpkit.cli import main
from dbpkit.evaluation import rows as rows_module
from dbpkit.evaluation.replay import replay
from dbpkit.evaluation.run import evaluate, evaluate_share
from dbpkit.experiment.execution import Execution
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.locking import writing
from dbpkit.foundation.spec import as_toml, validate
from dbpkit.reporting import write_report
from dbpkit.results.compare import compare
from dbpkit.results.completeness import counted, unfinished
from dbpkit.results.run_directory import RunDirectory
from dbpkit.results.summary import Summary, summarise
from tests.integration.conftest import REPOSITORY, comparable, environment
from tests.parts import TINY

ALONE = Execution(batch_size=3, micro_batch=8, deterministic=True)

SPEC: dict[str, Any] = {
    **TINY,
    "purifier": {"sampler": "ddpm", "steps": 20},
    "attacks": [{"name": "pgd", "options": {"iterations": 1, "eot": 1}}],
    "knowledge": ["white_box", {"name": "fixed", "tapes": 2}],
    "examples": {"order": "shuffled", "count": 12},
    "draws": {"report": 2, "select": 1},
}


def spec_of(**changes: Any) -> EvaluationSpec:
    return validate({**SPEC, **changes}, EvaluationSpec, "tiny")


def unchecked(*_: Any) -> Checked:
    """Stands for the checks before a run, which are not what is looked at here."""
    return Checked([], ())


def share(
    out: Path, rank: int, world: int, spec: EvaluationSpec | None = None, **changes: Any
) -> Summary | None:
    execution = replace(ALONE, rank=rank, world=world)
    return evaluate_share(spec or spec_of(), RunDirectory(out), execution, checks=unchecked)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    before = Path.cwd()
    os.chdir(REPOSITORY)
    out = tmp_path_factory.mktemp("whole") / "run"
    evaluate(spec_of(), out, ALONE, checks=unchecked)
    os.chdir(before)
    return out


def same(out: Path, whole: Path) -> None:
    """Records, their order, the summary and the picture of a run are those of another."""
    assert comparable(out) == comparable(whole)
    assert summarise(out) == summarise(whole)
    for file in ("summary.json", "strip.safetensors", "checks.json", "spec.json"):
        assert (out / file).read_bytes() == (whole / file).read_bytes(), file
    ours, theirs = RunDirectory(out).columns(), RunDirectory(whole).columns()
    assert list(ours.rows) == list(theirs.rows)
    for row, group in theirs.rows.items():
        order = list(dict.fromkeys(group.example.tolist()))
        assert list(dict.fromkeys(ours.rows[row].example.tolist())) == order


def files(out: Path) -> list[str]:
    return sorted(p.name for p in (out / "records").glob("*.jsonl"))


def test_ranks_one_after_the_other_leave_what_one_process_leaves(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert share(out, 2, 3) is None
    assert share(out, 0, 3) is None
    assert not (out / "summary.json").exists()
    assert share(out, 1, 3) is not None
    same(out, whole)
    assert files(out) == ["1-of-3.jsonl", "2-of-3.jsonl", "3-of-3.jsonl"]
    assert not (out / "records.jsonl").exists()
    assert [s["shard"] for s in RunDirectory(out).sessions()] == ["3/3", "1/3", "2/3"]
    assert share(out, 1, 3) is None, "it is concluded, and nothing is left to do"
    evaluate(spec_of(), out, ALONE, checks=unchecked)
    assert not (out / "records.jsonl").exists(), "one process takes all of it for done"
    assert not list(out.glob(".lock*"))


def test_ranks_of_another_world_go_on_where_others_stopped(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    share(out, 1, 3)
    share(out, 0, 2)
    evaluate(spec_of(examples=SPEC["examples"]), out, replace(ALONE, reverse=True), checks=unchecked)
    same(out, whole)
    recorded = [json.loads(x) for p in (out / "records").glob("*.jsonl") for x in p.read_text().splitlines()]
    recorded += [json.loads(x) for x in (out / "records.jsonl").read_text().splitlines()]
    keys = [(r["row"], r["tape"], r["example"]) for r in recorded]
    assert len(keys) == len(set(keys)), "nothing was done twice"


def test_ranks_go_on_with_a_run_of_one_process(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / "summary.json").unlink()
    lines = (out / "records.jsonl").read_bytes().splitlines(keepends=True)
    (out / "records.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]))
    before = (out / "records.jsonl").read_bytes()
    share(out, 0, 2)
    share(out, 1, 2)
    same(out, whole)
    assert before.startswith((out / "records.jsonl").read_bytes()), "nobody appended to the other's file"


def test_ranks_newest_record_wins_whoever_wrote_it(whole: Path, tmp_path: Path) -> None:
    """A lost file is made again by another world; the old record, whose file is gone, does not count."""
    out = tmp_path / "run"
    for rank in range(2):
        share(out, rank, 2)
    lost = next((out / "x_adv").glob("white_box-*"))
    lost.write_bytes(b"changed")
    for rank in range(3):
        share(out, rank, 3)
    same(out, whole)
    assert not RunDirectory(out).done() ^ RunDirectory(whole).done()
    turns = {
        path.name: {json.loads(x)["seal"]["turn"] for x in path.read_text().splitlines() if '"seal"' in x}
        for path in (out / "records").glob("*.jsonl")
    }
    assert min(min(t) for name, t in turns.items() if name.endswith("-of-3.jsonl")) > max(
        max(t) for name, t in turns.items() if name.endswith("-of-2.jsonl")
    )


def test_ranks_grow_with_another_world(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    few = spec_of(examples={**SPEC["examples"], "count": 7})
    for rank in range(2):
        share(out, rank, 2, few)
    assert not unfinished(RunDirectory(out))
    for rank in (2, 0, 1):
        share(out, rank, 3)
    same(out, whole)


def test_rank_without_a_batch_has_nothing_to_do(tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "run"
    assert share(out, 6, 9) is None
    assert files(out) == []
    for rank in range(9):
        share(out, rank, 9)
    assert files(out) == [f"{k}-of-9.jsonl" for k in (1, 2, 3, 4)], "there are four batches"
    same(out, whole)


def test_rank_that_is_lost_loses_its_unfinished_batch_only(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    attacked = rows_module.Rows._attacked
    calls: list[str] = []

    def dies(self: Any, batch: Any, row: str, tape: int) -> Any:
        calls.append(row)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return attacked(self, batch, row, tape)

    monkeypatch.setattr(rows_module.Rows, "_attacked", dies)
    with pytest.raises(KeyboardInterrupt):
        share(out, 0, 2)
    monkeypatch.undo()
    monkeypatch.chdir(REPOSITORY)
    before = (out / "records" / "1-of-2.jsonl").read_bytes()
    with (out / "records" / "1-of-2.jsonl").open("ab") as file:
        file.write(before[:100])  # torn
    share(out, 1, 2)
    share(out, 0, 2)
    assert (out / "records" / "1-of-2.jsonl").read_bytes().startswith(before)
    same(out, whole)


def test_unfinished_run_of_ranks_can_be_read(tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "run"
    share(out, 1, 2)
    with writing(out, "somebody is at work"):
        run = RunDirectory(out)
        assert counted(run) == (6 * 8, 12 * 8)
        assert "48 of 96 results" in unfinished(run)
        assert summarise(run).row("white_box").headline.examples == 6
        assert "6 of 12 examples" in write_report([out], tmp_path / "page.html").read_text()
        pairs = compare(RunDirectory(whole), RunDirectory(out)).differences
        assert {estimate.value for estimate in pairs.values()} == {0.0}
        example = int(run.columns().rows["white_box"].example[0])
        assert replay(out, example, spec=spec_of()).difference == 0


def test_second_run_that_is_no_rank_of_the_launch_is_told_so(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with writing(out, "dbpkit evaluate"), pytest.raises(UserError, match="is being written by process"):
        share(out, 0, 2)
    share(out, 0, 2)
    with pytest.raises(UserError, match="made with another spec"):
        share(out, 1, 2, spec_of(seed=1))


def test_rank_of_other_parts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    share(out, 0, 2)
    from tests import parts

    original = parts.ChannelMean.__init__
    monkeypatch.setattr(parts.ChannelMean, "__init__", lambda self: original(self, 41.0))
    with pytest.raises(UserError, match="made with another classifier"):
        share(out, 1, 2)


def test_damaged_file_of_a_rank_is_named_with_its_line(tmp_path: Path) -> None:
    out = tmp_path / "run"
    share(out, 0, 2)
    path = out / "records" / "1-of-2.jsonl"
    path.write_text(path.read_text().replace('"tape": 0', '"tape": 1', 1))
    with pytest.raises(UserError, match=r"records/1-of-2\.jsonl' line 1 is damaged \(.*was changed"):
        summarise(out)
    (out / "records" / "order.json").write_text("[1.5]")
    path.unlink()
    share_again = RunDirectory(out)
    (out / "records" / "2-of-2.jsonl").write_text("")
    with pytest.raises(UserError, match=r"order\.json' is damaged .*Delete it, and run the same command"):
        share_again.columns()


def test_row_that_fails_everywhere_stops_each_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of order")

    monkeypatch.setattr(rows_module.Rows, "_attacked", broken)
    out = tmp_path / "run"
    for rank in range(2):
        with pytest.raises(UserError, match="'fixed' failed on every one of 6 examples"):
            share(out, rank, 2)
    assert len(RunDirectory(out).columns().failed) == 2 * (3 + 6)
    assert len(list((out / "errors").iterdir())) == 2 * (3 + 6)
    monkeypatch.undo()
    monkeypatch.chdir(REPOSITORY)
    for rank in range(2):
        share(out, rank, 2)
    assert not (out / "errors").exists(), "all have worked since"


ANALYSES: dict[str, dict[str, Any]] = {
    "compression": {"images": 10, "tapes": 1},
    "recommend": {
        "configurations": [{"sampler": "ddpm", "t_star": t, "steps": 20} for t in (0.05, 0.1)],
        "images": 4, "directions": 1, "confirm": 1, "others": 0, "iterations": 1, "eps": ["4/255"],
    },
}  # fmt: skip


def test_analyses_of_ranks_conclude_what_one_process_does(tmp_path: Path) -> None:
    spec, out, whole = spec_of(), tmp_path / "run", tmp_path / "whole"
    expected = analyse(spec, whole, ANALYSES, ALONE)
    assert len(expected) == 2
    assert analyse(spec, out, ANALYSES, replace(ALONE, rank=1, world=2)) != expected
    assert analyse(spec, out, ANALYSES, replace(ALONE, rank=0, world=2))[0] == expected[0]
    assert analyse(spec, out, ANALYSES, ALONE) == expected
    for name in ANALYSES:
        folder = Path("analyses") / name
        for file in ("result.json", "settings.json"):
            assert (out / folder / file).read_bytes() == (whole / folder / file).read_bytes()
    assert files(out / "analyses" / "compression") == ["1-of-2.jsonl", "2-of-2.jsonl"]
    assert files(out / "analyses" / "recommend") == ["2-of-2.jsonl"], "its units need each other"
    assert not (out / "analyses" / "compression" / "records.jsonl").exists()


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(as_toml(SPEC))
    return path


KILLED = """
import os, signal, sys
from dbpkit.results.journal import Journal
from tests.integration import test_ranks

append, count = Journal._write, 0

def dies(self, content, before):
    global count
    count += 1
    if count == 3:
        with self.path.open("ab") as file:
            file.write(content[: len(content) // 2])
        print("dies", flush=True)
        sys.stdin.readline()
        os.kill(os.getpid(), signal.SIGKILL)
    append(self, content, before)

Journal._write = dies
test_ranks.share(sys.argv[1], 2, 4)
"""


@pytest.mark.slow(reason="what is killed is a process, which starts torch")
def test_four_ranks_one_killed_and_the_launch_repeated(tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "run"
    killed = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(out)],
        env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert killed.stdout is not None
    assert killed.stdout.readline() == "dies\n"
    assert share(out, 0, 4) is None, "it writes beside the other"
    with pytest.raises(UserError, match=r"is being written by shard 3/4, process \d+ on "):
        share(out, 2, 4)
    with pytest.raises(UserError, match=r"is being written by shard 3/4, process \d+ on "):
        evaluate(spec_of(), out, ALONE, checks=unchecked)
    killed.communicate("\n")
    assert killed.returncode == -signal.SIGKILL
    assert share(out, 1, 4) is None
    assert share(out, 3, 4) is None
    before = (out / "records" / "3-of-4.jsonl").read_bytes()
    kept = before[: before.rindex(b"\n") + 1]
    assert [share(out, rank, 4) is not None for rank in range(4)] == [False, False, True, False]
    assert (out / "records" / "3-of-4.jsonl").read_bytes().startswith(kept), "only the unfinished is lost"
    same(out, whole)


def commanded(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["dbpkit", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    return " ".join(capsys.readouterr().out.split())


def test_command_of_a_rank_says_how_much_is_recorded(
    tmp_path: Path, toml: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(toml), "--out", str(tmp_path / "run"), "--plugin", "tests.parts", "--quiet"]
    words += ["--batch-size", "6", "--set", "knowledge=['white_box']"]
    said = commanded(monkeypatch, capsys, *words, "--shard", "2/2")
    assert "Shard 2/2 is done; 36 of 72 results are recorded." in said
    with monkeypatch.context() as launcher:
        launcher.setenv("RANK", "0")
        launcher.setenv("WORLD_SIZE", "2")
        said = commanded(monkeypatch, capsys, *words)
    assert "white box" in said
    assert (tmp_path / "run" / "report.html").is_file()
    assert "Shard 1/2 is done; 72 of 72" in commanded(monkeypatch, capsys, *words, "--shard", "1/2")
    assert '"recorded": 72' in commanded(monkeypatch, capsys, *words, "--shard", "1/2", "--json")
