"""A purifier that is not a diffusion chain in one file: listed, evaluated, checked, reported, purifying."""

import json
from collections.abc import Callable
from pathlib import Path

from dbpkit.data.pictures import read_picture
from dbpkit.evaluation.purify_files import as_png
from tests.recipes.harness import Recipe

SPEC = """
name = "webp"
purifier = { name = "webp", options = { quality = 40 } }
attacks = [{ name = "square", options = { iterations = 3 } }]
knowledge = ["white_box", "bpda"]
examples = { count = 3 }
draws = { report = 2, select = 1 }
"""


def test_purifier_is_evaluated_analysed_reported_and_replayed(
    plant: Callable[[str], Recipe], tmp_path: Path
) -> None:
    recipe = plant("purifier_webp")
    assert recipe.lines <= 20
    assert "webp" in recipe.dbpkit("list", "purifiers")
    (tmp_path / "spec.toml").write_text(SPEC)
    recipe.dbpkit("evaluate", "spec.toml", "--out", "run", "--quiet")
    session = json.loads((tmp_path / "run" / "env.json").read_text())[0]
    assert "purifier_sha256" in session
    assert "denoiser_sha256" not in session
    assert "purifier webp" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    recipe.dbpkit("replay", "run", "--row", "white_box", "--example", "182")


def test_purifier_purifies_files(plant: Callable[[str], Recipe], tmp_path: Path) -> None:
    from dbpkit import load_dataset

    recipe = plant("purifier_webp")
    x = load_dataset("embedded").x()[0]
    (tmp_path / "cat.png").write_bytes(as_png(x))
    recipe.dbpkit("purify", "cat.png", "--out", "pure", "--purifier", "webp")
    pure = read_picture(tmp_path / "pure" / "cat.png").float() / 255
    assert 0.005 < float((pure - x).abs().mean()) < 0.1


def test_purifier_keeps_the_contract(plant: Callable[[str], Recipe]) -> None:
    plant("purifier_webp").contract("tests/unit/test_purifiers.py", "contract and webp")
