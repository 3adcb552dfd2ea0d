"""Samplers against the closed forms of Gaussian data, against diffusers, and at their seam.

For x0 ~ N(mean, v I) the ideal denoiser is affine, so every sampler is, and the noise of a step only shifts
the result: its input Jacobian is a number. One step from level s to s' multiplies the state by
(v + s'^2) / (v + s^2) in ``ddpm`` and by (v + s s') / (v + s^2) in ``ddim``; the flow dx/ds = x s / (v + s^2)
by sqrt((v + s'^2) / (v + s^2)). With theta = v / (v + s0^2), the Jacobian of a whole purification is theta
for any ``ddpm`` grid and tends to sqrt(theta) for the flow.
"""

import ast
import inspect
import io
import itertools
import math
import sys
import tokenize
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.types import State
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.driver import drive
from dbpkit.purification.samplers import REVERSE_SITES, Chain, Method, make_sampler, samplers
from tests.oracles import (
    CountingDenoiser,
    GaussianDenoiser,
    case_name,
    few_steps,
    golden,
    sampler_cases,
    tiny_denoiser,
    uniform,
)

ROUND_OFF = 1e-10
"""Float64 arithmetic of at most a few hundred steps on values of order one."""
VARIANCES = (0.01, 0.25, 1.0)
CASES = sampler_cases()
each_sampler = pytest.mark.parametrize(("name", "options"), CASES, ids=case_name)


def passive(x: Tensor, sigma: Tensor) -> Tensor:
    """A denoiser that takes every image for clean."""
    return x


def tripled(x: Tensor, sigma: Tensor) -> Tensor:
    """A denoiser whose estimates leave [-1, 1]."""
    return 3 * x


def jacobian(purifier: Purifier, mean: float = 0.0) -> float:
    """The purifier's input Jacobian, after checking that it is a multiple of the identity."""
    x = (1 + mean + uniform(1, 1, 2, 2, low=-0.1, high=0.1)) / 2
    noise = NoisePlan.of(3, [5])
    matrix = torch.autograd.functional.jacobian(lambda x: purifier(x, noise=noise), x).reshape(4, 4)
    torch.testing.assert_close(
        matrix, matrix[0, 0] * torch.eye(4, dtype=matrix.dtype), rtol=0, atol=ROUND_OFF
    )
    return float(matrix[0, 0])


def on_grid(name: str, levels: Tensor, **options: Any) -> Chain:
    """A registered sampler on a grid of the test's own."""
    return samplers.get(name)(tuple(levels.tolist()), **options)


def levels_of(name: str, steps: int, **grid: Any) -> Tensor:
    """The noise levels of a sampler's own grid."""
    return torch.tensor(make_sampler(name, 0.1, steps, grid=grid).levels, dtype=torch.float64)


def slope(name: str, levels: Tensor, denoiser: GaussianDenoiser, **options: Any) -> float:
    """The Jacobian of a sampler on a grid of the test's own; exact, because the sampler is affine."""
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    noise = NoisePlan.of(3, [5, 5])  # one example twice, so that both ends meet the same noise
    pure = drive(on_grid(name, levels, **options), denoiser, ends, noise).flatten()
    return float(pure[1] - pure[0])


@pytest.fixture
def module() -> Iterator[ModuleType]:
    """A module of the user's own, for import paths."""
    made = ModuleType("users_samplers")
    sys.modules[made.__name__] = made
    yield made
    del sys.modules[made.__name__]


# ------------------------------------------------------------------ Jacobian of Gaussian data (spec 4.4)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("kind", ["large", "small"])
@pytest.mark.parametrize("steps", [50, 100, 200, 500, 1000])
def test_ddpm_gaussian_data_jacobian_is_theta_for_any_steps(steps: int, kind: str, variance: float) -> None:
    denoiser = GaussianDenoiser(0.1, variance)
    options = {"variance": kind, "clip": False}
    purifier = Purifier(denoiser, "ddpm", steps=steps, options=options, clamp=False)
    bar = golden("step_grids")["forward_at_100"]["alpha_bar"]
    theta = bar * variance / (bar * variance + 1 - bar)
    assert jacobian(purifier, 0.1) == pytest.approx(theta, rel=1e-4)  # alpha_bar is published to five digits
    assert jacobian(purifier, 0.1) == pytest.approx(denoiser.theta(purifier.sampler.levels[0]), abs=ROUND_OFF)


@pytest.mark.parametrize("variance", VARIANCES)
def test_one_step_gaussian_data_jacobian_is_theta(variance: float) -> None:
    denoiser = GaussianDenoiser(0.1, variance)
    purifier = Purifier(denoiser, "one_step", options={"clip": False}, clamp=False)
    assert jacobian(purifier, 0.1) == pytest.approx(denoiser.theta(purifier.sampler.levels[0]), abs=ROUND_OFF)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("steps", [50, 1000])
