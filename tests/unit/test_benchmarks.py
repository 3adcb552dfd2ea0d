"""The benchmarks' own arithmetic, and that the suite for a GPU runs from end to end in small."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks import gpu, linear, reproduce, run, table, timing
from benchmarks.costs import counted, equal_in_double, purifier_gradient
from benchmarks.plain import Trainable, apart, draws, plain_gradient
from benchmarks.subjects import subject
from dbpkit import PurifiedClassifier
from dbpkit.attacks import Target

ROUNDING = 1e-12
"""Of double precision, after two steps of a small network."""


class Small(NamedTuple):
    name: str


def test_ways_take_turns_and_every_second_round_goes_backwards() -> None:
    called: list[str] = []
    taken = timing.in_turn({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 2, warm=0)
    assert called == ["a", "b", "b", "a"]
    assert {name: len(seconds) for name, seconds in taken.items()} == {"a": 2, "b": 2}


def test_a_way_that_says_its_own_time_is_believed() -> None:
    assert timing.in_turn({"a": lambda: 0.25}, 3)["a"] == [0.25] * 3


def test_quotients_are_of_the_same_round() -> None:
    found = timing.quotients([2.0, 40.0, 6.0], [1.0, 10.0, 2.0])  # 2, 4, 3: not the quotient of medians, 3
    assert found == {"median": 3.0, "low": 2.5, "high": 3.5}


def test_weighted_adds_within_a_round() -> None:
    assert timing.weighted((3, [1.0, 2.0]), (2, [10.0, 20.0])) == [23.0, 46.0]


@pytest.mark.parametrize(("constant", "share"), [(0.0, 0.0), (0.5, 0.2)])
def test_fit_finds_the_line_it_was_given(constant: float, share: float) -> None:
    found = linear.fit([1, 2, 4, 8, 16], [constant + 2 * x for x in (1, 2, 4, 8, 16)])
    assert found["intercept over smallest"] == pytest.approx(share, abs=1e-9)
    assert found["seconds a unit"] == pytest.approx(2)
    assert (found["exponent"] == pytest.approx(1)) == (constant == 0)


def test_sections_are_kept_at_once_and_not_measured_twice(tmp_path: Path, capsys: Any) -> None:
    file, called = tmp_path / "results.json", []

    def good(_: Small) -> dict[str, Any]:
        """A section."""
        called.append("good")
        return {"rows": [{"what": "a", "s": {"median": 1.0, "low": 0.5, "high": 2.0}}]}

    def bad(_: Small) -> dict[str, Any]:
        """Another."""
        raise ValueError("nothing to measure")

    for again in (False, False, True):
        run.measure({"bad": bad, "good": good}, Small("default"), file, again=again)
    assert called == ["good", "good"]
    held = json.loads(file.read_text())["sections"]
    assert held["bad"]["failed"] == "ValueError: nothing to measure"
    assert held["good"]["about"]["torch"] == torch.__version__
    assert "| a | 1.00 (0.50 to 2.00) |" in capsys.readouterr().out


def test_a_larger_size_is_measured_again_and_a_smaller_one_is_not() -> None:
    held = {"sections": {"a": {"rows": [], "size": "default"}}}
    assert [run.done(held, "a", much) for much in run.SIZES] == [True, True, False]


def test_page_gets_its_tables_between_the_marks() -> None:
    page = "Before.\n\n<!-- table a -->\nold\n<!-- /table -->\n\nAfter.\n"
    entry = {"what": "What.", "failed": "no"}
    filled = table.filled(page, {"a": entry})
    assert filled == "Before.\n\n<!-- table a -->\n\nWhat. **Failed**: no\n\n<!-- /table -->\n\nAfter.\n"
    assert table.filled(filled, {"a": entry}) == filled


def test_plain_gradient_is_ours_in_double() -> None:
    assert equal_in_double("tiny", 3) < ROUNDING


def test_plain_weights_are_differentiated_and_frozen_afterwards() -> None:
    one = subject("tiny", 1)
    weight = next(one.network.parameters())
    with Trainable(one.denoiser, one.classifier):
        assert weight.requires_grad
    assert not weight.requires_grad
    plain_gradient(one, draws(one, one.purifier(2), 1))
    assert weight.grad is None
    assert not weight.requires_grad


def test_calls_of_a_gradient_are_counted_by_what_is_kept() -> None:
    one = subject("tiny", 1)
    for budget, calls in ((1 << 50, 3), (0, 5)):  # N, and 2 N - 1
        purifier = one.purifier(3, budget)
        assert counted(purifier_gradient(one, purifier), purifier) == calls


@pytest.mark.slow  # eleven sections, each with a network of diffusers
def test_suite_for_a_gpu_runs_in_small(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "gpu.json"
    gpu.main(["--device", "cpu", "--tiny", "--out", str(file)])
    held = json.loads(file.read_text())["sections"]
    assert set(held) == set(gpu.SECTIONS)
    assert {name: entry["failed"] for name, entry in held.items() if not entry.get("rows")} == {}
    assert held["gradient"]["rows"][0]["gradients differ by"] <= 1e-2  # bfloat16 beside tf32, in small
    gpu.main(["--device", "cpu", "--tiny", "--out", str(file)])  # nothing is left to do
    assert capsys.readouterr().out.count("already") == len(gpu.SECTIONS)


def test_eot_of_both_is_over_the_same_draws() -> None:
    one = subject("tiny", 2).double()
    purifier = one.purifier(2)
    target = Target(PurifiedClassifier(purifier, one.classifier), 6)
    ours = target.gradient(one.x, one.y, noise=one.noise, eot=3).grad
    assert apart(ours, plain_gradient(one, draws(one, purifier, 3))) < ROUNDING
    assert apart(ours, plain_gradient(one, draws(one, purifier, 2))) > 1e-3


def test_page_of_speed_shows_the_kept_results() -> None:
    root = Path(__file__).parents[2]
    held = json.loads((root / table.RESULTS).read_text())["sections"]
    page = (root / table.PAGE).read_text()
    assert table.filled(page, held) == page, "run `python -m benchmarks.table --pages`"
    assert {name for _, name, _ in table.MARKS.findall(page)} == set(run.SECTIONS)


def test_page_of_reproduced_tables_shows_the_kept_results() -> None:
    root = Path(__file__).parents[2]
    found = reproduce.MARKS.search((root / reproduce.PAGE).read_text())
    assert found is not None
    kept = json.loads((root / reproduce.RESULTS).read_text())
    assert reproduce.in_words(kept) in found[0], "run `python -m benchmarks.reproduce`"
