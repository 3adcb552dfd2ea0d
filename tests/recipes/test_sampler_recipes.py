"""The recipes of samplers: their length, their formulas, and a newcomer's way with them."""

import importlib.util
import itertools
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from dbpkit.foundation.noise import NoisePlan
from dbpkit.purification.driver import Trace, drive, plainly
from dbpkit.purification.replay import Replay
from dbpkit.purification.samplers import Chain, samplers
from tests.oracles import GaussianDenoiser, tiny_denoiser, uniform
from tests.recipes.harness import ROOT, Recipe

ROUND_OFF = 1e-10
"""Float64 arithmetic of a few steps on values of order one."""

LENGTHS = {"sampler_dpm_solver": 30, "sampler_guided": 40}
NAMES = {"sampler_dpm_solver": "dpm_solver", "sampler_guided": "guided"}
each_recipe = pytest.mark.parametrize("recipe", list(LENGTHS))

SPEC = """
name = "recipe"
purifier = {{ sampler = "{sampler}", steps = 50 }}
attacks = [
    {{ name = "pgd", options = {{ iterations = 1, eot = 1 }} }},
    {{ name = "diffattack", options = {{ iterations = 1, eot = 1 }} }},
]
knowledge = ["white_box"]
examples = {{ count = 1, order = "file" }}
draws = {{ report = 1, select = 1 }}
"""


@contextmanager
def loaded(recipe: str) -> Iterator[type[Chain]]:
    """The sampler of a recipe, which no other test shall meet."""
    path = ROOT / "docs" / "recipes" / f"{recipe}.py"
    spec = importlib.util.spec_from_file_location(recipe, path)
    assert spec is not None
    assert spec.loader is not None
    samplers.get("ddpm")
    before = dict(samplers._parts)
    samplers._parts.pop(NAMES[recipe], None)
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        yield samplers.get(NAMES[recipe])
    finally:
        samplers._parts = before


@pytest.fixture
def solver() -> Iterator[type[Chain]]:
    with loaded("sampler_dpm_solver") as made:
        yield made


@pytest.fixture
def guided() -> Iterator[type[Chain]]:
    with loaded("sampler_guided") as made:
        yield made


# ------------------------------------------------------------------ a newcomer's way


@each_recipe
def test_recipe_is_short(plant: Callable[[str], Recipe], recipe: str) -> None:
    assert plant(recipe).lines <= LENGTHS[recipe]


