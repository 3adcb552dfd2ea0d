"""A network in one file: listed, trained, written, read again by its name, and used to purify."""

import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from tests.recipes.harness import Recipe

SPEC = """
objective = "denoising"
objective_options = { report_times = [100] }
data = "embedded"
test_data = "embedded"
network = { name = "small_ddpm", options = { width = 1 } }

[optimiser]
updates = 2
batch_size = 4
lr = 1e-3
"""


def test_network_is_trained_and_purifies(plant: Callable[[str], Recipe], tmp_path: Path) -> None:
    recipe = plant("network_small_ddpm")
    assert recipe.lines <= 60
    assert "small_ddpm" in recipe.dbpkit("list", "networks")
    assert "width" in recipe.dbpkit("list", "small_ddpm", "--options")
    (tmp_path / "train.toml").write_text(SPEC)
    said = recipe.dbpkit("train", "train.toml", "--out", "run", "--device", "cpu", "--json")
    weights = tmp_path / "run" / "weights.safetensors"
    assert json.loads(said)["denoising"]["100"]["rms_error"] > 0
    assert weights.is_file()
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    recipe.dbpkit("purify", "red.png", "--out", "pure", "--denoiser", str(weights), "--sampler", "one_step")
    assert Image.open(tmp_path / "pure" / "red.png").size == (16, 16)


def test_network_keeps_to_what_every_network_does(plant: Callable[[str], Recipe]) -> None:
    recipe = plant("network_small_ddpm")
    recipe.contract("tests/unit/test_networks.py", "small_ddpm")
    recipe.contract("tests/unit/test_registry.py", "network")