def test_reverse_only_gaussian_data_jacobian_is_theta_over_root_alpha_bar(
    steps: int, variance: float
) -> None:
    """The unscaled image is the variance-preserving state, so it is divided by sqrt(alpha_bar)."""
    denoiser = GaussianDenoiser(0.1, variance)
    purifier = Purifier(denoiser, "reverse_only", steps=steps, options={"clip": False}, clamp=False)
    sigma = purifier.sampler.levels[0]
    assert jacobian(purifier) == pytest.approx(denoiser.theta(sigma) * math.sqrt(1 + sigma**2), abs=ROUND_OFF)


@pytest.mark.parametrize("steps", [50, 1000])
def test_reverse_only_scaled_gaussian_data_jacobian_is_theta(steps: int) -> None:
    denoiser = GaussianDenoiser()
    options = {"clip": False, "scaled": True}
    purifier = Purifier(denoiser, "reverse_only", steps=steps, options=options, clamp=False)
    assert jacobian(purifier) == pytest.approx(denoiser.theta(purifier.sampler.levels[0]), abs=ROUND_OFF)


@pytest.mark.parametrize("variance", VARIANCES)
def test_vpsde_published_grid_gaussian_data_jacobian_is_theta_to_its_step(variance: float) -> None:
    """The first-order error of steps of 1 / 1000 is up to 0.003; the next test shows that it vanishes."""
    denoiser = GaussianDenoiser(0.1, variance)
    purifier = Purifier(denoiser, "vpsde", steps=1000)
    assert jacobian(purifier, 0.1) == pytest.approx(denoiser.theta(purifier.sampler.levels[0]), abs=3e-3)


@pytest.mark.parametrize("variance", VARIANCES)
def test_vpsde_finer_grids_gaussian_data_jacobian_tends_to_theta_at_first_order(variance: float) -> None:
    """Euler-Maruyama on grids of equal steps 1 / S has the error c / S + O(1 / S^2)."""
    denoiser = GaussianDenoiser(0.0, variance)
    errors = []
    for steps in (1000, 2000, 4000):
        levels = torch.tensor(
            make_sampler("vpsde", 0.1, steps, grid={"t_last": 1 / steps}).levels, dtype=torch.float64
        )
        errors.append(slope("vpsde", levels, denoiser) - denoiser.theta(float(levels[0])))
    assert 1e-6 < abs(errors[-1]) < 1e-3  # far above round-off, so that the ratios mean something
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("count", golden("ddim_compression")["jacobian"])
def test_ddim_listed_steps_gaussian_data_jacobian_matches_published_digits(count: str) -> None:
    """The values belong to the indices round(linspace(99, 0, K)) and then level 0; see the golden file."""
    listed = golden("ddim_compression")
    bars = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))
    kept = bars[np.linspace(listed["first_index"], 0, int(count)).round().astype(int)]
    levels = torch.tensor([*np.sqrt((1 - kept) / kept), 0.0])
    found = slope("ddim", levels, GaussianDenoiser(0.0, listed["variance"]), clip=False)
    assert found == pytest.approx(listed["jacobian"][count], abs=5e-4)  # half a unit of the last digit


@pytest.mark.parametrize("variance", VARIANCES)
def test_ddim_one_step_gaussian_data_jacobian_is_theta(variance: float) -> None:
    denoiser = GaussianDenoiser(0.0, variance)
    levels = torch.tensor([0.3, 0.0], dtype=torch.float64)
    assert slope("ddim", levels, denoiser, clip=False) == pytest.approx(denoiser.theta(0.3), abs=ROUND_OFF)


@pytest.mark.parametrize("variance", VARIANCES)
def test_ddim_finer_grids_gaussian_data_jacobian_tends_to_root_theta_at_first_order(variance: float) -> None:
    denoiser = GaussianDenoiser(0.0, variance)
    target = math.sqrt(denoiser.theta(0.35))
    errors = [
        slope("ddim", torch.linspace(0.35, 0, count + 1, dtype=torch.float64), denoiser, clip=False) - target
        for count in (250, 500, 1000)
    ]
    assert abs(errors[-1]) < 1e-3
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("variance", VARIANCES)
def test_heun_published_grid_gaussian_data_jacobian_is_root_theta(variance: float) -> None:
    denoiser = GaussianDenoiser(0.1, variance)
    purifier = Purifier(denoiser, "heun", steps=50, grid={"sigma_max": 0.5}, clamp=False)
    assert jacobian(purifier, 0.1) == pytest.approx(math.sqrt(denoiser.theta(0.5)), abs=1e-3)


