"""Gradient variance against quadrature for Gaussian data and a linear classifier, and known gradients."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor, nn

from dbpkit.analyses.analysis import Subject, Unit
from dbpkit.analyses.gradient_variance import GradientVariance
from dbpkit.analyses.run import make_analysis
from dbpkit.analyses.tools.configurations import settings
from dbpkit.analyses.tools.gradient_numbers import Gradients, own_numbers, prediction_numbers
from dbpkit.data import Dataset
from dbpkit.foundation.errors import UserError
from dbpkit.statistics.components import PARTS, power
from tests.oracles import uniform
from tests.unit.analyses import linear, stubs

SIDE, SCALE, COUNT = 2, 60.0, 256
PIXELS = 3 * SIDE * SIDE


class TwoClasses(nn.Module):
    """Logits 0 and `SCALE` times the mean pixel's distance from grey: all gradients have one direction."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 2) logits."""
        return torch.stack([torch.zeros(len(x)), SCALE * (x.mean(dim=(1, 2, 3)) - 0.5)], dim=1)


def grey(count: int = COUNT) -> Dataset:
    """Grey images of class 0, all alike."""
    labels = torch.zeros(count, dtype=torch.int64)
    return Dataset("grey", torch.full((count, 3, SIDE, SIDE), 0.5), labels, torch.arange(count), ("a", "b"))


def gaussian(sampler: str) -> Subject:
    """Grey images, a classifier along one direction and an affine purifier."""
    return linear.subject(
        sampler,
        20,
        data="tests.unit.analyses.test_gradient_variance:grey",
        classifier="tests.unit.analyses.test_gradient_variance:TwoClasses",
    )


def coefficients(levels: tuple[float, ...], from_image: bool) -> tuple[float, float, list[float]]:
    """Of DDPM with the ideal denoiser: factors of image, forward and each reverse draw, in [-1, 1]."""
    image = math.sqrt(1 + levels[0] ** 2) if from_image else 1.0
    forward, reverse = (0.0 if from_image else levels[0]), []
    for sigma, after in itertools.pairwise(levels):
        theta = linear.VARIANCE / (linear.VARIANCE + sigma**2)
        keep = (after / sigma) ** 2
        factor = theta + keep * (1 - theta) if after else theta
        image, forward, reverse = image * factor, forward * factor, [c * factor for c in reverse]
        if after:
            large = math.sqrt((1 + after**2) * (sigma**2 - after**2) / (1 + sigma**2))
            reverse.append(large)
    return image, forward, reverse


def by_quadrature(image: float, forward: float, reverse: float) -> np.ndarray:
    """Parts of the power of the gradient: (SCALE J / PIXELS)^2 PIXELS times those of p = sigmoid(noise)."""
    z, w = hermegauss(60)
    w = w / w.sum()
    deviation = SCALE / 2 / math.sqrt(PIXELS)  # mean pixel of [0, 1] units
    p = 1 / (1 + np.exp(-deviation * (forward * z[:, None] + reverse * z[None])))
    whole, signal = float(w @ p**2 @ w), float(w @ p @ w) ** 2
    by_f, by_r = float(w @ (p @ w) ** 2) - signal, float((w @ p) ** 2 @ w) - signal
    parts = np.array([signal, by_f, by_r, whole - signal - by_f - by_r])
    return parts * (SCALE * image) ** 2 / PIXELS


@pytest.mark.parametrize("sampler", ["ddpm", "one_step", "reverse_only"])
def test_parts_of_gaussian_data_and_a_linear_classifier_are_those_of_quadrature(sampler: str) -> None:
    of = gaussian(sampler)
    analysis = GradientVariance(images=COUNT, forward=3, reverse=3, fresh=2)
    records = [r for one in stubs.measure_all(analysis, of).values() for r in one]
    found = power(Gradients.of(records).gradient)
    levels = of.parts.model.purifier.sampler.levels
    image, forward, reverse = coefficients(levels, sampler == "reverse_only")
    expected = by_quadrature(image, forward, math.sqrt(sum(c * c for c in reverse)))
    error = found.std(axis=0, ddof=1) / math.sqrt(COUNT)
    assert (np.abs(found.mean(axis=0) - expected) < 4 * error + 1e-5 * expected.sum()).all()
    absent = {"ddpm": [], "one_step": [2, 3], "reverse_only": [1, 3]}[sampler]
    assert all((found[:, k] == 0).all() for k in absent)
    assert (error < 0.06 * expected.sum()).all()


