"""Threat models: projections by their variational inequality, directions by duality, starts by their law."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.threats.pixels import L2, Linf, make_threat, measured_length, threats, typical_length
from tests.oracles import uniform

ROUND_OFF = 1e-9
"""Float64 arithmetic, and the 1e-10 that the L2 model adds to its norms, as the published code does."""
EPS = {"linf": 0.06, "l2": 0.4}
"""A budget that binds on 16 pixel values; another norm takes 0.1."""
each_threat = pytest.mark.parametrize("name", [name for name in threats if name != "perceptual"])
"""Norms; the perceptual distance is none, see test_perceptual.py."""


def threat_of(name: str) -> Linf | L2:
    return make_threat(name, EPS.get(name, 0.1))


def feasible(threat: Linf | L2, x: Tensor, count: int) -> Tensor:
    """Allowed images around ``x`` (1, C, H, W), some inside and some on the border of the budget."""
    delta = uniform(count, *x.shape[1:], seed=9, low=-1, high=1)
    size = threat.distance(torch.zeros_like(delta), delta)
    radius = torch.cat([torch.ones(count // 2, dtype=x.dtype), uniform(count - count // 2, seed=10)])
    inside = x + delta / size[:, None, None, None] * threat.eps * radius[:, None, None, None]
    return inside[((inside >= 0) & (inside <= 1)).flatten(1).all(dim=1)]


@each_threat
@pytest.mark.parametrize("reach", [0.01, 0.5, 5.0])
def test_project_any_image_lands_within_budget_and_box(name: str, reach: float) -> None:
    threat, x = threat_of(name), uniform(8, 3, 4, 4)
    x_adv = x + uniform(8, 3, 4, 4, seed=1, low=-reach, high=reach)
    projected = threat.project(x, x_adv)
    assert float(threat.distance(x, projected).max()) <= threat.eps + ROUND_OFF
    assert 0 <= float(projected.min()) <= float(projected.max()) <= 1


@each_threat
@pytest.mark.parametrize("reach", [0.5, 5.0])
def test_project_twice_is_once(name: str, reach: float) -> None:
    threat, x = threat_of(name), uniform(8, 3, 4, 4)
    once = threat.project(x, x + uniform(8, 3, 4, 4, seed=1, low=-reach, high=reach))
    torch.testing.assert_close(threat.project(x, once), once, rtol=0, atol=ROUND_OFF)


@each_threat
def test_project_allowed_image_is_left_alone(name: str) -> None:
    threat, x = threat_of(name), uniform(1, 1, 4, 4, low=0.3, high=0.7)
    allowed = feasible(threat, x, 50)
    assert len(allowed) > 20
    torch.testing.assert_close(threat.project(x.expand_as(allowed), allowed), allowed, rtol=0, atol=ROUND_OFF)


@each_threat
def test_project_image_away_from_the_box_edge_is_the_nearest_allowed_one(name: str) -> None:
    """p is nearest to v in a convex set if and only if (v - p) . (q - p) <= 0 for every allowed q."""
    threat, x = threat_of(name), uniform(1, 1, 4, 4, low=0.45, high=0.55)
    allowed = feasible(threat, x, 400)
    assert len(allowed) > 200
    v = x + uniform(1, 1, 4, 4, seed=4, low=-1, high=1)
    p = threat.project(x, v.clamp(0, 1))
    assert float((v.clamp(0, 1) - p).norm()) > 0.1  # the budget binds
    assert float(((v.clamp(0, 1) - p) * (allowed - p)).flatten(1).sum(dim=1).max()) <= ROUND_OFF


def test_linf_project_image_at_the_box_edge_is_the_nearest_allowed_one() -> None:
    """Cube and box together are a product of intervals, so clipping one after the other is exact."""
    threat, x = Linf(0.06), uniform(1, 1, 4, 4).round(decimals=1)
    v = x + uniform(1, 1, 4, 4, seed=4, low=-1, high=1)
    p = threat.project(x, v)
    low, high = (x - 0.06).clamp(min=0), (x + 0.06).clamp(max=1)
    corners = torch.where(uniform(400, 1, 4, 4, seed=5) < 0.5, low, high)
    assert float(((v - p) * (corners - p)).flatten(1).sum(dim=1).max()) <= ROUND_OFF


def test_linf_project_by_hand() -> None:
    x = torch.tensor([0.5, 0.5, 0.02, 0.98]).reshape(1, 1, 1, 4).double()
    x_adv = torch.tensor([0.9, 0.52, -0.5, 1.5]).reshape(1, 1, 1, 4).double()
    assert Linf(0.1).project(x, x_adv).flatten().tolist() == pytest.approx([0.6, 0.52, 0.0, 1.0], abs=1e-7)


def test_l2_project_by_hand() -> None:
    """A shift of (0.3, 0.4) has size 0.5; to 0.1 it shrinks fivefold."""
    x = torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64)
    projected = L2(0.1).project(x, x + torch.tensor([0.3, 0.4], dtype=torch.float64))
    assert projected.flatten().tolist() == pytest.approx([0.56, 0.58], abs=ROUND_OFF)


@each_threat
def test_project_rows_do_not_depend_on_the_batch(name: str) -> None:
    threat, x = threat_of(name), uniform(4, 1, 4, 4)
    x_adv = x + uniform(4, 1, 4, 4, seed=1, low=-1, high=1)
    whole = threat.project(x, x_adv)
    for b in range(4):
        torch.testing.assert_close(
            threat.project(x[b : b + 1], x_adv[b : b + 1])[0], whole[b], rtol=0, atol=1e-15
        )


@each_threat
def test_project_zero_budget_returns_the_image(name: str) -> None:
    x = uniform(2, 1, 4, 4)
    x_adv = make_threat(name, 0.0).project(x, x + uniform(2, 1, 4, 4, seed=1, low=-1, high=1))
    torch.testing.assert_close(x_adv, x, rtol=0, atol=1e-15)


@each_threat
@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
def test_steepest_maximises_the_inner_product_over_the_unit_ball(name: str, scale: float) -> None:
    """Against random members of the ball that ``distance`` defines, and by the ball's own size."""
    threat, grad = threat_of(name), scale * uniform(1, 2, 3, 3, low=-1, high=1)
    direction = threat.steepest(grad)
    zero = torch.zeros_like(grad)
    assert float(threat.distance(zero, direction)) == pytest.approx(
        1, rel=1e-5
    )  # 1e-10 beside a norm of 1e-4
    others = uniform(500, 2, 3, 3, seed=6, low=-1, high=1)
    others = others / threat.distance(torch.zeros_like(others), others)[:, None, None, None]
    best = float((grad * others).flatten(1).sum(dim=1).max())
    assert float((grad * direction).sum()) >= best
    assert best > 0


