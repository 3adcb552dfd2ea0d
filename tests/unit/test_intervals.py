"""Intervals by hand and against independent references; their coverage is simulated in test_coverage.py."""

import math

import numpy as np
import pytest
from scipy import stats

from dbpkit.results.analysis import Claim, Number
from dbpkit.statistics import intervals
from dbpkit.statistics.bootstrap import counted, resampled
from dbpkit.statistics.crossed import (
    concordance,
    concordant_share,
    crossed,
    crossed_correlation,
    crossed_mean,
)
from dbpkit.statistics.intervals import wilson
from tests.oracles import uniform

ROUND_OFF = 1e-12


@pytest.mark.parametrize("n", [2, 5, 16, 20, 300])
@pytest.mark.parametrize("k", [0, 1, 2])
def test_wilson_is_the_score_test_of_students_t(n: int, k: int) -> None:
    """The ends are the shares p with |k / n - p| = t sqrt(p (1 - p) / n)."""
    t = stats.t.ppf(0.975, n - 1)
    for p in wilson(k / n, n):
        assert abs(k / n - p) == pytest.approx(t * math.sqrt(p * (1 - p) / n), abs=1e-7)


def test_wilson_of_many_examples_is_the_textbooks() -> None:
    expected = stats.binomtest(2000, 10_000).proportion_ci(method="wilson")
    assert wilson(0.2, 10_000) == pytest.approx((expected.low, expected.high), abs=1e-5)


def test_share_of_none_of_sixteen_is_not_known_to_be_none() -> None:
    """t^2 / (n + t^2) with t = 2.1314."""
    found = intervals.share([0.0] * 16)
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(2.1314495**2 / (16 + 2.1314495**2), abs=1e-6)
    assert found.examples == 16


def test_difference_by_hand_adds_a_pair_for_either_side() -> None:
    """Three of 10 pairs favour a, none b: sum 3, squares 3, over 12 values."""
    found = intervals.difference([1] * 3 + [0] * 7)
    spread = stats.t.ppf(0.975, 11) * math.sqrt((5 / 12 - (3 / 12) ** 2) / 12)
    assert found[:3] == pytest.approx((0.3, 0.25 - spread, 0.25 + spread), abs=ROUND_OFF)


@pytest.mark.parametrize("value", [-1.0, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 20])
def test_difference_of_equal_pairs_has_a_width(value: float, n: int) -> None:
    found = intervals.difference([value] * n)
    assert found.low < found.high
    assert -1 <= found.low <= value <= found.high <= 1


def test_mean_contains_students_interval_and_grows_to_the_side_of_the_tail() -> None:
    data = stats.expon.ppf(uniform(20, seed=3).numpy())
    low, high = stats.t.interval(0.95, 19, data.mean(), stats.sem(data))
    found = intervals.mean(data)
    assert found.low == pytest.approx(low, abs=1e-9)
    assert found.high > high
    assert found.value == data.mean()


def test_mean_bootstrap_end_matches_a_plain_loop() -> None:
    """The upper end of skewed values is value - a low point of (resampled mean - value) / its error."""
    data = stats.expon.ppf(uniform(12, seed=4).numpy())
    ratios = []
    for rows in intervals.resampled(12):
        sample = data[rows]
        ratios.append((sample.mean() - data.mean()) / (sample.std() / math.sqrt(11)))
    high = data.mean() - np.quantile(ratios, 0.025 * 12 / 16) * stats.sem(data)
    assert intervals.mean(data).high == pytest.approx(high, rel=1e-9)


def test_means_are_those_of_each_column() -> None:
    table = uniform(15, 3, seed=5).numpy()
    found = np.array(intervals.means(table)).T
    assert found == pytest.approx(np.array([intervals.mean(column)[:3] for column in table.T]))


@pytest.mark.parametrize("values", [[1.5], [2.0] * 30])
def test_mean_of_equal_values_has_no_interval(values: list[float]) -> None:
    found = intervals.mean(values)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.drawn == (values[0],) * 3


