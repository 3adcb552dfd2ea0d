"""Correlation and variance of an affine purifier in closed form: f(x) = theta x + c + b z per pixel."""

import numpy as np
import pytest

from dbpkit.analyses.randomness import VARIED, Randomness, off_diagonal_mean
from dbpkit.foundation.errors import UserError
from tests.oracles import uniform
from tests.unit.analyses.linear import SIGMA, VARIANCE, measured, subject, values
from tests.unit.analyses.stubs import judged

THETA = VARIANCE / (VARIANCE + SIGMA**2)
EPS = 8 / 255
SIDE = 32
DATA = {"name": "tests.unit.analyses.linear:images", "options": {"side": SIDE, "count": 4}}
SIZE = 3 * SIDE * SIDE
SMALL = Randomness(images=4, draws=16)
SAMPLING = 0.02
"""Variances are over 16 draws of 3072 pixels: relative error sqrt(2 / (15 * 3072)), below 1 %."""


def variance_of(name: str, result: object) -> float:
    """Total variance of one setting."""
    return values(result)[f"total variance, {VARIED[name]}"]


@pytest.fixture(scope="module")
def result() -> object:
    """The affine purifier's result, shared by the tests that only read it."""
    return SMALL.conclude(measured(SMALL, subject("one_step", data=DATA)))


def test_variances_of_an_affine_purifier_are_the_closed_forms(result: object) -> None:
    of_input, of_noise = SIZE * THETA**2 * EPS**2 / 3, SIZE * (THETA * SIGMA / 2) ** 2
    assert variance_of("input", result) == pytest.approx(of_input, rel=SAMPLING)
    assert variance_of("randomness", result) == pytest.approx(of_noise, rel=SAMPLING)
    assert variance_of("both", result) == pytest.approx(of_input + of_noise, rel=SAMPLING)
    assert variance_of("budget", result) == pytest.approx(SIZE * EPS**2 / 3, rel=SAMPLING)


def test_correlations_of_an_affine_purifier_are_the_closed_forms(result: object) -> None:
    """The common part of v = (theta - 1)(x - 1/2) + theta delta + b z is what is not varied."""
    offset = (1 - THETA) ** 2 * 0.4**2 / 12  # pixels are uniform in [0.3, 0.7]
    noise, moved = (THETA * SIGMA / 2) ** 2, THETA**2 * EPS**2 / 3
    found = values(result)
    tolerance = 0.02  # x and z are correlated by chance: 1 / sqrt(3072)
    assert found[f"correlation, {VARIED['input']}"] == pytest.approx(
        (offset + noise) / (offset + noise + moved), abs=tolerance
    )
    assert found[f"correlation, {VARIED['randomness']}"] == pytest.approx(
        offset / (offset + noise), abs=tolerance
    )


def test_correlations_are_those_of_corrcoef_on_purified_images() -> None:
    made = subject("ddpm", 50, data=DATA)
    (records,) = measured(Randomness(images=2, draws=5), made).values()
    x, _, noise = made.examples(slice(1, 2))
    moved = [(made.purify(x, noise.at(draw)) - x).flatten().double().numpy() for draw in range(5)]
    pairs = [np.corrcoef(moved[i], moved[j])[0, 1] for i in range(5) for j in range(i)]
    assert records[1]["correlation"]["randomness"] == pytest.approx(np.mean(pairs), rel=1e-5)
    assert records[1]["variance"]["randomness"] == pytest.approx(
        np.var(moved, axis=0, ddof=1).sum(), rel=1e-5
    )


def test_split_of_the_ancestral_chain_adds_up_and_forward_is_the_jacobian_times_its_noise() -> None:
    found = SMALL.conclude(measured(SMALL, subject("ddpm", 50, data=DATA)))
    forward, reverse, total = (variance_of(k, found) for k in ("forward", "reverse", "randomness"))
    assert forward == pytest.approx(SIZE * (THETA * SIGMA / 2) ** 2, rel=SAMPLING)
    assert forward + reverse == pytest.approx(total, rel=SAMPLING)
    shares = [
        values(found)[f"{VARIED[k]}, share of the variance with randomness varied"]
        for k in ("forward", "reverse")
    ]
    assert shares == pytest.approx([forward / total, reverse / total], rel=1e-3)
    assert "noising alone" in found.sentences[1]


@pytest.mark.parametrize("sampler", ["one_step", "ddim", "reverse_only"])
def test_split_is_left_out_where_only_one_part_is_random(sampler: str) -> None:
    found = Randomness(images=2, draws=3).conclude(
        measured(Randomness(images=2, draws=3), subject(sampler, data=DATA))
    )
    assert not [n for n in found.numbers if "noise varied alone" in n.name]


def test_conclude_claims_hold_and_the_charts_show_bars_and_two_matrices(result: object) -> None:
    assert [judged(n) for n in result.numbers if n.claim] == [True, True]
    assert [c.kind for c in result.charts] == ["bar", "heat", "heat"]
    rows = np.array([s.y for s in result.charts[1].series])
    assert rows.shape == (16, 16)
    np.testing.assert_allclose(np.diag(rows), 1)
    assert "random numbers, not the input" in result.sentences[0]


def test_conclude_input_decides_says_so() -> None:
    made = subject("one_step", data=DATA, threat={"norm": "linf", "eps": 0.6})
    found = SMALL.conclude(measured(SMALL, made))
    assert found.sentences[0].startswith("The input, not")
    assert not any(judged(n) for n in found.numbers if n.claim)


def test_published_values_are_the_papers(result: object) -> None:
    assert [n.published for n in result.numbers if n.published is not None] == [0.9954, 0.2368]


def test_off_diagonal_mean_is_the_mean_of_all_pairs() -> None:
    matrix = np.corrcoef(uniform(4, 50).numpy())
    assert off_diagonal_mean(matrix) == pytest.approx(matrix[~np.eye(4, dtype=bool)].mean(), rel=1e-12)


def test_no_budget_is_refused() -> None:
    made = subject(data=DATA, threat={"norm": "linf", "eps": 0})
    with pytest.raises(UserError, match=r"'randomness' varies images .* threat\.eps is 0"):
        SMALL.units(made)


@pytest.mark.parametrize(("option", "least"), [("images", 1), ("draws", 2)])
def test_options_out_of_range_are_refused(option: str, least: int) -> None:
    with pytest.raises(UserError, match=f"'randomness': {option} must be .*at least {least}"):
        Randomness(**{option: least - 1})
