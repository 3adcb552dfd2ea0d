"""A run that goes on with more examples is the run that had them from the start."""

import logging
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dbpkit import Dataset, UserError, benchmark
from dbpkit.analyses.run import analyse
from dbpkit.data.order import ORDERS
from dbpkit.evaluation.quick_check import quick_check
from dbpkit.evaluation.run import evaluate
from dbpkit.experiment.build import build, chosen_examples
from dbpkit.experiment.coverage import at_most, missing_classes
from dbpkit.experiment.execution import Execution
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.reporting import write_report
from dbpkit.results.run_directory import RunDirectory
from dbpkit.results.summary import summarise
from tests import parts
from tests.integration.conftest import comparable, environment

ALIKE = Execution(batch_size=5, micro_batch=8, deterministic=True)
Tiny = Callable[..., EvaluationSpec]


def of(tiny: Tiny, count: int | None, **examples: Any) -> EvaluationSpec:
    """The tiny spec, one attacker, over so many examples."""
    return tiny(examples={"count": count, **examples}, knowledge=["white_box"])


def test_grown_run_equals_a_fresh_one_record_for_record(tiny: Tiny, tmp_path: Path) -> None:
    for count in (4, 8, 12):
        evaluate(of(tiny, count), tmp_path / "grown", ALIKE)
        assert RunDirectory(tmp_path / "grown").spec()["spec"]["examples"]["count"] == count
    evaluate(of(tiny, 12), tmp_path / "fresh", ALIKE)
    grown, fresh = (comparable(tmp_path / name) for name in ("grown", "fresh"))
    assert grown == fresh
    assert len({example for _, _, example in fresh}) == 12
    assert summarise(RunDirectory(tmp_path / "grown")) == summarise(RunDirectory(tmp_path / "fresh"))
    specs = [(tmp_path / name / "spec.json").read_bytes() for name in ("grown", "fresh")]
    assert specs[0] == specs[1]


def test_grown_run_does_only_what_is_missing(tiny: Tiny, tmp_path: Path) -> None:
    execution = replace(ALIKE, batch_size=4)
    evaluate(of(tiny, 4), tmp_path / "run", execution)
    before = (tmp_path / "run" / "records.jsonl").read_text()
    evaluate(of(tiny, 8), tmp_path / "run", execution)
    after = (tmp_path / "run" / "records.jsonl").read_text()
    assert after.startswith(before)
    assert len(after.splitlines()) == 2 * len(before.splitlines())


