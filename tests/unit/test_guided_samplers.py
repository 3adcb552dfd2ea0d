"""GDMP, likelihood maximisation and several rounds, against loops written out in other units."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dbpkit.checks.levels import suspicious_grid
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.driver import drive
from dbpkit.purification.samplers import make_sampler, samplers
from dbpkit.purification.samplers.gdmp import gradient
from tests.oracles import GaussianDenoiser, tiny_denoiser, uniform

PLAN = NoisePlan.of(1, [2, 4])
DENOISER = GaussianDenoiser(0.1, 0.25)


def by_row(x: Tensor, sigma: Tensor) -> Tensor:
    """The same denoiser for a level per image."""
    return DENOISER(x, sigma[:, None, None, None])


def images() -> Tensor:
    """Two images in [-1, 1]."""
    return uniform(2, 1, 16, 16, low=-1, high=1)


def gdmp_by_hand(x: Tensor, levels: tuple[float, ...], guidance: float, on: str) -> Tensor:
    """Algorithm 1 of the paper in variance-preserving units, the ideal denoiser of Gaussian data inside."""
    m, v = DENOISER
    bars = [1 / (1 + s * s) for s in levels]
    state = math.sqrt(bars[0]) * x + math.sqrt(1 - bars[0]) * PLAN.normal("forward", 0, x)
    for i, (bar, after) in enumerate(itertools.pairwise(bars)):
        theta = bar * v / (bar * v + 1 - bar)
        x0 = theta * state / math.sqrt(bar) + (1 - theta) * m
        if after == 1:
            return x0
        beta = 1 - bar / after
        mean = (math.sqrt(after) * beta * x0 + math.sqrt(1 - beta) * (1 - after) * state) / (1 - bar)
        if on == "state":
            noised = math.sqrt(bar) * x + math.sqrt(1 - bar) * PLAN.normal("forward", i + 1, x)
            slope = 2 * (state - noised)
        else:
            slope = 2 * theta / math.sqrt(bar) * (x0 - x)
        scale = guidance * 3 * math.sqrt(1 - bar) / (math.sqrt(beta) * math.sqrt(bar))
        state = mean - scale * beta * slope + math.sqrt(beta) * PLAN.normal("reverse", i, x)
    raise AssertionError("the last level is 0")


@pytest.mark.parametrize("on", ["state", "estimate"])
@pytest.mark.parametrize("guidance", [0.0, 0.3, 1.0])
def test_gdmp_equals_the_algorithm_in_variance_preserving_units(guidance: float, on: str) -> None:
    sampler = make_sampler("gdmp", 0.1, 50, {"guidance": guidance, "compares": on, "clip": False})
    found = drive(sampler, DENOISER, images(), PLAN)
    torch.testing.assert_close(
        found, gdmp_by_hand(images(), sampler.levels, guidance, on), rtol=0, atol=1e-10
    )


def test_gdmp_without_guidance_is_ddpm_to_the_bit() -> None:
    without = drive(make_sampler("gdmp", 0.1, 50, {"guidance": 0}), tiny_denoiser(), images(), PLAN)
    assert torch.equal(without, drive(make_sampler("ddpm", 0.1, 50), tiny_denoiser(), images(), PLAN))


@pytest.mark.parametrize("distance", ["mse", "ssim"])
@pytest.mark.parametrize("on", ["state", "estimate"])
def test_gdmp_guidance_keeps_the_result_closer_to_the_image(distance: str, on: str) -> None:
    """Closer in mean square than without guidance, for every image."""
    x = images()
    far, near = (
        drive(
            make_sampler("gdmp", 0.3, 50, {"guidance": g, "distance": distance, "compares": on}),
            DENOISER,
            x,
            PLAN,
        )
        for g in (0.0, 0.01)
    )
    assert bool(((near - x).square().mean((1, 2, 3)) < (far - x).square().mean((1, 2, 3))).all())


SECOND_ORDER: list[tuple[str, dict[str, Any], int]] = [
    ("gdmp", {"compares": "estimate"}, 50),
    ("gdmp", {"compares": "estimate", "distance": "ssim"}, 50),
    ("gdmp", {"compares": "state", "distance": "ssim"}, 50),
    ("likelihood", {}, 2),
]


@pytest.mark.parametrize(("name", "options", "steps"), SECOND_ORDER)
@pytest.mark.parametrize("memory", [0, 2**30])
def test_gradient_has_the_second_order_term(
    name: str, options: dict[str, Any], steps: int, memory: int
) -> None:
    """Of a gradient inside the purification, replayed or kept: finite differences agree, and they see it."""
    purifier = Purifier(tiny_denoiser(), name, steps=steps, options=options, clamp=False, memory_bytes=memory)
    x, plan = uniform(1, 1, 4, 4, low=0.45, high=0.55), NoisePlan.of(0, [3])
    torch.autograd.gradcheck(lambda x: purifier(x, noise=plan), x.requires_grad_(), eps=1e-6, atol=1e-6)


def test_gradient_inside_a_step_has_the_same_bits_whether_it_is_differentiated_or_not() -> None:
    """torch takes another formula for SiLU's derivative where that must be differentiated itself."""
    x = uniform(2, 3, 16, 16, low=-1, high=1).float()
    asked = gradient(lambda v: torch.nn.functional.silu(5 * v).square().sum(), x.clone().requires_grad_())
    with torch.no_grad():
        judged = gradient(lambda v: torch.nn.functional.silu(5 * v).square().sum(), x)
    assert asked.requires_grad
    assert not judged.requires_grad
    assert torch.equal(asked, judged)


