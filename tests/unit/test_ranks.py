"""Ranks with their doubt: what is told apart, and how often that is wrong."""

import numpy as np
import pytest

from dbpkit.foundation.philox import uniforms
from dbpkit.statistics.intervals import difference
from dbpkit.statistics.ranks import Rank, all_pairs, compared, ranks


def test_ranks_leave_open_what_was_not_told_apart() -> None:
    assert ranks(3, set()) == [Rank(1, 3)] * 3
    assert ranks(3, {(0, 1), (0, 2)}) == [Rank(1, 1), Rank(2, 3), Rank(2, 3)]
    assert ranks(3, {(0, 2)}) == [Rank(1, 2), Rank(1, 3), Rank(2, 3)]
    assert [str(r) for r in ranks(2, {(1, 0)})] == ["2", "1"]


def test_shared_examples_are_paired_and_few_say_nothing() -> None:
    a = {i: float(i % 3 != 0) for i in range(40)}
    b = {i: float(i % 3 == 1) for i in range(40)}
    assert compared(a, b, 3) == difference([a[i] - b[i] for i in range(40)], 3)
    few = compared(dict.fromkeys(range(10), 1.0), dict.fromkeys(range(10), 0.0), 1)
    assert (few.value, few.low, few.high) == (1, -1, 1)
    apart = compared(a, {100 + i: v for i, v in b.items()}, 3)
    paired = compared(a, b, 3)
    assert apart.value == pytest.approx(paired.value)
    assert apart.high - apart.low > paired.high - paired.low  # pairs are worth more


def wrong(runs: int, images: int, draws: int, shares: list[float], paired: bool) -> float:
    """Share of boards on which any pair is told apart the wrong way round, or an equal one at all."""
    count, mistakes = len(shares), 0
    for run in range(runs):
        scores = []
        for k, share in enumerate(shares):
            ids = range(images) if paired else range(k * images, (k + 1) * images)
            hardness = uniforms(1, images, "probe", 7 * run if paired else 7 * run + k)[0]
            own = np.clip(share + 0.8 * (hardness - 0.5), 0, 1)
            told = uniforms(draws, images, "start", 7 * run + k) < own
            scores.append(dict(zip(ids, told.mean(axis=0).tolist(), strict=True)))
        truth = {(i, j): shares[i] - shares[j] for i in range(count) for j in range(i + 1, count)}
        found = all_pairs(scores)
        mistakes += any(
            (of.low > 0 and truth[pair] <= 1e-9) or (of.high < 0 and truth[pair] >= -1e-9)
            for pair, of in found.items()
        )
    return mistakes / runs


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize(("images", "draws"), [(16, 1), (64, 5)])
def test_all_ranks_of_a_board_hold_at_once(images: int, draws: int, paired: bool) -> None:
    """Four equal defences and one better: wrong on at most 5 % of 600 boards, and what chance adds."""
    assert (
        wrong(600, images, draws, [0.5, 0.5, 0.5, 0.5, 0.6], paired) <= 0.05 + 3 * (0.05 * 0.95 / 600) ** 0.5
    )


def test_defences_that_differ_are_told_apart() -> None:
    a = {i: float(i % 10 < 8) for i in range(200)}
    b = {i: float(i % 10 < 5) for i in range(200)}
    c = {i: float(i % 10 < 5) for i in range(200)}
    found = all_pairs([a, b, c])
    assert found[0, 1].low > 0
    assert found[1, 2].low < 0 < found[1, 2].high
