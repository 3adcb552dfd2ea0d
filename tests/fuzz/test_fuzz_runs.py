"""Run directories: every file and every leaf replaced, dropped, retyped, truncated, emptied or made a folder.

One small real run with an analysis is damaged in one place and then read by every command, and continued.
Whatever was done to it, the outcome is a result or one sentence. Hashes are put right in half the cases, as
one who forges a run would, so that what lies behind them is tried too.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dbpkit import Execution, evaluate, replay
from dbpkit.analyses.law.law import combine
from dbpkit.analyses.run import analyse
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.spec import validate
from dbpkit.reporting import console_findings, console_table, write_report
from dbpkit.reporting.run_view import run_view
from dbpkit.results.compare import compare_runs
from dbpkit.results.findings import findings
from dbpkit.results.journal import Journal
from dbpkit.results.layout import canonical_hash
from dbpkit.results.run_directory import RunDirectory
from dbpkit.results.summary import summarise
from tests.fuzz.harness import ODD, Outcome, chooser, dropped, leaves, replaced, run_case
from tests.integration.conftest import REPOSITORY
from tests.parts import TINY

FUZZED: dict[str, Any] = {
    **TINY,
    "knowledge": ["white_box", "dw_both"],
    "examples": {"count": 4, "order": "file"},
    "draws": {"report": 2, "select": 1},
}
CHOSEN = {"compression": {"images": 2, "tapes": 1}}
TOGETHER = Execution(batch_size=4)
Damage = Callable[[Path], object]


def spec() -> EvaluationSpec:
    return validate(FUZZED, EvaluationSpec, "fuzz")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with an analysis."""
    with contextlib.chdir(REPOSITORY):
        run = tmp_path_factory.mktemp("whole") / "run"
        evaluate(spec(), run, TOGETHER)
        analyse(spec(), run, CHOSEN)
    return run


def show(run: Path) -> None:
    summary = summarise(RunDirectory(run))
    console_table(summary)
    json.dumps(summary.as_json())


def found(run: Path) -> None:
    console_findings(findings(RunDirectory(run)))


def view(run: Path) -> None:
    run_view(RunDirectory(run), "")


def compared(run: Path) -> None:
    compare_runs(RunDirectory(run), RunDirectory(run))


def replayed(run: Path) -> None:
    replay(run, 101, "dw_both", spec=spec(), attack=False)


def joined(run: Path) -> None:
    combine([run])


def continued(run: Path) -> None:
    evaluate(spec(), run, TOGETHER)


def analysed(run: Path) -> None:
    analyse(spec(), run, CHOSEN)


READING = (show, found, view, compared)
SLOWER = (replayed, joined, continued, analysed, lambda run: write_report([run]))


@contextlib.contextmanager
def damaged(whole: Path, file: str, damage: Damage) -> Iterator[Path]:
    """A copy of a run (hard links but for what is damaged) in which one file was damaged."""
    copy = whole.parent / "case"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy, copy_function=os.link if file != "*" else shutil.copy2)
    path = copy / file
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    damage(path)
    yield copy
    shutil.rmtree(copy, ignore_errors=True)


def files(whole: Path) -> list[str]:
    names = [str(p.relative_to(whole)) for p in sorted(whole.rglob("*")) if p.is_file()]
    return [n for n in names if not n.startswith(("figures", "report"))]


def rewritten(path: Path, lines: list[dict[str, Any]]) -> None:
    """A journal with digests that fit its lines."""
    path.unlink()
    Journal(path, digests=True).append(lines)


def leaf_damages(whole: Path, rehash: bool) -> list[tuple[str, Damage]]:
    """For every leaf of every JSON file: one that drops it, and one that puts an odd value in its place."""
    made: list[tuple[str, Damage]] = []
    for name in files(whole):
        if name.endswith(".json"):
            tree = json.loads((whole / name).read_text())
            for place in leaves(tree):
                made.append((name, lambda path, at=place: _write(path, dropped(_read(path), at), rehash)))
                made += [
                    (name, lambda path, at=place, odd=o: _write(path, replaced(_read(path), at, odd), rehash))
                    for o in ODD
                ]
        elif name.endswith("records.jsonl"):
            lines = [json.loads(line) for line in (whole / name).read_text().splitlines()]
            for number, line in enumerate(lines):
                for place in leaves(line):
                    made += [(name, _line_damage(number, place, odd, rehash)) for odd in (*ODD, _DROP)]
    return made


