"""The proof of a model by what it does, and its bounds, against closed forms and the plain slow way."""

import math

import numpy as np
import pytest
import torch
from scipy import fft, stats

import dbpkit
from dbpkit import NoisePlan, UserError
from dbpkit.checks.proof import exact_share, linear_errors, proof, proof_of_classifier
from tests.oracles import GaussianDenoiser, uniform
from tests.parts import ChannelMean, data

LEVELS = (0.17, 0.34, 0.68)


def gaussian(count: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return NoisePlan.of(seed, range(count)).normal(
        "probe", 0, torch.zeros(count, *shape, dtype=torch.float64)
    )


def test_linear_errors_are_those_of_the_filter_written_out_as_a_matrix() -> None:
    """Each image's own filter in the basis of cosines, dense, and its expected error."""
    images = 0.3 * gaussian(5, 2, 4, 6).numpy()
    size, sigma = 4 * 6, 0.4
    basis = np.stack([fft.idctn(row.reshape(4, 6), norm="ortho").ravel() for row in np.eye(size)])
    radius = [round(math.hypot(y / 4, x / 6) * 6) for y in range(4) for x in range(6)]
    expected = []
    for own in range(5):
        kept = np.zeros((2, size, 2, size))
        kept[:, 0, :, 0] = np.eye(2)
        for ring in set(radius):
            places = [k for k in range(1, size) if radius[k] == ring]
            rows = [images[i].reshape(2, size) @ basis[k] for i in range(5) if i != own for k in places]
            if rows:
                s = np.mean([np.outer(r, r) for r in rows], axis=0)
                for k in places:
                    kept[:, k, :, k] = s @ np.linalg.inv(s + sigma**2 * np.eye(2))
        both = np.kron(np.eye(2), basis)  # rows are cosines of one channel
        matrix = both.T @ kept.reshape(2 * size, 2 * size) @ both
        missed = images[own].ravel() - matrix @ images[own].ravel()
        expected.append((missed @ missed + sigma**2 * (matrix**2).sum()) / (2 * size))
    assert linear_errors(torch.from_numpy(images), [sigma])[0] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("count", [4, 8, 32])
def test_linear_errors_of_few_images_are_near_the_optimum_and_not_below(count: int) -> None:
    """White images of variance v have the optimum v s^2 / (v + s^2), but for the mean colour, s^2."""
    variance = 0.25
    found = linear_errors(math.sqrt(variance) * gaussian(count, 3, 16, 16), LEVELS).mean(axis=1)
    optimum = np.array([variance * s**2 / (variance + s**2) for s in LEVELS])
    assert (found > 0.98 * optimum).all()
    assert (found < 1.06 * optimum).all()


def test_linear_errors_use_all_pixels_where_there_are_many_small_images() -> None:
    """Images whose pixels have two variances, in no order that a frequency sees."""
    deviation = torch.where(uniform(8, 8, seed=1) < 0.5, 0.02, 0.9).double()
    images = deviation * gaussian(800, 1, 8, 8)
    s = 0.34
    optimum = float((deviation**2 * s**2 / (deviation**2 + s**2)).mean())
    assert linear_errors(images[:15], [s]).mean() > 1.3 * optimum  # too few
    assert linear_errors(images, [s]).mean() == pytest.approx(optimum, rel=0.15)


def test_linear_errors_single_image_has_none() -> None:
    assert np.isnan(linear_errors(gaussian(1, 3, 8, 8), LEVELS)).all()


def test_proof_ideal_denoiser_has_the_error_of_theory_beside_its_bounds() -> None:
    x = (1 + 0.5 * gaussian(16, 3, 16, 16).clamp(-2, 2)) / 2
    found = proof(GaussianDenoiser(0.0, 0.25), x, levels=LEVELS)
    assert [level.nothing for level in found.levels] == pytest.approx([s**2 for s in LEVELS])
    for level in found.levels:
        theory = 0.25 * level.sigma**2 / (0.25 + level.sigma**2)
        assert level.error.value == pytest.approx(theory, rel=0.06)
        assert level.error.low < level.error.value < level.error.high
        assert level.gaussian == pytest.approx(theory, rel=0.08)
    assert found.denoises
    assert found.line.startswith("Denoising error ")
    assert [row["sigma"] for row in found.as_data()] == list(LEVELS)


def test_proof_embedded_denoiser_beats_the_best_linear_estimate() -> None:
    x = dbpkit.load_dataset("embedded").select(slice(0, 4)).x()
    found = proof(dbpkit.load_embedded()[0], x, NoisePlan.of(3, range(4), "select"), levels=(0.34,))
    assert found.beats_linear
    assert not proof(lambda x, sigma: x, x, levels=(0.34,)).denoises


@pytest.mark.parametrize("levels", [[], [0.0], [math.inf], [-1.0]])
def test_proof_without_levels_is_refused(levels: list[float]) -> None:
    with pytest.raises(UserError, match="noise levels above 0"):
        proof(GaussianDenoiser(), torch.zeros(2, 3, 8, 8), levels=levels)


def test_proof_denoiser_that_returns_no_images_is_refused() -> None:
    with pytest.raises(UserError, match="must return clean images"):
        proof(lambda x, sigma: x[:, :1], torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize(("count", "trials"), [(0, 8), (8, 8), (5, 8), (31, 64)])
def test_exact_share_is_clopper_and_pearsons(count: int, trials: int) -> None:
    expected = stats.binomtest(count, trials).proportion_ci(method="exact")
    found = exact_share(count, trials)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_proof_of_classifier_is_beside_chance() -> None:
    images = data(count=12)
    found = proof_of_classifier(ChannelMean(), images.x(), images.labels)
    assert (found.accuracy.value, found.chance) == (1.0, 1 / 3)
    assert found.better_than_chance
    turned = proof_of_classifier(ChannelMean(-40.0), images.x(), images.labels)
    assert not turned.better_than_chance
