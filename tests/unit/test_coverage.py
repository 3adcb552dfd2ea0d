"""Simulated coverage of every interval, and how often every kind of verdict is wrong.

Each case draws 2,000 experiments whose truth is known. A nominal 95 % interval must hold the truth in at
least 93.5 % of them (its binomial standard error is 0.5 %). A verdict is wrong where the truth sits on the
boundary of the claim and the interval lies beside it; from the smallest n of a verdict on, that may happen to
each side in at most 5 %.
"""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from dbpkit.analyses.law.sigmoid import leave_one_out
from dbpkit.analyses.thresholds import slope_interval
from dbpkit.results.analysis import Claim, Number
from dbpkit.results.findings import lowest
from dbpkit.statistics.crossed import concordance, crossed, crossed_correlation, crossed_mean
from dbpkit.statistics.intervals import (
    CROSSED_EXAMPLES,
    VERDICT_EXAMPLES,
    Interval,
    difference,
    fisher_ends,
    mean,
    means,
    median,
    share,
    spearman,
)
from tests.oracles import uniform

RUNS = 2000
SIZES = (8, 16, 20, 64, 256)
COVERS = 0.935
WRONG = 0.05


def judge(low: np.ndarray, high: np.ndarray, truth: float, n: int, least: int = VERDICT_EXAMPLES) -> None:
    """Asserts coverage, and both rates of wrong verdicts where n allows one."""
    assert np.isfinite(low).all()
    assert np.isfinite(high).all()
    above, below = np.mean(low > truth + 1e-9), np.mean(high < truth - 1e-9)
    assert 1 - above - below >= COVERS, (above, below)
    if n >= least:
        assert above <= WRONG
        assert below <= WRONG


def ends(found: list[Interval]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([f.low for f in found]), np.array([f.high for f in found])


def normal(*shape: int, seed: int) -> np.ndarray:
    return stats.norm.ppf(uniform(*shape, seed=seed).numpy())


@pytest.mark.parametrize("draws", [1, 10])
@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("n", SIZES)
def test_share_covers_proportions_over_one_draw_and_over_ten(n: int, p: float, draws: int) -> None:
    """With ten draws, each image has its own chance of being right: Beta(p / 2, (1 - p) / 2)."""
    u = uniform(RUNS, n, draws, seed=1).numpy()
    chance = p if draws == 1 else stats.beta.ppf(uniform(RUNS, n, 1, seed=2).numpy(), p / 2, (1 - p) / 2)
    means_found, where = np.unique((u < chance).mean(axis=(1, 2)).round(9), return_inverse=True)
    found = [share(np.full(n, m)) for m in means_found]  # the interval depends on the mean alone
    judge(*(end[where] for end in ends(found)), p, n)


SKEWED: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "normal": (stats.norm.ppf, 0.0),
    "uniform": (lambda u: u, 0.5),
    "exponential": (stats.expon.ppf, 1.0),
    "lognormal": (lambda u: np.exp(stats.norm.ppf(u) / 2), float(np.exp(1 / 8))),
}


@pytest.mark.parametrize("kind", SKEWED)
@pytest.mark.parametrize("n", SIZES)
def test_mean_covers_symmetric_and_skewed_values(n: int, kind: str) -> None:
    made, truth = SKEWED[kind]
    _, low, high = means(made(uniform(n, RUNS, seed=3).numpy()))
    judge(low, high, truth, n)


PAIRS = {  # chances that only a is right and that only b is
    "rare": (0.05, 0.05),
    "one-sided": (0.1, 0.0),
    "hardly any": (0.02, 0.0),
    "half": (0.5, 0.0),
    "many": (0.3, 0.1),
    "nearly all": (0.8, 0.1),
}


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("n", SIZES)
def test_difference_covers_binary_pairs_with_many_ties(n: int, kind: str) -> None:
    only_a, only_b = PAIRS[kind]
    u = uniform(RUNS, n, seed=4).numpy()
    pairs = (u < only_a).astype(float) - ((u >= only_a) & (u < only_a + only_b))
    keys, where = np.unique(np.stack([pairs.sum(1), np.abs(pairs).sum(1)]), axis=1, return_inverse=True)
    first = [int(np.flatnonzero(where.ravel() == k)[0]) for k in range(keys.shape[1])]
    low, high = ends([difference(pairs[i]) for i in first])  # it depends on the two counts alone
    judge(low[where.ravel()], high[where.ravel()], only_a - only_b, n)


