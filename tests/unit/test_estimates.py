"""Estimands on tables made by hand, and intervals against scipy."""

import math

import pytest
from scipy import stats

from dbpkit.statistics.estimates import (
    all_draws,
    average_difference,
    majority,
    mcnemar,
    paired_difference,
    per_draw,
)
from dbpkit.statistics.intervals import difference, wilson
from tests.oracles import uniform

ROUND_OFF = 1e-12
"""Float64 arithmetic on values of order one."""

PREDICTED = [[0, 0, 0, 0], [1, 1, 0, 0], [2, 0, 1, 2], [1, 1, 1, 0], [2, 2, 2, 2]]
LABELS = [0, 1, 2, 0, 1]
"""Right draws of the five examples: 4, 2, 2, 1, 0 of 4. Votes: won, tied, won by 2 to 1, lost, lost."""


@pytest.mark.parametrize("n", [1, 3, 100])
def test_wilson_extremes_stay_inside_the_unit_interval(n: int) -> None:
    """0 of n has the interval [0, t^2 / (n + t^2)], and n of n its mirror image."""
    t = stats.t.ppf(0.975, max(1, n - 1))
    bound = t**2 / (n + t**2)
    assert wilson(0.0, n) == pytest.approx((0.0, bound), abs=ROUND_OFF)
    assert wilson(1.0, n) == pytest.approx((1 - bound, 1.0), abs=ROUND_OFF)
    assert wilson(0.0, n)[0] >= 0
    assert wilson(1.0, n)[1] <= 1


def test_per_draw_by_hand() -> None:
    """(4 + 2 + 2 + 1 + 0) / 4 / 5 = 9 / 20."""
    found = per_draw(PREDICTED, LABELS)
    assert found.value == pytest.approx(0.45, abs=ROUND_OFF)
    assert (found.estimand, found.examples, found.draws, found.method) == ("per_draw", 5, 4, "wilson")


def test_majority_by_hand_counts_a_tie_against_the_defence() -> None:
    found = majority(PREDICTED, LABELS)
    assert found.value == pytest.approx(2 / 5, abs=ROUND_OFF)
    assert (found.estimand, found.examples, found.draws) == ("majority", 5, 4)


@pytest.mark.parametrize(
    ("predicted", "label", "right"),
    [
        ([3, 3, 1], 3, True),
        ([3, 1], 3, False),  # tie
        ([3, 1, 2], 3, False),  # tie of three
        ([1, 1], 3, False),  # the label has no vote
        ([0], 0, True),
        ([0, 0, 1, 1, 2], 0, False),  # tie at the top
        ([5, 5, 0, 1, 2], 5, True),  # a plurality is enough
    ],
)
def test_majority_single_example_is_as_voted(predicted: list[int], label: int, right: bool) -> None:
    assert majority([predicted], [label]).value == float(right)


def test_all_draws_by_hand_names_the_number_of_draws() -> None:
    found = all_draws(PREDICTED, LABELS)
    assert found.value == pytest.approx(1 / 5, abs=ROUND_OFF)
    assert found.estimand == "all_draws@4"


@pytest.mark.parametrize("estimand", [per_draw, majority, all_draws])
def test_estimate_any_has_wilsons_interval_over_examples(estimand) -> None:
    """n is five examples, not twenty draws."""
    found = estimand(PREDICTED, LABELS)
    assert (found.low, found.high) == pytest.approx(wilson(found.value, 5), abs=ROUND_OFF)


@pytest.mark.parametrize("estimand", [per_draw, majority, all_draws])
def test_estimate_one_draw_is_plain_accuracy(estimand) -> None:
    assert estimand([[0], [1], [1], [2]], [0, 1, 2, 2]).value == pytest.approx(0.75, abs=ROUND_OFF)


@pytest.mark.parametrize("estimand", [per_draw, majority, all_draws])
def test_estimate_no_examples_is_not_a_number(estimand) -> None:
    found = estimand([], [])
    assert math.isnan(found.value)
    assert math.isnan(found.low)
    assert found.examples == 0


@pytest.mark.parametrize("estimand", [per_draw, majority, all_draws])
def test_estimate_other_number_of_labels_raises(estimand) -> None:
    with pytest.raises(ValueError, match="zip"):
        estimand([[0], [1]], [0])


def ordering() -> list[float]:
    return [e(PREDICTED, LABELS).value for e in (all_draws, majority, per_draw)]


def test_estimate_all_draws_is_never_above_the_others() -> None:
    lowest, *others = ordering()
    assert lowest <= min(others)


