"""Designs of draws: what they draw, that the gradient's expectation stays, and that every attack has them."""

import math

import pytest
import torch

from dbpkit.foundation.noise import NoisePlan

PLAN = NoisePlan.of(3, [5, 9, 2], "attack")


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_antithetic_rows_are_mirror_images(kind: str) -> None:
    plan = PLAN.at(4).repeat(5, antithetic=True)
    drawn = getattr(plan, kind)("forward", 2, torch.zeros(15, 7, dtype=torch.float64)).unflatten(0, (3, 5))
    mirrored = -drawn[:, 0::2] if kind == "normal" else 1 - 2.0**-24 - drawn[:, 0::2]
    assert torch.equal(drawn[:, 1::2], mirrored[:, :2])
    assert drawn.flatten(1).unique(dim=0).shape[0] == 3
    assert not torch.equal(drawn[:, 0], drawn[:, 2])


def test_antithetic_rows_survive_what_is_done_to_a_plan() -> None:
    plan, like = PLAN.repeat(4, antithetic=True), torch.zeros(12, 6)
    whole = plan.normal("reverse", 1, like)
    order = [7, 0, 1, 11, 6]
    assert torch.equal(plan.rows(order).normal("reverse", 1, like[:5]), whole[order])
    assert torch.equal(plan.rows(slice(3, 8)).normal("reverse", 1, like[:5]), whole[3:8])
    padded = plan.rows([1]).padded(3).normal("reverse", 1, like[:3])
    assert torch.equal(padded, whole[[1, 1, 1]])
    assert torch.equal(
        plan.in_lane(2).normal("reverse", 1, like)[1::2], -plan.in_lane(2).normal("reverse", 1, like)[0::2]
    )
    assert torch.equal(plan.at(0).normal("reverse", 1, like)[0], plan.at(0).normal("reverse", 1, like)[1])


def test_first_of_each_pair_is_a_plain_draw() -> None:
    plan, like = PLAN.at(3), torch.zeros(3, 8)
    pairs = plan.repeat(2, antithetic=True).normal("forward", 0, torch.zeros(6, 8))
    assert torch.equal(pairs[0::2], PLAN.at(6).normal("forward", 0, like))


def test_shared_sites_are_not_mirrored() -> None:
    told = PLAN.on("report").at(2)
    plan = PLAN.sharing(["forward"], told).repeat(2, antithetic=True, orthogonal=True)
    like = torch.zeros(6, 8)
    assert torch.equal(
        plan.normal("forward", 0, like), told.normal("forward", 0, like[:3]).repeat_interleave(2, 0)
    )
    assert torch.equal(plan.normal("reverse", 0, like)[1], -plan.normal("reverse", 0, like)[0])


def test_draws_made_elsewhere_are_left_out() -> None:
    whole = PLAN.at(2).repeat(7).normal("forward", 0, torch.zeros(21, 4)).unflatten(0, (3, 7))
    rest = PLAN.at(2).repeat(3, skip=4, of=7).normal("forward", 0, torch.zeros(9, 4)).unflatten(0, (3, 3))
    assert torch.equal(rest, whole[:, 4:])
    assert torch.equal(PLAN.at(2).repeat(7).draw, PLAN.at(2).repeat(7, antithetic=False).draw)


@pytest.mark.parametrize("antithetic", [False, True])
def test_orthogonal_normals_are_at_right_angles_and_each_like_an_independent_one(antithetic: bool) -> None:
    like = torch.zeros(24, 3, 5, 7, dtype=torch.float64)
    plan = PLAN.repeat(8, antithetic=antithetic, orthogonal=True)
    z = plan.normal("forward", 1, like).flatten(1).unflatten(0, (3, 8))
    z = z[:, 0::2] if antithetic else z
    gram = z @ z.transpose(1, 2)
    lengths = gram.diagonal(dim1=1, dim2=2)
    assert (gram - torch.diag_embed(lengths)).abs().max() < 1e-11 * lengths.max()
    first = plan.draw & 0xFFFFFFFF
    g = PLAN.at(0).repeat(8).normal("forward", 1, like).flatten(1).unflatten(0, (3, 8))
    torch.testing.assert_close(lengths, g[:, : z.shape[1]].square().sum(2))
    assert first.max() < 8
    order = [17, 3, 4, 22]
    assert torch.equal(
        plan.rows(order).normal("forward", 1, like[:4]), plan.normal("forward", 1, like)[order]
    )


def test_orthogonal_draws_alone_are_standard_normal() -> None:
    """The last of a group in three dimensions, over 20,000 images: moments within 4 standard errors."""
    n = 20_000
    plan = NoisePlan.of(1, range(n)).repeat(3, orthogonal=True).rows(slice(2, None, 3))
    z = plan.normal("forward", 0, torch.zeros(n, 3, dtype=torch.float64))
    assert (z.mean(0) * math.sqrt(n)).abs().max() < 4
    covariance = (z.T @ z / n - torch.eye(3)) * math.sqrt(n)
    assert covariance.abs().max() < 4 * math.sqrt(2)
    assert abs(float((z**4).mean()) - 3) < 4 * math.sqrt(96 / (3 * n))


def test_more_orthogonal_draws_than_values_begin_anew() -> None:
    z = PLAN.repeat(5, orthogonal=True).normal("forward", 0, torch.zeros(15, 2, dtype=torch.float64))
    z = z.unflatten(0, (3, 5))
    assert torch.isfinite(z).all()
    for a, b in ((0, 1), (2, 3)):
        torch.testing.assert_close((z[:, a] * z[:, b]).sum(1), torch.zeros(3, dtype=torch.float64))
    assert (z[:, 1] * z[:, 2]).sum(1).abs().min() > 1e-6
