"""Crossed effects: against variances known by construction, exact tests, and simulated coverage."""

import math
from itertools import permutations

import numpy as np
import pytest

from dbpkit.statistics.effects import (
    carried_over,
    chosen_elsewhere,
    column_ratio,
    column_share,
    column_spread,
    components,
    no_column_effect,
    residual_correlation,
    rest_share,
    row_share,
)
from tests.oracles import uniform

REPEATS = 200
LEAST = 0.90
"""Fewest of 200 intervals that hold a value covered by 95 % of them: 2.2 standard errors below 93.5 %."""

ROWS, COLUMNS = 64, 16
SPREAD = 0.08
CHANCES = np.array([0.1, 0.5, 0.9])


def drawn(*shape: int, seed: int) -> np.ndarray:
    return uniform(*shape, seed=seed).double().numpy()


def effects(seed: int, spread: float = SPREAD) -> tuple[np.ndarray, np.ndarray]:
    """Chances of rows, one of three each, and shifts of columns, uniform with a standard deviation."""
    rows = CHANCES[(drawn(ROWS, seed=seed) * 3).astype(int)]
    columns = spread * math.sqrt(12) * (drawn(COLUMNS, seed=seed + 1) - 0.5)
    return rows, columns


def answers(chances: np.ndarray, seed: int) -> np.ndarray:
    return (drawn(*chances.shape, seed=seed) < chances).astype(float)


def table(seed: int, spread: float = SPREAD) -> np.ndarray:
    """Zeros and ones (64, 16) with a chance that is a row's plus a column's."""
    rows, columns = effects(3 * seed, spread)
    return answers(rows[:, None] + columns, 3 * seed + 2)


def truth(spread: float = SPREAD) -> np.ndarray:
    """Variances of rows, columns and rest of `table`, by their definition."""
    rest = (CHANCES * (1 - CHANCES)).mean() - spread**2
    return np.array([CHANCES.var(), spread**2, rest])


def covers(found: list, value: float) -> float:
    return float(np.mean([one.low <= value <= one.high for one in found]))


@pytest.fixture(scope="module")
def tables() -> list[np.ndarray]:
    return [table(seed) for seed in range(REPEATS)]


def test_components_of_an_additive_table_are_its_effects() -> None:
    rows, columns = np.array([0.0, 1.0, 5.0]), np.array([0.0, 2.0, 4.0, 6.0])
    found = components(rows[:, None] + columns)
    assert found == pytest.approx((rows.var(ddof=1), columns.var(ddof=1), 0))


def test_components_are_unbiased(tables: list[np.ndarray]) -> None:
    found = np.array([components(one) for one in tables])
    error = found.std(axis=0) / math.sqrt(REPEATS)
    assert (np.abs(found.mean(axis=0) - truth()) < 4 * error).all()
    assert truth()[1] > 10 * error[1]  # an estimate of 0 would not pass


def test_intervals_cover_the_known_shares(tables: list[np.ndarray]) -> None:
    shares = truth() / truth().sum()
    for share, part in ((row_share, 0), (column_share, 1), (rest_share, 2)):
        assert covers([share(one) for one in tables], shares[part]) >= LEAST
    assert covers([column_spread(one) for one in tables], SPREAD) >= LEAST


def test_column_ratio_calls_chance_an_effect_in_few_tables_only() -> None:
    found = [column_ratio(table(seed, spread=0.0)) for seed in range(REPEATS)]
    assert np.mean([one.low > 1 for one in found]) <= 0.06
    assert covers(found, 1.0) >= LEAST


def test_column_ratio_sees_an_effect(tables: list[np.ndarray]) -> None:
    assert np.mean([column_ratio(one).low > 1 for one in tables]) > 0.5


def test_no_column_effect_is_the_share_of_all_orders() -> None:
    """Of two rows, (3!)^2 orders can be counted."""
    small = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
    every = [
        np.var(small[0, list(p)] + small[1, list(q)])
        for p in permutations(range(3))
        for q in permutations(range(3))
    ]
    exact = np.mean([v >= small.sum(axis=0).var() - 1e-9 for v in every])
    assert no_column_effect(small) == pytest.approx(exact, abs=0.05)


def test_residual_correlation_of_what_columns_and_rows_do_not_explain() -> None:
    """A pair is right in both tables where one draw says so: alike in a third of the pairs."""
    found = []
    for seed in range(60):
        rows, columns = effects(5 * seed)
        chance = rows[:, None] + columns
        common, a, b, which = (drawn(*chance.shape, seed=1000 + 5 * seed + k) for k in range(4))
        alike = which < 1 / 3
        first, second = (np.where(alike, common, own) < chance for own in (a, b))
        found.append(residual_correlation(first.astype(float), second.astype(float)))
    assert np.mean([one.value for one in found]) == pytest.approx(1 / 3, abs=0.02)
    assert covers(found, 1 / 3) >= LEAST


def test_carried_over_is_nothing_by_chance_and_something_with_an_effect() -> None:
    """Same rows and same draws make columns agree on the same rows, so other rows are looked at."""
    none = [table(seed, spread=0.0) for seed in range(REPEATS)]
    found = [carried_over(one, one) for one in none]
    assert abs(np.mean([one.value for one in found])) < 0.05
    assert np.mean([one.low > 0 for one in found]) <= 0.05
    effect = [carried_over(table(seed, 0.12), table(seed, 0.12)) for seed in range(20)]
    assert np.mean([one.low > 0 for one in effect]) > 0.5


def test_chosen_elsewhere_is_the_effect_of_the_chosen_columns() -> None:
    """The lowest column of a table without effects is low by chance alone; on other rows it is not."""
    covered, chosen_same = [], []
    for seed in range(REPEATS):
        one = table(seed)
        _, columns = effects(3 * seed)
        picked = [one[1 - half :: 2].mean(axis=0).argmin() for half in (0, 1)]
        true = columns[picked].mean() - columns.mean()
        found = chosen_elsewhere(one, lowest=True)
        covered.append(found.low <= true <= found.high)
        null = table(seed, spread=0.0)
        chosen_same.append((null.mean(axis=0).min() - null.mean(), chosen_elsewhere(null, lowest=True).value))
    assert np.mean(covered) >= 0.935
    naive, judged = np.mean(chosen_same, axis=0)
    assert naive < -0.06
    assert abs(judged) < 0.015


def test_constant_table_has_no_shares() -> None:
    ones = np.ones((8, 4))
    assert math.isnan(column_ratio(ones).value)
    assert components(ones).shares.tolist() == [0, 0, 0]
