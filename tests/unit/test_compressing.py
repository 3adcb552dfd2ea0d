"""Training for compression: the terms against closed forms of Gaussian data, their gradients, and the search.

For a linear denoiser D(x, sigma) = v x / (v + sigma**2) every displacement shrinks alike, whatever the
search finds: by theta = v / (v + sigma**2) through any chain of DDPM and through one step, and by a product
along the grid through DDIM.
"""

import itertools
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from dbpkit import TrainingSpec, UserError, train
from dbpkit.experiment.execution import Execution
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.spec import validate
from dbpkit.training.compressing import Compress, Consistency, ThroughChain, shrinkage
from dbpkit.training.levels import noise_levels
from dbpkit.training.objectives import Batch, Denoising, make_objective, objectives
from tests.oracles import tiny_denoiser, uniform

GUIDE = "users_guides:guide"
TOP = 0.3422596990130316
"""The first noise level of the discrete chains with stride 100 from t* = 0.1, (1 - alpha_bar) / alpha_bar."""


class Linear(nn.Module):
    """The posterior mean of N(0, variance I), with the variance as its one weight."""

    def __init__(self, variance: float = 0.01) -> None:
        super().__init__()
        self.variance = nn.Parameter(torch.tensor(variance, dtype=torch.float64))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        sigma = sigma.double().reshape(-1, 1, 1, 1)
        return self.variance * x / (self.variance + sigma**2)