@pytest.fixture(scope="module")
def linear_records() -> list[dict[str, Any]]:
    """Of the model whose gradient is (m + s z) / 2, |m|^2 = 48 and s^2 D = 192."""
    analysis = GradientVariance(images=12, forward=8, reverse=8, fresh=8)
    measured = stubs.measure_all(analysis, stubs.subject(stubs.Linear()))
    return [r for one in measured.values() for r in one]


def test_signal_to_noise_ratio_is_that_of_a_known_gradient(linear_records: list[dict[str, Any]]) -> None:
    numbers = {n.name: n.value for n in own_numbers(Gradients.of(linear_records))}
    assert numbers["signal-to-noise ratio of the gradient, median image"] == pytest.approx(0.25, abs=0.02)
    assert numbers["signal-to-noise ratio of the gradient, ratio of means"] == pytest.approx(0.25, abs=0.02)
    assert numbers[f"share of the gradient's power: {PARTS[0]}"] == pytest.approx(0.2, abs=0.01)
    assert numbers[f"share of the gradient's power: {PARTS[2]}"] == 0
    assert numbers["cosine that endless draws reach"] == pytest.approx(math.sqrt(0.2), abs=0.01)


def test_cosines_are_those_of_means_of_attack_draws_to_report_draws(
    linear_records: list[dict[str, Any]],
) -> None:
    for example, record in zip(range(stubs.FIRST_ID, stubs.FIRST_ID + 12), linear_records, strict=True):
        fresh = np.array([stubs.gradient(example, r, "attack").ravel() for r in range(8)])
        tapes = np.array([stubs.gradient(example, t).ravel() for t in range(16)])
        for n in (1, 4, 8):
            means = fresh.reshape(8 // n, n, -1).mean(axis=1)
            dots = means @ tapes.T / np.linalg.norm(means, axis=1)[:, None] / np.linalg.norm(tapes, axis=1)
            assert record["cosine"][str(n)] == pytest.approx(dots.mean(), abs=1e-5)
        lengths = np.linalg.norm(fresh, axis=1)
        products = (lengths.sum() ** 2 - (lengths**2).sum()) / 56
        assert record["evenness"] == pytest.approx(products / (lengths**2).mean(), abs=1e-5)


def test_closed_form_of_the_cosine_holds_for_a_known_gradient(linear_records: list[dict[str, Any]]) -> None:
    numbers = {n.name: n for n in own_numbers(Gradients.of(linear_records))}
    assert stubs.judged(numbers["cosine measured minus closed form, N = 8"]) is True
    assert not any(name.startswith("draws for") for name in numbers)  # c = 0.2: endless draws reach 0.45
    assert stubs.judged(numbers["cosine that endless draws reach"]) is True


def test_sentence_says_that_no_number_of_draws_is_enough(linear_records: list[dict[str, Any]]) -> None:
    analysis = GradientVariance(images=12, forward=8, reverse=8)
    said = analysis.conclude({Unit(range(12)): linear_records}).sentences
    assert "no number of draws" in said[0]
    assert "All of the gradient's variance is from the forward noise" in said[1]


ONE_STEP = [{"sampler": "one_step", "t_star": t, "steps": 20} for t in (0.05, 0.1, 0.15, 0.2, 0.3, 0.4)]


def of_purifiers(slope: float, images: int = 64) -> dict[Any, Gradients]:
    """Made records of six purifiers: draws agree less and less, and hidden accuracy follows with a slope."""
    found = {}
    for k, setting in enumerate(settings(ONE_STEP)):
        common = 0.5 - 0.08 * k + 0.02 * uniform(images, seed=k).numpy()
        products = np.stack([common, np.ones(images), common, np.ones(images)], axis=1)
        hidden = (uniform(images, seed=50).numpy() < 0.5 + slope * (k - 2.5)).astype(float)
        found[setting] = Gradients(
            products, products, np.ones((images, 4)), np.ones(images), ["forward"],
            np.array([]), {}, hidden, np.zeros(images),
        )  # fmt: skip
    return found


@pytest.mark.parametrize(("slope", "holds", "value"), [(0.12, True, -1), (-0.12, False, 1)])
def test_prediction_over_purifiers_is_judged_by_images_and_purifiers(
    slope: float, holds: bool, value: float
) -> None:
    numbers = {n.name: n for n in prediction_numbers(of_purifiers(slope), 4)}
    predictor = "cosine to the DW gradient at N = 4"
    one = numbers[f"rank correlation over purifiers: {predictor} and white box minus DW_Both"]
    assert one.value == pytest.approx(value, abs=0.06)
    assert one.holds is holds
    assert "6 purifiers crossed with 64 images" in one.method
    few = of_purifiers(slope, images=16)
    name = next(iter({n.name: n for n in prediction_numbers(few, 4)}))
    assert {n.name: n for n in prediction_numbers(few, 4)}[name].holds is None


def test_prediction_of_fewer_than_five_purifiers_has_no_number() -> None:
    four = dict(list(of_purifiers(0.1).items())[:4])
    assert prediction_numbers(four, 4) == []


def test_attacked_accuracies_are_those_of_known_blocks() -> None:
    """Each draw looks at one of four blocks: who knows it succeeds; who does not raises those he saw."""
    analysis = GradientVariance(images=12, iterations=4, eot=1, draws=6, tapes=2)
    of = stubs.subject(stubs.Blocks())
    x, y, noise = of.examples(range(12))
    found = analysis._attacked(of, x, y, noise)
    assert found["dw_both"].tolist() == [0] * 12
    for i, right in enumerate(found["white_box"].tolist()):
        steps = [stubs.block(stubs.FIRST_ID + i, s, "attack", 1) for s in range(4)]
        wrong = [steps.count(stubs.block(stubs.FIRST_ID + i, r)) >= 2 for r in range(6)]
        assert right == pytest.approx(1 - sum(wrong) / 6)


def test_units_are_every_purifier_on_each_batch_of_images() -> None:
    analysis = make_analysis("gradient_variance", {"images": 12, "configurations": ONE_STEP[:2]})
    names = [str(unit) for unit in analysis.units(linear.subject("ddpm"))]
    assert names == ["0-11", "one_step t*=0.05 S=20 0-11", "one_step t*=0.1 S=20 0-11"]


def test_configurations_are_attacked_and_charted() -> None:
    made = linear.spec("ddpm", 20, data={"name": "tests.unit.analyses.linear:images", "options": {"side": 4}})
    of = linear.subject("ddpm", 20, data=made.data)
    options = {"images": 3, "configurations": ONE_STEP[:2], "iterations": 2, "eot": 2, "draws": 2, "fresh": 2}
    analysis = make_analysis("gradient_variance", options)
    found = analysis.conclude(linear.measured(analysis, of))
    assert [chart.kind for chart in found.charts] == ["line", "bar", "scatter"]
    assert "one_step t*=0.05 S=20: white box minus DW_Both" in {n.name for n in found.numbers}
    assert "2 purifiers are too few" in found.sentences[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forward": 1}, "forward must be a whole number of at least 2"),
        ({"fresh": 1}, "fresh must be a whole number of at least 2"),
        ({"configurations": [{"sampler": "one_step"}, {"sampler": "one_step"}]}, "is listed twice"),
    ],
)
def test_bad_option_says_what_is_expected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_analysis("gradient_variance", options)


def test_the_study_is_of_twelve_purifiers_that_the_analysis_takes() -> None:
    from benchmarks.gradient_variance import CONFIGURATIONS, OPTIONS

    analysis = make_analysis("gradient_variance", OPTIONS)
    assert len({str(unit) for unit in analysis.of_each([Unit(range(16))])}) == 13
    assert len(settings(CONFIGURATIONS)) == 12