@pytest.mark.parametrize("n", [30, 200, 1000])
def test_paired_difference_is_that_of_the_pairs(n: int) -> None:
    a = (uniform(n, seed=1) < 0.6).double().numpy()
    b = (uniform(n, seed=2) < 0.4).double().numpy()
    found = paired_difference(a, b, draws=7)
    assert found.value == pytest.approx((a - b).mean(), abs=ROUND_OFF)
    assert (found.low, found.high) == difference(a - b)[1:3]
    assert (found.estimand, found.examples, found.draws) == ("difference", n, 7)
    assert found.method == "Bonett-Price, paired"


def test_paired_difference_pairing_matters() -> None:
    """Equal marginals, but paired values that move together: the interval shrinks with the difference."""
    a = uniform(200, seed=1).numpy()
    together, apart = paired_difference(a, a - 0.1 * a), paired_difference(a, (a - 0.1 * a)[::-1])
    assert together.value == pytest.approx(apart.value, abs=ROUND_OFF)
    assert (together.high - together.low) < 0.5 * (apart.high - apart.low)


def test_paired_difference_swapped_arguments_change_sign() -> None:
    a, b = uniform(50, seed=1).numpy(), uniform(50, seed=2).numpy()
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert (back.value, back.low, back.high) == pytest.approx(
        (-forth.value, -forth.high, -forth.low), abs=ROUND_OFF
    )


def test_paired_difference_same_values_give_the_same_interval() -> None:
    a, b = uniform(50, seed=1).numpy(), uniform(50, seed=2).numpy()
    assert paired_difference(a, b) == paired_difference(a, b)


def test_paired_difference_no_examples_is_not_a_number() -> None:
    found = paired_difference([], [])
    assert math.isnan(found.value)
    assert math.isnan(found.high)
    assert found.examples == 0


def test_paired_difference_lengths_differ_raises() -> None:
    """Pairs that do not match up must not be broadcast, not even against a single value."""
    with pytest.raises(ValueError, match=r"3.*2"):
        paired_difference([1.0, 0.0, 1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match=r"3.*1"):
        paired_difference([1.0, 0.0, 1.0], [1.0])


def test_paired_difference_draws_with_the_same_noise_are_paired_by_their_means() -> None:
    """The mean of the draws' differences is the difference of their means: nothing is left to exploit."""
    a, b = (uniform(40, 5, seed=1) < 0.7).double(), (uniform(40, 5, seed=1) < 0.4).double()
    by_draw = (a - b).mean(1).numpy()
    found = paired_difference(a.mean(1).numpy(), b.mean(1).numpy())
    expected = paired_difference(by_draw, 0 * by_draw)
    assert found[1:4] == pytest.approx(expected[1:4], abs=ROUND_OFF)


def test_average_difference_has_one_value_per_example_that_all_conditions_have() -> None:
    u = uniform(2, 3, 20, seed=17).numpy()
    a, b = ([dict(enumerate(values.tolist())) for values in side] for side in u)
    del a[1][4], b[2][7]  # missing under one condition of one side
    found = average_difference(a, b, draws=2)
    kept = [i for i in range(20) if i not in (4, 7)]
    means = u.mean(axis=1)[:, kept]
    assert found == paired_difference(means[0].tolist(), means[1].tolist(), 2)._replace(
        value=found.value, low=found.low, high=found.high
    )
    assert found.value == pytest.approx((means[0] - means[1]).mean(), abs=ROUND_OFF)
    assert found.examples == 18


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (3, 0, 2 / 8), (0, 5, 2 / 32), (2, 2, 1.0), (4, 1, 12 / 32)],
)
def test_mcnemar_by_hand(only_a: int, only_b: int, p: float) -> None:
    """Coins of the discordant pairs: 4 against 1 of 5 has probability 2 (1 + 5) / 32."""
    a = [1] * only_a + [0] * only_b + [1, 1, 0]
    b = [0] * only_a + [1] * only_b + [1, 1, 0]
    assert mcnemar(a, b) == pytest.approx(p, abs=ROUND_OFF)


@pytest.mark.parametrize(("only_a", "only_b"), [(7, 19), (60, 41), (0, 1100), (900, 1100)])
def test_mcnemar_many_pairs_matches_scipys_binomial_test(only_a: int, only_b: int) -> None:
    a, b = [1] * only_a + [0] * only_b, [0] * only_a + [1] * only_b
    expected = stats.binomtest(only_a, only_a + only_b).pvalue
    assert mcnemar(a, b) == mcnemar(b, a) == pytest.approx(expected, rel=1e-9)  # scipy sums floats


def test_mcnemar_shares_of_draws_are_refused() -> None:
    with pytest.raises(ValueError, match="0 or 1"):
        mcnemar([0.5, 1.0], [0.0, 1.0])
    with pytest.raises(ValueError, match="zip"):
        mcnemar([1, 0], [1])