def test_likelihood_first_step_is_the_closed_form_of_gaussian_data() -> None:
    """D(x + s z) - x = (s^2 (m - x) + v s z) / (v + s^2), whose derivative in x is a number."""
    sampler = make_sampler("likelihood", 0.1, 1, {"drawn": False, "eps": 1.0, "step_size": 1 / 255})
    x, (m, v), s = images() / 2, DENOISER, sampler.levels[0]
    residual = (s * s * (m - x) + v * s * PLAN.normal("forward", 0, x)) / (v + s * s)
    slope = -residual  # times a positive number, which the norm takes out
    expected = x - 2 / 255 * slope / slope.abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(drive(sampler, by_row, x, PLAN), expected, rtol=0, atol=1e-12)


def test_likelihood_stays_in_the_ball_and_in_the_pixel_range_and_lowers_the_loss() -> None:
    x = images()
    sampler = make_sampler("likelihood", 0.2, 20, {"eps": 4 / 255})
    after = drive(sampler, by_row, x, PLAN)
    assert float((after - x).abs().max()) <= 8 / 255 + 1e-12
    assert float(after.abs().max()) <= 1
    assert bool(((after - DENOISER.mean).square().mean((1, 2, 3)) < (x - 0.1).square().mean((1, 2, 3))).all())


def test_likelihood_levels_are_drawn_between_the_ends_of_the_grid() -> None:
    seen: list[float] = []

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        seen.extend(sigma.tolist())
        return by_row(x, sigma)

    sampler = make_sampler("likelihood", 0.2, 30, grid={"lowest": 0.5})
    drive(sampler, denoiser, images(), PLAN)
    top = sampler.levels[0]
    assert 0.5 * top <= min(seen) < 0.6 * top < 0.9 * top < max(seen) <= top
    assert len(set(seen)) == 60


@pytest.mark.parametrize("inner", ["ddpm", "ddim", "vpsde", "gdmp"])
def test_multi_stage_of_one_whole_round_is_its_inner_sampler(inner: str) -> None:
    sampler = make_sampler("multi_stage", 0.1, 50, {"rounds": [[1.0, 1]], "inner": inner})
    alone = samplers.get(inner)(sampler.levels)
    found, expected = (drive(s, tiny_denoiser(), images(), PLAN) for s in (sampler, alone))
    assert torch.equal(found, expected)


def test_multi_stage_published_rounds_start_at_times_30_50_and_125() -> None:
    sampler: Any = make_sampler("multi_stage", 0.125, 1000)
    assert [inner.steps for inner in sampler._inners] == [31] * 4 + [51] * 2 + [126] * 2
    assert sampler.steps == 4 * 31 + 2 * 51 + 2 * 126


def test_multi_stage_compresses_by_the_product_of_its_rounds() -> None:
    """A round of ddpm has the Jacobian theta of its first level, whatever its noise."""
    options = {"rounds": [[0.4, 2], [1.0, 1]], "inner_options": {"clip": False}}
    sampler: Any = make_sampler("multi_stage", 0.1, 50, options)
    plan, x = NoisePlan.of(0, [1, 1]), torch.tensor([0.1, 0.2], dtype=torch.float64).reshape(2, 1, 1, 1)
    low, high = drive(sampler, GaussianDenoiser(0.0, 0.01), x, plan).flatten()
    product = math.prod(GaussianDenoiser(0.0, 0.01).theta(inner.levels[0]) for inner in sampler._inners)
    assert float(high - low) == pytest.approx(0.1 * product, rel=1e-9)


def test_multi_stage_rounds_have_noise_of_their_own() -> None:
    """Rounds that shared their noise would be correlated; each asks for it at another place."""
    seen: list[tuple[str, int]] = []

    class Watched:
        def normal(self, site: str, step: int, like: Tensor) -> Tensor:
            seen.append((site, step))
            return PLAN.normal(site, step, like)

    sampler = make_sampler("multi_stage", 0.1, 50, {"rounds": [[0.5, 3], [1.0, 2]], "inner": "gdmp"})
    drive(sampler, DENOISER, images(), Watched())  # type: ignore[arg-type]
    assert len(seen) == len(set(seen)) > 30


@pytest.mark.parametrize("steps", [1000, 10])
def test_multi_stage_says_which_rounds_fall_together_on_a_coarse_grid(steps: int) -> None:
    """Times 30, 50 and 125 of 1000; with 10 steps levels are 100 apart."""
    sampler: Any = make_sampler("multi_stage", 0.125, steps)
    flags = suspicious_grid("multi_stage", sampler.steps, sampler)
    assert len(set(sampler.starts)) == (3 if steps == 1000 else 2)
    assert [f.name for f in flags] == ([] if steps == 1000 else ["suspicious_grid"])
    assert steps == 1000 or "start at 0.24 and 0.4 of t* start at the same level" in flags[0].message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rounds": []}, "pairs of a share of t"),
        ({"rounds": [[1.5, 1]]}, "pairs of a share of t"),
        ({"rounds": [[0.5, 0]]}, "pairs of a share of t"),
        ({"rounds": [[0.5, 2000]]}, "1,000 rounds at most"),
        ({"inner": "multi_stage"}, "must be a sampler of one round"),
        ({"inner": "ddmp"}, "unknown sampler 'ddmp'"),
        ({"inner_options": {"etta": 1}}, "inner sampler 'ddpm' has no option 'etta'"),
    ],
)
def test_multi_stage_wrong_options_are_one_sentence(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_sampler("multi_stage", options=options)
