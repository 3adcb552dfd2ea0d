"""Parts of a random gradient's power and what follows from them, against closed forms and simulations."""

import math

import numpy as np
import pytest

from dbpkit.foundation.philox import uniforms
from dbpkit.statistics.components import Draws, needed_draws, power, ratio_of_means
from dbpkit.statistics.intervals import mean

ROUNDS = 400
"""Simulated experiments; the error of a coverage of 95 % is 1.1 points."""


def normals(*shape: int, which: int) -> np.ndarray:
    """Reproducible normal values."""
    u = uniforms(2, math.prod(shape), "probe", 700 + which)
    return (np.sqrt(-2 * np.log1p(-u[0])) * np.cos(2 * np.pi * u[1])).reshape(shape)


def test_power_of_a_quadratic_loss_is_that_of_its_terms() -> None:
    """(x + a f + b r)^2 in D pixels has the gradient 2 (x + a f + b r): no interaction in its power."""
    x, a, b, size = 0.3, 0.5, 0.2, 10
    kinds = ((0, 0), (1, 0), (0, 1), (1, 1))
    shared = [4 * size * (x**2 + a**2 * same_f + b**2 * same_r) for same_f, same_r in kinds]
    found = power(np.array([shared]))[0]
    assert found == pytest.approx([4 * size * x**2, 4 * size * a**2, 4 * size * b**2, 0])
    assert found.sum() == pytest.approx(shared[3])


def test_power_of_noise_that_is_not_drawn_is_exactly_zero() -> None:
    assert power(np.array([[0.1, 0.7, 0.1, 0.7]]))[0, 2:].tolist() == [0, 0]
    assert power(np.array([[0.1, 0.1, 0.7, 0.7]]))[0, [1, 3]].tolist() == [0, 0]


@pytest.mark.parametrize(("common", "deviation"), [(0.2, 0.0), (0.1, 0.6), (0.6, 0.4)])
def test_cosine_of_means_is_the_closed_form(common: float, deviation: float) -> None:
    """Draws m (sqrt(c) e + sqrt(1 - c) z / sqrt(D)) with lengths m of their own, in 1,000 dimensions."""
    count, most, size = 40, 32, 1000
    z = normals(count, most + 1, size, which=1)
    z[:, :, 0] = 0
    vectors = np.sqrt((1 - common) / (size - 1)) * z
    vectors[:, :, 0] = math.sqrt(common)
    vectors *= np.exp(deviation * normals(count, most + 1, 1, which=2))
    alone = vectors[:, -1]
    found = Draws(np.float64(common), np.float64(math.exp(deviation**2)))
    for n in (1, 2, 8, most):
        averaged = vectors[:, :n].mean(axis=1)
        cosines = (averaged * alone).sum(1) / np.linalg.norm(averaged, axis=1) / np.linalg.norm(alone, axis=1)
        assert cosines.mean() == pytest.approx(float(found.cosine(n)), abs=0.02)


def test_cosine_ends_are_those_of_one_draw_and_of_endless_draws() -> None:
    found = Draws(np.array([0.09, 0.5, -0.1]), np.array([1.0, 2.0, 1.0]))
    assert found.cosine(1).tolist() == pytest.approx([0.09, 0.5, 0])
    assert found.cosine(1e12).tolist() == pytest.approx([0.3, math.sqrt(0.5), 0])


@pytest.mark.parametrize("spread", [1.0, 1.8])
@pytest.mark.parametrize("common", [0.26, 0.3, 0.45])
def test_needed_draws_have_the_cosine_asked_for(common: float, spread: float) -> None:
    found = Draws(np.float64(common), np.float64(spread))
    assert float(found.cosine(found.needed())) == pytest.approx(0.5)
    assert found.needed(0.4) < found.needed()


def test_needed_draws_of_equal_lengths_are_the_formula_of_two_lines() -> None:
    """c^2 = (c + (1 - c) / n) / 4, so n = (1 - c) / (c (4 c - 1))."""
    assert Draws(np.float64(0.3), np.float64(1.0)).needed() == pytest.approx(0.7 / (0.3 * 0.2))


@pytest.mark.parametrize(
    ("common", "expected"), [(0.25, math.inf), (0.1, math.inf), (-0.1, math.inf), (0.7, 1.0)]
)
def test_needed_draws_may_be_endless_or_one(common: float, expected: float) -> None:
    assert Draws(np.float64(common), np.float64(1.3)).needed() == expected


def test_slope_is_the_derivative() -> None:
    found = Draws(np.float64(0.2), np.float64(1.5))
    step = 1e-4
    moved = [float(found._replace(common=np.float64(0.2 + s)).cosine(6)) for s in (step, -step)]
    assert found.slope(6) == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-4)


def test_needed_draws_interval_covers_where_draws_differ_in_length() -> None:
    """16 images with their own common parts around 0.4, four draws each: c is seen through six pairs."""
    images, draws, size, deviation = 16, 4, 40, 0.4
    uneven = uniforms(ROUNDS, images, "probe", 720)
    common = 0.2 + 0.4 * uneven
    z = normals(ROUNDS, images, draws, size, which=3)
    z[..., 0] = 0
    z /= np.linalg.norm(z, axis=3, keepdims=True)
    vectors = np.sqrt(1 - common)[..., None, None] * z
    vectors[..., 0] = np.sqrt(common)[..., None]
    lengths = np.exp(deviation * normals(ROUNDS, images, draws, which=4))
    truth = Draws(np.float64(0.4), np.float64(math.exp(deviation**2))).needed()
    pairs = ~np.eye(draws, dtype=bool)
    cosines = (vectors @ vectors.swapaxes(2, 3))[..., pairs].mean(axis=2)
    products = (lengths[..., :, None] * lengths[..., None, :])[..., pairs].mean(axis=2)
    evenness = products / (lengths**2).mean(axis=2)
    covered = [
        found.low <= truth <= found.high
        for found in (needed_draws(c, e) for c, e in zip(cosines, evenness, strict=True))
    ]
    assert np.mean(covered) >= 0.935 - 2 * 0.011


def test_needed_draws_interval_ends_are_those_of_the_common_part() -> None:
    cosines = np.linspace(0.2, 0.4, 16)
    found, part = needed_draws(cosines, np.ones(16)), mean(cosines)
    assert found.low == pytest.approx(Draws(np.float64(part.high), np.float64(1)).needed())
    assert found.high == pytest.approx(Draws(np.float64(part.low), np.float64(1)).needed())
    assert needed_draws(np.linspace(0.1, 0.4, 16), np.ones(16)).high == math.inf


def test_ratio_of_means_covers_and_encloses_its_value() -> None:
    """Parts of images whose gradients differ in size by factors: a is 0.3 of b on average."""
    rounds, images, covered = 60, 32, 0
    sizes = np.exp(0.5 * normals(rounds, images, which=5))
    top = 0.3 * sizes + 0.1 * sizes * normals(rounds, images, which=6)
    for a, b in zip(top, sizes, strict=True):
        found = ratio_of_means(a, b)
        assert found.low <= found.value <= found.high
        covered += found.low <= 0.3 <= found.high
    assert covered >= 52  # 57 less three standard errors


def test_ratio_of_means_of_nothing_reaches_zero_and_without_a_divisor_has_no_value() -> None:
    found = ratio_of_means(normals(32, which=7) * 0.1, np.ones(32))
    assert found.low <= 0 <= found.high
    assert math.isnan(ratio_of_means([0.0, 0.0], [0.0, 0.0]).value)
