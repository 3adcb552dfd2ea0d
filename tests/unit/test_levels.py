"""Noise-level distributions against closed forms, and their weights against the losses they stand for."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.registry import call_with_options
from dbpkit.models.denoisers import EDMDenoiser
from dbpkit.training.levels import noise_levels, sigma_at
from tests.oracles import TinyNetwork, uniform

ROUND_OFF = 1e-10
"""Float64 arithmetic, through a cumulative product of a thousand factors and a logarithm."""
NAMES = list(noise_levels)
COUNT = 20_000
GRID = torch.arange(2000, dtype=torch.float64) / 2000
"""Uniforms on [0, 1) with 0."""
BARS = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))
SIGMAS = np.sqrt((1 - BARS) / BARS)
"""Noise levels of the linear DDPM schedule, multiplied up with numpy."""
VP_ENDS = np.sqrt(np.expm1([0.1 * 1e-3 + 9.95e-6, 10.05]))
"""sqrt(exp(B(t)) - 1) with B(t) = 0.1 t + 9.95 t**2 at t = 0.001 and 1."""


def levels_of(name: str, **options: Any) -> Any:
    return noise_levels.get(name)(**options)


def drawn(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> Tensor:
    """Noise levels of the uniforms that training draws, for many examples."""
    like = torch.zeros(COUNT, 2, dtype=dtype)
    return levels_of(name, **options).sigma(
        NoisePlan.of(1, range(COUNT), "train").uniform("level", 0, like)[:, 0]
    )


def vp_times(sigma: Tensor) -> np.ndarray:
    """The positive root of B(t) = log(1 + sigma**2)."""
    b = np.log1p(sigma.numpy() ** 2)
    return (-0.1 + np.sqrt(0.01 + 4 * 9.95 * b)) / (2 * 9.95)


def ddpm_times(sigma: Tensor) -> np.ndarray:
    """Fractional DDPM times, by interpolation in log sigma."""
    return np.interp(np.log(sigma.numpy()), np.log(SIGMAS), np.arange(1000))


# ------------------------------------------------------------------------------------------- distributions


@pytest.mark.parametrize("t_last", [999, 100, 0])
def test_ddpm_levels_are_those_of_the_floor_of_the_uniform(t_last: int) -> None:
    sigma = levels_of("ddpm", t_last=t_last).sigma(GRID)
    expected = SIGMAS[np.floor(np.arange(2000) * (t_last + 1) / 2000 + 1e-9).astype(int)]
    assert sigma.tolist() == pytest.approx(expected.tolist(), rel=ROUND_OFF)


@pytest.mark.parametrize("t_last", [999, 100])
def test_ddpm_every_time_is_alike(t_last: int) -> None:
    sigma = drawn("ddpm", t_last=t_last)
    times = np.rint(ddpm_times(sigma)).astype(int)
    assert np.allclose(SIGMAS[times], sigma.numpy(), rtol=ROUND_OFF)  # no level lies between two times
    assert stats.chisquare(np.bincount(times, minlength=t_last + 1)).pvalue > 1e-3


@pytest.mark.parametrize("ends", [(1e-3, 1.0), (0.01, 0.2)])
def test_vpsde_levels_match_the_closed_form_and_law(ends: tuple[float, float]) -> None:
    first, last = ends
    options = {"t_first": first, "t_last": last}
    t = first + GRID.numpy() * (last - first)
    expected = np.sqrt(np.exp(0.1 * t + 9.95 * t**2) - 1)
    assert levels_of("vpsde", **options).sigma(GRID).tolist() == pytest.approx(expected.tolist(), rel=1e-9)
    times = vp_times(drawn("vpsde", **options))
    assert stats.kstest(times, "uniform", args=(first, last - first)).pvalue > 1e-3


@pytest.mark.parametrize("moments", [(-1.2, 1.2), (0.4, 0.3)])
def test_edm_levels_are_log_normal(moments: tuple[float, float]) -> None:
    mean, std = moments
    law = stats.lognorm(s=std, scale=math.exp(mean))
    levels = levels_of("edm", mean=mean, std=std)
    assert levels.sigma(GRID[1:]).tolist() == pytest.approx(law.ppf(GRID[1:].numpy()).tolist(), rel=ROUND_OFF)
    sigma = drawn("edm", mean=mean, std=std)
    assert stats.kstest(sigma.numpy(), law.cdf).pvalue > 1e-3
    assert float(sigma.log().mean()) == pytest.approx(mean, abs=5 * std / math.sqrt(COUNT))
    assert float(sigma.log().std()) == pytest.approx(std, rel=5 / math.sqrt(2 * COUNT))


def test_edm_defaults_are_the_published_ones() -> None:
    half = levels_of("edm").sigma(torch.tensor([0.5, 0.841344746068543], dtype=torch.float64))
    assert half.tolist() == pytest.approx([math.exp(-1.2), 1.0])  # the median, and one deviation above


@pytest.mark.parametrize(("t_last", "t_power"), [(300.0, 1.0), (120.0, 2.0), (50.5, 0.5), (999.0, 1.0)])
def test_purification_levels_match_the_closed_form_and_law(t_last: float, t_power: float) -> None:
    options = {"t_last": t_last, "t_power": t_power}
    t = t_last * GRID.numpy() ** t_power
    expected = np.exp(np.interp(t, np.arange(1000), np.log(SIGMAS)))
    sigma = levels_of("purification", **options).sigma(GRID)
    assert sigma.tolist() == pytest.approx(expected.tolist(), rel=ROUND_OFF)
    law = stats.powerlaw(1 / t_power, scale=t_last)
    assert stats.kstest(ddpm_times(drawn("purification", **options)), law.cdf).pvalue > 1e-3


def test_sigma_at_whole_times_and_half_way_between_them() -> None:
    assert sigma_at(torch.arange(1000).double()).tolist() == pytest.approx(SIGMAS.tolist(), rel=ROUND_OFF)
    half = sigma_at(torch.arange(999).double() + 0.5)
    assert half.tolist() == pytest.approx(np.sqrt(SIGMAS[:-1] * SIGMAS[1:]).tolist(), rel=ROUND_OFF)


RANGES = {
    "ddpm": (SIGMAS[0], SIGMAS[-1]),
    "vpsde": (VP_ENDS[0], VP_ENDS[1]),
    "edm": (math.exp(-1.2 - 1.2 * 8.3), math.exp(-1.2 + 1.2 * 8.3)),
    "purification": (SIGMAS[0], SIGMAS[300]),
}
"""Smallest and largest level; a normal quantile of a float64 below 1 is at most 8.3."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_levels_at_the_ends_of_the_uniforms_are_finite_and_in_range(name: str, dtype: torch.dtype) -> None:
    below_one = torch.nextafter(torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype))
    u = torch.tensor([0.0, 2.0**-24, 1 - 2.0**-24, float(below_one)], dtype=dtype)
    sigma = levels_of(name).sigma(u)
    low, high = RANGES[name]
    assert sigma.dtype == dtype
    assert bool(sigma.isfinite().all())
    assert float(sigma.min()) >= low * (1 - 1e-6)
    assert float(sigma.max()) <= high * (1 + 1e-6)
    assert bool((sigma[1:] >= sigma[:-1]).all())
    assert bool(levels_of(name).weight(sigma).isfinite().all())


