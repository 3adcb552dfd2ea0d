"""Every file in specs/: its parts are made, and it runs to its end, in small."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbpkit import EvaluationSpec, TrainingSpec, evaluate, read_spec, train
from dbpkit.attacks import attacks
from dbpkit.attacks.attack import accepted_options
from dbpkit.experiment.execution import Execution
from dbpkit.training.objectives import objectives
from tests.docs.pages import ROOT

HERE = "tests.docs.test_specs"
SPECS = sorted(ROOT.glob("specs/*.toml"))
TRAINING = sorted(ROOT.glob("specs/train/*.toml"))
SHORT = {"iterations": 1, "eot": 1, "judge_draws": 1, "n_targets": 2, "n_restarts": 1, "gradients": 3}
"""Options of attacks, in small."""


class Quick(nn.Module):
    """A classifier of ten classes that takes no time, for channels of any number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-3, 3, 10)[None])

    def forward(self, x: Tensor) -> Tensor:
        return 5 * torch.sin(self.weight * (x.mean(dim=(1, 2, 3))[:, None] + 1))


def shortened(path: Path, **parts: Any) -> list[str]:
    """Overrides that make an evaluation short."""
    spec = tomllib.loads(path.read_text())
    steps = 4 if spec["purifier"].get("sampler") in ("heun", "likelihood") else 50
    chain = [] if "name" in spec["purifier"] else [f"purifier.steps={steps}"]
    sets = ["examples.count=2", "draws={report=2, select=2}", *chain]
    for number, attack in enumerate(spec["attacks"]):
        given = attack.get("options", {})
        own = accepted_options(attack["name"]) if attack["name"] in attacks else {}
        known = [o for o in SHORT if o in given or (o == "iterations" and o in own)]
        sets += [f"attacks.{number}.options.{option}={SHORT[option]}" for option in known]
    return [*sets, *(f"{part}={value}" for part, value in parts.items())]


@pytest.mark.parametrize("path", [*SPECS, *TRAINING], ids=lambda p: p.name)
def test_spec_says_in_its_first_line_what_it_is(path: Path) -> None:
    """`dbpkit list specs` prints that line; an evaluation has a name, and comments keep their parentheses."""
    text = path.read_text()
    assert text.startswith("# ")
    assert text.partition("\n")[0][-1] in ".?"
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert all(line.count("{") == line.count("}") for line in comments)
    assert "threat" not in tomllib.loads(text) or tomllib.loads(text).get("name")


@pytest.mark.parametrize("path", SPECS, ids=lambda p: p.name)
def test_spec_runs_to_its_end_with_quick_models(path: Path, tmp_path: Path) -> None:
    sets = shortened(
        path, data="embedded", classifier=f"{HERE}:Quick", denoiser="tests.parts:gaussian_denoiser"
    )
    spec = read_spec(path, EvaluationSpec, sets)
    summary = evaluate(spec, tmp_path / "run", Execution(batch_size=2))
    assert {row.name for row in summary.rows} >= {setting.name for setting in spec.knowledge}
    assert all(row.estimates for row in summary.rows)


@pytest.mark.long
@pytest.mark.parametrize("path", SPECS, ids=lambda p: p.name)
def test_spec_runs_to_its_end_with_the_embedded_models(path: Path, tmp_path: Path) -> None:
    sets = shortened(path, data="embedded", classifier="embedded", denoiser="embedded")
    summary = evaluate(read_spec(path, EvaluationSpec, sets), tmp_path / "run", Execution(batch_size=2))
    assert all(row.estimates for row in summary.rows)


@pytest.mark.long
@pytest.mark.parametrize("path", TRAINING, ids=lambda p: p.name)
def test_training_spec_runs_to_its_end(path: Path, tmp_path: Path) -> None:
    data = "digits" if "fashion" in path.name else "embedded"
    sets = [f"data={data}", f"test_data={data}", "optimiser.updates=1", "optimiser.batch_size=2"]
    if objectives.get(tomllib.loads(path.read_text())["objective"]).kind == "denoiser":
        sets.append("objective_options.report_times=[100]")
    trained = train(read_spec(path, TrainingSpec, sets), tmp_path / "run", execution=Execution("cpu"))
    assert trained.weights.is_file()
