"""Lengths of perturbations: one for all images under pixel budgets, each image's own under others."""

import numpy as np
import pytest
import torch

from dbpkit.analyses.analysis import Unit
from dbpkit.analyses.law.law import Law
from dbpkit.analyses.law.table import tabulate
from dbpkit.analyses.run import make_analysis
from dbpkit.analyses.tools.configurations import predicted
from dbpkit.analyses.tools.directions import along, budget_length, unit_direction
from dbpkit.threats.pixels import typical_length
from tests.unit.analyses.linear import measured, subject
from tests.unit.analyses.test_contract import ONE_STEP, ROUNDING, flat

PERCEPTUAL = {"norm": "perceptual", "eps": "0.05"}
SIZE = 3 * 8 * 8


@pytest.mark.parametrize(
    ("threat", "length"),
    [
        ({"norm": "linf", "eps": "8/255"}, 8 / 255 * (SIZE / 3) ** 0.5),
        ({"norm": "l2", "eps": "0.5"}, 0.5),
    ],
)
def test_length_of_a_pixel_budget_is_exact(threat: dict, length: float) -> None:
    made = subject(threat=threat)
    x, _, _ = made.examples(range(3))
    assert budget_length(made, x).tolist() == [length] * 3


def test_steps_of_one_size_or_of_each_image_s_own_are_rounded_alike() -> None:
    made = subject()
    x, _, noise = made.examples(range(3))
    u = unit_direction("gaussian", noise, x)
    length = budget_length(made, x)
    assert torch.equal(along(0.3 * length, u), along(0.3 * float(length[0]), u))


def test_perceptual_budget_is_measured_at_every_image() -> None:
    made = subject(threat=PERCEPTUAL)
    x, _, _ = made.examples(range(3))
    length = budget_length(made, x)
    assert length.tolist() == typical_length(made.parts.threat, x).tolist()
    assert len(set(length.tolist())) == 3
    assert (length > 0.05).all(), "eps is no length in pixels"


def test_thresholds_under_a_perceptual_budget_use_each_image_s_length() -> None:
    made = subject(threat=PERCEPTUAL)
    analysis = make_analysis(
        "thresholds", {"images": 3, "iterations": 1, "points": 4, "slices": 1, "samples": 2}
    )
    x, _, _ = made.examples(range(3))
    (together,) = measured(analysis, made).values()
    assert [r["radius"] for r in together] == budget_length(made, x).tolist()
    (alone,) = analysis.measure(made, Unit(range(1, 2)))
    assert flat(alone) == pytest.approx(flat(together[1]), rel=ROUNDING, abs=ROUNDING)


def test_law_under_a_perceptual_budget_predicts_with_each_image_s_length() -> None:
    made = subject(threat=PERCEPTUAL)
    law = Law(configurations=ONE_STEP, images=3, eps=["0.05"], iterations=1, directions=1)
    found = measured(law, made)
    table = tabulate(found)
    x, _, _ = made.examples(range(3))
    length = budget_length(made, x)
    for place, record in enumerate(r for unit, r in found.items() if unit.of != "classifier"):
        assert record["lengths"] == [length.tolist()]
        tape = record["tapes"][0]
        guess = predicted(tape["right"], tape["margin"], float(np.mean(tape["rate"])), length.tolist())
        assert table.predicted[place, 0] == pytest.approx(np.mean(guess))
    assert table.lengths[:, 0] == pytest.approx(float(length.median()))
