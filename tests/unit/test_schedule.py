"""Noise schedules: the published grids, digit by digit, and the relations between times and levels."""

import math

import numpy as np
import pytest
import torch

from dbpkit.foundation.errors import UserError
from dbpkit.models.schedule import (
    continuous_levels,
    discrete_alpha_bar,
    discrete_levels,
    discrete_sigmas,
    discrete_times,
    karras_levels,
    vp_log_signal,
    vp_sigma,
    vp_time,
)
from tests.oracles import golden

GRIDS = golden("step_grids")
FIVE_DIGITS = 5e-6
"""Half a unit of the last of the five decimals that are published."""
ROUND_OFF = 1e-12
"""Float64 arithmetic on values of order one."""


def alpha_bar(sigma: float) -> float:
    return 1 / (1 + sigma**2)


@pytest.mark.parametrize("grid", GRIDS["discrete"], ids=lambda g: f"{g['t_star']}-{g['steps']}")
def test_discrete_times_published_settings_match(grid: dict[str, float]) -> None:
    times = discrete_times(grid["t_star"], int(grid["steps"]))
    assert len(times) == grid["calls"]
    assert times == list(range(int(grid["first"]), -1, -int(grid["stride"])))


@pytest.mark.parametrize("grid", GRIDS["discrete"], ids=lambda g: f"{g['t_star']}-{g['steps']}")
def test_discrete_levels_published_settings_are_the_levels_of_the_times(grid: dict[str, float]) -> None:
    """The levels against alpha_bar multiplied up with numpy, for every time of the grid."""
    bars = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))
    kept = bars[int(grid["first"]) :: -int(grid["stride"])]
    levels = discrete_levels(grid["t_star"], int(grid["steps"]))
    assert levels.tolist() == pytest.approx([*np.sqrt((1 - kept) / kept), 0.0], abs=ROUND_OFF)


@pytest.mark.parametrize("grid", GRIDS["discrete"], ids=lambda g: f"{g['t_star']}-{g['steps']}")
def test_discrete_times_published_settings_match_diffusers_leading_spacing(grid: dict[str, float]) -> None:
    schedulers = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")
    scheduler = schedulers.DDPMScheduler(num_train_timesteps=1000, timestep_spacing="leading", steps_offset=0)
    steps = int(grid["steps"])
    scheduler.set_timesteps(steps)
    expected = scheduler.timesteps[round((1 - grid["t_star"]) * steps) - 1 :].tolist()
    assert discrete_times(grid["t_star"], steps) == expected


def test_discrete_schedule_at_100_matches_published_numbers() -> None:
    published = GRIDS["forward_at_100"]
    bar = float(discrete_alpha_bar()[100])
    assert bar == pytest.approx(published["alpha_bar"], abs=FIVE_DIGITS)
    assert math.sqrt(bar) == pytest.approx(published["signal"], abs=FIVE_DIGITS)
    assert math.sqrt(1 - bar) == pytest.approx(published["noise"], abs=FIVE_DIGITS)
    assert float(discrete_sigmas()[100]) == pytest.approx(published["sigma"], abs=5e-5)  # four digits


def test_discrete_sigmas_ends_match_the_first_beta_and_diffusers() -> None:
    """sigma_0^2 = beta_1 / (1 - beta_1) with beta_1 = 1e-4; the last is 157 (Karras et al. 2022, table 1)."""
    sigmas = discrete_sigmas()
    assert float(sigmas[0]) == pytest.approx(math.sqrt(1e-4 / (1 - 1e-4)), abs=ROUND_OFF)
    assert float(sigmas[-1]) == pytest.approx(157.4, abs=0.05)
    assert bool((sigmas[1:] > sigmas[:-1]).all())


@pytest.mark.parametrize("t_star", [0.0, 1.0, -0.1, 1.5, 100.0])
def test_discrete_times_t_star_out_of_range_raises(t_star: float) -> None:
    with pytest.raises(UserError, match=rf"t_star {t_star} is outside \(0, 1\)"):
        discrete_times(t_star, 1000)


@pytest.mark.parametrize("steps", [0, -50, 3, 300, 2000])
def test_discrete_times_steps_not_a_divisor_raises(steps: int) -> None:
    with pytest.raises(UserError, match=rf"steps {steps} does not divide 1000\. Choose one of 50, 100"):
        discrete_times(0.1, steps)


def test_discrete_times_grid_too_coarse_raises() -> None:
    with pytest.raises(
        UserError, match=r"t_star 0\.01 with 50 steps starts at t = 0: no noise\. Use more steps"
    ):
        discrete_times(0.01, 50)


