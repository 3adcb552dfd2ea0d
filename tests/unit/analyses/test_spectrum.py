"""Singular values of affine purifiers in closed form, and principal components against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from dbpkit.analyses.analysis import Unit
from dbpkit.analyses.compression import Compression
from dbpkit.analyses.spectrum import (
    Spectrum,
    components_for,
    explained_variance,
    leading_singular_values,
    pulled_back,
    pushed_forward,
    shrinking_share,
)
from dbpkit.foundation.errors import UserError
from tests.oracles import tiny_denoiser, uniform
from tests.unit.analyses.linear import SIGMA, diagonal, measured, subject, values

SIDE = 4
DATA = {"name": "tests.unit.analyses.linear:images", "options": {"side": SIDE, "count": 6}}
DIAGONAL = {"name": "tests.unit.analyses.linear:diagonal", "options": {"side": SIDE}}
SMALL = Spectrum(images=2, draws=6)
RANDOMISED = Spectrum(images=2, draws=6, leading=5, probes=64, exact_up_to=0)
FACTORS = np.sort(diagonal(SIDE).theta(SIGMA).flatten().numpy())[::-1]
PUBLISHED = 1e-3
"""SIGMA has four digits; float32."""


def smooth() -> object:
    """A nonlinear denoiser of three channels, float32."""
    return tiny_denoiser(3).float()


@pytest.mark.parametrize(("sampler", "steps"), [("one_step", 1000), ("ddpm", 50), ("ddpm", 200)])
def test_exact_values_of_pixels_with_different_variances_are_their_thetas(sampler: str, steps: int) -> None:
    made = subject(sampler, steps, data=DATA, denoiser=DIAGONAL)
    sigma = float(made.parts.model.purifier.sampler.levels[0])
    expected = np.sort(diagonal(SIDE).theta(sigma).flatten().numpy())[::-1]
    for record in measured(SMALL, made)[Unit(range(2))]:
        np.testing.assert_allclose(record["singular_values"], expected, rtol=1e-4)  # float32, few steps
        assert record["rms"] == pytest.approx(np.sqrt((expected**2).mean()), rel=1e-4)
        np.testing.assert_allclose(record["singular_values"], FACTORS, rtol=PUBLISHED)


def test_exact_values_ddim_many_steps_are_near_root_thetas() -> None:
    made = subject("ddim", 1000, data=DATA, denoiser=DIAGONAL)
    found = np.array(measured(SMALL, made)[Unit(range(2))][0]["singular_values"][:5])
    assert (found > FACTORS[:5]).all()
    np.testing.assert_allclose(found, np.sqrt(FACTORS[:5]), rtol=0.02)  # first order: 101 steps


def test_randomised_values_are_the_leading_exact_ones() -> None:
    made = subject("one_step", data=DATA, denoiser=DIAGONAL)
    exact = measured(SMALL, made)[Unit(range(2))]
    for found, expected in zip(measured(RANDOMISED, made)[Unit(range(2))], exact, strict=True):
        np.testing.assert_allclose(found["singular_values"], expected["singular_values"][:5], rtol=1e-3)
        # 64 probes of the squared length, whose relative deviation is about sqrt(2 / 5) per probe
        assert found["rms"] == pytest.approx(expected["rms"], rel=0.1)


def test_randomised_values_of_a_network_come_near_the_exact_ones_from_below() -> None:
    made = subject("ddim", 100, data=DATA, denoiser="tests.unit.analyses.test_spectrum:smooth")
    x, _, noise = made.examples(slice(0, 2))
    exact = np.array([r["singular_values"][:4] for r in measured(SMALL, made)[Unit(range(2))]])
    found = leading_singular_values(made, x, noise, leading=4, sweeps=5).numpy()
    assert (found <= exact * (1 + 1e-5)).all()
    np.testing.assert_allclose(found, exact, rtol=0.02)


def test_products_of_a_network_are_those_of_its_full_jacobian() -> None:
    made = subject("ddpm", 100, micro_batch=3, data=DATA, denoiser="tests.unit.analyses.test_spectrum:smooth")
    x, _, noise = made.examples(slice(0, 2))
    v = uniform(2, 5, 3, SIDE, SIDE, low=-1).float()
    pushed, pulled = pushed_forward(made, x, noise, v, 2e-3), pulled_back(made, x, noise, v)
    for b in range(2):
        jacobian = torch.autograd.functional.jacobian(
            lambda image, b=b: made.parts.model.purifier(image[None], noise=noise.rows([b]))[0], x[b]
        ).reshape(3 * SIDE * SIDE, -1)
        flat = v[b].flatten(1)
        torch.testing.assert_close(pulled[b].flatten(1), flat @ jacobian, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(pushed[b].flatten(1), flat @ jacobian.T, rtol=1e-3, atol=1e-3)


def test_rms_is_the_compression_rate_of_small_perturbations() -> None:
    made = subject("ddim", 100, data=DATA, denoiser=DIAGONAL)
    rate = Compression(images=2, tapes=1, directions=64, scales=(1.0,), attack_iterations=0)
    expected = values(rate.conclude(measured(rate, made)))["compression rate, jacobian"]
    found = values(SMALL.conclude(measured(SMALL, made)))["root mean square of all singular values"]
    assert found == pytest.approx(expected, rel=0.1)  # 64 random directions


def test_explained_variance_equals_scikit_learns() -> None:
    points = uniform(9, 20).numpy() * np.linspace(1, 3, 20)
    expected = PCA().fit(points).explained_variance_ratio_[:8]
    np.testing.assert_allclose(explained_variance(points), expected, rtol=1e-10)


def test_explained_variance_of_the_purified_images_is_that_of_scaled_inputs() -> None:
    made = subject("one_step", data=DATA, denoiser=DIAGONAL)
    x, _, noise = made.examples(slice(0, 1))
    ball = made.parts.threat.random_start(x.repeat_interleave(6, 0), noise.repeat(6).on("control"))
    scaled = ball.flatten(1).double().numpy() * diagonal(SIDE).theta(SIGMA).flatten().numpy()
    record = measured(SMALL, made)[Unit(range(2))][0]
    expected = PCA().fit(scaled).explained_variance_ratio_[:5]
    np.testing.assert_allclose(record["explained"]["purified"], expected, rtol=PUBLISHED)


@pytest.mark.parametrize(("share", "count"), [(0.5, 1), (0.6, 2), (0.8, 2), (0.9, 3), (1.0, 3)])
def test_components_for_counts_until_the_share_is_reached(share: float, count: int) -> None:
    assert components_for(np.array([0.5, 0.3, 0.2]), share) == count


def test_shrinking_share_is_bounded_by_what_is_known() -> None:
    known = np.array([[1.5, 0.9]])
    rms = np.array([np.sqrt((1.5**2 + 0.9**2 + 0.5**2) / 10)])  # what is left has squares of 0.25 in all
    at_least, at_most = shrinking_share(known, rms, 10)
    assert (at_least[0], at_most[0]) == pytest.approx((1 - 2.25 / 10, 0.9))
    whole = np.array([[1.5, 1.0, 0.9]])
    at_least, at_most = shrinking_share(whole, np.sqrt((whole**2).mean(axis=1)), 3)
    assert at_least[0] == at_most[0] == pytest.approx(1 / 3)


def test_conclude_says_how_many_directions_shrink_and_whether_that_is_a_bound() -> None:
    explained = {"purified": [0.95, 0.05], "inputs": [0.6, 0.4]}
    record = {"id": 0, "rms": 0.5, "explained": explained, "singular_values": [1.5, 0.9]}
    bounded = SMALL.conclude({Unit(range(2)): [{**record, "size": 100}] * 2})
    assert values(bounded)["share of directions that shrink, at most"] == pytest.approx(0.99)
    assert next(n for n in bounded.numbers if "at least" in n.name).open_because.startswith("a verdict needs")
    assert "at most 99.0% of the 100 directions" in bounded.sentences[0]
    exact = SMALL.conclude({Unit(range(2)): [{**record, "size": 2}] * 2})
    assert values(exact)["share of directions that shrink"] == pytest.approx(0.5)
    assert "2 hold 90 % of their variance; once purified, 1 do" in exact.sentences[1]


@pytest.mark.parametrize(
    ("option", "least"),
    [("images", 1), ("draws", 2), ("leading", 1), ("sweeps", 1), ("probes", 1), ("exact_up_to", 0)],
)
def test_options_out_of_range_are_refused(option: str, least: int) -> None:
    with pytest.raises(UserError, match=f"'spectrum': {option} must be .*at least {least}"):
        Spectrum(**{option: least - 1})


def test_no_budget_is_refused() -> None:
    made = subject(data=DATA, threat={"norm": "linf", "eps": 0})
    with pytest.raises(UserError, match=r"'spectrum' varies images .* threat\.eps is 0"):
        SMALL.units(made)
