"""Distances against norms of Gaussian noise."""

import math

import numpy as np
import pytest
import torch

from dbpkit.analyses.analysis import Unit
from dbpkit.analyses.distances import METRICS, STARTS, Distances, distances, distances_on_the_way
from dbpkit.foundation.errors import UserError
from tests.oracles import case_name, few_steps, sampler_cases, uniform
from tests.unit.analyses.linear import SIGMA, VARIANCE, measured, subject, values
from tests.unit.analyses.stubs import judged

SMALL = Distances(images=2, attack_iterations=2)
L1, L2, LINF, SSIM = range(4)
FLOAT32 = 1e-5
"""States are float32 values of order one; distances are means or sums of many."""


def test_distances_are_the_norms() -> None:
    x, y = uniform(2, 3, 12, 12, seed=1), uniform(2, 3, 12, 12, seed=2)
    difference = (y - x).numpy().reshape(2, -1)
    found = distances(x, y).numpy()
    np.testing.assert_allclose(found[:, L1], np.abs(difference).sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(found[:, L2], np.sqrt((difference**2).sum(axis=1)), rtol=1e-12)
    np.testing.assert_allclose(found[:, LINF], np.abs(difference).max(axis=1), rtol=1e-12)


def test_way_of_the_clean_image_at_the_top_is_the_mean_norm_of_the_noise() -> None:
    data = {"name": "tests.unit.analyses.linear:images", "options": {"side": 16}}
    made = subject("ddpm", 100, data=data)
    x, _, noise = made.examples(slice(0, 12))
    way = distances_on_the_way(made, x, x, noise).numpy()
    size = x[0].numel()
    scale = SIGMA / 2  # [-1, 1] units to pixels
    mean_norm = math.sqrt(2) * math.exp(math.lgamma((size + 1) / 2) - math.lgamma(size / 2))
    top = len(made.parts.model.purifier.sampler.levels) - 1
    # ||z|| has a standard deviation of about 1/sqrt(2), 12 images leave 0.2 of a mean of 27.7
    assert way[:, L2, top].mean() == pytest.approx(scale * mean_norm, rel=0.025)
    assert way[:, L1, top].mean() == pytest.approx(scale * size * math.sqrt(2 / math.pi), rel=0.025)


def test_way_rises_with_noise_falls_while_denoising_and_ends_above_its_start() -> None:
    made = subject("ddim", 100)
    x, _, noise = made.examples(slice(0, 4))
    start = x + 0.01
    way = distances_on_the_way(made, x, start, noise).numpy()
    top = len(made.parts.model.purifier.sampler.levels) - 1
    assert way.shape == (4, 4, 2 * top + 1)
    assert (np.diff(way[:, L2, : top + 1]) > 0).all()
    assert (np.diff(way[:, L2, top:]) < 0).all()
    assert (way[:, L2, -1] > way[:, L2, 0]).all()
    np.testing.assert_allclose(way[:, LINF, 0], 0.01, rtol=FLOAT32)


@pytest.mark.parametrize(("name", "options"), sampler_cases(), ids=case_name)
def test_way_every_sampler_ends_at_its_purified_image_and_starts_denoising_at_its_top(
    name: str, options: dict
) -> None:
    made = subject(
        purifier={"sampler": name, "steps": few_steps(name), "options": options},
        denoiser="tests.parts:gaussian_denoiser",
    )
    x, _, noise = made.examples(slice(0, 3))
    way = distances_on_the_way(made, x, x + 0.02, noise)
    sampler = made.parts.model.purifier.sampler
    levels, steps = sampler.levels, len(sampler.levels) - 1
    torch.testing.assert_close(way[:, :, -1], distances(x, made.purify(x + 0.02, noise)), rtol=0, atol=0)
    if name == "reverse_only":
        assert way.shape[2] == steps + 2
        return
    if name == "likelihood" or sampler.steps != steps:
        return  # no way down from one noisy image: it moves the image itself, or goes back up
    assert way.shape[2] == 2 * steps + 1
    z = noise.normal("forward", 0, x)
    if options.get("churn"):
        return  # churned noise is on top of z before the denoiser sees the state
    noisy = x + 0.02 + float(levels[0]) * z / 2
    torch.testing.assert_close(way[:, :, steps], distances(x, noisy), rtol=FLOAT32, atol=FLOAT32)


def test_way_vpsde_states_are_in_the_scale_of_the_image() -> None:
    made = subject("vpsde", 1000)
    x, _, noise = made.examples(slice(0, 3))
    way = distances_on_the_way(made, x, x, noise).numpy()
    top = len(made.parts.model.purifier.sampler.levels) - 1
    assert (way[:, L2, top - 1] < way[:, L2, top]).all()
    assert (np.abs(np.diff(way[:, L2])) < 0.15 * way[:, L2, top, None]).all()  # no jump between scales


def test_measure_one_step_clean_distance_is_the_closed_form() -> None:
    made = subject("one_step", 1000)
    theta = VARIANCE / (VARIANCE + SIGMA**2)
    x, _, noise = made.examples(slice(0, 2))
    expected = (theta - 1) * (x - 0.5) + theta * SIGMA / 2 * noise.normal("forward", 0, x)
    (records,) = measured(SMALL, made).values()
    found = [r["tapes"][0]["clean"]["l2"][-1] for r in records]
    assert found == pytest.approx(expected.flatten(1).norm(dim=1).tolist(), rel=1e-3)  # SIGMA's digits


def test_measure_inputs_stay_within_the_budget() -> None:
    (records,) = measured(SMALL, subject("one_step")).values()
    for record in records:
        for start in ("random", "attacked"):
            assert record["tapes"][0][start]["linf"][0] <= 8 / 255 + 1e-6


def test_conclude_claims_are_judged_by_paired_intervals() -> None:
    some = Distances(images=8, attack_iterations=2)
    result = some.conclude(measured(some, subject("one_step")))
    claims = {n.name.split(",")[0]: judged(n) for n in result.numbers if n.claim}
    assert claims == {"L2 distance": True, "Linf distance": True, "SSIM": True}
    assert "away from the clean image" in result.sentences[0]
    assert [c.title.split(" to ")[0] for c in result.charts] == list(METRICS.values())
    assert [s.name for s in result.charts[0].series] == [f"{s} image" for s in STARTS]


def test_conclude_purifier_that_returns_to_the_clean_image_says_so() -> None:
    way = {m: [1.0, 2.0, 0.5] for m in METRICS} | {"ssim": [0.5, 0.2, 0.9]}
    record = {"id": 0, "published": "", "turn": 1, "tapes": [dict.fromkeys(STARTS, way)]}
    result = SMALL.conclude({Unit(range(2)): [record, record]})
    assert not any(judged(n) for n in result.numbers if n.claim)
    assert "back to the clean image" in result.sentences[0]
    assert "rises from 0.50 to 0.90" in result.sentences[1]


def test_conclude_published_values_only_where_images_and_budget_are_those_of_the_paper() -> None:
    other = SMALL.conclude(measured(SMALL, subject("one_step")))
    assert all(n.published is None for n in other.numbers)
    data = {"name": "tests.unit.analyses.linear:images", "options": {"side": 32, "count": 2}}
    same = SMALL.conclude(measured(SMALL, subject("one_step", data=data)))
    published = {n.name: n.published for n in same.numbers if n.published is not None}
    assert published["L2 distance, attacked image after purification"] == 2.692
    assert published["L2 distance, attacked image"] == 1.188
    assert values(same)["Linf distance, random image"] == pytest.approx(8 / 255, rel=0.01)


@pytest.mark.parametrize("option", ["images", "tapes", "attack_iterations"])
def test_options_below_one_are_refused(option: str) -> None:
    with pytest.raises(UserError, match=f"'distances': {option} must be .*at least 1, not 0"):
        Distances(**{option: 0})