def test_steepest_reaches_the_dual_norm() -> None:
    """The largest inner product is the sum of |g| for the cube and the Euclidean norm for the ball."""
    grad = uniform(3, 2, 3, 3, low=-1, high=1)
    products = [(grad * t.steepest(grad)).flatten(1).sum(dim=1) for t in (Linf(0.1), L2(0.1))]
    torch.testing.assert_close(products[0], grad.abs().flatten(1).sum(dim=1), rtol=ROUND_OFF, atol=0)
    torch.testing.assert_close(
        products[1], grad.square().flatten(1).sum(dim=1).sqrt(), rtol=ROUND_OFF, atol=0
    )


@each_threat
def test_steepest_zero_gradient_is_zero_and_finite(name: str) -> None:
    assert torch.equal(threat_of(name).steepest(torch.zeros(2, 1, 3, 3)), torch.zeros(2, 1, 3, 3))


def test_distance_by_hand() -> None:
    """Changes of 0.3 and -0.4: the largest is 0.4, the Euclidean norm 0.5."""
    x = torch.zeros(2, 1, 1, 2, dtype=torch.float64)
    x_adv = torch.tensor([[0.3, -0.4], [0.0, 0.2]], dtype=torch.float64).reshape(2, 1, 1, 2)
    assert Linf(1).distance(x, x_adv).tolist() == pytest.approx([0.4, 0.2], abs=1e-15)
    assert L2(1).distance(x, x_adv).tolist() == pytest.approx([0.5, 0.2], abs=1e-15)


@each_threat
def test_random_start_is_within_budget_and_box_and_differs_by_example_and_draw(name: str) -> None:
    threat, x = threat_of(name), uniform(1, 3, 4, 4).round(decimals=1).expand(6, 3, 4, 4)
    noise = NoisePlan.of(1, range(6))
    start = threat.random_start(x, noise)
    distance = threat.distance(x, start)
    assert float(distance.max()) <= threat.eps + ROUND_OFF
    assert float(distance.min()) > 0.3 * threat.eps
    assert 0 <= float(start.min()) <= float(start.max()) <= 1
    assert len({tuple(row.tolist()) for row in start.flatten(1)}) == 6
    assert not torch.equal(threat.random_start(x, noise.at(1)), start)
    assert torch.equal(threat.random_start(x, noise), start)
    for b in range(6):
        assert torch.equal(threat.random_start(x[b : b + 1], noise.rows([b]))[0], start[b])


@each_threat
def test_random_start_draws_from_the_start_site_only(name: str) -> None:
    threat, x, source = threat_of(name), uniform(2, 1, 4, 4, low=0.3, high=0.7), NoisePlan.of(1, [0, 1])
    other = source.on("attack").sharing(["start"], source)
    assert torch.equal(threat.random_start(x, other), threat.random_start(x, source))


