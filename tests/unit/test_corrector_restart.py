"""Langevin correctors and restarts against closed forms of Gaussian data.

For x0 ~ N(m, v I) a state of level s has variance V = v + s^2. A corrector step of size h s^2 multiplies its
distance from m by a = 1 - h s^2 / V and adds variance 2 h s^2, whose fixed point is V / (1 - h s^2 / 2 V). A
step of DDIM from s to s' multiplies by (v + s s') / V.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.driver import drive
from dbpkit.purification.samplers import make_sampler, samplers
from tests.oracles import GaussianDenoiser, tiny_denoiser, uniform

MEAN, V0 = 0.1, 0.25
DENOISER = GaussianDenoiser(MEAN, V0)
NOISE = NoisePlan.of(0, [3])


def slope(name: str, steps: int, options: dict[str, Any]) -> float:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    sampler = make_sampler(name, 0.1, steps, {"clip": False, **options})
    pure = drive(sampler, DENOISER, ends, NoisePlan.of(3, [5, 5])).flatten()
    return float(pure[1] - pure[0])


def ddim_step(s: float, t: float) -> float:
    return (V0 + s * t) / (V0 + s**2)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "restart", "reverse_only"])
@pytest.mark.parametrize(("count", "size"), [(1, 0.1), (3, 0.4)])
def test_corrector_multiplies_the_jacobian_at_every_level(name: str, count: int, size: float) -> None:
    levels = make_sampler(name, 0.1, 50).levels[:-1]
    each = [(1 - size * s**2 / (V0 + s**2)) ** count for s in levels]
    if name == "restart":  # levels above the lower one are met twice
        each += each[: make_sampler(name, 0.1, 50).ends[1]]
    with_it = slope(name, 50, {"corrector_steps": count, "corrector_size": size})
    assert with_it == pytest.approx(math.prod(each) * slope(name, 50, {}), abs=1e-12)


@pytest.mark.parametrize("size", [0.05, 1.0])
def test_corrector_many_steps_reach_the_distribution_of_the_level(size: float) -> None:
    """Of small steps that of the level itself, of large ones as much wider as the formula says."""
    count = int(12 / size)
    sampler = make_sampler("ddpm", 0.2, 10, {"clip": False, "corrector_steps": count, "corrector_size": size})
    sigma = sampler.levels[0]
    x = torch.full((1, 1, 200, 200), 0.9, dtype=torch.float64)
    moved = sampler.corrected(DENOISER, sampler.start(x, NOISE)[0], sigma, 0, NOISE)
    wide = (V0 + sigma**2) / (1 - size * sigma**2 / (2 * (V0 + sigma**2)))
    assert float(moved.mean()) == pytest.approx(MEAN, abs=4 * wide**0.5 / 200 + 0.01)
    assert float(moved.var()) == pytest.approx(wide, rel=4 * 2**0.5 / 200)
    if size < 0.1:
        assert float(moved.var()) == pytest.approx(V0 + sigma**2, rel=0.05)


def test_corrector_calls_the_network_once_a_step_and_draws_only_if_it_runs() -> None:
    for name in ("ddpm", "ddim", "reverse_only", "restart"):
        assert "corrector" not in make_sampler(name, 0.1, 20).sites
        assert "corrector" in make_sampler(name, 0.1, 20, {"corrector_steps": 1}).sites
    purifier = Purifier(tiny_denoiser(), "ddim", steps=20, options={"corrector_steps": 2})
    purifier(uniform(1, 1, 4, 4), noise=NOISE)
    assert (purifier.network_calls, purifier.calls) == (9, 3)


@pytest.mark.parametrize(("restarts", "steps"), [(1, 20), (3, 20), (2, 50), (1, 10)])
def test_restart_is_the_walk_of_its_closed_form(restarts: int, steps: int) -> None:
    """Computed level by level from the plan's own draws, with numbers."""
    sampler = make_sampler("restart", 0.1, steps, {"clip": False, "restarts": restarts})
    levels = sampler.levels
    upper, lower = sampler.ends
    x = uniform(1, 1, 3, 3, low=-1, high=1)
    state = x + levels[0] * NOISE.normal("forward", 0, x)

    def down(state: Tensor, first: int, last: int) -> Tensor:
        for k in range(first, last):
            state = MEAN + ddim_step(levels[k], levels[k + 1]) * (state - MEAN)
        return state

    state = down(state, 0, lower)
    for number in range(restarts):
        rise = math.sqrt(levels[upper] ** 2 - levels[lower] ** 2)
        state = down(state + rise * NOISE.normal("churn", number, x), upper, lower)
    expected = down(state, lower, len(levels) - 1)
    torch.testing.assert_close(drive(sampler, DENOISER, x, NOISE), expected, rtol=0, atol=1e-12)
    assert sampler.steps == len(levels) - 1 + restarts * (lower - upper)


def test_restart_forgets_the_attack_and_keeps_the_spread_of_data() -> None:
    """Each restart multiplies the Jacobian by the same factor below 1, and purified data keep variance v."""
    slopes = [slope("restart", 500, {"restarts": k, "restart_from": 0.9}) for k in (1, 2, 4)]
    assert slopes[0] > slopes[1] > slopes[2] > 0
    assert slopes[2] / slopes[1] == pytest.approx((slopes[1] / slopes[0]) ** 2, abs=1e-9)
    plain = make_sampler("restart", 0.1, 500, {"clip": False, "restarts": 4, "restart_from": 0.9})
    x = MEAN + V0**0.5 * NoisePlan.of(9, [0]).normal(
        "probe", 0, torch.zeros(1, 1, 200, 200, dtype=torch.float64)
    )
    assert float(drive(plain, DENOISER, x, NOISE).var()) == pytest.approx(V0, rel=0.05)


@pytest.mark.parametrize(
    ("steps", "at", "ends"),
    [
        (20, {}, (0, 1)),
        (50, {"restart_from": 1.0}, (0, 5)),
        (50, {"restart_from": 0.8, "restart_to": 0.4}, (2, 4)),
    ],
)
def test_restart_ends_are_shares_of_the_steps_down(
    steps: int, at: dict[str, float], ends: tuple[int, int]
) -> None:
    sampler = make_sampler("restart", 0.1, steps, at)
    assert sampler.ends == ends
    assert sampler.place(sampler.steps - 1) == (0, 0)
    assert sampler.place(ends[1] - 1)[0] == sampler.levels[ends[1]]
    if ends == (0, 1):
        assert sampler.path == [0, 0, 1, 2]


def test_restart_without_room_is_refused() -> None:
    with pytest.raises(UserError, match="needs two levels above 0"):
        samplers.get("restart")((0.3, 0.0))
    with pytest.raises(UserError, match="must be the smaller share"):
        make_sampler("restart", 0.1, 50, {"restart_to": 0.5})
    with pytest.raises(UserError, match="at most 1,000 times, not 2,000,000,000"):
        make_sampler("restart", 0.1, 50, {"restarts": 2_000_000_000})