@pytest.mark.parametrize("variance", VARIANCES)
def test_heun_finer_grids_gaussian_data_jacobian_converges_at_second_order(variance: float) -> None:
    """To the flow down to sigma_min, sqrt((v + m^2) / (v + s^2)), and Euler's last step, v / (v + m^2)."""
    denoiser = GaussianDenoiser(0.0, variance)
    target = math.sqrt((variance + 0.002**2) / (variance + 0.5**2)) * denoiser.theta(0.002)
    errors = []
    for steps in (25, 50, 100):
        levels = torch.tensor(
            make_sampler("heun", steps=steps, grid={"sigma_max": 0.5}).levels, dtype=torch.float64
        )
        errors.append(slope("heun", levels, denoiser) - target)
    assert abs(errors[-1]) > 1e-8
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(4, abs=0.6)  # 4 + O(1 / steps); a first-order method has 2


# ------------------------------------------------------------------ distribution of the purified image


def posterior_recursion(times: list[int], variance: float, kind: str, start: float) -> float:
    """Variance of the ``ddpm`` output, in the variance-preserving terms of Ho et al. 2020.

    ``start`` is the variance of the image that is purified; the state at time t is
    sqrt(alpha_bar) x + sqrt(1 - alpha_bar) z. Equation 7: the next mean is a x0 + b x_t, and here x0 is
    sqrt(alpha_bar) v / (alpha_bar v + 1 - alpha_bar) x_t.
    """
    bars = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))
    total = bars[times[0]] * start + 1 - bars[times[0]]
    for t, after in zip(times, [*times[1:], None], strict=True):
        bar, bar_next = bars[t], 1.0 if after is None else bars[after]
        alpha = bar / bar_next
        beta = 1 - alpha
        x0 = math.sqrt(bar) * variance / (bar * variance + 1 - bar)
        keep = math.sqrt(bar_next) * beta / (1 - bar) * x0 + math.sqrt(alpha) * (1 - bar_next) / (1 - bar)
        drawn = beta if kind == "large" else beta * (1 - bar_next) / (1 - bar)
        total = keep**2 * total + (0 if after is None else drawn)
    return total


@pytest.mark.parametrize("kind", ["large", "small"])
@pytest.mark.parametrize(("steps", "stride"), [(50, 20), (200, 5)])
def test_ddpm_fixed_image_has_the_derived_mean_and_variance(kind: str, steps: int, stride: int) -> None:
    """Mean m + theta (x - m); five standard errors of mean and variance over independent pixels."""
    count, x, denoiser = 40_000, 0.4, GaussianDenoiser(-0.2, 0.05)
    sampler = make_sampler("ddpm", 0.1, steps, {"variance": kind, "clip": False})
    image = torch.full((1, 1, 200, 200), x, dtype=torch.float64)
    pure = drive(sampler, denoiser, image, NoisePlan.of(1, [0])).flatten()
    variance = posterior_recursion(list(range(100, -1, -stride)), 0.05, kind, 0.0)
    mean = -0.2 + denoiser.theta(sampler.levels[0]) * (x + 0.2)
    assert float(pure.mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / count))
    assert float(pure.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / count))
    assert stats.kstest(pure.numpy(), "norm", args=(mean, math.sqrt(variance))).pvalue > 1e-3


def test_ddpm_variance_kinds_at_few_steps_are_told_apart_by_the_test_above() -> None:
    """The two variances differ by far more than the 3.5 % that the test above tolerates."""
    small, large = (posterior_recursion([100, 80, 60, 40, 20, 0], 0.05, k, 0.0) for k in ("small", "large"))
    assert large / small > 1.2


@pytest.mark.parametrize("kind", ["large", "small"])
def test_ddpm_gaussian_data_with_many_steps_keeps_the_data_distribution(kind: str) -> None:
    """With the ideal denoiser and small steps the reverse chain ends in the data's own distribution.

    The images are the quantiles of the data, so that they carry no sampling error of their own.
    """
    count, variance = 40_000, 0.05
    data = stats.norm.ppf((np.arange(count) + 0.5) / count, loc=-0.2, scale=math.sqrt(variance))
    image = torch.from_numpy(data).reshape(1, 1, 200, 200)
    sampler = make_sampler("ddpm", 0.1, 1000, {"variance": kind, "clip": False})
    pure = drive(sampler, GaussianDenoiser(-0.2, variance), image, NoisePlan.of(1, [0]))
    derived = posterior_recursion(list(range(100, -1, -1)), variance, kind, variance)
    assert derived == pytest.approx(variance, rel=0.05)  # the chain's own O(1 / steps)
    assert float(pure.var()) == pytest.approx(derived, rel=5 * math.sqrt(2 / count))
    assert float(pure.mean()) == pytest.approx(-0.2, abs=5 * math.sqrt(variance / count))