def test_run_grows_to_all_and_is_not_shrunk(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    evaluate(of(tiny, 4), run, ALIKE)
    with pytest.raises(UserError, match=r"is a run over 4 examples, and examples.count = 3 is .* 4 or"):
        evaluate(of(tiny, 3), run, ALIKE)
    evaluate(of(tiny, None), run, ALIKE)
    with pytest.raises(UserError, match=r"over all examples, .* 12 is fewer: .* Leave it out, or use"):
        evaluate(of(tiny, 12), run, ALIKE)
    assert summarise(RunDirectory(run)).row("clean").headline.examples == 12


@pytest.mark.parametrize("changed", [{"first": 1}, {"order": "shuffled"}])
def test_run_of_other_examples_is_refused(tiny: Tiny, tmp_path: Path, changed: dict[str, Any]) -> None:
    evaluate(of(tiny, 2), tmp_path / "run", ALIKE)
    with pytest.raises(UserError, match=r"made with another spec: examples\.(first|order)"):
        evaluate(of(tiny, 4, **changed), tmp_path / "run", ALIKE)


def test_run_made_before_there_was_an_order_goes_on_in_file_order(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(Path(__file__).parents[1] / "golden" / "run-schema-1", run)
    old = {"knowledge": ["white_box", "dw_both"], "draws": {"report": 2, "select": 1}}
    with pytest.raises(UserError, match=r"made with another spec: examples\.order file -> balanced"):
        evaluate(tiny(**old, examples={"count": 4}), run, Execution(batch_size=4))
    before = (run / "records.jsonl").read_bytes()
    evaluate(tiny(**old, examples={"count": 4, "order": "file"}), run, Execution(batch_size=4))
    assert (run / "records.jsonl").read_bytes() == before, "everything was done, and is still taken for done"
    evaluate(tiny(**old, examples={"count": 6, "order": "file"}), run, Execution(batch_size=4))
    assert {r["example"] for r in RunDirectory(run).records()} == {100, 101, 102, 103, 104, 105}
    assert (run / "records.jsonl").read_bytes().startswith(before)
    (flag, *_) = [f for f in summarise(RunDirectory(run)).flags if f.name == "unverified"]
    assert "other code of dbpkit" in flag.message, "from now on the old lines are covered by digests too"


def test_grown_run_with_swapped_pixels_is_refused(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(of(tiny, 4), tmp_path / "run", ALIKE)
    first = int(chosen_examples(of(tiny, 1)).ids[0])
    original = parts.data

    def swapped(example: int) -> Callable[[], Dataset]:
        def data() -> Dataset:
            made = original()
            images = made.images.clone()
            images[example - 100, 0, 0, 0] += 1 / 255
            return Dataset(made.name, images, made.labels, made.ids, made.class_names)

        return data

    last = int(chosen_examples(of(tiny, 12)).ids[11])
    monkeypatch.setattr(parts, "data", swapped(last))
    evaluate(of(tiny, 8), tmp_path / "run", ALIKE)  # the swapped one is no part of the run yet
    monkeypatch.setattr(parts, "data", swapped(first))
    for count in (8, 12):
        with pytest.raises(UserError, match=r"made with another data .*Restore it or use a new --out"):
            evaluate(of(tiny, count), tmp_path / "run", ALIKE)


def test_grown_run_is_reported_over_its_last_count(tiny: Tiny, tmp_path: Path) -> None:
    for count in (2, 4):
        evaluate(of(tiny, count), tmp_path / "run", ALIKE)
    page = write_report([tmp_path / "run"]).read_text()
    assert "of 2 examples" not in page
    lines = (tmp_path / "run" / "records.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "records.jsonl").write_text("".join(lines[:-1]))
    # A unit is recorded as a whole or not at all: without its last line, the four of the last one are gone.
    assert "2 of 4 examples" in write_report([tmp_path / "run"]).read_text()


def test_analysis_of_a_grown_run_goes_on(tiny: Tiny, tmp_path: Path) -> None:
    chosen = {"compression": {"images": 4, "tapes": 1}}
    analyse(of(tiny, 4), tmp_path / "run", chosen, ALIKE)
    before = (tmp_path / "run/analyses/compression/records.jsonl").read_text()
    analyse(of(tiny, 8), tmp_path / "run", chosen, ALIKE)
    assert (tmp_path / "run/analyses/compression/records.jsonl").read_text() == before
    assert not list((tmp_path / "run/analyses").glob("*.old"))


def test_analysis_of_other_pixels_is_refused(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"compression": {"images": 4, "tapes": 1}}
    analyse(of(tiny, 4), tmp_path / "run", chosen, ALIKE)
    made = parts.data()
    darker = Dataset(made.name, made.images / 2, made.labels, made.ids, made.class_names)
    monkeypatch.setattr(parts, "data", lambda: darker)
    with pytest.raises(UserError, match=r"analysis 'compression' in .* was made with another data"):
        analyse(of(tiny, 8), tmp_path / "run", chosen, ALIKE)


@pytest.mark.parametrize("order", ORDERS)
def test_chosen_examples_of_a_larger_count_begin_with_the_smaller(tiny: Tiny, order: str) -> None:
    all_ids = chosen_examples(of(tiny, None, order=order)).ids.tolist()
    for count in range(1, 13):
        assert chosen_examples(of(tiny, count, order=order)).ids.tolist() == all_ids[:count]
    assert chosen_examples(of(tiny, 4, order=order, first=3)).ids.tolist() == all_ids[3:7]


def test_evaluate_flags_classes_without_an_example(tiny: Tiny, tmp_path: Path) -> None:
    lacking = tiny(
        data={"name": "tests.parts:data", "options": {"count": 12}},
        examples={"first": 0, "count": 12},
        knowledge=["white_box"],
    )
    assert "missing_classes" not in [f.name for f in evaluate(lacking, tmp_path / "whole", ALIKE).flags]
    found = benchmark(
        parts.ChannelMean(),
        parts.data(12).select(torch.tensor([0, 1, 3, 4, 6, 7])),  # classes 0 and 1 of three
        attacks=[{"name": "pgd", "options": {"iterations": 1}}],
        out=tmp_path / "run",
    )
    (flag,) = (f for f in found.flags if f.name == "missing_classes")
    assert flag.severity == "warning"
    assert flag.message.startswith("None of the 6 examples is of 1 of the 3 classes ('c')")


def test_flag_of_missing_classes_goes_when_the_run_has_grown(tiny: Tiny, tmp_path: Path) -> None:
    labels = [0] * 9 + [1, 2] * 3
    data = Dataset(
        "sorted", torch.full((15, 3, 8, 8), 0.5), torch.tensor(labels), torch.arange(15), ("a", "b", "c")
    )
    found = []
    for count in (9, 15):
        result = benchmark(
            parts.ChannelMean(),
            data,
            attacks=[{"name": "pgd", "options": {"iterations": 1}}],
            examples=count,
            order="file",
            out=tmp_path / "run",
        )
        found.append([f.name for f in result.flags].count("missing_classes"))
    assert found == [1, 0]


def chosen(counts: list[int], classes: int) -> Dataset:
    """So many examples of every class."""
    labels = torch.tensor([k for k, n in enumerate(counts) for _ in range(n)])
    names = tuple(f"class {k}" for k in range(classes))
    return Dataset("made", torch.zeros(len(labels), 1, 1, 1), labels, torch.arange(len(labels)), names)


@pytest.mark.parametrize(
    ("counts", "classes", "order", "flagged"),
    [
        ([72], 10, "file", True),  # the first class of a folder
        ([8], 10, "file", True),  # what a check looks at: 8 of one class by chance: 1e-7
        ([3, 3, 2, 3, 2, 2, 2, 3], 10, "file", False),  # 20 of 10: two missing are no surprise, 0.26
        ([20, 20], 3, "shuffled", True),  # (2/3)^40 * 3
        ([1, 1], 10, "file", False),
        ([3, 3], 3, "balanced", True),  # the data lack a class
        ([1, 1], 3, "balanced", False),
        ([5, 5, 5], 3, "file", False),
    ],
)
def test_missing_classes_are_flagged_where_a_fair_choice_has_them(
    counts: list[int], classes: int, order: str, flagged: bool
) -> None:
    found = missing_classes(chosen(counts, classes), order)
    assert [f.name for f in found] == ["missing_classes"] * flagged


def test_missing_classes_names_three_of_them() -> None:
    (flag,) = missing_classes(chosen([72], 10), "file")
    assert "9 of the 10 classes ('class 1', 'class 2', 'class 3' and 6 more)" in flag.message
    assert 'examples.order = "balanced"' in flag.message


def test_at_most_is_the_occupancy_distribution() -> None:
    assert at_most(1, 8, 10) == pytest.approx(10 * 0.1**8)  # all of one class
    assert at_most(2, 3, 3) == pytest.approx(1 - 6 / 27)  # 3! of 27 draws show all
    assert at_most(2, 2, 3) == pytest.approx(1)
    all_ten = sum((-1) ** j * math.comb(10, j) * (1 - j / 10) ** 24 for j in range(11))
    assert at_most(9, 24, 10) == pytest.approx(1 - all_ten)


def test_first_files_and_their_classes_are_told_once(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for k in (1, 2):
            Image.new("RGB", (8, 8), (100, 110, 120)).save(tmp_path / "pets" / name / f"{k}.png")
    options = {"path": str(tmp_path / "pets")}
    spec = tiny(data={"name": "folder", "options": options}, examples={"order": "file"})
    with caplog.at_level(logging.INFO, logger="dbpkit.examples"):
        for _ in range(2):
            build(spec)
    (record,) = caplog.records
    said = "cat/1.png is class 0, 'cat'; cat/2.png is class 0, 'cat'; dog/1.png is class 1, 'dog'"
    assert record.getMessage() == f"data 'pets': {said}"


def test_first_files_are_told_on_standard_error(tiny_toml: Path, tmp_path: Path) -> None:
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8), (100, 110, 120)).save(tmp_path / "pets" / "cat" / "1.png")
    words = [
        "evaluate",
        tiny_toml,
        "--out",
        tmp_path / "run",
        "--set",
        f'data.options.path="{tmp_path}/pets"',
    ]
    code = "import sys; from dbpkit.cli import main; main()"
    found = subprocess.run(
        [sys.executable, "-c", code, *map(str, words), "--set", 'data.name="folder"'],
        capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert found.stderr.count("cat/1.png is class 0, 'cat'") == 1


def test_count_of_a_folder_takes_all_classes_alike(tiny: Tiny, tmp_path: Path) -> None:
    """72 of 10 class folders were 72 images of the first, in evaluate and check alike."""
    for k in range(10):
        (tmp_path / str(k)).mkdir()
        for j in range(80):
            Image.new("RGB", (2, 2), (k, j, 0)).save(tmp_path / str(k) / f"{j:03}.png")
    data = {"name": "folder", "options": {"path": str(tmp_path)}}
    chosen = chosen_examples(tiny(data=data, examples={"count": 72}))
    assert sorted(chosen.labels.bincount(minlength=10).tolist()) == [7] * 8 + [8] * 2
    assert chosen.labels.tolist() == chosen.images[:, 0, 0, 0].tolist()
    eight = chosen_examples(tiny(data=data, examples={"count": 8}))  # what a check looks at
    assert len(eight.labels.unique()) == 8
    assert torch.equal(eight.ids, chosen.ids[:8])
    first = tiny(data=data, examples={"count": 72, "order": "file"})
    (flag,) = missing_classes(chosen_examples(first), "file")
    assert "None of the 72 examples is of 9 of the 10 classes" in flag.message


def test_check_flags_examples_of_one_class(tiny: Tiny) -> None:
    lacking = {"name": "tests.integration.test_growth:of_one_class", "options": {}}
    found = quick_check(tiny(data=lacking, examples={"order": "file"}), examples=6)
    assert "missing_classes" in [f.name for f in found.flags]


def of_one_class() -> Dataset:
    """Twelve images of the first of three classes."""
    made = parts.data(36)
    chosen = made.select(torch.arange(0, 36, 3))
    assert chosen.labels.tolist() == [0] * 12
    return chosen