@pytest.mark.parametrize(("a", "b"), [(0.3, 0.05), (0.1, 0.1), (0.05, 0.025)])
@pytest.mark.parametrize("n", SIZES)
def test_difference_covers_means_over_ten_draws(n: int, a: float, b: float) -> None:
    """Images differ: their chances are Beta(2 a, 2 (1 - a)), and b's are a's times b / a."""
    chance = stats.beta.ppf(uniform(RUNS, n, 1, seed=5).numpy(), 2 * a, 2 * (1 - a))
    right_a = (uniform(RUNS, n, 10, seed=6).numpy() < chance).mean(2)
    right_b = (uniform(RUNS, n, 10, seed=7).numpy() < chance * b / a).mean(2)
    judge(*ends([difference(d) for d in right_a - right_b]), a - b, n)


@pytest.mark.parametrize("kind", ["normal", "exponential"])
@pytest.mark.parametrize("n", SIZES)
def test_median_covers(n: int, kind: str) -> None:
    made = SKEWED[kind][0]
    found = [median(values) for values in made(uniform(RUNS, n, seed=8).numpy())]
    judge(*ends(found), float(made(np.array(0.5))), n)


@pytest.mark.parametrize("n", SIZES)
def test_ratio_covers_correlated_accuracies(n: int) -> None:
    """a is right only where b is: 0.2 of 0.5.

    The interval holds the truth if that of a - 0.4 b holds 0: that is what it is made of.
    """
    u = uniform(RUNS, n, 5, seed=9).numpy() * 0.5 + uniform(RUNS, n, 1, seed=10).numpy() * 0.5
    cut = [np.quantile(u, p) for p in (0.2, 0.5)]
    a, b = ((u < c).mean(2) for c in cut)
    judge(*ends([difference(d) for d in a - a.mean() / b.mean() * b]), 0.0, n)


