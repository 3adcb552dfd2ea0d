"""A newcomer's check: one function with its words in one file, run by the commands and by Python."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.recipes.harness import Recipe

NAME = "saturated_confidence"

SPEC = """
name = "checked"
knowledge = ["white_box"]
[purifier]
sampler = "one_step"
[examples]
count = 2
order = "file"
[draws]
report = 2
select = 2
[[attacks]]
name = "pgd"
options = { iterations = 2, eot = 2 }
"""

Plant = Callable[[str], Recipe]


def test_check_recipe_is_short(plant: Plant) -> None:
    assert plant("check_saturated_confidence").lines <= 25


def test_check_recipe_is_listed_with_its_words(plant: Plant) -> None:
    said = " ".join(plant("check_saturated_confidence").dbpkit("list", "checks").split())
    assert "the classifier's confidence differs from image to image" in said
    assert "dividing its logits by a temperature" in said


@pytest.mark.slow
def test_check_recipe_runs_in_check(plant: Plant, tmp_path: Path) -> None:
    recipe = plant("check_saturated_confidence")
    (tmp_path / "spec.toml").write_text(SPEC)
    said = json.loads(recipe.dbpkit("check", "spec.toml", "--examples", "2", "--json"))
    assert NAME in said["checks"]
    assert NAME not in {flag["name"] for flag in said["flags"]}


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "flagged"), [(1.0, False), (1000.0, True)])
def test_check_recipe_flags_a_classifier_that_is_sure_of_everything(
    factor: float, flagged: bool, plant: Plant
) -> None:
    """In the preflight of an evaluation too: whatever is registered for the model runs there."""
    code = f"""
import dbpkit, torch
from dbpkit.checks import Probe, checks, run_check
_, classifier = dbpkit.load_embedded()
data = dbpkit.load_dataset("embedded").select(slice(0, 4))
model = dbpkit.Undefended(torch.nn.Sequential(classifier, torch.nn.Linear(10, 10, bias=False)))
model.classifier[1].weight.data = {factor} * torch.eye(10)
probe = Probe(model, data.x(), data.labels, dbpkit.NoisePlan.of(0, data.ids, "select"), dbpkit.Linf(8 / 255))
(check,) = [c for c in checks.of("model", probe) if c.name == "{NAME}"]
print(len(run_check(check, probe)))
"""
    assert int(plant("check_saturated_confidence").python(code)) == int(flagged)
