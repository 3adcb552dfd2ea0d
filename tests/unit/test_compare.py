"""Comparing two runs: what differs, what makes the difference hard to read, and what is refused."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dbpkit.foundation.errors import UserError
from dbpkit.results.compare import compare
from dbpkit.results.run_directory import RunDirectory

SPEC: dict[str, Any] = {
    "name": "vanilla",
    "data": {"name": "embedded", "options": {}},
    "classifier": {"name": "embedded", "options": {}},
    "denoiser": {"name": "embedded", "options": {}},
    "purifier": {"sampler": "ddpm", "t_star": 0.1, "steps": 100, "options": {}, "grid": {}, "clamp": None},
    "threat": {"norm": "linf", "eps": "8/255"},
    "attacks": [{"name": "pgd", "options": {"iterations": 3}}],
    "knowledge": [
        {"name": "white_box", "gradient": "exact", "shared_sites": [], "tapes": 1},
        {"name": "fixed", "gradient": "exact", "shared_sites": ["forward", "reverse"], "tapes": 2},
    ],
    "examples": {"count": 4, "first": 0, "order": "file"},
    "draws": {"report": 2, "select": 10},
    "seed": 0,
}

Make = Callable[..., RunDirectory]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Returns a function that writes a run whose white-box predictions are right as ``white_box`` says."""

    def write(
        folder: str,
        white_box: list[list[int]],
        change: Callable[[dict[str, Any]], object] = lambda _: None,
        session: dict[str, str] | None = None,
        first: int = 0,
        label: int = 1,
    ) -> RunDirectory:
        spec = copy.deepcopy(SPEC)
        change(spec)
        run = RunDirectory(tmp_path / folder)
        run.claim(spec)
        run.write_json("env.json", [{"data_sha256": "d", **(session or {})}])
        run.append(
            {
                "row": "white_box",
                "tape": 0,
                "example": i,
                "label": label,
                "predicted": [label * r for r in row],
            }
            for i, row in enumerate(white_box, first)
        )
        return run

    return write


HALF = [[1, 0], [1, 1], [0, 0], [0, 1]]
NONE = [[0, 0], [0, 1], [0, 0], [0, 0]]


def test_compare_other_model_says_what_differs_and_warns_of_nothing(make: Make) -> None:
    def fine_tuned(spec: dict[str, Any]) -> None:
        spec.update(name="fine-tuned", denoiser={"name": "cifar10-unet-addt", "options": {}})

    found = compare(make("a", HALF), make("b", NONE, fine_tuned))
    assert found.changed == ["denoiser.name embedded -> cifar10-unet-addt"]
    assert found.warnings == []
    # halves of a draw by example: 1, 2, 0, 1 of two draws against 0, 1, 0, 0
    assert found.differences["white_box"].value == pytest.approx(3 / 8)
    assert (found.differences["white_box"].examples, found.differences["white_box"].draws) == (4, 2)
    assert found.p_values == {}  # two draws per example: no single pairs


def test_compare_takes_paths_as_well_as_run_directories(make: Make) -> None:
    a, b = make("a", HALF), make("b", NONE)
    assert compare(a.path, b.path).differences == compare(a, b).differences


def test_compare_single_draws_have_mcnemars_p_value(make: Make) -> None:
    """Four examples right in A alone: 2 / 2^4."""
    found = compare(make("a", [[1]] * 4 + [[0]]), make("b", [[0]] * 5))
    assert found.p_values == {"white_box": pytest.approx(2 / 16)}


def test_compare_single_draw_on_two_tapes_has_no_p_value(make: Make) -> None:
    runs = [make("a", [[1]] * 2), make("b", [[0]] * 2)]
    for run in runs:
        run.append([{**record, "tape": 1} for record in run.records()])
    assert compare(*runs).p_values == {}


@pytest.mark.parametrize(
    ("change", "leaf", "sentence"),
    [
        (lambda s: s["threat"].update(eps="4/255"), "threat.eps 8/255 -> 4/255", "The budgets differ"),
        (
            lambda s: s["attacks"][0]["options"].update(iterations=9),
            "attacks[0].options.iterations 3 -> 9",
            "The attacks differ",
        ),
        (lambda s: s.update(seed=1), "seed 0 -> 1", "The seeds differ"),
        (lambda s: s["draws"].update(report=5), "draws.report 2 -> 5", "The draws differ"),
        (
            lambda s: s["knowledge"][1].update(tapes=5),
            "knowledge.fixed.tapes 2 -> 5",
            "know different things",
        ),
    ],
)
def test_compare_more_than_the_model_differs_warns(change, leaf: str, sentence: str, make: Make) -> None:
    found = compare(make("a", HALF), make("b", NONE, change))
    assert found.changed == [leaf]
    (warning,) = found.warnings
    assert sentence in warning
    assert leaf in warning


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (lambda s: s["knowledge"].pop(1), ["knowledge.fixed evaluated -> not evaluated"]),
        (lambda s: s["knowledge"].reverse(), []),
        (lambda s: s["draws"].update(select=3), ["draws.select 10 -> 3"]),  # one attack: none is selected
        (lambda s: s["purifier"].update(steps=200), ["purifier.steps 100 -> 200"]),
        (lambda s: s.update(name="another title"), []),
    ],
)
def test_compare_what_does_not_touch_the_difference_is_no_warning(change, changed, make: Make) -> None:
    found = compare(make("a", HALF), make("b", NONE, change))
    assert (found.changed, found.warnings) == (changed, [])


def test_compare_other_weights_under_the_same_name_are_named(make: Make) -> None:
    a = make("a", HALF, session={"denoiser_sha256": "a" * 64})
    b = make("b", NONE, session={"denoiser_sha256": "b" * 64})
    assert compare(a, b).changed == [f"denoiser_sha256 {'a' * 12} -> {'b' * 12}"]


def test_compare_some_examples_in_common_compares_those_and_says_so(make: Make) -> None:
    found = compare(make("a", HALF), make("b", NONE, first=2))
    assert found.differences["white_box"].examples == 2
    assert found.warnings == ["Only examples that both runs have are compared; 1 of 1 rows have others."]


def test_compare_other_data_with_the_same_labels_warns(make: Make) -> None:
    def corrupted(spec: dict[str, Any]) -> None:
        spec["data"] = {"name": "my:corrupted", "options": {}}

    found = compare(make("a", HALF), make("b", NONE, corrupted, session={"data_sha256": "e"}))
    (warning,) = found.warnings
    assert "data.name embedded -> my:corrupted" in warning


def test_compare_other_labels_are_other_data_and_refused(make: Make) -> None:
    other = make("b", NONE, session={"data_sha256": "e"}, label=2)
    with pytest.raises(UserError, match="runs on different data"):
        compare(make("a", HALF), other)


def test_compare_no_common_example_is_refused(make: Make) -> None:
    with pytest.raises(UserError, match="no example and row in common"):
        compare(make("a", HALF), make("b", NONE, first=10))


def test_compare_does_not_change_what_a_run_says_of_itself(make: Make) -> None:
    a, b = make("a", HALF), make("b", NONE)
    compare(a, b)
    assert a.spec()["spec"] == b.spec()["spec"] == SPEC
