"""An attacker on a tape of its own: what it sees, and that the report's draws judge it."""

from pathlib import Path

import pytest
import torch

from dbpkit import Execution, RunDirectory, evaluate
from dbpkit.experiment.knowledge import known
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.noise import NoisePlan
from dbpkit.purification.classifier import PurifiedClassifier
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.views import gradients
from tests.oracles import TinyClassifier, tiny_denoiser, uniform
from tests.parts import TINY


@pytest.fixture
def model() -> PurifiedClassifier:
    return PurifiedClassifier(Purifier(tiny_denoiser(), "ddpm", steps=100), TinyClassifier())


def test_other_tape_is_one_draw_of_each_example_whatever_the_plan(model: PurifiedClassifier) -> None:
    x, view = uniform(3, 1, 4, 4), gradients.get("other_tape")(model, tape=2)
    tape = NoisePlan.of(7, [4, 5, 6], "attack", draw=2)
    expected = model(x, noise=tape)
    for noise in (
        NoisePlan.of(7, [4, 5, 6]),
        NoisePlan.of(7, [4, 5, 6], "attack", draw=9).in_lane(3),
        NoisePlan.of(7, [4, 5, 6], "attack").sharing(["forward"], NoisePlan.of(7, [4, 5, 6])),
    ):
        assert torch.equal(view(x, noise=noise), expected)
        assert torch.equal(view.traced(x, noise=noise)[0], expected)
    order = torch.tensor([2, 0, 1])
    assert torch.equal(view(x[order], noise=tape.on("report").rows(order)), expected[order])


def test_other_tape_is_not_the_defenders(model: PurifiedClassifier) -> None:
    x, view = uniform(2, 1, 4, 4), gradients.get("other_tape")(model)
    report = NoisePlan.of(7, [4, 5])
    seen = view(x, noise=report)
    assert all(not torch.equal(seen, model(x, noise=report.at(r))) for r in range(20))
    assert not torch.equal(seen, gradients.get("other_tape")(model, tape=1)(x, noise=report))


def test_other_tape_gradient_is_exact_on_its_tape(model: PurifiedClassifier) -> None:
    x, tape = uniform(2, 1, 4, 4).requires_grad_(), NoisePlan.of(7, [4, 5], "attack")
    (expected,) = torch.autograd.grad(model(x, noise=tape)[:, 0].sum(), x)
    (found,) = torch.autograd.grad(gradients.get("other_tape")(model)(x, noise=tape.at(8))[:, 0].sum(), x)
    assert torch.equal(found, expected)


def test_other_tape_leaves_nothing_random_to_the_attacker_but_all_to_the_defender(
    model: PurifiedClassifier,
) -> None:
    attacker = known["other_tape"]
    assert attacker.leaves_nothing_random(gradients.get(attacker.gradient)(model).sites)
    assert not attacker.leaves_nothing_random(model.sites)


def test_evaluate_other_tape_attacks_with_single_draws_and_is_judged_on_report_draws(tmp_path: Path) -> None:
    spec = EvaluationSpec.model_validate(
        {
            **TINY,
            "purifier": {"sampler": "one_step"},
            "attacks": [{"name": "pgd", "options": {"iterations": 3, "eot": 4}}],
            "knowledge": ["white_box", "other_tape"],
            "examples": {"count": 3},
            "draws": {"report": 5},
        }
    )
    summary = evaluate(spec, tmp_path / "run", Execution(batch_size=3))
    records = [r for r in RunDirectory(tmp_path / "run").records() if r["row"] == "other_tape"]
    assert [len(r["predicted"]) for r in records] == [5, 5, 5]
    assert [r["gradient_passes"] for r in records] == [3, 3, 3]
    assert summary.row("other_tape").title == "purified, attack made on another tape"