def test_heun_fixed_noise_equals_the_closed_form_flow() -> None:
    """x(0) = m + sqrt(v / (v + s^2)) (x + s z - m) in the limit; the published grid is 1e-3 away from it."""
    x, noise = uniform(2, 1, 4, 4, low=-0.5, high=0.5), NoisePlan.of(2, [8, 9])
    sampler = make_sampler("heun", steps=50, grid={"sigma_max": 0.5})
    pure = drive(sampler, GaussianDenoiser(0.1, 0.25), x, noise)
    z = noise.normal("forward", 0, x)
    expected = 0.1 + math.sqrt(0.25 / (0.25 + 0.5**2)) * (x + 0.5 * z - 0.1)
    torch.testing.assert_close(pure, expected, rtol=0, atol=1e-3)


def test_heun_churn_of_a_passive_denoiser_adds_the_published_variance() -> None:
    """D(x, sigma) = x makes the flow stand still: what remains is the forward draw and 37 churns.

    A churn at level s draws with variance ((1.12 s)^2 - s^2) 1.007^2.
    """
    published = golden("step_grids")["edm"]
    sampler = make_sampler(
        "heun", steps=50, options={"churn": float(published["churn"])}, grid={"sigma_max": 0.5}
    )
    x, noise = uniform(1, 1, 50, 50, low=-1, high=1), NoisePlan.of(2, [8])
    pure = drive(sampler, passive, x, noise)
    churned = [(i, s) for i, s in enumerate(sampler.levels[:-1]) if 0.01 <= s <= 0.46]
    assert len(churned) == published["churned_steps"]
    expected = x + 0.5 * noise.normal("forward", 0, x)
    for i, s in churned:
        std = s * math.sqrt((1 + published["gamma"]) ** 2 - 1) * published["churn_noise"]
        expected = expected + std * noise.normal("churn", i, x)
    torch.testing.assert_close(pure, expected, rtol=0, atol=ROUND_OFF)


def test_heun_churn_at_its_limit_raises_the_level_by_root_two() -> None:
    """gamma = min(churn / steps, sqrt(2) - 1): one churn then adds the variance of the level itself."""
    levels = torch.tensor([0.4, 0.0], dtype=torch.float64)
    x, noise = torch.zeros(1, 1, 3, 3, dtype=torch.float64), NoisePlan.of(2, [8])
    pure = drive(on_grid("heun", levels, churn=100.0, churn_noise=1.0), passive, x, noise)
    expected = 0.4 * noise.normal("forward", 0, x) + 0.4 * noise.normal("churn", 0, x)
    torch.testing.assert_close(pure, expected, rtol=0, atol=ROUND_OFF)


# ------------------------------------------------------------------ diffusers as an independent reference


def bumpy(x: Tensor, sigma: Tensor) -> Tensor:
    """A denoiser that leaves [-1, 1] for many pixels, so that clipping shows."""
    return 1.4 * torch.tanh(2 * x) + 0.3 * torch.sin(5 * x) - sigma


class Injected:
    """Stands in for diffusers' generator: hands out the plan's draws, one per call."""

    def __init__(self, noise: NoisePlan, x: Tensor) -> None:
        self.draws: Iterator[Tensor] = (noise.normal("reverse", i, x) for i in range(1000))

    def __call__(self, *_: Any, **__: Any) -> Tensor:
        return next(self.draws)


def in_float64(scheduler: Any) -> Any:
    """Recomputes the scheduler's cumulative products in float64; the rest follows the input's type."""
    betas = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    torch.testing.assert_close(
        scheduler.alphas_cumprod.double(), torch.cumprod(1 - betas, 0), rtol=1e-4, atol=0
    )
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    return scheduler


def vp_noise(state: Tensor, bar: Tensor) -> Tensor:
    """The noise prediction that belongs to ``bumpy``, for a variance-preserving state."""
    x0 = bumpy(state / bar.sqrt(), ((1 - bar) / bar).sqrt())
    return (state - bar.sqrt() * x0) / (1 - bar).sqrt()


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("kind", ["large", "small"])
@pytest.mark.parametrize("steps", [50, 200, 1000])
def test_ddpm_same_noise_matches_diffusers(
    steps: int, kind: str, clip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")
    scheduler = in_float64(
        module.DDPMScheduler(beta_schedule="linear", variance_type=f"fixed_{kind}", clip_sample=clip)
    )
    scheduler.set_timesteps(steps)
    x, noise = uniform(2, 1, 3, 3, low=-1, high=1), NoisePlan.of(7, [4, 5])
    monkeypatch.setattr(module, "randn_tensor", Injected(noise, x))
    bar = scheduler.alphas_cumprod[100]
    state = bar.sqrt() * x + (1 - bar).sqrt() * noise.normal("forward", 0, x)
    for t in scheduler.timesteps[round(0.9 * steps) - 1 :]:
        state = scheduler.step(vp_noise(state, scheduler.alphas_cumprod[t]), t, state).prev_sample
    sampler = make_sampler("ddpm", 0.1, steps, {"variance": kind, "clip": clip})
    pure = drive(sampler, bumpy, x, noise)
    torch.testing.assert_close(pure, state, rtol=0, atol=ROUND_OFF)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [50, 200, 1000])