_DROP = object()


def _line_damage(number: int, place: tuple[Any, ...], odd: Any, rehash: bool) -> Damage:
    def damage(path: Path) -> None:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        line = lines[number]
        lines[number] = dropped(line, place) if odd is _DROP else replaced(line, place, odd)
        if rehash:
            for each in lines:
                each.pop("digest", None)
            rewritten(path, lines)
        else:
            path.write_text("".join(json.dumps(each) + "\n" for each in lines))

    return damage


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def _write(path: Path, tree: Any, rehash: bool) -> None:
    """The tree as the file, its own hash put right if asked for."""
    if rehash and isinstance(tree, dict) and "hash" in tree:
        body = {k: v for k, v in tree.items() if k != "hash"}
        if path.name == "spec.json":
            inner = tree.get("spec")
            body = inner
            if isinstance(inner, dict) and isinstance(inner.get("examples"), dict):
                body = {**inner, "examples": {k: v for k, v in inner["examples"].items() if k != "count"}}
        tree = {**tree, "hash": canonical_hash(body)}
    path.write_text(json.dumps(tree))


def file_damages(whole: Path, seed: int) -> list[tuple[str, Damage]]:
    """For every file: gone, empty, a folder, a link, cut off, bytes flipped, zeros added."""
    choose, made = chooser(seed), list[tuple[str, Damage]]()
    for name in files(whole):
        size = (whole / name).stat().st_size
        made += [
            (name, Path.unlink),
            (name, lambda path: path.write_bytes(b"")),
            (name, lambda path: (path.unlink(), path.mkdir())),
            (name, lambda path: (path.unlink(), path.symlink_to("/etc/passwd"))),
            (name, lambda path: path.write_bytes(path.read_bytes() + b"\0" * 7)),
            (name, lambda path: path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())),
            (name, lambda path: path.write_bytes(b"[" * 100_000)),
            (name, lambda path: path.write_bytes(b"9" * 5_000)),
        ]
        for _ in range(6):
            at, bit = choose.randrange(size), 1 << choose.randrange(8)
            made.append((name, lambda path, at=at: os.truncate(path, at)))
            made.append((name, lambda path, at=at, bit=bit: _flip(path, at, bit)))
    return made


def _flip(path: Path, at: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= bit
    path.write_bytes(content)


def judge(
    whole: Path, cases: list[tuple[str, Damage]], commands: tuple[Callable[[Path], Any], ...]
) -> list[str]:
    """Tries every case with one command each, in turn; returns what must not have happened."""
    wrong = []
    for number, (file, damage) in enumerate(cases):
        command = commands[number % len(commands)]
        with damaged(whole, file, damage) as run:
            outcome: Outcome = run_case(lambda c=command, r=run: c(r), writes=[whole.parent])
        wrong += [f"case {number}, {file}, {command}: {defect}" for defect in outcome.defects]
    return wrong


def sampled(cases: list[tuple[str, Damage]], count: int, seed: int) -> list[tuple[str, Damage]]:
    return chooser(seed).sample(cases, min(count, len(cases)))


SIZES = [
    pytest.param((1100, 60, 400), id="ci"),
    pytest.param((20_000, 2_000, 4_000), id="long", marks=[pytest.mark.long, pytest.mark.timeout(7200)]),
]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SIZES)
def test_damaged_leaf_of_a_run_is_read_or_is_one_sentence(whole: Path, sizes: tuple[int, int, int]) -> None:
    cases = [
        case for rehash in (False, True) for case in sampled(leaf_damages(whole, rehash), sizes[0] // 2, 1)
    ]
    assert not judge(whole, cases, READING)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SIZES)
def test_damaged_file_of_a_run_is_read_or_is_one_sentence(whole: Path, sizes: tuple[int, int, int]) -> None:
    assert not judge(whole, sampled(file_damages(whole, 2), sizes[2], 3), READING)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SIZES)
def test_damaged_run_is_replayed_continued_and_shown_or_is_one_sentence(
    whole: Path, sizes: tuple[int, int, int]
) -> None:
    cases = [
        *sampled(leaf_damages(whole, True), sizes[1] // 2, 4),
        *sampled(file_damages(whole, 5), sizes[1] // 2, 6),
    ]
    assert not judge(whole, cases, SLOWER)
