"""A data set in one file: listed, loaded from arrays, and evaluated."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dbpkit import load_dataset
from tests.recipes.harness import Recipe

SPEC = """
name = "own data"
attacks = [{ name = "pgd", options = { iterations = 1 } }]
knowledge = ["white_box"]
purifier = { sampler = "one_step" }
examples = { count = 3 }
draws = { report = 2, select = 1 }

[data]
name = "npz"
options = { path = "cats.npz", classes = CLASSES }
"""


def test_data_set_is_loaded_and_evaluated(plant: Callable[[str], Recipe], tmp_path: Path) -> None:
    recipe = plant("dataset_npz")
    assert recipe.lines <= 15
    assert "npz" in recipe.dbpkit("list", "data")
    embedded = load_dataset("embedded").select(slice(0, 4))
    np.savez(tmp_path / "cats.npz", x=embedded.images.numpy(), y=embedded.labels.numpy())
    classes = json.dumps(embedded.class_names)
    loaded = recipe.python(
        "from dbpkit import load_dataset\n"
        f"d = load_dataset('npz', {{'path': 'cats.npz', 'classes': {classes}}})\n"
        "print(d.ids.tolist(), d.labels.tolist(), len(d.class_names), d.sha256)"
    )
    assert loaded.split("\n")[0].startswith(f"[0, 1, 2, 3] {embedded.labels.tolist()} 10 ")
    (tmp_path / "spec.toml").write_text(SPEC.replace("CLASSES", classes))
    recipe.dbpkit("evaluate", "spec.toml", "--out", "run", "--quiet")
    session = json.loads((tmp_path / "run" / "env.json").read_text())[0]
    assert session["examples"] == 3


def test_data_set_keeps_to_what_every_data_set_does(plant: Callable[[str], Recipe]) -> None:
    plant("dataset_npz").contract("tests/unit/data/test_dataset.py", "npz")