def test_ddim_same_noise_matches_diffusers(
    steps: int, eta: float, clip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pytest.importorskip("diffusers.schedulers.scheduling_ddim")
    scheduler = in_float64(
        module.DDIMScheduler(beta_schedule="linear", clip_sample=clip, set_alpha_to_one=True)
    )
    scheduler.set_timesteps(steps)
    x, noise = uniform(2, 1, 3, 3, low=-1, high=1), NoisePlan.of(7, [4, 5])
    monkeypatch.setattr(module, "randn_tensor", Injected(noise, x))
    bar = scheduler.alphas_cumprod[100]
    state = bar.sqrt() * x + (1 - bar).sqrt() * noise.normal("forward", 0, x)
    for t in scheduler.timesteps[round(0.9 * steps) - 1 :]:
        state = scheduler.step(vp_noise(state, scheduler.alphas_cumprod[t]), t, state, eta=eta).prev_sample
    sampler = make_sampler("ddim", 0.1, steps, {"eta": eta, "clip": clip})
    pure = drive(sampler, bumpy, x, noise)
    torch.testing.assert_close(pure, state, rtol=0, atol=ROUND_OFF)


def test_vpsde_same_noise_matches_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published pipeline: diffusers' predictor on t = 0.101 ... 0.001, returning the last mean."""
    module = pytest.importorskip("diffusers.schedulers.deprecated.scheduling_sde_vp")
    scheduler = module.ScoreSdeVpScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(1000)
    x, noise = uniform(2, 1, 3, 3, low=-1, high=1), NoisePlan.of(7, [4, 5])
    monkeypatch.setattr(module, "randn_tensor", Injected(noise, x))
    times = torch.linspace(1, 1e-3, 1000, dtype=torch.float64)[899:]
    bars = torch.exp(-(0.1 * times + 19.9 * times**2 / 2))
    state = bars[0].sqrt() * x + (1 - bars[0]).sqrt() * noise.normal("forward", 0, x)
    mean = state
    for t, bar in zip(times, bars, strict=True):
        state, mean = scheduler.step_pred(vp_noise(state, bar), state, t)
    sampler = make_sampler("vpsde", 0.1, 1000)
    pure = drive(sampler, bumpy, x, noise)
    torch.testing.assert_close(pure, mean, rtol=0, atol=1e-8)  # 1 - exp(-B) loses eight digits at t = 0.001


def test_vpsde_corrector_one_step_matches_the_published_formula() -> None:
    """state + size score + sqrt(2 size) z, size = (0.16 |z| / |score|)^2 * 2 (1 - beta / 1000)."""
    levels = torch.tensor([0.3, 0.0], dtype=torch.float64)
    x, noise, denoiser = (
        uniform(2, 1, 3, 3, low=-1, high=1),
        NoisePlan.of(7, [4, 5]),
        GaussianDenoiser(0.1, 0.25),
    )
    bar = 1 / (1 + 0.3**2)
    time = (math.sqrt(0.1**2 + 2 * 19.9 * math.log(1 + 0.3**2)) - 0.1) / 19.9  # B(t) = -log alpha_bar
    beta = 0.1 + 19.9 * time

    def score(state: Tensor) -> Tensor:
        """Of N(sqrt(bar) m, bar v + 1 - bar), the distribution of the states."""
        return -(state - math.sqrt(bar) * 0.1) / (bar * 0.25 + 1 - bar)

    state = math.sqrt(bar) * x + math.sqrt(1 - bar) * noise.normal("forward", 0, x)
    z = noise.normal("corrector", 0, x)
    rows = []
    for b in range(2):
        size = (0.16 * z[b].norm() / score(state)[b].norm()) ** 2 * 2 * (1 - beta / 1000)
        rows.append(state[b] + size * score(state)[b] + (2 * size).sqrt() * z[b])
    state = torch.stack(rows)
    expected = state + (beta * state / 2 + beta * score(state)) * time
    pure = drive(on_grid("vpsde", levels, corrector_steps=1), denoiser, x, noise)
    torch.testing.assert_close(pure, expected, rtol=0, atol=ROUND_OFF)


@pytest.mark.parametrize("steps", [50, 1000])
def test_ddim_eta_1_unclipped_equals_ddpm_of_small_variance(steps: int) -> None:
    """Song et al. 2021, section 4.1."""
    x, noise = uniform(2, 1, 3, 3, low=-1, high=1), NoisePlan.of(7, [4, 5])
    pure = []
    for name, options in (
        ("ddim", {"eta": 1.0, "clip": False}),
        ("ddpm", {"variance": "small", "clip": False}),
    ):
        sampler = make_sampler(name, 0.1, steps, options)
        pure.append(drive(sampler, bumpy, x, noise))
    torch.testing.assert_close(pure[0], pure[1], rtol=0, atol=ROUND_OFF)


def test_one_step_clip_limits_the_estimate() -> None:
    x, noise = uniform(1, 1, 8, 8, low=-1, high=1), NoisePlan.of(7, [4])
    unclipped, clipped = (
        drive(s, bumpy, x, noise)
        for s in (make_sampler("one_step", options={"clip": clip}) for clip in (False, True))
    )
    assert float(unclipped.abs().max()) > 1
    assert torch.equal(clipped, unclipped.clamp(-1, 1))


# ------------------------------------------------------------------ cost


@pytest.mark.parametrize(
    ("name", "options", "grid", "steps", "calls"),
    [
        ("ddpm", {}, {}, 1000, 101),
        ("ddpm", {}, {}, 50, 6),
        ("ddim", {}, {}, 100, 11),
        ("reverse_only", {}, {}, 1000, 101),
        ("one_step", {}, {}, 1000, 1),
        ("heun", {}, {"sigma_max": 0.5}, 50, 99),
        ("heun", {"churn": 6.0}, {"sigma_max": 0.5}, 50, 99),
        ("vpsde", {}, {}, 1000, 101),
        ("vpsde", {"corrector_steps": 1}, {}, 1000, 202),
    ],
)
def test_sampler_published_settings_call_the_network_as_often_as_published(
    name: str, options: dict[str, Any], grid: dict[str, Any], steps: int, calls: int
) -> None:
    denoiser = CountingDenoiser(GaussianDenoiser())
    purifier = Purifier(denoiser, name, steps=steps, options=options, grid=grid)
    purifier(uniform(1, 1, 1, 1), noise=NoisePlan.of(0, [0]))
    assert denoiser.calls == calls


# ------------------------------------------------------------------ the seam: every registered sampler


def purified(name: str, options: dict[str, Any], x: Tensor, noise: NoisePlan) -> Tensor:
    """The sampler's output with a tiny network, in [-1, 1] units and unclamped."""
    sampler = make_sampler(name, 0.1, few_steps(name), options)
    return drive(sampler, tiny_denoiser(), x, noise)


@each_sampler
def test_sampler_same_plan_gives_the_same_images(name: str, options: dict[str, Any]) -> None:
    x, noise = uniform(3, 1, 4, 4, low=-1, high=1), NoisePlan.of(1, [2, 4, 8])
    first = purified(name, options, x, noise)
    assert first.shape == x.shape
    assert bool(first.isfinite().all())
    assert torch.equal(first, purified(name, options, x, noise))
    assert not torch.equal(first, purified(name, options, x, noise.at(1)))


@each_sampler
def test_sampler_rows_do_not_depend_on_the_batch(name: str, options: dict[str, Any]) -> None:
    """Up to the rounding of a convolution that is cut otherwise."""
    x, noise = uniform(3, 1, 4, 4, low=-1, high=1), NoisePlan.of(1, [2, 4, 8])
    whole = purified(name, options, x, noise)
    for index in ([0], [2, 1]):
        part = purified(name, options, x[index], noise.rows(index))
        torch.testing.assert_close(part, whole[index], rtol=0, atol=ROUND_OFF)


@each_sampler
def test_sampler_draws_from_the_sites_it_declares_and_no_others(name: str, options: dict[str, Any]) -> None:
    """Sharing all declared sites removes all randomness; leaving one of them out does not."""
    x, source = uniform(1, 1, 4, 4, low=-1, high=1), NoisePlan.of(1, [2])
    sites = make_sampler(name, 0.1, few_steps(name), options).sites
    expected = purified(name, options, x, source)
    other = source.on("attack").at(5)
    assert torch.equal(purified(name, options, x, other.sharing(sites, source)), expected)
    for site in sites:
        assert not torch.equal(purified(name, options, x, other.sharing(sites - {site}, source)), expected)


@each_sampler
def test_sampler_batch_of_another_length_than_the_plan_raises(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="noise plan of 2 examples was used on a batch of 3"):
        purified(name, options, uniform(3, 1, 4, 4), NoisePlan.of(1, [2, 4]))


@each_sampler
def test_sampler_every_random_step_goes_through_the_hook(name: str, options: dict[str, Any]) -> None:
    """A hook that runs each step twice and keeps the second result must change nothing: steps replay."""
    sampler = make_sampler(name, 0.1, few_steps(name), options)
    x, noise, denoiser = (
        uniform(2, 1, 4, 4, low=-1, high=1),
        NoisePlan.of(1, [2, 4]),
        CountingDenoiser(tiny_denoiser()),
    )
    expected = drive(sampler, denoiser, x, noise)
    calls, denoiser.calls, steps = denoiser.calls, 0, 0

    def twice(step: Callable[[State], State], state: State) -> State:
        nonlocal steps
        steps += 1
        step(state)
        return step(state)

    assert torch.equal(drive(sampler, denoiser, x, noise, twice), expected)
    assert steps == sampler.steps
    assert denoiser.calls == 2 * calls


@each_sampler
def test_sampler_levels_decrease_to_zero_from_the_level_of_t_star(name: str, options: dict[str, Any]) -> None:
    deep, shallow = (make_sampler(name, t, 100, options).levels for t in (0.3, 0.1))
    for levels in (deep, shallow):
        assert all(after < before for before, after in itertools.pairwise(levels))
        assert levels[-1] == 0
    assert deep[0] > 2 * shallow[0]


@each_sampler
def test_sampler_unknown_option_raises_with_the_known_ones(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"sampler '{name}' has no option 'etta'. Available: "):
        make_sampler(name, options={**options, "etta": 1})


@each_sampler
def test_sampler_unknown_grid_option_raises(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"the grid of sampler '{name}' has no option 'rhoo'. Available: "):
        make_sampler(name, options=options, grid={"rhoo": 1})


@pytest.mark.parametrize("reserved", ["noise", "step", "x", "levels", "denoiser"])
def test_sampler_reserved_argument_as_option_raises(reserved: str) -> None:
    with pytest.raises(UserError, match=f"sampler 'ddpm' has no option '{reserved}'"):
        make_sampler("ddpm", options={reserved: 1})


@pytest.mark.parametrize("name", list(samplers))
@pytest.mark.parametrize(("reserved", "value"), [("t_star", 0.2), ("steps", 100)])
def test_sampler_reserved_argument_in_the_grid_raises(name: str, reserved: str, value: float) -> None:
    """Otherwise a grid option would quietly win over the t* and the steps that a report shows."""
    with pytest.raises(UserError, match=f"the grid of sampler '{name}'.*'{reserved}'"):
        make_sampler(name, 0.1, few_steps(name), grid={reserved: value})


def test_sampler_unknown_name_raises_with_nearest() -> None:
    with pytest.raises(
        UserError, match=r"unknown sampler 'ddmp'\. Did you mean 'ddpm'\? Available: ddim, ddpm, gdmp"
    ):
        make_sampler("ddmp")


@pytest.mark.parametrize("name", ["ddpm", "reverse_only"])
def test_sampler_unknown_variance_raises(name: str) -> None:
    with pytest.raises(
        UserError, match=rf"sampler '{name}': variance must be 'large', 'small' or 'learned', not 'medium'"
    ):
        make_sampler(name, 0.1, 50, {"variance": "medium"})
    with pytest.raises(UserError, match="variance must be 'large', 'small' or 'learned', not 'medium'"):
        on_grid(name, torch.tensor([0.3, 0.0]), variance="medium")


def test_sampler_users_function_by_import_path_runs_on_the_discrete_grid(module: ModuleType) -> None:
    def halve(
        denoiser: Any, x: Tensor, levels: Tensor, *, noise: NoisePlan, step: Any, factor: float = 2
    ) -> Tensor:
        return step(lambda x: x / factor, x)

    module.halve = halve
    x, noise = uniform(1, 1, 2, 2), NoisePlan.of(0, [0])
    sampler = make_sampler("users_samplers:halve", 0.1, 50, {"factor": 4})
    assert len(sampler.levels) - 1 == 6
    assert sampler.sites == REVERSE_SITES | {"forward"}
    assert torch.equal(drive(sampler, bumpy, x, noise), x / 4)
    with pytest.raises(UserError, match=r"has no option 'noise'\. Available: factor\."):
        make_sampler("users_samplers:halve", options={"noise": 1})


@pytest.mark.parametrize("levels", [[0.3, 0.1], [0.3, 0.3, 0.0], [0.1, 0.3, 0.0], [0.0], [], [[0.3, 0.0]]])
def test_sampler_users_levels_not_decreasing_to_zero_raise(module: ModuleType, levels: list[Any]) -> None:
    module.broken = type(
        "Broken", (samplers.get("ddpm"),), {"grid": staticmethod(lambda **_: torch.tensor(levels))}
    )
    with pytest.raises(UserError, match="noise levels must decrease strictly to 0"):
        make_sampler("users_samplers:broken")


def test_sampler_users_function_is_told_to_become_a_chain(module: ModuleType) -> None:
    module.halve = lambda denoiser, x, levels, *, noise, step: step(lambda x: x / 2, x)
    with pytest.warns(DeprecationWarning, match=r"'users_samplers:halve' is a function.*derive it from"):
        make_sampler("users_samplers:halve")


def test_sampler_users_method_has_its_own_levels_sites_clamp_and_scale(module: ModuleType) -> None:
    def half(denoiser: Any, x: Tensor, levels: Tensor, *, noise: NoisePlan, step: Any) -> Tensor:
        return step(lambda x: x / 2, x) + levels[0]

    module.half = Method(
        half,
        levels=lambda t_star, steps, top=0.5: torch.tensor([top, 0.0]),
        clamps=False,
        sites=lambda _: frozenset({"churn"}),
        scale=lambda sigma: 2 * sigma,
    )
    sampler = make_sampler("users_samplers:half", grid={"top": 0.25})
    assert (sampler.levels, sampler.steps, sampler.clamps) == ((0.25, 0.0), 1, False)
    assert (sampler.sites, sampler.scale(3.0)) == ({"churn"}, 6.0)
    x = uniform(1, 1, 2, 2)
    assert torch.equal(drive(sampler, bumpy, x, NoisePlan.of(0, [0])), x / 2 + 0.25)


@pytest.mark.parametrize("part", [math.pi, int, "ddpm"])
def test_sampler_that_is_neither_chain_nor_function_raises(module: ModuleType, part: Any) -> None:
    module.part = part
    with pytest.raises(UserError, match=r"sampler 'users_samplers:part' must be a class derived from"):
        make_sampler("users_samplers:part")


def test_sampler_class_without_a_step_raises(module: ModuleType) -> None:
    class Stepless(Chain):
        pass

    module.stepless = Stepless
    with pytest.raises(UserError, match=r"'users_samplers:stepless' has no method step\(denoiser, state, i"):
        make_sampler("users_samplers:stepless")


def test_sampler_whose_step_returns_a_lone_tensor_raises() -> None:
    """Taken for a state, a batch of one would be unpacked without a word."""

    class Lone(Chain):
        def step(self, denoiser: Any, state: Any, i: int, noise: NoisePlan) -> Any:
            return state[0]

    with pytest.raises(UserError, match=r"step of sampler Lone must return a tuple of tensors, not Tensor"):
        drive(Lone((0.3, 0.0)), bumpy, uniform(1, 1, 2, 2), NoisePlan.of(0, [0]))


def code_lines(part: type) -> int:
    """Lines of a class body that hold code: without its head, docstrings, comments and blank lines."""
    source = inspect.getsource(part)
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.ClassDef)
    without = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(inner):
            without |= set(range(inner.body[0].lineno, inner.body[0].end_lineno + 1))
    layout = ("COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER")
    held = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if tokenize.tok_name[token.type] not in layout
        for line in range(token.start[0], token.end[0] + 1)
    }
    return sum(line > node.lineno for line in held - without)


