"""Compression rates of affine purifiers: theta for ancestral and one step, near sqrt(theta) for the flow."""

import numpy as np
import pytest

from dbpkit.analyses.analysis import Unit
from dbpkit.analyses.compression import Compression
from dbpkit.foundation.errors import UserError
from dbpkit.statistics.intervals import mean
from tests.unit.analyses.linear import SIGMA, VARIANCE, measured, subject, values
from tests.unit.analyses.stubs import judged

THETA = VARIANCE / (VARIANCE + SIGMA**2)
PUBLISHED = 1e-3
"""SIGMA has four digits; float32."""
SMALL = Compression(images=3, tapes=2, directions=1, scales=(0.25, 1.0), attack_iterations=2)
KINDS = ("gaussian x1", "uniform x0.25", "uniform x1", "sign x1", "jacobian", "pgd")


@pytest.mark.parametrize(("sampler", "steps"), [("one_step", 1000), ("ddpm", 100), ("ddpm", 1000)])
def test_rate_ancestral_and_one_step_is_theta_for_any_steps(sampler: str, steps: int) -> None:
    found = values(SMALL.conclude(measured(SMALL, subject(sampler, steps))))
    expected = {f"compression rate, {kind}": THETA for kind in KINDS}
    assert found == pytest.approx(expected, rel=PUBLISHED)


def test_rate_reverse_only_is_theta_over_root_alpha_bar() -> None:
    found = values(SMALL.conclude(measured(SMALL, subject("reverse_only", 100))))
    assert found["compression rate, gaussian x1"] == pytest.approx(
        THETA * (1 + SIGMA**2) ** 0.5, rel=PUBLISHED
    )


def test_rate_ddim_many_steps_is_near_root_theta() -> None:
    rates = [
        values(SMALL.conclude(measured(SMALL, subject("ddim", steps))))["compression rate, jacobian"]
        for steps in (50, 200, 1000)
    ]
    assert rates == sorted(rates)
    assert rates[0] > THETA
    assert rates[-1] == pytest.approx(THETA**0.5, rel=0.02)  # first order: 101 steps leave about 1 %
    assert rates[-1] < THETA**0.5


def test_rate_gaussian_below_one_claim_holds_and_is_the_first_sentence() -> None:
    result = SMALL.conclude(measured(SMALL, subject()))
    (claimed,) = [n for n in result.numbers if n.claim]
    assert claimed.holds is None  # 2 images
    assert judged(claimed) is True
    assert f"{THETA:.0%}" in result.sentences[0]


def test_conclude_two_tapes_are_averaged_per_image_before_the_interval() -> None:
    rates = np.array([[0.2, 0.4], [0.3, 0.5]])
    tapes = [[{"gaussian x1": a, "uniform x1": a, "survived": True} for a in row] for row in rates]
    result = SMALL.conclude({Unit(range(2)): [{"id": i, "tapes": t} for i, t in enumerate(tapes)]})
    number = result.numbers[0]
    assert (number.value, number.examples) == (pytest.approx(0.35), 2)
    assert (number.low, number.high) == pytest.approx(mean([0.3, 0.4])[1:3])  # the two images' means


def test_units_more_images_than_examples_is_refused() -> None:
    with pytest.raises(UserError, match="13 images were asked for, but the spec has 12"):
        Compression(images=13).units(subject())