class Watched(nn.Module):
    """Notes the mode, and whether weights ask for gradients, at every call."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seen: list[tuple[bool, bool]] = []

    def forward(self, *inputs: Tensor) -> Tensor:
        self.seen.append((self.training, any(p.requires_grad for p in self.parameters())))
        return self.network(*inputs)


def batch_of(count: int = 3, low: float = 0.4, high: float = 0.6) -> Batch:
    noise = NoisePlan.of(3, range(20, 20 + count), "train", draw=1)
    return Batch(uniform(count, 1, 4, 4, seed=5, low=low, high=high), torch.arange(count) % 3, noise)


def sampler_of(name: str) -> Any:
    return name if name == "one_step" else {"name": name, "options": {"clip": False}}


def compress(sampler: str = "ddim", **options: Any) -> Compress:
    made = make_objective("compress", {"guide": GUIDE, "sampler": sampler_of(sampler), **options})
    assert isinstance(made, Compress)
    return made


def theta(variance: float, sigma: float) -> float:
    return variance / (variance + sigma**2)


# ---------------------------------------------------------------------------- closed forms of Gaussian data


@pytest.mark.parametrize(("sampler", "steps"), [("ddpm", 20), ("ddpm", 50), ("ddpm", 100), ("one_step", 10)])
@pytest.mark.parametrize("variance", [0.01, 0.05])
def test_compress_of_gaussian_data_is_theta_squared_through_ddpm_of_any_length(
    sampler: str, steps: int, variance: float, guides: ModuleType
) -> None:
    objective = compress(sampler, steps=steps)
    sigma = objective.chain().levels[0]
    found = objective.term(Linear(variance), batch_of())
    torch.testing.assert_close(found, torch.full_like(found, theta(variance, sigma) ** 2), rtol=1e-9, atol=0)


@pytest.mark.parametrize("steps", [10, 20, 50, 1000])
def test_compress_of_gaussian_data_is_a_product_along_the_grid_through_ddim(
    steps: int, guides: ModuleType
) -> None:
    """A step is sigma'/sigma x + (1 - sigma'/sigma) D(x)."""
    objective = compress(steps=steps)
    levels = objective.chain().levels
    expected = math.prod(b / a + (1 - b / a) * theta(0.01, a) for a, b in itertools.pairwise(levels))
    found = objective.term(Linear(), batch_of())
    torch.testing.assert_close(found, torch.full_like(found, expected**2), rtol=1e-9, atol=0)
    if steps == 1000:  # the flow of the ordinary differential equation
        assert expected == pytest.approx(math.sqrt(theta(0.01, levels[0])), rel=0.02)
    else:  # fewer steps compress more
        assert expected < 0.95 * math.sqrt(theta(0.01, levels[0]))


def test_compress_through_one_call_is_theta_squared_at_each_images_level(guides: ModuleType) -> None:
    batch, objective = batch_of(5), compress(through="call")
    u = batch.noise.uniform("level", 0, torch.zeros(5, 2, dtype=torch.float64))[:, 0]
    sigma = noise_levels.get("purification")().sigma(u)
    torch.testing.assert_close(
        objective.term(Linear(), batch), (0.01 / (0.01 + sigma**2)) ** 2, rtol=1e-9, atol=0
    )


def test_compress_gradient_of_gaussian_data_is_that_of_theta_squared(guides: ModuleType) -> None:
    model, objective = Linear(), compress("ddpm", steps=20)
    objective.term(model, batch_of()).mean().backward()
    sigma = objective.chain().levels[0]
    expected = 2 * theta(0.01, sigma) * sigma**2 / (0.01 + sigma**2) ** 2
    assert float(model.variance.grad) == pytest.approx(expected, rel=1e-9)


def test_consistency_of_gaussian_data_is_theta_squared_times_the_distance_of_the_draws(
    guides: ModuleType,
) -> None:
    objective = Consistency(sampler="one_step")
    batch = batch_of(4)
    draws = [batch.noise.branch(tape).normal("forward", 0, batch.x) for tape in (1, 2)]
    distance = (draws[0] - draws[1]).square().flatten(1).mean(dim=1) / 2
    torch.testing.assert_close(
        objective.term(Linear(), batch), theta(0.01, TOP) ** 2 * distance, rtol=1e-9, atol=0
    )
    assert float(distance.mean()) == pytest.approx(1, abs=0.5)


def test_shrinkage_of_no_displacement_is_none() -> None:
    x = uniform(2, 1, 4, 4, seed=1)
    assert shrinkage(x, x, torch.zeros_like(x)).tolist() == [0, 0]


# ------------------------------------------------------------------------------------------------ the loss


@pytest.mark.parametrize("options", [{}, {"through": "call"}, {"through": "call", "perturbation": "addt"}])
def test_compress_loss_is_denoising_plus_weight_times_mean_shrinkage(
    options: dict[str, Any], guides: ModuleType
) -> None:
    model, batch = tiny_denoiser(), batch_of(low=0.0, high=1.0)
    plain = Denoising(perturbation=options.get("perturbation", "none"), guide=GUIDE).loss(model, batch)
    for weight in (0.0, 2.5):
        objective = compress(weight=weight, **options)
        expected = plain + weight * objective.term(model, batch).mean()
        torch.testing.assert_close(objective.loss(model, batch), expected, rtol=1e-12, atol=0)
    assert float(compress(**options).term(model, batch).detach().min()) > 1e-4


def test_compress_as_error_weighs_what_is_left_like_an_error_of_the_estimate(guides: ModuleType) -> None:
    """For linear denoisers: W(sigma) mean (theta delta)**2, with the displacement that the search found."""
    model, batch = Linear(0.2), batch_of(4)
    objective = compress(through="call", as_error=True, weight=3.0)
    _, sigma, noise = objective.noised(model, batch)
    delta = objective.displacement(objective._call(sigma, noise), model, batch)
    left = (0.2 / (0.2 + sigma**2)) ** 2 * delta.square().flatten(1).mean(dim=1)
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    expected = Denoising().loss(model, batch) + 3 * (weight * left).mean()
    torch.testing.assert_close(objective.loss(model, batch), expected, rtol=1e-9, atol=0)
    assert float((3 * weight * left).mean()) > 1e-5


def test_consistency_loss_is_denoising_plus_weight_times_mean_distance(guides: ModuleType) -> None:
    model, batch = tiny_denoiser(), batch_of(low=0.0, high=1.0)
    objective = Consistency(weight=3.0)
    expected = Denoising().loss(model, batch) + 3 * objective.term(model, batch).mean()
    torch.testing.assert_close(objective.loss(model, batch), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["compress", "call", "consistency"])
def test_loss_gradient_of_weights_is_that_of_finite_differences(name: str, guides: ModuleType) -> None:
    model, batch = tiny_denoiser(), batch_of(2)
    objective: ThroughChain = Consistency(sampler=sampler_of("ddim"), steps=20)
    if name != "consistency":
        objective = compress(steps=20, iterations=1, through="call" if name == "call" else "chain")
    names, weights = zip(*model.named_parameters(), strict=True)

    class Given(nn.Module):
        """The denoiser with the weights of the moment, which no search freezes."""

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return functional_call(model, dict(zip(names, self.now, strict=True)), (x, sigma))

    given = Given()

    def loss(*now: Tensor) -> Tensor:
        given.now = now
        return objective.loss(given, batch)

    assert torch.autograd.gradcheck(loss, tuple(w.detach().requires_grad_() for w in weights), fast_mode=True)


@pytest.mark.parametrize("name", ["compress", "call", "consistency"])
def test_term_of_an_image_is_the_same_in_any_batch(name: str, guides: ModuleType) -> None:
    objective: ThroughChain = Consistency()
    if name != "consistency":
        objective = compress(through="call" if name == "call" else "chain")
    model, batch = tiny_denoiser(), batch_of(4)
    alone = Batch(batch.x[[2]], batch.y[[2]], batch.noise.rows([2]))
    torch.testing.assert_close(
        objective.term(model, alone), objective.term(model, batch)[[2]], rtol=1e-9, atol=0
    )


# ---------------------------------------------------------------------------------------------- the search


def test_search_climbs_the_guides_loss_of_the_purified_image_at_the_noise_of_the_term(
    guides: ModuleType,
) -> None:
    """Written out for one step of DDIM at one level, with its own start."""
    model, batch = Linear(0.2), batch_of(3, low=0.0, high=1.0)
    objective = compress("one_step", eps=0.03, step_size=0.02, iterations=2, flip=False)
    noise = batch.noise.branch(1)
    x, share = 2 * batch.x - 1, theta(0.2, TOP)
    delta = (x + 0.06 * (2 * noise.uniform("start", 0, x) - 1)).clamp(-1, 1) - x
    for _ in range(2):
        leaf = delta.clone().requires_grad_()
        estimate = (share * (x + leaf + TOP * noise.normal("forward", 0, x))).clamp(-1, 1)
        functional.cross_entropy(guides.guide(estimate / 2 + 0.5), batch.y).backward()
        delta = (x + (delta + 0.04 * leaf.grad.sign()).clamp(-0.06, 0.06)).clamp(-1, 1) - x
    found = objective.displacement(objective._chain(batch), model, batch)
    torch.testing.assert_close(found, delta, rtol=0, atol=1e-12)
    assert float(found.abs().max()) <= 0.06 + 1e-12
    assert float((x + found).abs().max()) <= 1


@pytest.mark.parametrize("through", ["chain", "call"])
def test_search_leaves_no_trace_and_runs_in_eval_mode(through: str, guides: ModuleType) -> None:
    model, batch = Watched(tiny_denoiser()).train(), batch_of()
    objective = compress(through=through, iterations=3, steps=20)
    f = (
        objective._chain(batch)
        if through == "chain"
        else objective._call(*objective.noised(model, batch)[1:])
    )
    before = len(model.seen)
    delta = objective.displacement(f, model, batch)
    searched = model.seen[before:]
    assert searched == [(False, False)] * 3 * (3 if through == "chain" else 1)
    assert not delta.requires_grad
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(p.grad is None for p in guides.guide.parameters())
    objective.loss(model, batch).backward()
    assert model.seen[-1] == (True, True)
    assert all(p.grad is None for p in guides.guide.parameters())


# ------------------------------------------------------------------------------------- mistakes, and a run


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("compress", {}, "objective 'compress' is guided by a classifier. Set objective_options.guide"),
        ("compress", {"guide": GUIDE, "sampler": "ddmp"}, "unknown sampler 'ddmp'"),
        ("compress", {"guide": GUIDE, "as_error": True}, 'Set through = "call", or leave it out'),
        ("consistency", {"steps": 7}, "steps 7 does not divide 1000"),
        (
            "consistency",
            {"sampler": {"name": "ddpm", "options": {"variance": "learned"}}},
            'variance "learned" is not trained. Use "small"',
        ),
        ("consistency", {"eps": 0.1}, "objective 'consistency' has no option 'eps'"),
    ],
)
def test_wrong_options_are_one_sentence(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        make_objective(name, options)
    assert message in str(caught.value)


def table(name: str, **changes: Any) -> TrainingSpec:
    guide = {} if name == "consistency" else {"guide": "tests.unit.test_compressing:digits_guide"}
    content = {
        "objective": name,
        "objective_options": {"report_times": [100], "steps": 10, **guide},
        "data": {"name": "digits", "options": {"split": "train"}},
        "test_data": "digits",
        "network": {"name": "unet", "options": {"channels": [8], "blocks": [1], "embedding_size": 8}},
        "optimiser": {"updates": 4, "batch_size": 4, "lr": 2e-3},
        "checkpoint_updates": 2,
    }
    return validate({**content, **changes}, TrainingSpec, "test")


class Intensity(nn.Module):
    """A guide for ten digits: logits that are linear in the pixels, by no training; better than chance."""

    def __init__(self) -> None:
        super().__init__()
        from dbpkit import load_dataset

        data = load_dataset("digits", {"split": "train"})
        x, y = data.x().flatten(1), data.labels
        self.means = nn.Parameter(torch.stack([x[y == k].mean(dim=0) for k in range(10)]))

    def forward(self, x: Tensor) -> Tensor:
        return -(x.flatten(1)[:, None] - self.means).square().sum(dim=2)


def digits_guide() -> nn.Module:
    return Intensity()


@pytest.mark.parametrize("name", ["compress", "consistency"])
def test_train_interrupted_and_resumed_ends_with_the_same_weights(name: str, tmp_path: Path) -> None:
    cpu = Execution("cpu")
    whole = train(table(name), tmp_path / "whole", execution=cpu)
    assert whole.figures["term"]["mean"] > 0

    def stop(done: int, updates: int, loss: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(table(name), tmp_path / "resumed", stop, cpu)
    assert train(table(name), tmp_path / "resumed", execution=cpu).sha256 == whole.sha256


def test_train_with_dropout_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Dropout(0.1))
    with pytest.raises(UserError, match=r"other ones on each of two paths .* Set dropout = 0\.0"):
        Consistency().check(model, None, trained=False)  # type: ignore[arg-type]


def test_objectives_of_compression_are_registered() -> None:
    assert {"compress", "consistency"} <= set(objectives)