def test_heun_is_as_short_as_the_algorithm() -> None:
    """Options, grid, sites and step together; EDM's own function has 24 lines of code."""
    assert code_lines(samplers.get("heun")) <= 25


# ------------------------------------------------------------------ the purifier around them


@each_sampler
def test_purifier_clamps_as_published(name: str, options: dict[str, Any]) -> None:
    """DDPM, DDIM and EDM clip the purified image, the VP-SDE does not; the denoiser here overshoots."""
    x, noise = uniform(2, 1, 8, 8), NoisePlan.of(0, [0, 1])
    published = {"ddpm": True, "ddim": True, "heun": True, "vpsde": False}
    clamps = make_sampler(name, 0.1, few_steps(name)).clamps
    assert clamps == published.get(name, clamps)
    has_clip = "clip" in inspect.signature(samplers.get(name)).parameters
    if has_clip:
        options = {**options, "clip": False}
    raw, default = (
        Purifier(tripled, name, steps=few_steps(name), options=options, clamp=clamp)(x, noise=noise)
        for clamp in (False, None)
    )
    if has_clip or name in published:  # others may clip their estimates in any case
        assert float(raw.max()) > 1
        assert float(raw.min()) < 0
    assert torch.equal(default, raw.clamp(0, 1) if clamps else raw)