def test_continuous_levels_published_grid_has_101_times_from_0101_to_0001() -> None:
    published = GRIDS["vpsde"]
    levels = continuous_levels(0.1, 1000)
    times = vp_time(levels[:-1])
    assert len(times) == published["points"]
    expected = torch.linspace(published["first"], published["last"], published["points"], dtype=torch.float64)
    torch.testing.assert_close(times, expected, rtol=0, atol=ROUND_OFF)
    assert float(levels[-1]) == 0


def test_continuous_levels_first_level_matches_published_coefficients() -> None:
    """x_t = 0.94573 x + 0.32496 z at t = 0.101."""
    sigma = float(continuous_levels(0.1, 1000)[0])
    assert math.sqrt(alpha_bar(sigma)) == pytest.approx(GRIDS["vpsde"]["signal"], abs=FIVE_DIGITS)
    assert sigma * math.sqrt(alpha_bar(sigma)) == pytest.approx(GRIDS["vpsde"]["noise"], abs=FIVE_DIGITS)


def test_vp_log_signal_is_the_integral_of_beta() -> None:
    """The trapezoidal rule is exact for the linear beta(t) = 0.1 + 19.9 t."""
    for t in (0.001, 0.101, 0.5, 1.0):
        integral = t * (0.1 + (0.1 + 19.9 * t)) / 2
        assert float(vp_log_signal(torch.tensor(t, dtype=torch.float64))) == pytest.approx(
            integral, abs=ROUND_OFF
        )


def test_vp_sigma_any_time_preserves_unit_variance() -> None:
    t = torch.linspace(0.001, 1, 50, dtype=torch.float64)
    bars = torch.exp(-(0.1 * t + 19.9 * t**2 / 2))
    torch.testing.assert_close(vp_sigma(t), ((1 - bars) / bars).sqrt(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("ends", [(0.1, 20.0), (0.5, 2.0)])
def test_vp_time_any_level_inverts_vp_sigma(ends: tuple[float, float]) -> None:
    """Relative to t; down to 1e-6, where a quotient of small differences would lose its digits."""
    t = torch.logspace(-6, 0, 200, dtype=torch.float64)
    torch.testing.assert_close(vp_time(vp_sigma(t, *ends), *ends), t, rtol=1e-9, atol=0)


@pytest.mark.parametrize("t_star", [0.0, 1.0, -0.1])
def test_continuous_levels_t_star_out_of_range_raises(t_star: float) -> None:
    with pytest.raises(UserError, match=rf"t_star {t_star} is outside \(0, 1\)"):
        continuous_levels(t_star, 1000)


@pytest.mark.parametrize("steps", [-1, 0, 1])
def test_continuous_levels_too_few_steps_raises(steps: int) -> None:
    with pytest.raises(UserError, match=rf"steps {steps} is too few for a continuous grid"):
        continuous_levels(0.1, steps)


def test_karras_levels_published_grid_matches_equation_5() -> None:
    """(a + i / (N - 1) (b - a))^7 with a = 0.5^(1/7), b = 0.002^(1/7), then 0."""
    published = GRIDS["edm"]
    levels = karras_levels(0.5, published["points"]).tolist()
    assert len(levels) == published["points"] + 1
    assert levels[0] == pytest.approx(published["first"], abs=ROUND_OFF)
    assert levels[-2] == pytest.approx(published["last"], abs=ROUND_OFF)
    assert levels[-1] == 0
    a, b = 0.5 ** (1 / 7), 0.002 ** (1 / 7)
    expected = [(a + i / 49 * (b - a)) ** 7 for i in range(50)]
    assert levels[:-1] == pytest.approx(expected, abs=ROUND_OFF)


def test_karras_levels_published_grid_churns_37_steps() -> None:
    levels = karras_levels(0.5, 50)
    assert int(((levels >= 0.01) & (levels <= 0.46)).sum()) == GRIDS["edm"]["churned_steps"]


def test_karras_levels_rho_1_is_linear() -> None:
    expected = [1.0, 0.75, 0.5, 0.25, 0.0]
    assert karras_levels(1.0, 4, sigma_min=0.25, rho=1).tolist() == pytest.approx(expected, abs=ROUND_OFF)


def test_karras_levels_one_step_goes_from_top_to_zero() -> None:
    assert karras_levels(0.5, 1).tolist() == pytest.approx([0.5, 0.0], abs=ROUND_OFF)


@pytest.mark.parametrize(
    ("sigma_max", "steps", "sigma_min"), [(0.5, 0, 0.002), (0.5, 10, 0.5), (0.001, 10, 0.002), (0.5, 10, 0.0)]
)
def test_karras_levels_impossible_grid_raises(sigma_max: float, steps: int, sigma_min: float) -> None:
    with pytest.raises(UserError, match="the EDM grid needs 0 < sigma_min < sigma_max and steps >= 1"):
        karras_levels(sigma_max, steps, sigma_min)
