"""Schedules of discrete times against diffusers' own, and what samplers make of them."""

import json
import math
from typing import Any

import diffusers
import pytest
import torch

from dbpkit.foundation.errors import UserError
from dbpkit.models.discrete import linear_schedule, schedule_of
from dbpkit.models.schedule import discrete_levels, discrete_sigmas, vp_sigma
from dbpkit.purification.samplers import make_sampler

COSINE_4000 = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 4000}

CONFIGS: list[dict[str, Any]] = [
    {},
    {"beta_start": 8.5e-4, "beta_end": 0.012},
    {"num_train_timesteps": 250, "beta_start": 4e-4, "beta_end": 0.08},
    {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    COSINE_4000,
    {"beta_schedule": "sigmoid"},
    {"beta_schedule": "laplace"},
    {"trained_betas": [0.001, 0.01, 0.1, 0.3, 0.5]},
    {"rescale_betas_zero_snr": True},
    {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
]
"""Configurations of ``DDPMScheduler``, every kind of betas among them."""


@pytest.mark.parametrize("config", CONFIGS, ids=json.dumps)
def test_levels_are_those_of_diffusers(config: dict[str, Any]) -> None:
    """Their table is float32; 1e-4 relative of sigma is what 6e-8 of a signal power of 1e-4 leaves."""
    bars = diffusers.DDPMScheduler(**config).alphas_cumprod.double()
    own = schedule_of(config)
    alpha_bar = 1 / (1 + own.levels() ** 2)
    torch.testing.assert_close(alpha_bar, bars, rtol=2e-4, atol=1e-9)
    assert bool(torch.isinf(own.levels()[-1])) == bool(config.get("rescale_betas_zero_snr", False))
    assert own.steps == len(bars)


@pytest.mark.parametrize("config", CONFIGS[1:], ids=json.dumps)
def test_the_same_table_from_betas_powers_and_levels(config: dict[str, Any]) -> None:
    scheduler, own = diffusers.DDPMScheduler(**config), schedule_of(config)
    for given in ({"betas": scheduler.betas}, {"alphas_cumprod": (1 / (1 + own.levels() ** 2)).tolist()}):
        other = schedule_of(given)
        torch.testing.assert_close(
            1 / (1 + other.levels() ** 2), 1 / (1 + own.levels() ** 2), rtol=2e-4, atol=1e-9
        )
        json.dumps(dict(other.options))
    assert schedule_of({"sigmas": own.levels()}).sigmas == own.sigmas


def test_default_is_the_linear_schedule_to_the_bit() -> None:
    for given in (None, "linear", {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}):
        assert schedule_of(given) is linear_schedule()
        assert schedule_of(given).is_default
    assert schedule_of(None).levels().equal(discrete_sigmas())
    assert not schedule_of({"beta_end": 0.012}).is_default


def test_names_are_ours_and_diffusers() -> None:
    assert schedule_of("cosine").sigmas == schedule_of("squaredcos_cap_v2").sigmas


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("linaer", "beta_schedule 'linaer' is unknown. Available: linear, cosine"),
        ({"beta_scedule": "linear"}, "no option 'beta_scedule'. Did you mean 'beta_schedule'"),
        ({"betas": [0.1, 0.2], "sigmas": [1, 2]}, "given twice, by betas and sigmas"),
        ({"sigmas": [2.0, 1.0]}, "must increase from above 0"),
        ({"sigmas": [0.0, 1.0]}, "must increase from above 0"),
        ({"sigmas": [1.0, math.nan]}, "sigmas must be numbers between 0 and inf"),
        ({"sigmas": "12"}, "sigmas must be a list of 2 to 100000 numbers"),
        ({"betas": [0.5]}, "betas must be a list of 2"),
        ({"trained_betas": [0.1, 1.2]}, "trained_betas must be numbers between 0 and 1"),
        ({"beta_end": 2.0}, "must increase from above 0"),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps must be a whole number"),
        ({"beta_schedule": "scaled_linear", "beta_start": -1.0}, "betas lie in"),
        (3, "a schedule is a name or a table of options, not 3"),
    ],
)
def test_what_is_no_schedule_is_refused(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        schedule_of(given)


def test_nearest_and_floor_of_levels_of_the_table_are_their_own_index() -> None:
    for config in (None, COSINE_4000, {"rescale_betas_zero_snr": True}, {"sigmas": [0.1, 0.2, 0.4, 5.0]}):
        schedule = schedule_of(config)
        finite = schedule.levels()[schedule.levels().isfinite()]
        for sigma in (finite, finite.float()):
            assert schedule.nearest(sigma).tolist() == list(range(len(finite)))
            assert schedule.floor(sigma).tolist() == list(range(len(finite)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floor_of_continuous_times_is_that_of_published_pipelines(dtype: torch.dtype) -> None:
    """floor(1000 t): 150 at t* = 0.15, where 149 is nearer; grids of thousandths keep their numbers."""
    t = torch.arange(1, 1000, dtype=torch.float64) / 1000
    schedule = schedule_of(None)
    assert schedule.floor(vp_sigma(t).to(dtype)).tolist() == list(range(1, 1000))
    assert int(schedule.nearest(vp_sigma(t[149:150]).to(dtype))) == 149
    assert schedule.floor(vp_sigma(t + 0.0005).to(dtype)).tolist() == list(range(1, 1000))
    few = schedule_of({"num_train_timesteps": 100, "beta_start": 1e-3, "beta_end": 0.2})
    assert few.floor(vp_sigma(torch.tensor([0.151, 0.159, 0.16], dtype=dtype))).tolist() == [15, 15, 16]


def test_floor_beyond_the_ends_is_the_end() -> None:
    schedule = schedule_of(None)
    assert schedule.floor(torch.tensor([1e-5, 1e5])).tolist() == [0, 999]
    assert schedule_of("cosine").floor(torch.tensor([1e-5, 1e9])).tolist() == [0, 999]


@pytest.mark.parametrize(
    ("name", "steps"), [("ddpm", 4000), ("ddim", 400), ("one_step", 1000), ("reverse_only", 40)]
)
def test_samplers_of_discrete_times_visit_levels_of_the_table(name: str, steps: int) -> None:
    table = schedule_of(COSINE_4000).levels()
    levels = make_sampler(name, 0.1, steps, table=table).levels
    stride = 4000 // steps
    visited = [float(table[i]) for i in range(0, 401, stride)][::-1]
    assert list(levels) == ([visited[0], 0.0] if name == "one_step" else [*visited, 0.0])


@pytest.mark.parametrize("name", ["heun", "vpsde"])
def test_samplers_of_continuous_levels_do_not(name: str) -> None:
    steps = {"heun": 10, "vpsde": 1000}[name]
    with_table = make_sampler(name, 0.1, steps, table=schedule_of(COSINE_4000).levels()).levels
    assert with_table == make_sampler(name, 0.1, steps).levels


def test_grid_says_what_steps_and_starts_fit() -> None:
    zero = schedule_of({"rescale_betas_zero_snr": True}).levels()
    with pytest.raises(UserError, match="starts at t = 999, where this schedule leaves nothing of the image"):
        discrete_levels(1 - 1e-9, 1000, zero)
    assert len(discrete_levels(0.9, 1000, zero)) == 902
    with pytest.raises(UserError, match=r"steps 1000 does not divide 4\. Choose one of 1, 2, 4"):
        discrete_levels(0.5, 1000, torch.arange(1.0, 5.0))
    with pytest.raises(UserError, match=r"has no option 'table'\. It comes from the denoiser"):
        make_sampler("ddpm", grid={"table": [1.0]})
