"""Flags of noise levels say the rule that fired, with its values; advice names options that exist.

The thing people get wrong: a message that was written for one of two rules and is shown for both.
"""

import inspect
import logging
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from dbpkit import UserError
from dbpkit.attacks import attacks, losses, make_attack
from dbpkit.attacks.dlr import REMEDIES, dlr, dlr_targeted
from dbpkit.checks import outputs
from dbpkit.checks.levels import LEAST_LEVEL, MOST_LEVEL, assumptions, reach_of, suspicious_level
from dbpkit.experiment.knowledge import known
from dbpkit.models.denoisers import ALIASES, VPDenoiser, prediction_of, reinterpreted
from dbpkit.purification.views import gradients


def test_suspicious_level_of_a_large_budget_says_the_rule_of_the_reach() -> None:
    """The report: eps 0.2 at t* = 0.1. The reach is 0.4 in [-1, 1] units, and 0.342 is below twice that."""
    (flag,) = suspicious_level(0.342, "linf", "0.2", reach_of("linf", 0.2, 3072), "t* = 0.1")
    assert flag.message == (
        "Purification starts at noise level 0.342 in [-1, 1] units (t* = 0.1), below 0.8, which is twice what"
        " the attack can do: linf with eps = 0.2 moves values up to 0.4 in these units, so the noise hardly"
        " covers it."
    )


@pytest.mark.parametrize("sigma", [0.01, 0.047, 0.0999, 0.1, 0.125, 0.342, 0.8, 1.5, 1.51, 20.0])
@pytest.mark.parametrize("eps", [1 / 255, 8 / 255, 0.2, 1.0, 5.0, 60.0])
@pytest.mark.parametrize("norm", ["linf", "l2", "perceptual"])
def test_suspicious_level_names_the_rule_that_is_true(norm: str, eps: float, sigma: float) -> None:
    reach = reach_of(norm, eps, 3072)
    flags = suspicious_level(sigma, norm, f"{eps:g}", reach, "t* = 0.1")
    assert bool(flags) == (sigma < max(2 * reach, LEAST_LEVEL) or sigma > MOST_LEVEL)
    for flag in flags:
        relation, limit = re.search(r"\), (below|above) ([\d.e+-]+)", flag.message).groups()
        assert f"noise level {sigma:.3g} in" in flag.message
        assert sigma < float(limit) * 1.005 if relation == "below" else sigma > float(limit)
        assert ("eps = " in flag.message) == (sigma < 2 * reach)
        assert ("t = 10 of 1000" in flag.message) == (sigma < LEAST_LEVEL)
        assert ("more noise than image" in flag.message) == (sigma > MOST_LEVEL and sigma >= 2 * reach)


def test_reach_of_is_that_of_pixels_in_both_norms() -> None:
    assert reach_of("linf", 8 / 255, 3072) == pytest.approx(16 / 255)
    assert reach_of("l2", 0.5, 100) == pytest.approx(2 * 0.5 / 10)
    assert reach_of("perceptual", 0.5, 100) == 0


@pytest.mark.parametrize(
    ("loss", "function", "classes"), [("dlr", dlr, 2), ("dlr_targeted", dlr_targeted, 3)]
)
def test_dlr_with_few_classes_advises_what_attacks_accept(loss, function, classes: int) -> None:
    y = torch.zeros(2, dtype=torch.long) if loss == "dlr" else torch.tensor([[0, 1], [0, 1]])
    with pytest.raises(
        UserError, match=f"'{loss}' needs at least {classes + 1} classes, not {classes}"
    ) as said:
        function(torch.linspace(0, 1, 2 * classes).view(2, classes), y)
    assert str(said.value).endswith(REMEDIES[loss])


@pytest.mark.parametrize("advice", REMEDIES.values())
def test_advice_for_few_classes_runs(advice: str) -> None:
    """The parts that are advised exist, accept their options, and need no third class."""
    parts = re.findall(r'"(\w+)"', advice.split("parts = ")[1])
    make_attack("autoattack", {"parts": parts})
    named = set(re.findall(r'loss = "(\w+)"(?: or "(\w+)")?', advice)[0]) - {""}
    assert all(name in losses for name in named)
    assert "loss" in inspect.signature(attacks.get("apgd")).parameters
    for part in parts:
        loss = inspect.signature(attacks.get(part)).parameters.get("loss")
        assert loss is None or loss.default in ("ce", "margin")


def test_every_loss_and_gradient_that_messages_advise_exists() -> None:
    root = Path(outputs.__file__).parents[1]
    source = "".join(p.read_text() for p in root.rglob("*.py"))
    assert set(re.findall(r'loss = "(\w+)"', source)) <= set(losses)
    assert set(re.findall(r'gradient = "(\w+)"', source)) <= set(gradients)
    assert {"unsquashed"} <= set(known) & set(gradients)


@pytest.mark.parametrize(("alias", "ours"), [*ALIASES.items(), ("noise", "noise"), ("score", "score")])
def test_prediction_of_takes_both_vocabularies(alias: str, ours: str) -> None:
    assert prediction_of(alias) == ours
    assert VPDenoiser(nn.Identity(), alias).prediction == ours
    assert reinterpreted(VPDenoiser(nn.Identity()), alias).prediction == ours


@pytest.mark.parametrize("wrong", ["flow", "", None, 3, [1]])
def test_prediction_of_anything_else_lists_what_there_is(wrong: object) -> None:
    with pytest.raises(UserError, match=r"is unknown. Available: noise, score, v, x0; .*epsilon for noise"):
        prediction_of(wrong)


def test_assumptions_of_files_are_flags() -> None:
    denoiser = VPDenoiser(nn.Identity())
    assert assumptions(denoiser, (32, 32)) == []
    denoiser.sample_size, denoiser.assumed = (32, 32), "No scheduler."
    assert [f.name for f in assumptions(denoiser, (32, 32))] == ["schedule_assumed"]
    (_, flag) = assumptions(denoiser, (64, 48))
    assert flag.message.startswith(
        "The denoising network was made for images of 32 x 32, the data have 64 x 48."
    )


def test_from_pretrained_without_scheduler_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    diffusers = pytest.importorskip("diffusers")
    from dbpkit.models.denoisers import from_pretrained

    network = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    network.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        denoiser = from_pretrained(str(tmp_path))
    assert "No scheduler_config.json lies beside the network" in caplog.text
    assert [f.name for f in assumptions(denoiser, (32, 32))] == ["schedule_assumed", "other_image_size"]
    diffusers.DDPMScheduler().save_pretrained(tmp_path)
    assert assumptions(from_pretrained(str(tmp_path)), (8, 8)) == []
    diffusers.DDPMScheduler(trained_betas=[1.5] * 1000).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="trained_betas must be numbers between 0 and 1") as said:
        from_pretrained(str(tmp_path))
    assert len(str(said.value)) < 500
