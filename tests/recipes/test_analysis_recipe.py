"""A newcomer's analysis: one short file, listed, run, resumed, reported, and held to the contract."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.recipes.harness import Recipe

SPEC = """
name = "newcomer"
[purifier]
sampler = "one_step"
steps = 20
[examples]
count = 12
[analyses.classes]
images = 12
draws = 2
"""

Plant = Callable[[str], Recipe]


@pytest.fixture
def recipe(plant: Plant) -> Recipe:
    planted = plant("analysis_classes")
    (planted.folder / "spec.toml").write_text(SPEC)
    return planted


def test_analysis_is_one_short_file_and_listed(recipe: Recipe) -> None:
    assert recipe.lines <= 45
    assert "Clean accuracy that purification costs each class." in recipe.dbpkit("list", "analyses")


def test_analysis_runs_once_and_is_reported(recipe: Recipe) -> None:
    words = ("analyse", "spec.toml", "classes", "--out", "run")
    assert "pays most" in recipe.dbpkit(*words)
    kept = {p: p.read_bytes() for p in Path(recipe.folder, "run/analyses/classes").iterdir()}
    assert len((recipe.folder / "run/analyses/classes/records.jsonl").read_text().splitlines()) == 2
    recipe.dbpkit(*words)
    assert {p: p.read_bytes() for p in Path(recipe.folder, "run/analyses/classes").iterdir()} == kept
    recipe.dbpkit("report", "run")
    assert "Which classes pay for purification" in (recipe.folder / "run/report.html").read_text()


@pytest.mark.slow
def test_analysis_keeps_the_contract_of_all_analyses(recipe: Recipe) -> None:
    recipe.contract("tests/unit/analyses/test_contract.py", "classes")