@pytest.mark.parametrize("name", NAMES)
def test_levels_float32_uniforms_give_the_float64_levels_rounded(name: str) -> None:
    """Interpolation is done in the uniform's own type: a time up to 300 is known to 3e-5 of a step."""
    close = 2e-5 if name == "purification" else 2e-7
    torch.testing.assert_close(drawn(name, torch.float32), drawn(name).float(), rtol=close, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_levels_keep_the_shape_and_rise_with_the_uniform(name: str) -> None:
    levels = levels_of(name)
    assert levels.sigma(GRID.view(2, 1000)).shape == levels.weight(GRID.view(2, 1000) + 1).shape == (2, 1000)
    sigma = levels.sigma(GRID)
    assert bool((sigma[1:] >= sigma[:-1]).all())
    assert float(sigma[0]) > 0


# ------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("name", ["ddpm", "vpsde"])
def test_weight_of_noise_prediction_is_gamma_squared(name: str) -> None:
    """gamma_t**2 = alpha_bar_t / (1 - alpha_bar_t), so that it is the error of the predicted noise."""
    weight = levels_of(name).weight(torch.from_numpy(SIGMAS))
    assert weight.tolist() == pytest.approx((BARS / (1 - BARS)).tolist(), rel=ROUND_OFF)


@pytest.mark.parametrize("sigma_data", [0.5, 0.2])
@pytest.mark.parametrize("name", ["edm", "purification"])
def test_edm_weight_matches_the_published_formula(name: str, sigma_data: float) -> None:
    sigma = np.logspace(-2, 2, 50)
    weight = levels_of(name, sigma_data=sigma_data).weight(torch.from_numpy(sigma))
    expected = (sigma**2 + sigma_data**2) / (sigma_data * sigma) ** 2
    assert weight.tolist() == pytest.approx(expected.tolist(), rel=ROUND_OFF)


@pytest.mark.parametrize("name", ["edm", "purification"])
def test_edm_weight_turns_the_error_of_x0_into_that_of_the_raw_network(name: str) -> None:
    """Karras et al. 2022, eq. 8: lambda (D - x0)**2 = (F - (x0 - c_skip x) / c_out)**2."""
    network = TinyNetwork()
    x0, z = uniform(5, 1, 4, 4, low=-1), uniform(5, 1, 4, 4, seed=1, low=-2, high=2)
    sigma = torch.tensor([0.01, 0.1, 0.5, 3.0, 50.0], dtype=torch.float64)
    s = sigma[:, None, None, None]
    x, total = x0 + s * z, (s**2 + 0.25).sqrt()
    raw = network(x / total, sigma.log() / 4)
    expected = (raw - (x0 - 0.25 / total**2 * x) / (s * 0.5 / total)).square().flatten(1).mean(dim=1)
    error = (EDMDenoiser(network)(x, sigma) - x0).square().flatten(1).mean(dim=1)
    torch.testing.assert_close(levels_of(name).weight(sigma) * error, expected, rtol=1e-9, atol=0)


# ------------------------------------------------------------------------------------------------ mistakes


def test_unknown_levels_suggest_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown noise levels 'purifcation'\. Did you mean 'purification'"):
        noise_levels.get("purifcation")


@pytest.mark.parametrize("name", NAMES)
def test_unknown_option_lists_those_there_are(name: str) -> None:
    with pytest.raises(UserError, match=r"has no option 't_max'\. Available: \w+"):
        call_with_options(noise_levels.get(name), {"t_max": 3}, f"noise levels '{name}'")