def test_purifier_pixels_are_mapped_to_the_models_range() -> None:
    """The denoiser sees 2 x - 1 plus noise, and its estimate comes back as (x0 + 1) / 2."""
    seen = []

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append((x, float(sigma)))
        return torch.full_like(x, 0.5)

    x, noise = uniform(1, 1, 4, 4), NoisePlan.of(0, [3])
    pure = Purifier(denoiser, "one_step")(x, noise=noise)
    state, sigma = seen[0]
    torch.testing.assert_close(
        state, 2 * x - 1 + sigma * noise.normal("forward", 0, x), rtol=0, atol=ROUND_OFF
    )
    assert pure.unique().tolist() == [0.75]


def test_purifier_with_steps_changes_the_grid_only() -> None:
    purifier = Purifier(
        tiny_denoiser(), "ddpm", t_star=0.2, steps=1000, options={"variance": "small"}, clamp=False
    )
    coarse = purifier.with_steps(50)
    assert (purifier.calls, coarse.calls) == (201, 11)
    assert coarse.denoiser is purifier.denoiser
    expected = Purifier(
        purifier.denoiser, "ddpm", t_star=0.2, steps=50, options={"variance": "small"}, clamp=False
    )
    x, noise = uniform(1, 1, 4, 4), NoisePlan.of(0, [3])
    assert torch.equal(coarse(x, noise=noise), expected(x, noise=noise))
