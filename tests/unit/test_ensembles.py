"""Ensembles: their classes and estimates by hand, the model's gradient, and simulated coverage."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from dbpkit import Ensemble, NoisePlan, PurifiedClassifier, Purifier, Target, UserError
from dbpkit.evaluation.averaging import ensemble_classes
from dbpkit.experiment.knowledge import known
from dbpkit.purification.views import gradients
from dbpkit.results.ensembles import count, groups, sizes
from dbpkit.results.protocols import headline, protocols
from dbpkit.statistics.intervals import wilson
from tests import parts
from tests.oracles import GaussianDenoiser, uniform

ROUNDING = 1e-6


def test_sizes_are_one_two_three_five_and_all() -> None:
    assert sizes(1) == []
    assert sizes(2) == [2]
    assert sizes(10) == [2, 3, 5, 10]
    assert sizes(30) == [2, 3, 5, 10, 20, 30]
    assert count(10) == 5 + 3 + 2 + 1
    assert [where for _, where in groups(5)] == [slice(0, 2), slice(2, 3), slice(3, 4)]


def test_classes_of_averaged_draws_are_those_by_hand() -> None:
    """Two votes for class 1 against one that is surer of class 0."""
    logits = torch.tensor([[[5.0, 0.0], [0.0, 1.0], [0.0, 2.0]], [[0.0, 9.0], [3.0, 0.0], [1.0, 0.0]]])
    assert ensemble_classes(logits, "logits") == [[0, 0], [1, 1]]  # of 2 draws, then of all 3
    assert logits.argmax(dim=2).tolist() == [[0, 1, 1], [1, 0, 0]]
    assert ensemble_classes(logits, "softmax") == [[0, 1], [1, 0]]  # a sure draw counts at most one
    assert ensemble_classes(logits, "") == [None, None]
    assert ensemble_classes(logits[:, :1], "logits") == [None, None]


@pytest.mark.parametrize("averages", ["logits", "softmax"])
def test_classes_of_all_groups_are_those_of_numpy(averages: str) -> None:
    logits = uniform(4, 23, 5, seed=3, low=-2, high=2)
    values = logits.numpy()
    if averages == "softmax":
        values = np.exp(values) / np.exp(values).sum(axis=2, keepdims=True)
    expected = [
        [
            int(one[g * size : (g + 1) * size].mean(axis=0).argmax())
            for size in sizes(23)
            for g in range(23 // size)
        ]
        for one in values
    ]
    assert ensemble_classes(logits.float(), averages) == expected


def record(predicted: list[int], ensembles: list[int] | None, example: int = 0) -> dict[str, Any]:
    made = {"row": "white_box", "tape": 0, "example": example, "label": 0, "predicted": predicted}
    return made if ensembles is None else {**made, "ensembles": ensembles}


@pytest.mark.parametrize("name", ["mean_logits", "mean_softmax"])
def test_protocol_counts_the_class_of_all_draws(name: str) -> None:
    protocol = protocols.get(name)
    assert protocol.held(record([0, 1, 1], [1, 0])) == 1
    assert protocol.held(record([0, 0, 1], [0, 2])) == 0
    assert protocol.held(record([0], None)) == 1  # nothing is random, so there is one draw
    with pytest.raises(UserError, match="example 7 of row 'white_box' has no class of averaged draws"):
        protocol.held(record([0, 0], None, 7))
    rows = [record([0, 1, 1], [1, 0], 1), record([1, 1, 1], [1, 1], 2)]
    clean = [record([0, 0, 1], [0, 0], 1), record([0, 1, 1], [1, 0], 2)]
    found = headline(protocol, "white_box", rows, clean)
    assert (found.estimate.estimand, found.estimate.value) == (f"{name}@3", 0.5)
    assert (found.estimate.low, found.estimate.high) == pytest.approx(wilson(0.5, 2))
    assert found.control is not None
    assert found.control.value == 1
    known_noise = headline(protocol, "dw_both", [record([1], None, 1)], clean)
    assert (known_noise.estimate.value, known_noise.control and known_noise.control.value) == (0, 1)


def test_interval_covers_other_images_and_other_draws_of_the_ensemble() -> None:
    """Margins N(0.5, 1) of images and N(0, 4) of draws: 8 are right with chance Phi(0.5 / sqrt(1.5))."""
    truth, repeats, images, draws = norm.cdf(0.5 / math.sqrt(1.5)), 400, 40, 8
    z = norm.ppf(uniform(repeats, images, 1 + draws, seed=5, low=1e-12).numpy())
    means = 0.5 + z[..., 0] + 2 * z[..., 1:].mean(axis=2)
    ends = np.array([wilson(share, images) for share in (means > 0).mean(axis=1)])
    assert ((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean() >= 0.93


def model(sampler: str = "ddpm") -> PurifiedClassifier:
    return PurifiedClassifier(Purifier(GaussianDenoiser(), sampler, steps=20), parts.ChannelMean())


def batch(rows: int = 3) -> tuple[Tensor, Tensor, NoisePlan]:
    x = uniform(rows, 3, 4, 4, seed=1, low=0.3, high=0.7).float()
    return x, torch.arange(rows) % 3, NoisePlan.of(0, range(10, 10 + rows), "attack", 2)


@pytest.mark.parametrize("average", ["logits", "softmax"])
def test_ensemble_answers_with_the_mean_of_its_draws(average: str) -> None:
    x, _, noise = batch()
    logits = Target(model()).draws(x, noise=noise, count=4)
    expected = logits.mean(dim=1) if average == "logits" else logits.softmax(dim=2).mean(dim=1).log()
    assert torch.allclose(Ensemble(model(), 4, average)(x, noise=noise), expected, atol=1e-5)


@pytest.mark.parametrize("average", ["logits", "softmax"])
def test_ensemble_gradient_is_that_of_the_loss_of_the_mean(average: str) -> None:
    """Against autograd through the mean itself; the mean of single losses has another gradient."""
    x, y, noise = batch()
    found = Target(Ensemble(model(), 4, average)).gradient(x, y, noise=noise, eot=2)
    leaf = x.clone().requires_grad_()
    plan = noise.repeat(8)
    logits = model()(leaf.repeat_interleave(8, dim=0), noise=plan).unflatten(0, (3, 2, 4))
    mean = logits.mean(dim=2) if average == "logits" else logits.softmax(dim=3).mean(dim=2).log()
    loss = nn.functional.cross_entropy(mean.flatten(0, 1), y.repeat_interleave(2), reduction="none")
    (expected,) = torch.autograd.grad(loss.unflatten(0, (3, 2)).mean(dim=1).sum(), leaf)
    assert torch.allclose(found.grad, expected, rtol=1e-4, atol=ROUNDING)
    single = Target(model()).gradient(x, y, noise=noise, eot=8).grad
    assert (single - expected).norm() > 0.01 * expected.norm()


def test_ensemble_gradient_does_not_depend_on_micro_batches() -> None:
    x, y, noise = batch()
    whole, parted = (Target(Ensemble(model(), 3), rows).gradient(x, y, noise=noise, eot=3) for rows in (9, 2))
    assert torch.allclose(whole.grad, parted.grad, atol=ROUNDING)


def test_ensemble_counts_the_network_calls_of_its_members() -> None:
    assert Target(Ensemble(model(), 5)).calls == 5 * Target(model()).calls


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_ensemble_whose_noise_is_known_is_deterministic_and_not_one_draw(sampler: str) -> None:
    x, _, noise = batch()
    ensemble = Ensemble(model(sampler), 4)
    assert known["dw_both"].leaves_nothing_random(ensemble.sites)
    first, second = (ensemble(x, noise=known["dw_both"].apply(noise.at(draw), 1)) for draw in (0, 5))
    assert torch.equal(first, second)
    report = noise.on("report")
    members = [model(sampler)(x, noise=report.at(draw)) for draw in range(4, 8)]  # tape 1
    assert torch.allclose(first, torch.stack(members).mean(dim=0), atol=1e-5)
    assert not torch.allclose(members[0], members[1])


def test_ensemble_view_is_registered_and_wrong_values_are_refused() -> None:
    view = gradients.get("mean_logits")(model(), members=3)
    assert isinstance(view, Ensemble)
    assert view.members == 3
    with pytest.raises(UserError, match="averages 'logits' or 'softmax', not 'votes'"):
        Ensemble(model(), 3, "votes")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="members of an ensemble"):
        Ensemble(model(), 0)
    with pytest.raises(UserError, match=r"model\(x, noise=plan\)"):
        Ensemble(parts.ChannelMean(), 3)
