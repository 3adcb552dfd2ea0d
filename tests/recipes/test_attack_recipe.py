"""A newcomer's attack: MI-FGSM in one file, from the list to the contract tests of every attack."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.recipes.harness import Recipe

SPEC = """
name = "mi-fgsm"
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
name = "mi_fgsm"
options = { iterations = 3, eot = 2 }
"""

Plant = Callable[[str], Recipe]


def test_attack_recipe_is_short(plant: Plant) -> None:
    assert plant("attack_mi_fgsm").lines <= 30


def test_attack_recipe_is_listed_with_its_options(plant: Plant) -> None:
    said = plant("attack_mi_fgsm").dbpkit("list", "mi_fgsm", "--options")
    assert "momentum on gradients of unit 1-norm" in " ".join(said.split())
    assert "decay" in said


@pytest.mark.slow
def test_attack_recipe_evaluates_on_the_embedded_models(plant: Plant, tmp_path: Path) -> None:
    recipe = plant("attack_mi_fgsm")
    (tmp_path / "spec.toml").write_text(SPEC)
    recipe.dbpkit("evaluate", "spec.toml", "--out", "run")
    lines = (tmp_path / "run" / "records.jsonl").read_text().splitlines()
    rows = [r for r in map(json.loads, lines) if r.get("row") == "white_box"]
    assert len(rows) == 2
    assert all(len(r["loss"]) == 3 for r in rows)
    assert all(0 < r["distance"] <= 8 / 255 + 1e-6 for r in rows)


@pytest.mark.slow
def test_attack_recipe_keeps_the_contract_of_attacks(plant: Plant) -> None:
    plant("attack_mi_fgsm").contract("tests/unit/test_attacks.py", "mi_fgsm")


def test_attack_recipe_follows_the_formula(plant: Plant) -> None:
    """Two steps by hand on a linear classifier, whose gradient is (p - e_y) W wherever one stands."""
    code = """
import torch
from torch import nn
from dbpkit import Linf, NoisePlan, Undefended
from dbpkit.attacks import attacks
layer = nn.Linear(4, 2, bias=False)
layer.weight.data = torch.tensor([[1.0, -2.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]])
x = torch.full((1, 1, 2, 2), 0.5)
found = attacks.get("mi_fgsm")(Undefended(nn.Sequential(nn.Flatten(), layer)), x, torch.tensor([0]),
    threat=Linf(0.1), noise=NoisePlan.of(0, [0], "attack"), iterations=2, eot=1)
print((found.x_adv - x).flatten().tolist())
"""
    said = json.loads(plant("attack_mi_fgsm").python(code))
    assert said == pytest.approx([-0.1, 0.1, -0.1, 0.0], abs=1e-6)
