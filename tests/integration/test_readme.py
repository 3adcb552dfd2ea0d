"""What the README shows must run as it stands, and it must stay short."""

import re
import runpy
from pathlib import Path

import pytest

from dbpkit import EvaluationSpec, TrainingSpec, read_spec

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()

LINES, SPEC_LINES = 120, 12
"""How long the README and the spec in it may be."""


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, flags=re.M | re.S)


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= LINES


def test_readme_toml_is_a_valid_short_spec(tmp_path: Path) -> None:
    (text,) = blocks(README, "toml")
    assert len(text.splitlines()) <= SPEC_LINES
    (tmp_path / "mine.toml").write_text(text)
    assert read_spec(tmp_path / "mine.toml", EvaluationSpec).purifier.steps == 1000


def test_pieces_in_python_run_and_the_told_attacker_fools_the_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "how-to" / "python.md").read_text()
    (text,) = [block for block in blocks(page, "python") if block.startswith("# pieces.py")]
    (tmp_path / "pieces.py").write_text(text)
    names = runpy.run_path(str(tmp_path / "pieces.py"))
    assert capsys.readouterr().out.count("tensor(") == 2
    attacked = names["model"](names["x_adv"], noise=names["noise"]).argmax(1)
    assert (attacked != names["y"]).sum() >= 3  # of four: a deterministic target under its own gradient


@pytest.mark.parametrize("path", sorted(ROOT.glob("specs/*.toml")), ids=lambda p: p.name)
def test_every_published_spec_is_valid(path: Path) -> None:
    spec = read_spec(path, EvaluationSpec)
    assert spec.attacks
    assert path.read_text().startswith("#")


@pytest.mark.parametrize("path", sorted(ROOT.glob("specs/train/*.toml")), ids=lambda p: p.name)
def test_every_training_spec_is_valid(path: Path) -> None:
    assert read_spec(path, TrainingSpec).optimiser.updates > 0