@pytest.mark.parametrize("n", [6, 8, 16, 21, 100])
def test_median_ends_are_the_innermost_order_statistics_that_are_sure(n: int) -> None:
    """P(fewer than k of n lie below the median) is a binomial's; k is as large as 2.5 % allow."""
    found = intervals.median(np.arange(n, 0, -1.0))
    k = int(found.low)
    assert found.high == n + 1 - k
    assert stats.binom.cdf(k - 1, n, 0.5) <= 0.025 < stats.binom.cdf(k, n, 0.5)


def test_median_of_five_has_no_interval() -> None:
    assert math.isnan(intervals.median([1, 2, 3, 4, 5]).low)


def test_ratio_ends_are_where_the_difference_may_be_nothing() -> None:
    a, b = uniform(20, seed=6).numpy() / 2, uniform(20, seed=7).numpy()
    found = intervals.ratio(a, b)
    assert found.value == pytest.approx(a.mean() / b.mean())
    for end, step in ((found.low, -0.005), (found.high, 0.005)):
        inside, outside = (intervals.difference((a - r * b) / max(1, r)) for r in (end, end + step))
        assert inside.low <= 0 <= inside.high
        assert not outside.low <= 0 <= outside.high
    assert found.low < found.value < found.high


def test_ratio_to_what_may_be_nothing_has_no_interval() -> None:
    assert math.isnan(intervals.ratio([1.0] * 10, [1.0, *[0.0] * 9]).high)


def test_root_of_a_mean_is_its_interval() -> None:
    """With score x - theta, the values theta that the mean may have are those of its interval."""
    data = uniform(18, seed=8).numpy()
    grid = np.linspace(0, 1, 1001)
    found = intervals.root(data.mean(), grid, data[:, None] - grid)
    assert found[1:3] == pytest.approx(intervals.mean(data)[1:3], abs=2e-3)


def mean_ranks(values: np.ndarray) -> list[float]:
    """How many are smaller, and half of those that are equal: 1 + 0.5 * (ties - 1) more for each."""
    return [sum(v < one for v in values) + (sum(v == one for v in values) + 1) / 2 for one in values]


@pytest.mark.parametrize("pairs", [6, 30, 40])
def test_correlations_are_the_textbooks_ties_included(pairs: int) -> None:
    a = np.round(uniform(6, pairs, seed=9).numpy(), 1)
    b = np.round(a + uniform(6, pairs, seed=10).numpy(), 1)
    for row in range(6):
        ranks = np.corrcoef(mean_ranks(a[row]), mean_ranks(b[row]))[0, 1]
        assert intervals.spearman(a, b)[row] == pytest.approx(ranks, abs=1e-12)
        assert intervals.pearson(a, b)[row] == pytest.approx(stats.pearsonr(a[row], b[row])[0], abs=1e-12)


@pytest.mark.filterwarnings("error")
def test_correlations_of_constant_values_or_one_pair_are_not_numbers() -> None:
    assert math.isnan(intervals.spearman(np.ones(5), np.arange(5.0)))
    assert math.isnan(intervals.pearson(np.ones(1), np.ones(1)))
    assert np.isnan(intervals.pearson(np.array([[1.0, 1, 1], [1, 2, 3]]), np.ones((2, 3)))).all()


def test_resampled_means_have_the_percentiles_of_scipys_bootstrap() -> None:
    data = uniform(24, seed=16).numpy()
    means = counted(resampled(24, 9999), 24) @ data
    theirs = stats.bootstrap((data,), np.mean, n_resamples=9999, method="percentile", random_state=0)
    ends = theirs.confidence_interval
    assert np.quantile(means, [0.025, 0.975]) == pytest.approx([ends.low, ends.high], abs=0.004)
    assert means.std() == pytest.approx(data.std() / math.sqrt(24), rel=0.03)