def test_linf_random_start_is_uniform_in_the_cube() -> None:
    x = torch.full((50, 1, 10, 10), 0.5, dtype=torch.float64)
    delta = Linf(0.06).random_start(x, NoisePlan.of(1, range(50))) - x
    assert stats.kstest((delta / 0.06).flatten().numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3


def test_l2_random_start_is_uniform_in_the_ball() -> None:
    """(|delta| / eps)^d is uniform, and so is the direction: in three dimensions each coordinate of it."""
    count = 5000
    x = torch.full((count, 1, 1, 3), 0.5, dtype=torch.float64)
    delta = (L2(0.4).random_start(x, NoisePlan.of(1, range(count))) - x).flatten(1)
    radius = delta.norm(dim=1)
    assert stats.kstest(((radius / 0.4) ** 3).numpy(), "uniform").pvalue > 1e-3
    for axis in range(3):
        assert stats.kstest((delta[:, axis] / radius).numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3
    assert abs(float(np.corrcoef(radius, delta[:, 0] / radius)[0, 1])) < 5 / math.sqrt(count)


def test_default_step_sizes_are_the_published_ones() -> None:
    """8/255 with 2/255; L2 0.5 with 0.1 (Liu et al., ICLR 2025)."""
    assert Linf(8 / 255).default_step_size == pytest.approx(2 / 255, abs=1e-15)
    assert L2(0.5).default_step_size == pytest.approx(0.1, abs=1e-15)


@each_threat
def test_make_threat_registered_name_has_the_budget(name: str) -> None:
    threat = make_threat(name, 0.25)
    assert threat.eps == 0.25
    assert 0 < threat.default_step_size <= 0.25


@each_threat
def test_make_threat_negative_budget_raises(name: str) -> None:
    with pytest.raises(UserError, match=r"threat\.eps -0\.1 is negative"):
        make_threat(name, -0.1)


def test_make_threat_budget_in_wrong_units_raises_with_the_fraction() -> None:
    with pytest.raises(
        UserError, match=r'threat\.eps 8 exceeds the pixel range \[0, 1\]\. Did you mean "8/255"\?'
    ):
        make_threat("linf", 8)


def test_make_threat_unknown_norm_raises_with_nearest() -> None:
    with pytest.raises(
        UserError, match=r"unknown threat model 'inf'\. Did you mean 'linf'\? Available: l2, linf, perceptual"
    ):
        make_threat("inf", 0.1)


@each_threat
def test_make_threat_budget_that_is_no_number_raises(name: str) -> None:
    with pytest.raises(UserError, match=r"threat\.eps nan"):
        make_threat(name, math.nan)


class Squared:
    """Squared Euclidean distance, as a threat of a user's own that does not say how long it lets noise be."""

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def distance(self, x: Tensor, x_adv: Tensor) -> Tensor:
        return (x_adv - x).flatten(1).square().sum(dim=1)


def test_typical_length_linf_is_the_root_mean_square_of_uniform_noise() -> None:
    noise = uniform(2000, 3, 4, 4, low=-0.06, high=0.06)
    expected = math.sqrt(float(noise.square().flatten(1).sum(dim=1).mean()))
    assert Linf(0.06).typical_length(noise).tolist() == [pytest.approx(expected, rel=0.01)] * 2000


def test_typical_length_l2_is_the_budget() -> None:
    assert L2(0.4).typical_length(uniform(3, 3, 4, 4)).tolist() == [0.4] * 3


@each_threat
def test_measured_length_budget_on_pixels_is_the_typical_one(name: str) -> None:
    """Of one draw of uniform noise with 3072 values, whose length is known to 1 in 100."""
    threat, x = threat_of(name), torch.full((2, 3, 32, 32), 0.5, dtype=torch.float64)
    torch.testing.assert_close(measured_length(threat, x), threat.typical_length(x), rtol=0.03, atol=0)


def test_typical_length_threat_that_says_nothing_is_measured() -> None:
    """A squared length of at most 0.09 is a length of at most 0.3."""
    x = uniform(3, 3, 8, 8, low=0.4, high=0.6)
    assert typical_length(Squared(0.09), x).tolist() == [pytest.approx(0.3, rel=1e-3)] * 3


def test_typical_length_budget_beyond_every_image_is_the_length_of_the_noise_that_fits() -> None:
    x = torch.full((1, 3, 8, 8), 0.5, dtype=torch.float64)
    (length,) = typical_length(Squared(1e9), x).tolist()
    assert math.sqrt(192 / 12) < length < 0.5 * math.sqrt(192)


def test_typical_length_does_not_depend_on_the_batch() -> None:
    x = uniform(4, 3, 8, 8)
    whole = typical_length(Squared(2.0), x)
    assert torch.equal(whole[2:3], typical_length(Squared(2.0), x[2:3]))
