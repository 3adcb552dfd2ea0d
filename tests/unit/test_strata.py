"""The exact test of lucky draws: against enumeration, with its false-positive rate, and with its power."""

import itertools
from math import comb

import numpy as np
import pytest

from dbpkit.foundation.philox import uniforms
from dbpkit.statistics.strata import luckier

ALPHA = 0.05


def test_p_value_is_that_of_all_ways_to_share_out_the_draws() -> None:
    a, of_a, b, of_b = [2, 1, 3], [3, 3, 3], [1, 2, 0], [4, 2, 5]
    totals = [x + y for x, y in zip(a, b, strict=True)]
    ways = at_least = 0
    for shares in itertools.product(*(range(n + 1) for n in of_a)):
        weight = 1
        for x, total, own, rest in zip(shares, totals, of_a, of_b, strict=True):
            weight *= comb(own, x) * comb(rest, total - x) if 0 <= total - x <= rest else 0
        ways += weight
        at_least += weight * (sum(shares) >= sum(a))
    assert luckier(a, of_a, b, of_b) == pytest.approx(at_least / ways, abs=1e-12)


def test_p_value_without_any_doubt_is_one() -> None:
    assert luckier([3, 0], [3, 3], [3, 0], [3, 3]) == 1
    with pytest.raises(ValueError, match="no more right draws than draws"):
        luckier([4], [3], [1], [3])


def simulated(runs: int, images: int, draws: int, fresh: int, tries: int) -> np.ndarray:
    """P-values of runs whose sender published the best of several seeds; one try is an honest one."""
    found = []
    for run in range(runs):
        share = uniforms(1, images, "probe", 3 * run)[0] ** 2
        told = uniforms(tries * draws, images, "probe", 3 * run + 1).reshape(tries, draws, images) < share
        right = told.sum(axis=1)
        own = right[right.sum(axis=1).argmax()]
        new = (uniforms(fresh, images, "probe", 3 * run + 2) < share).sum(axis=0)
        found.append(luckier(own.tolist(), [draws] * images, new.tolist(), [fresh] * images))
    return np.array(found)


@pytest.mark.parametrize(("images", "draws", "fresh"), [(16, 3, 3), (64, 1, 10), (64, 10, 10)])
def test_honest_draws_are_called_lucky_at_most_as_often_as_stated(
    images: int, draws: int, fresh: int
) -> None:
    p_values = simulated(400, images, draws, fresh, 1)
    for alpha in (0.01, ALPHA, 0.2):
        noise = 3 * (alpha * (1 - alpha) / len(p_values)) ** 0.5
        assert (p_values <= alpha).mean() <= alpha + noise


def test_best_of_many_seeds_is_found() -> None:
    """The best of 200 seeds of one draw each is far beyond what fifty fresh draws give."""
    p_values = simulated(60, 256, 1, 50, 200)
    assert (p_values <= ALPHA).mean() >= 0.75
    assert (simulated(60, 256, 1, 50, 1) <= ALPHA).mean() <= 0.15