def test_resampled_is_the_same_at_every_call_and_another_for_another_draw() -> None:
    assert np.array_equal(resampled(8, 20), resampled(8, 20))
    assert not np.array_equal(resampled(8, 20), resampled(8, 20, which=2))


def test_rank_correlation_of_a_perfect_order_leaves_room() -> None:
    found = intervals.rank_correlation(np.arange(8.0), np.arange(8.0))
    assert found.value == 1
    assert 0.5 < found.low < 0.99
    assert math.isnan(intervals.rank_correlation([1, 2, 3, 4], [1, 2, 3, 4]).low)


def test_crossed_mean_counts_both_axes() -> None:
    """An effect of the images alone moves all purifiers: no purifier's spread shows it."""
    images = uniform(64, seed=11).numpy()
    axes = crossed(16, 64)
    same = np.tile((axes.weights @ images)[:, None], (1, 16))
    found = crossed_mean(np.full(16, images.mean()), same, axes)
    half = 1.96 * images.std() / 8
    assert found.high - found.low == pytest.approx(2 * half, rel=0.15)
    own = uniform(16, seed=12).numpy()
    found = crossed_mean(own, np.tile(own, (1000, 1)), axes)
    low, high = stats.t.interval(0.95, 15, own.mean(), stats.sem(own))
    assert found[1:3] == pytest.approx((low, high), abs=1e-9)


def test_crossed_correlation_is_wider_than_that_of_the_purifiers() -> None:
    a, b = uniform(16, seed=13).numpy(), uniform(16, seed=14).numpy() / 3
    b = a + b
    axes = crossed(16, 64)
    still = tuple(np.tile(v, (1000, 1)) for v in (a, b))
    shaken = still[0], still[1] + uniform(1000, 16, seed=15).numpy()
    fixed, moved = crossed_correlation((a, b), still, axes), crossed_correlation((a, b), shaken, axes)
    assert fixed.value == pytest.approx(stats.spearmanr(a, b).statistic)
    alone = intervals.rank_correlation(a, b)
    assert fixed.low <= alone.low
    assert fixed.high >= alone.high
    assert moved.high - moved.low > fixed.high - fixed.low


def test_crossed_resamples_of_two_data_sets_are_not_the_same() -> None:
    assert not np.array_equal(crossed(16, 64).rows, crossed(16, 64, data_set=1).rows)
    assert crossed(16, 64).weights.sum(axis=1) == pytest.approx(np.ones(1000))


def test_concordant_share_is_kendalls_tau() -> None:
    guess, truth = uniform(2, 9, seed=6).numpy()
    assert concordant_share(guess, truth) == pytest.approx((1 + stats.kendalltau(guess, truth).statistic) / 2)
    assert concordant_share(np.ones(4), np.arange(4.0)) == 0.5


@pytest.mark.parametrize(
    ("truth", "value", "p", "decided"),
    [
        ([1, 2, 3, 4, 5], 1.0, 2 / 120, True),
        ([1, 2, 3, 5, 4], 0.9, 2 * 5 / 120, False),  # 1 + 4 orders are as good
        ([5, 4, 3, 2, 1], 0.0, 2 / 120, True),
    ],
)
def test_concordance_of_five_settings_is_decided_by_the_order_of_all(
    truth: list[float], value: float, p: float, decided: bool
) -> None:
    found = concordance(np.arange(5.0), np.array(truth, dtype=float), 64)
    assert found.value == pytest.approx(value)
    assert found.method == f"permutation test over 5 settings, p = {p:.2g}"
    assert (found.low > 0.5 or found.high < 0.5) is decided


def test_concordance_of_eighty_five_percent_at_five_settings_is_undecided() -> None:
    """8.5 of 10 pairs: two settings are tied, one pair is the wrong way."""
    found = concordance(np.arange(5.0), np.array([1.0, 3.0, 2.0, 4.0, 4.0]), 64)
    assert found.value == pytest.approx(0.85)
    assert found.low <= 0.5 < found.high
    assert Number.of("x", found, claim=Claim("above 0.5", least=0.5)).holds is None
