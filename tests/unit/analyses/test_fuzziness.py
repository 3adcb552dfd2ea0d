"""Fuzziness against coins of known probability, the curve's area, and counting by hand."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dbpkit.analyses.analysis import Unit
from dbpkit.analyses.fuzziness import Fuzziness
from dbpkit.analyses.run import make_analysis
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.statistics.estimates import majority
from tests.unit.analyses import stubs

PROBABILITY = [0.0, 0.0, 0.1, 0.2, 0.3, 0.5, 0.5, 0.6, 0.8, 0.9, 1.0, 1.0]


class Coins(stubs.Stub):
    """Image i is misclassified with probability PROBABILITY[i], whatever the attack."""

    def other(self, delta: Tensor, noise: NoisePlan) -> Tensor:
        u = noise.uniform("forward", 0, delta[:, 0, 0, :1])[:, 0]
        p = torch.tensor(PROBABILITY)[noise.example_ids - stubs.FIRST_ID]
        return torch.where(u < p, 1.0, -1.0) + 0 * delta.sum(dim=(1, 2, 3))


def wrong_by_hand(i: int, draws: int) -> int:
    """How many of an image's report draws come up wrong, one plan each."""
    like = torch.zeros(1, 1)
    ids = [stubs.FIRST_ID + i]
    return sum(
        float(NoisePlan.of(0, ids, "report", r).uniform("forward", 0, like)[0, 0]) < PROBABILITY[i]
        for r in range(draws)
    )


def test_fuzziness_known_probabilities_are_counted_on_report_draws() -> None:
    model, draws = Coins(), 60
    analysis = Fuzziness(images=12, draws=draws, iterations=2, eot=2)
    measured = stubs.measure_all(analysis, stubs.subject(model))
    wrong = [r["wrong"] for unit in measured.values() for r in unit]
    assert wrong == [wrong_by_hand(i, draws) for i in range(12)]
    for k, p in zip(wrong, PROBABILITY, strict=True):
        assert abs(k - draws * p) <= 4 * (draws * p * (1 - p)) ** 0.5  # binomial, four standard deviations
    assert model.streams == {True: {"attack"}, False: {"report"}}


def records(wrong: list[int], draws: int) -> dict[str, Any]:
    return {Unit(range(len(wrong))): [{"id": i, "wrong": k, "draws": draws} for i, k in enumerate(wrong)]}


def test_fuzziness_curve_has_the_known_ends_and_its_area_is_the_average() -> None:
    wrong, draws = [0, 0, 3, 6, 7, 12], 12
    result = Fuzziness(draws=draws).conclude(records(wrong, draws))
    (curve,) = result.charts[0].series
    never, half, average, fuzzy = (n.value for n in result.numbers[:4])
    assert (never, half, fuzzy) == pytest.approx((2 / 6, 3 / 6, 3 / 6))
    assert (curve.y[0], curve.y[5], curve.y[-1]) == pytest.approx((never, half, 1.0))
    area = np.mean(curve.y[:-1])  # CFR is constant between k / draws and (k + 1) / draws
    assert average == pytest.approx(area) == pytest.approx(1 - np.mean(wrong) / draws)


@pytest.mark.parametrize("wrong", range(5))
def test_fuzziness_curve_at_one_half_counts_a_tie_as_the_vote_does(wrong: int) -> None:
    """Two classes, four draws: half of them right is no majority."""
    half = Fuzziness(draws=4).conclude(records([wrong], 4)).numbers[1].value
    assert half == majority([[1] * wrong + [0] * (4 - wrong)], [0]).value


def test_fuzziness_share_in_ten_draws_is_that_of_all_choices_of_ten() -> None:
    wrong, draws = [0, 1, 5, 11, 12], 12
    result = Fuzziness(draws=draws).conclude(records(wrong, draws))
    expected = []
    for k in wrong:
        outcomes = [1] * k + [0] * (draws - k)
        expected.append(np.mean([0 < sum(c) < 10 for c in itertools.combinations(outcomes, 10)]))
    number = stubs.numbers(result)["the same, expected in 10 draws"]
    assert number.value == pytest.approx(np.mean(expected))
    assert number.published == 0.463


@pytest.mark.parametrize(
    ("wrong", "holds"), [([5] * 16, True), ([0] * 30 + [10] * 30, False), ([0] * 6 + [10] * 6, None)]
)
def test_fuzziness_claim_is_judged_by_the_interval(wrong: list[int], holds: bool | None) -> None:
    assert Fuzziness(draws=10).conclude(records(wrong, 10)).numbers[3].holds is holds


@pytest.mark.parametrize("options", [{"draws": 1}, {"images": 0}, {"eot": 1.5}, {"iterations": "3"}])
def test_fuzziness_bad_option_says_what_is_expected(options: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match=f"'fuzziness': {next(iter(options))} must be a whole number of at least"
    ):
        make_analysis("fuzziness", options)