@pytest.mark.parametrize("truth", [0.0, 0.6])
@pytest.mark.parametrize("kind", ["normal", "tied"])
@pytest.mark.parametrize("n", SIZES)
def test_rank_correlation_covers(n: int, kind: str, truth: float) -> None:
    def pairs(rows: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        a, z = normal(rows, count, seed=seed), normal(rows, count, seed=seed + 1)
        b = truth * a + np.sqrt(1 - truth**2) * z
        return (a, b) if kind == "normal" else (np.minimum(a, 0.5), np.minimum(b, 0.5))  # as if censored

    expected = float(spearman(*pairs(1, 200_000, 11))[0])
    found = np.array([fisher_ends(value, n) for value in spearman(*pairs(RUNS, n, 13))])
    judge(*found.T, expected, n)


@pytest.mark.parametrize("n", SIZES)
def test_psychometric_slope_covers(n: int) -> None:
    """Sixteen points an image, slope 6, which may be an end of the range that is claimed.

    The interval holds the truth if that of the scores at the truth holds 0: that is what it is made of.
    """
    u = uniform(RUNS, n, 16, 2, seed=15).numpy()
    offset = 2 * u[..., 0] - 1
    expected = 1 / (1 + np.exp(-6 * offset))
    scores = (((u[..., 1] < expected) - expected) * offset).mean(axis=2)
    _, low, high = means(scores.T)
    judge(low, high, 0.0, n)


def test_psychometric_interval_is_made_of_the_scores() -> None:
    u = uniform(20, 16, 2, seed=16).numpy()
    position = 2 * u[..., 0]
    changed = (u[..., 1] < 1 / (1 + np.exp(-6 * (position - 1)))).astype(float)
    found = slope_interval(position, changed)
    assert found.low < found.value < found.high
    for k, inside in ((found.low * 0.95, False), (found.low * 1.05, True), (found.high * 1.05, False)):
        residual = changed - 1 / (1 + np.exp(-k * (position - 1)))
        at = mean((residual * (position - 1)).mean(axis=1))
        assert (at.low <= 0 <= at.high) is inside


def law(truth: float, images: int, runs: int, purifiers: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Rates and survivals (runs, N, n): purifiers, images and both together vary."""
    a, z = normal(2, runs, purifiers, 1, seed=17)
    b = truth * a + np.sqrt(1 - truth**2) * z
    image = normal(2, runs, 1, images, seed=18)
    own = stats.uniform.ppf(uniform(2, runs, purifiers, images, seed=19).numpy()) - 0.5
    rate = np.exp(0.5 * a + 0.3 * image[0]) + own[0]
    return rate, (0.5 * b + 1.5 * image[1] + 2 * own[1] > 0).astype(float)


@pytest.mark.parametrize(("truth", "n"), [*((0.0, n) for n in SIZES), (0.8, CROSSED_EXAMPLES)])
def test_laws_rank_correlation_covers_images_crossed_with_purifiers(truth: float, n: int) -> None:
    [big] = spearman(*(v.mean(axis=2) for v in law(truth, 3000, 1, 3000)))
    axes, found = crossed(16, n, resamples=40), []
    for rate, stands in zip(*law(truth, n, RUNS), strict=True):
        pairs = rate.mean(axis=1), stands.mean(axis=1)
        found.append(crossed_correlation(pairs, (axes.weights @ rate.T, axes.weights @ stands.T), axes))
    judge(*ends(found), float(big) if truth else 0.0, n, CROSSED_EXAMPLES)


@pytest.mark.parametrize("n", SIZES)
def test_bias_of_the_prediction_covers_images_crossed_with_purifiers(n: int) -> None:
    """Errors that purifier, image and both move, around 0.05, an end of the range that is claimed."""
    z = normal(RUNS, 16, 1, seed=21), normal(RUNS, 1, n, seed=22), normal(RUNS, 16, n, seed=23)
    errors = 0.05 + 0.05 * z[0] + 0.2 * z[1] + 0.2 * z[2]
    axes = crossed(16, n, resamples=200)
    found = [crossed_mean(e.mean(axis=1), axes.weights @ e.T, axes) for e in errors]
    judge(*ends(found), 0.05, n, CROSSED_EXAMPLES)


def test_law_sees_no_purifier_ahead_where_there_is_no_law() -> None:
    """Accuracy that has nothing to do with the rate is not predicted better than by the others' mean."""
    axes = crossed(6, CROSSED_EXAMPLES, resamples=50)
    rates, accuracies = uniform(RUNS, 6, 1, seed=24).numpy(), uniform(RUNS, 6, 1, seed=25).numpy()
    held = 0
    for x, y in zip(rates, accuracies, strict=True):
        others = (y.sum() - y) / 5
        gain = np.abs(y - others)[:, 0] - leave_one_out(x, y, 4)
        found = crossed_mean(gain, np.tile(gain, (50, 1)), axes)
        held += Number.of("gain", found, claim=Claim("above 0", least=0)).holds is True
    assert held / RUNS <= WRONG


@pytest.mark.parametrize("settings", [3, 5, 8])
def test_ranking_of_settings_is_rarely_better_than_chance_by_chance(settings: int) -> None:
    """Predictions that have nothing to do with the attack; 64 images do not make more settings of five."""
    u = uniform(RUNS if settings < 8 else 200, 2, settings, seed=26).numpy().round(2)
    claim = Claim("above 0.5", least=0.5)
    verdicts = [Number.of("pairs", concordance(*pair, 64), claim=claim).holds for pair in u]
    assert np.mean([v is not None for v in verdicts]) <= WRONG


@pytest.mark.parametrize("n", [VERDICT_EXAMPLES, 20, 64, 256])
def test_lowest_of_three_attackers_is_rarely_judged_wrongly(n: int) -> None:
    """Three rivals as strong as DW_Both: neither is it lowest, nor is any of them."""
    u = uniform(RUNS, 4, n, seed=27).numpy() < 0.3
    gaps = [{str(k): row[k].astype(float) - row[3] for k in range(3)} for row in u]
    found = [Number.of("gap", lowest(g)[1], claim=Claim("above 0", least=0)).holds for g in gaps]
    assert np.mean([f is not None for f in found]) <= WRONG


@pytest.mark.parametrize("method", [share, difference, median])
def test_fewer_images_than_a_verdict_needs_give_an_interval_and_the_reason(
    method: Callable[[np.ndarray], Interval],
) -> None:
    n = VERDICT_EXAMPLES - 1
    number = Number.of("x", method(np.full(n, 0.9)), claim=Claim("above 0.1", least=0.1))
    assert number.low is not None
    assert number.low > 0.1
    assert number.holds is None
    assert number.open_because == f"a verdict needs at least {VERDICT_EXAMPLES} images, here are {n}"
    assert Number.of("x", method(np.full(n + 1, 0.9)), claim=Claim("above 0.1", least=0.1)).holds is True
