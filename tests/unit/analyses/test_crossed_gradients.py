"""Crossed gradients against analysis of variance, known variance components and linear models."""

import numpy as np
import pytest
import torch

from dbpkit.analyses.tools.crossed_gradients import (
    SHARED,
    crossed_gradients,
    crossed_plan,
    gradient_products,
    shared_products,
    tape_counts,
)
from dbpkit.attacks import Target
from dbpkit.foundation.noise import NoisePlan
from tests.oracles import uniform
from tests.unit.analyses import linear


def anova(cells: np.ndarray) -> tuple[float, float, float, float]:
    """Squared mean and variance components of (F, R, D) by the mean squares of the textbook."""
    f, r, _ = cells.shape
    whole, by_f, by_r = cells.mean(axis=(0, 1)), cells.mean(axis=1), cells.mean(axis=0)
    ms_f = r * ((by_f - whole) ** 2).sum() / (f - 1)
    ms_r = f * ((by_r - whole) ** 2).sum() / (r - 1)
    rest = cells - by_f[:, None] - by_r[None] + whole
    both = (rest**2).sum() / ((f - 1) * (r - 1))
    forward, reverse = (ms_f - both) / r, (ms_r - both) / f
    signal = (whole**2).sum() - forward / f - reverse / r - both / (f * r)
    return signal, forward, reverse, both


@pytest.mark.parametrize(("forward", "reverse"), [(2, 2), (3, 2), (4, 5)])
def test_products_differ_by_the_variance_components_of_the_textbook(forward: int, reverse: int) -> None:
    cells = uniform(2, forward, reverse, 7, seed=3, low=-1)
    found = {k: v.numpy() for k, v in shared_products(cells).items()}
    for b in range(2):
        signal, by_f, by_r, both = anova(cells[b].numpy())
        assert found["nothing"][b] == pytest.approx(signal)
        assert found["forward"][b] - found["nothing"][b] == pytest.approx(by_f)
        assert found["reverse"][b] - found["nothing"][b] == pytest.approx(by_r)
        rest = found["all"][b] - found["forward"][b] - found["reverse"][b] + found["nothing"][b]
        assert rest == pytest.approx(both)


@pytest.mark.parametrize(("forward", "reverse", "side"), [(4, 1, "forward"), (1, 4, "reverse")])
def test_products_of_one_kind_of_noise_put_all_variance_there_exactly(
    forward: int, reverse: int, side: str
) -> None:
    found = shared_products(uniform(2, forward, reverse, 7, seed=3))
    other = "reverse" if side == "forward" else "forward"
    assert torch.equal(found[side], found["all"])
    assert torch.equal(found[other], found["nothing"])


def test_products_are_unbiased_for_known_components() -> None:
    """g = m + a_f + b_r + c_fr + f r of scalars: the product of two main effects is interaction."""
    count, forward, reverse, size = 4000, 3, 2, 4
    noise = NoisePlan.of(5, range(count))
    like = torch.zeros(count, forward, reverse, size, dtype=torch.float64)
    a = 0.7 * noise.normal("forward", 0, like[:, :, :1])
    b = 0.5 * noise.normal("reverse", 0, like[:, :1])
    cells = 0.3 + a + b + 0.4 * noise.normal("probe", 0, like) + a * b
    found = {k: v.numpy() for k, v in shared_products(cells).items()}
    parts = {
        "nothing": 0.3**2,
        "forward": 0.3**2 + 0.7**2,
        "reverse": 0.3**2 + 0.5**2,
        "all": 0.3**2 + 0.7**2 + 0.5**2 + 0.4**2 + (0.7 * 0.5) ** 2,
    }
    for name in SHARED:
        error = found[name].std(ddof=1) / count**0.5
        assert abs(found[name].mean() - size * parts[name]) < 4 * error
        assert error < 0.05 * size * parts[name] + 0.02


def test_plan_crosses_tapes_and_its_diagonal_is_the_defenders_noise() -> None:
    noise = NoisePlan.of(0, [3, 8])
    plan = crossed_plan(noise, frozenset({"forward"}), 3, 2)
    like = torch.zeros(12, 1, 2, 2)
    drawn = {site: plan.normal(site, 0, like).unflatten(0, (2, 3, 2)) for site in ("forward", "reverse")}
    for f in range(3):
        for r in range(2):
            assert torch.equal(drawn["forward"][:, f, r], noise.at(f).normal("forward", 0, like[:2]))
            assert torch.equal(drawn["reverse"][:, f, r], noise.at(r).normal("reverse", 0, like[:2]))


@pytest.mark.parametrize(
    ("sampler", "expected"), [("ddpm", (3, 2)), ("one_step", (5, 1)), ("reverse_only", (1, 5))]
)
def test_tapes_go_to_the_noise_that_the_purifier_has(sampler: str, expected: tuple[int, int]) -> None:
    of = linear.subject(sampler)
    assert tape_counts(of, 3, 2) == expected


def test_cells_are_the_gradients_of_their_tapes() -> None:
    of = linear.subject("ddpm")
    x, y, noise = of.examples(range(3))
    found = crossed_gradients(of, x, y, noise, 2, 2)
    target = Target(of.parts.model)
    for k in range(2):
        tape = noise.at(k)
        alone = target.per_draw(x, y, noise=tape, eot=1)
        torch.testing.assert_close(found.grad[:, k, k], alone.grad[:, 0])
        torch.testing.assert_close(found.logits[:, k, k], alone.logits[:, 0])
    mixed = noise.at(1).sharing(["forward"], noise.at(0))
    torch.testing.assert_close(found.grad[:, 0, 1], target.per_draw(x, y, noise=mixed, eot=1).grad[:, 0])


def test_directions_have_length_one_and_a_gradient_of_nothing_has_none() -> None:
    cells = uniform(1, 2, 2, 1, 2, 2, seed=4)
    cells[0, 0, 0] = 0
    found = gradient_products(cells)
    assert found["direction"]["all"].item() == pytest.approx(3 / 4)
    lengths = cells.flatten(3).norm(dim=3)[0]
    assert found["length"]["all"].item() == pytest.approx(float((lengths**2).mean()))
    expected = (lengths[0, 0] * lengths[1, 1] + lengths[0, 1] * lengths[1, 0]) / 2
    assert found["length"]["nothing"].item() == pytest.approx(float(expected))
