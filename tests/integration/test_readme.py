"""What the README shows must run as it stands."""

import re
from pathlib import Path

import pytest

from dbpkit import EvaluationSpec, TrainingSpec, read_spec

ROOT = Path(__file__).parents[2]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.M | re.S)


def test_readme_python_runs_and_the_told_attacker_fools_the_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the benchmark keeps its run in runs/
    first, benchmark = blocks("python")
    names: dict = {}
    exec(first, names)
    printed = capsys.readouterr().out
    assert printed.count("tensor(") == 2
    exec(benchmark, names)
    assert names["result"].robust.value <= names["result"].clean.value
    assert "network calls per image" in capsys.readouterr().out
    attacked = names["model"](names["x_adv"], noise=names["noise"]).argmax(1)
    assert (attacked != names["y"]).sum() >= 3  # of four: a deterministic target under its own gradient


def test_readme_toml_is_a_valid_spec(tmp_path: Path) -> None:
    (text,) = blocks("toml")
    (tmp_path / "mine.toml").write_text(text)
    assert read_spec(tmp_path / "mine.toml", EvaluationSpec).purifier.steps == 1000


@pytest.mark.parametrize("path", sorted(ROOT.glob("specs/*.toml")), ids=lambda p: p.name)
def test_every_published_spec_is_valid(path: Path) -> None:
    spec = read_spec(path, EvaluationSpec)
    assert spec.attacks
    assert path.read_text().startswith("#")


@pytest.mark.parametrize("path", sorted(ROOT.glob("specs/train/*.toml")), ids=lambda p: p.name)
def test_every_training_spec_is_valid(path: Path) -> None:
    assert read_spec(path, TrainingSpec).optimiser.updates > 0
