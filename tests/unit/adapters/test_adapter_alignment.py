"""The view against explicit loops over draws, and what keeps a library's rows and our noise together."""

import random  # noqa: TID251 - what libraries draw from
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dbpkit.attacks import Target
from dbpkit.attacks.libraries import (
    AlignedView,
    Queries,
    Returned,
    attack_aligned,
    checked_settings,
    class_count,
    find_attack,
    import_library,
    norm_of,
    seeded_libraries,
)
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.threats.pixels import L2, Linf
from tests.oracles import NoisyClassifier, TinyClassifier, cross_entropy, uniform
from tests.unit.adapters.models import COUNT, Aligned, labelled_images

ROUND_OFF = 1e-10
"""Float64 arithmetic on values of order one."""
X = uniform(3, 1, 4, 4)
Y = torch.tensor([0, 1, 2])
NOISE = NoisePlan.of(0, [4, 5, 6], "attack")


def noisy() -> NoisyClassifier:
    return NoisyClassifier(TinyClassifier())


# ------------------------------------------------------------------ the view


@pytest.mark.parametrize("draws", ["fresh", "fixed"])
def test_view_constant_query_is_the_mean_of_its_draws_with_its_gradient(draws: Any) -> None:
    """The second query averages draws 3, 4, 5 of each example, or again 0, 1, 2 where they are fixed."""
    model = noisy()
    view = AlignedView(Target(model, 2), NOISE, eot=3, draws=draws, alignment="constant")
    view(X)
    first = 3 if draws == "fresh" else 0
    leaf, expected_leaf = X.clone().requires_grad_(), X.clone().requires_grad_()
    logits = view(leaf)
    expected = torch.stack([model(expected_leaf, noise=NOISE.at(first + r)) for r in range(3)]).mean(dim=0)
    torch.testing.assert_close(logits, expected, rtol=0, atol=ROUND_OFF)
    (grad,) = torch.autograd.grad(cross_entropy(logits, Y).sum(), leaf)
    (expected_grad,) = torch.autograd.grad(cross_entropy(expected, Y).sum(), expected_leaf)
    torch.testing.assert_close(grad, expected_grad, rtol=0, atol=ROUND_OFF)


def test_view_single_every_row_of_a_query_is_a_query_of_its_own() -> None:
    """Two rows after one: draws 1 and 2 of the one example."""
    model, one = noisy(), NOISE.rows([1])
    view = AlignedView(model, one)
    view(X[:1])
    expected = torch.cat([model(X[1:2], noise=one.at(1)), model(X[2:3], noise=one.at(2))])
    torch.testing.assert_close(view(X[1:]), expected, rtol=0, atol=ROUND_OFF)


def test_view_of_one_graph_serves_several_backward_passes() -> None:
    """FAB asks for the gradient of every logit from one forward pass."""
    model = noisy()
    leaf, expected_leaf = X[:1].clone().requires_grad_(), X[:1].clone().requires_grad_()
    logits = AlignedView(model, NOISE.rows([0]), eot=2)(leaf)
    expected = (
        model(expected_leaf, noise=NOISE.rows([0]).at(0)) + model(expected_leaf, noise=NOISE.rows([0]).at(1))
    ) / 2
    for k in range(3):
        (row,) = torch.autograd.grad(logits[0, k], leaf, retain_graph=True)
        (expected_row,) = torch.autograd.grad(expected[0, k], expected_leaf, retain_graph=True)
        torch.testing.assert_close(row, expected_row, rtol=0, atol=ROUND_OFF)


def test_view_queries_are_counted_by_example() -> None:
    """Two draws of the forward pass; two more, differentiated, where the backward pass makes its graph."""
    target = Target(noisy())
    view = AlignedView(target, NOISE, eot=2, alignment="constant")
    view(X)
    view(X.clone().requires_grad_()).sum().backward()
    assert dict(target.forward_passes) == dict.fromkeys([4, 5, 6], 6)
    assert dict(target.gradient_passes) == dict.fromkeys([4, 5, 6], 2)