@each_recipe
def test_recipe_is_listed_and_evaluated(plant: Callable[[str], Recipe], recipe: str) -> None:
    planted, name = plant(recipe), NAMES[recipe]
    listed = json.loads(planted.dbpkit("list", "samplers", "--json"))["samplers"]
    assert listed[name]
    spec = planted.folder / "recipe.toml"
    spec.write_text(SPEC.format(sampler=name), encoding="utf-8")
    planted.dbpkit("evaluate", str(spec), "--out", str(planted.folder / "run"), "--quiet")
    records = [
        json.loads(line)
        for line in (planted.folder / "run" / "records.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert records


@each_recipe
@pytest.mark.parametrize("tests", ["test_samplers.py", "test_gradients.py", "attacks/test_diffattack.py"])
def test_recipe_keeps_the_contract(plant: Callable[[str], Recipe], recipe: str, tests: str) -> None:
    plant(recipe).contract(f"tests/unit/{tests}", NAMES[recipe])


# ------------------------------------------------------------------ DPM-Solver++(2M)


def bumpy(x: Tensor, sigma: Tensor) -> Tensor:
    """A smooth denoiser that no sampler is exact for."""
    return 0.8 * torch.tanh(2 * x) + 0.1 * torch.sin(5 * x) - 0.1 * sigma


def test_solver_equals_algorithm_2_in_variance_preserving_terms(solver: type[Chain]) -> None:
    """Lines 3 to 9 of the algorithm, with alpha, sigma and lambda = log(alpha / sigma) of each time."""
    levels = [0.5, 0.37, 0.2, 0.11, 0.04]
    x, noise = uniform(2, 1, 3, 3, low=-1), NoisePlan.of(7, [4, 5])
    alphas = [1 / math.sqrt(1 + s**2) for s in levels]
    sigmas = [s / math.sqrt(1 + s**2) for s in levels]
    lambdas = [math.log(a / s) for a, s in zip(alphas, sigmas, strict=True)]
    state = alphas[0] * x + sigmas[0] * noise.normal("forward", 0, x)
    estimates: list[Tensor] = []
    for i in range(1, len(levels)):
        h = lambdas[i] - lambdas[i - 1]
        estimates.append(bumpy(state / alphas[i - 1], torch.tensor(levels[i - 1], dtype=x.dtype)))
        d = estimates[-1]
        if i > 1:
            r = (lambdas[i - 1] - lambdas[i - 2]) / h
            d = (1 + 1 / (2 * r)) * d - 1 / (2 * r) * estimates[-2]
        state = sigmas[i] / sigmas[i - 1] * state - alphas[i] * (math.exp(-h) - 1) * d
    last = bumpy(state / alphas[-1], torch.tensor(levels[-1], dtype=x.dtype))  # sigma = 0 is lambda = inf
    pure = drive(solver((*levels, 0.0)), bumpy, x, noise)
    torch.testing.assert_close(pure, last, rtol=0, atol=ROUND_OFF)


@pytest.mark.parametrize("variance", [0.01, 0.25, 1.0])
def test_solver_gaussian_data_jacobian_converges_at_second_order(
    solver: type[Chain], variance: float
) -> None:
    """To the flow down to level m, sqrt((v + m^2) / (v + s^2)), and the last estimate, v / (v + m^2)."""
    denoiser, noise = GaussianDenoiser(0.0, variance), NoisePlan.of(3, [5, 5])
    target = math.sqrt((variance + 0.02**2) / (variance + 0.5**2)) * denoiser.theta(0.02)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    errors = []
    for count in (50, 100, 200):
        levels = torch.logspace(math.log10(0.5), math.log10(0.02), count + 1, dtype=torch.float64)
        pure = drive(solver((*levels.tolist(), 0.0)), denoiser, ends, noise).flatten()
        errors.append(float(pure[1] - pure[0]) - target)
    assert abs(errors[-1]) > 1e-9  # far above round-off, so that the ratios mean something
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(4, abs=0.6)  # a method of first order has 2


def test_solver_without_its_memory_is_of_first_order(solver: type[Chain]) -> None:
    """So that the test above can fail: with the memory taken away the ratio is 2."""
    denoiser, noise = GaussianDenoiser(0.0, 0.25), NoisePlan.of(3, [5, 5])
    target = math.sqrt((0.25 + 0.02**2) / (0.25 + 0.5**2)) * denoiser.theta(0.02)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    errors = []
    for count in (100, 200):
        levels = torch.logspace(math.log10(0.5), math.log10(0.02), count + 1, dtype=torch.float64)
        forgetful = drive(
            solver((*levels.tolist(), 0.0)), denoiser, ends, noise, lambda step, state: step(state[:1])
        ).flatten()
        errors.append(float(forgetful[1] - forgetful[0]) - target)
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1)


def test_solver_deviation_is_that_of_its_images_and_not_of_its_memory(solver: type[Chain]) -> None:
    sampler = solver((0.4, 0.3, 0.2, 0.0))
    x, noise = uniform(2, 1, 3, 3, low=-1), NoisePlan.of(7, [4, 5])
    trace = Trace(sampler, plainly)
    pure = drive(sampler, bumpy, x, noise, trace)
    assert torch.equal(trace.images[-1], pure)
    assert [tuple(image.shape) for image in trace.images] == [(2, 1, 3, 3)] * 3
    expected = (pure - x).square().mean(dim=(1, 2, 3))  # one of three states, and its level is 0
    torch.testing.assert_close(trace.deviation(x, noise), expected, rtol=0, atol=ROUND_OFF)


# ------------------------------------------------------------------ guided DDPM of several rounds


def test_guided_equals_the_paper_in_variance_preserving_terms(guided: type[Chain]) -> None:
    """N(mean - s variance grad D, variance): mean and variance of Ho et al., the gradient by autograd."""
    levels, rounds, s = [0.5, 0.3, 0.1], 2, 3.0
    image, noise = uniform(2, 1, 3, 3, low=-1), NoisePlan.of(7, [4, 5])
    bars = [1 / (1 + level**2) for level in levels]
    x, i = image, 0
    for turn in range(rounds):
        state = math.sqrt(bars[0]) * x + math.sqrt(1 - bars[0]) * noise.normal("forward", turn, x)
        for j, (bar, level) in enumerate(zip(bars, levels, strict=True)):
            x = bumpy(state / math.sqrt(bar), torch.tensor(level, dtype=x.dtype)).clamp(-1, 1)
            if j + 1 < len(levels):
                alpha = bar / bars[j + 1]
                beta = 1 - alpha
                mean = math.sqrt(bars[j + 1]) * beta / (1 - bar) * x
                mean = mean + math.sqrt(alpha) * (1 - bars[j + 1]) / (1 - bar) * state
                draw = noise.normal("forward", rounds + i, x)
                leaf, target = (
                    state.clone().requires_grad_(),
                    math.sqrt(bar) * image + math.sqrt(1 - bar) * draw,
                )
                (grad,) = torch.autograd.grad((leaf - target).square().sum(), leaf)
                state = mean - s * beta * grad + math.sqrt(beta) * noise.normal("reverse", i, x)
            i += 1
    sampler: Any = guided
    pure = drive(sampler((*levels, 0.0), rounds=rounds, guidance=s), bumpy, image, noise)
    torch.testing.assert_close(pure, x, rtol=0, atol=ROUND_OFF)


def test_guided_more_guidance_ends_nearer_to_the_input(guided: type[Chain]) -> None:
    sampler: Any = guided
    image, noise = uniform(4, 1, 4, 4, low=-1), NoisePlan.of(7, range(4))
    gaps = [
        float(
            (
                drive(sampler((0.5, 0.3, 0.2, 0.1, 0.0), guidance=s), GaussianDenoiser(), image, noise)
                - image
            ).norm()
        )
        for s in (0.0, 1.0, 5.0)
    ]
    assert gaps[0] > gaps[1] > gaps[2]


def test_guided_rounds_cost_one_state_a_step_and_no_graph(guided: type[Chain]) -> None:
    """Bytes that autograd keeps of a forward pass without a budget, of 1, 2 and 4 rounds."""
    sampler: Any = guided
    denoiser = tiny_denoiser().requires_grad_(False)
    noise, totals = NoisePlan.of(3, [0, 1]), []
    weights = {p.untyped_storage().data_ptr() for p in denoiser.parameters()}
    for rounds in (1, 2, 4):
        x = uniform(2, 1, 8, 8).requires_grad_()
        chain, sizes = sampler((0.5, 0.3, 0.2, 0.1, 0.0), rounds=rounds), {}

        def weigh(saved: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            storage = saved.untyped_storage()
            if storage.data_ptr() not in weights:
                sizes[storage.data_ptr()] = storage.nbytes()
            return saved

        with torch.autograd.graph.saved_tensors_hooks(weigh, lambda saved: saved):
            pure = drive(chain, denoiser, x, noise, Replay(chain.steps, 0))
        totals.append(sum(sizes.values()) - (chain.steps - 1) * x.untyped_storage().nbytes())
        del pure
    assert totals[0] == totals[1] == totals[2]