def test_view_computes_in_its_own_type_and_answers_in_the_callers() -> None:
    view = AlignedView(noisy(), NOISE.rows([0]), dtype=torch.float64)
    leaf = X[:1].float().requires_grad_()
    logits = view(leaf)
    logits.sum().backward()
    assert logits.dtype == leaf.grad.dtype == torch.float32
    expected = noisy()(X[:1].float().double(), noise=NOISE.rows([0]).at(0)).float()
    assert torch.equal(logits, expected)


def test_view_constant_refuses_a_batch_of_another_length() -> None:
    view = AlignedView(noisy(), NOISE, alignment="constant")
    with pytest.raises(UserError, match=r"sent 2 images to a model bound to 3 examples.* 'single'"):
        view(X[:2])


def test_view_single_of_several_examples_raises() -> None:
    with pytest.raises(UserError, match="bound to one example, not to 3"):
        AlignedView(noisy(), NOISE)


@pytest.mark.parametrize("wrong", [{"eot": 0}, {"draws": "new"}, {"alignment": "nearest"}])
def test_view_wrong_option_raises(wrong: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match=r"eot must be a whole number|draws 'fresh' or 'fixed' and alignment 'single'"
    ):
        AlignedView(noisy(), NOISE.rows([0]), **wrong)


# ------------------------------------------------------------------ a library that attacks


def ascend(view: AlignedView, x: Tensor, y: Tensor) -> Returned:
    """Three gradient steps from a random start, far out of the budget."""
    x_adv = (x + 0.01 * torch.empty_like(x).uniform_()).requires_grad_()  # as libraries draw
    for _ in range(3):
        (grad,) = torch.autograd.grad(cross_entropy(view(x_adv), y).sum(), x_adv)
        x_adv = (x_adv + 0.3 * grad.sign()).detach().requires_grad_()
    return Returned(x_adv, view(x_adv).argmax(dim=1) != y)


def run(routine: Any, rows: slice = slice(None), **options: Any) -> Any:
    target = options.pop("target", None) or Target(noisy())
    queries = Queries(2, **options)
    return attack_aligned(
        routine, target, X[rows], Y[rows], threat=Linf(0.1), noise=NOISE.rows(rows), queries=queries
    )


def test_attack_aligned_any_batch_gives_the_same_images_though_the_library_draws() -> None:
    whole = run(ascend).x_adv
    parts = torch.cat([run(ascend, slice(i, i + 1)).x_adv for i in range(3)])
    assert torch.equal(whole, parts)
    assert not torch.equal(whole[0], whole[1])


def test_attack_aligned_shows_every_iterate_within_the_budget() -> None:
    """Three differentiated images and the returned one of each example, in turn."""
    target, seen = Target(noisy()), []
    target.visit = lambda x_adv, noise: seen.append((noise.example_ids.tolist(), x_adv))
    found = run(ascend, target=target)
    assert [ids for ids, _ in seen] == [[4]] * 4 + [[5]] * 4 + [[6]] * 4
    for b in range(3):
        for _, x_adv in seen[4 * b : 4 * b + 4]:
            assert float(Linf(0.1).distance(X[b : b + 1], x_adv)) <= 0.1 + ROUND_OFF
        assert torch.equal(seen[4 * b + 3][1], Linf(0.1).project(X[b : b + 1], found.x_adv[b : b + 1]))


def test_attack_aligned_claim_beyond_the_budget_does_not_count() -> None:
    def far(view: AlignedView, x: Tensor, y: Tensor) -> Returned:
        return Returned(x + torch.tensor([0.05, 0.2])[int(y[0] > 0)], torch.tensor([True]))

    assert run(far).claimed.tolist() == [True, False, False]


def test_attack_aligned_loss_is_judged_on_draws_that_no_query_used() -> None:
    used: list[tuple[int, int, int]] = []

    class Witness(NoisyClassifier):
        def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
            keys = zip(noise.example_ids.tolist(), noise.draw.tolist(), strict=True)
            used.extend((noise.lane, *key) for key in keys)
            return super().forward(x, noise=noise)

    model = Witness(TinyClassifier())
    found = run(ascend, target=Target(model))
    assert {lane for lane, _, _ in used[-6:]} == {1 << 20}
    assert not set(used[-6:]) & set(used[:-12])
    draws = [cross_entropy(model(X, noise=NOISE.branch(1).at(r)), Y) for r in range(2)]
    torch.testing.assert_close(found.loss[:, 0], torch.stack(draws).mean(dim=0), rtol=0, atol=ROUND_OFF)
    assert found.loss.shape == (3, 2)
    assert found.grad_norm.shape == (3, 0)


def test_attack_aligned_library_that_drops_rows_of_a_constant_batch_raises() -> None:
    def dropping(view: AlignedView, x: Tensor, y: Tensor) -> Returned:
        robust = view(x).argmax(dim=1) == y
        robust[0] = False
        view(x[robust])
        return Returned(x, ~robust)

    with pytest.raises(UserError, match="it drops or cuts rows"):
        run(dropping, alignment="constant")


def test_attack_aligned_other_shape_raises() -> None:
    with pytest.raises(UserError, match=r"returned images of shape \(1, 1, 2, 4\) for \(1, 1, 4, 4\)"):
        run(lambda _view, x, _y: Returned(x[:, :, :2], torch.tensor([True])))


def test_aligned_stub_noise_by_position_is_refused() -> None:
    """So that the contract of every adapter can fail: a library that drops the first row moves the others."""
    x = labelled_images()
    with pytest.raises(AssertionError, match="met the noise of"):
        Aligned()(x[1:], noise=NoisePlan.of(0, range(COUNT - 1)))


# ------------------------------------------------------------------ global random numbers


def numpy_state() -> list[int]:
    return np.random.get_state()[1].tolist()  # noqa: TID251, NPY002


def draw() -> list[float]:
    """One number of each global generator."""
    from_numpy = np.random.rand()  # noqa: TID251, NPY002
    return [float(torch.empty(1).uniform_()), float(from_numpy), random.random()]


def test_seeded_libraries_same_seed_same_numbers_and_state_restored() -> None:
    def state() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), numpy_state(), random.getstate()

    before = state()
    values = []
    for seed in (7, 7, 8):
        with seeded_libraries(seed):
            values.append(draw())
    assert values[0] == values[1]
    assert all(a != b for a, b in zip(values[1], values[2], strict=True))
    assert state() == before


def test_seeded_libraries_error_inside_restores_too() -> None:
    def fail() -> None:
        draw()
        raise RuntimeError("inside")

    before = numpy_state()
    with pytest.raises(RuntimeError, match="inside"), seeded_libraries(7):
        fail()
    assert numpy_state() == before


# ------------------------------------------------------------------ names and settings


def test_import_library_missing_names_the_extra() -> None:
    with pytest.raises(UserError, match=r"nothing-here is not installed.*pip install 'dbpkit\[adapters\]'"):
        import_library("nothing_here_at_all", "nothing-here")


def test_find_attack_unknown_name_raises_with_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown nn attack 'Linaer'\. Did you mean 'Linear'"):
        find_attack("nn", torch.nn, "Linaer", torch.nn.Module)


def test_checked_settings_fraction_is_a_number() -> None:
    def attack(eps_step: float = 0, mode: str = "") -> None: ...

    found = checked_settings("x", attack, {"eps_step": "2/255", "mode": "l2"}, ())
    assert found == {"eps_step": pytest.approx(2 / 255), "mode": "l2"}


def test_checked_settings_unknown_or_taken_raises() -> None:
    def attack(steps: int = 0, eps: float = 0) -> None: ...

    with pytest.raises(UserError, match=r"has no setting 'stps'\. Available: steps\."):
        checked_settings("x", attack, {"stps": 1}, ("eps",))
    with pytest.raises(UserError, match="'eps' comes from the threat model"):
        checked_settings("x", attack, {"eps": 1}, ("eps",))


def test_norm_of_known_threats_and_refusal_of_others() -> None:
    assert (norm_of(Linf(1), "x"), norm_of(L2(1), "x")) == (float("inf"), 2.0)
    with pytest.raises(UserError, match="x attacks know the threats 'linf' and 'l2', not object"):
        norm_of(object(), "x")  # type: ignore[arg-type]


def test_class_count_is_not_counted_as_a_query() -> None:
    target = Target(noisy())
    assert class_count(target, X, NOISE) == 3
    assert target.forward_rows == 0
