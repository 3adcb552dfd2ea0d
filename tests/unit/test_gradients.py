"""Gradients through a purification: exact by every route, at bounded memory, and their alternatives."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.frozen import Function
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.types import State, StepHook
from dbpkit.models.denoisers import EDMDenoiser
from dbpkit.purification.classifier import PurifiedClassifier, Undefended
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.driver import drive, plainly
from dbpkit.purification.replay import DEFAULT_MEMORY, Replay, directional_derivatives, straight_through
from dbpkit.purification.samplers import Chain, Method, make_sampler
from dbpkit.purification.samplers.functions import FunctionSampler
from dbpkit.purification.views import gradients
from tests.oracles import (
    TinyClassifier,
    TinyNetwork,
    case_name,
    cross_entropy,
    few_steps,
    fill,
    sampler_cases,
    tiny_denoiser,
    uniform,
)

ROUND_OFF = 1e-10
"""Float64 sums of a hundred steps, added up in another order."""
CASES = sampler_cases()
each_sampler = pytest.mark.parametrize(("name", "options"), CASES, ids=case_name)


class Saved:
    """Counts the bytes of distinct storages that autograd keeps, weights left out."""

    def __init__(self, *without: Tensor) -> None:
        self.sizes: dict[int, int] = {}
        self.without = {t.untyped_storage().data_ptr() for t in without}

    def pack(self, saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in self.without:
            self.sizes[storage.data_ptr()] = storage.nbytes()
        return saved

    @property
    def total(self) -> int:
        return sum(self.sizes.values())


@contextlib.contextmanager
def counting(*without: Tensor) -> Iterator[Saved]:
    saved = Saved(*without)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda saved: saved):
        yield saved


def purify(name: str, options: dict[str, Any], x: Tensor, hook: Any, denoiser: Any = None) -> Tensor:
    sampler = make_sampler(name, 0.1, few_steps(name), options)
    noise = NoisePlan.of(3, range(len(x)))
    return drive(sampler, denoiser or tiny_denoiser().requires_grad_(False), x, noise, hook)


def steps_of(name: str) -> int:
    return make_sampler(name, 0.1, few_steps(name)).steps


def input_gradient(name: str, options: dict[str, Any], hook: Any, denoiser: Any = None) -> Tensor:
    """Gradient of a fixed nonlinear function of the purified image."""
    x = uniform(2, 1, 3, 4, low=-0.8, high=0.8).requires_grad_()
    return torch.autograd.grad(purify(name, options, x, hook, denoiser).sin().sum(), x)[0]


def one_step_bytes(name: str, options: dict[str, Any]) -> int:
    """Bytes of the graph of the first step alone, weights left out."""
    total, denoiser = 0, tiny_denoiser().requires_grad_(False)

    def measured(step: Callable[[State], State], state: State) -> State:
        nonlocal total
        if total:
            return step(state)
        with counting(*denoiser.parameters()) as saved:
            after = step(state)
            total = saved.total
        return after

    purify(name, options, uniform(2, 1, 3, 4).requires_grad_(), measured, denoiser)
    return total


# ------------------------------------------------------------------ exact gradients, every sampler


@each_sampler
@pytest.mark.parametrize("memory_bytes", [0, DEFAULT_MEMORY], ids=["replayed", "kept"])
def test_purifier_gradcheck_passes(name: str, options: dict[str, Any], memory_bytes: int) -> None:
    """Against finite differences in float64; the clamp is off so that no pixel lies on its kink."""
    denoiser = tiny_denoiser()
    purifier = Purifier(
        denoiser, name, steps=few_steps(name), options=options, clamp=False, memory_bytes=memory_bytes
    )
    noise = NoisePlan.of(1, [5, 6])
    x = uniform(2, 1, 2, 2, low=0.2, high=0.8).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: purifier(x, noise=noise), x, eps=1e-6, atol=1e-7, rtol=1e-5)


@each_sampler
@pytest.mark.parametrize("budget", ["none", "middle", "all"])
def test_replay_any_budget_equals_plain_autograd(name: str, options: dict[str, Any], budget: str) -> None:
    steps = steps_of(name)
    memory = {"none": 0, "middle": int(2.9 * one_step_bytes(name, options)), "all": DEFAULT_MEMORY}[budget]
    hook = Replay(steps, memory)
    expected = input_gradient(name, options, plainly)
    assert float(expected.abs().min()) > 0
    torch.testing.assert_close(input_gradient(name, options, hook), expected, rtol=ROUND_OFF, atol=0)
    if budget == "none":
        assert hook.kept == 1
    elif budget == "all":
        assert hook.kept == steps
    elif steps > 3:
        assert 1 <= hook.kept <= 2


@each_sampler
def test_replay_any_budget_leaves_the_value_alone(name: str, options: dict[str, Any]) -> None:
    x = uniform(2, 1, 3, 4, low=-0.8, high=0.8)
    expected = purify(name, options, x, plainly)
    assert torch.equal(purify(name, options, x, Replay(steps_of(name), 0)), expected)
    for memory in (0, one_step_bytes(name, options), DEFAULT_MEMORY):
        hook = Replay(steps_of(name), memory)
        assert torch.equal(purify(name, options, x.clone().requires_grad_(), hook).detach(), expected)


@each_sampler
@pytest.mark.parametrize("memory_bytes", [0, DEFAULT_MEMORY], ids=["replayed", "kept"])
def test_purifier_backward_and_retained_graph_equal_autograd_grad(
    name: str, options: dict[str, Any], memory_bytes: int
) -> None:
    purifier = Purifier(
        tiny_denoiser(), name, steps=few_steps(name), options=options, memory_bytes=memory_bytes
    )
    x = uniform(2, 1, 3, 4, low=0.2, high=0.8).requires_grad_()
    noise = NoisePlan.of(3, [0, 1])
    (expected,) = torch.autograd.grad(purifier(x, noise=noise).sin().sum(), x)
    assert float(expected.abs().max()) > 0
    loss = purifier(x, noise=noise).sin().sum()
    for _ in range(2):
        assert torch.equal(torch.autograd.grad(loss, x, retain_graph=True)[0], expected)
    loss.backward()
    assert torch.equal(x.grad, expected)


@each_sampler
def test_purifier_weights_stay_frozen_and_in_eval_mode(name: str, options: dict[str, Any]) -> None:
    denoiser = tiny_denoiser()
    before = [p.clone() for p in denoiser.parameters()]
    purifier = Purifier(denoiser.train(), name, steps=few_steps(name), options=options, memory_bytes=0)
    x = uniform(1, 1, 3, 4).requires_grad_()
    purifier(x, noise=NoisePlan.of(3, [0])).sum().backward()
    assert not denoiser.training
    for parameter, old in zip(denoiser.parameters(), before, strict=True):
        assert not parameter.requires_grad
        assert parameter.grad is None
        assert torch.equal(parameter, old)


def test_classifier_weights_stay_frozen_and_in_eval_mode() -> None:
    classifier = TinyClassifier().train()
    model = PurifiedClassifier(Purifier(tiny_denoiser(), "ddim", steps=50), classifier)
    x = uniform(1, 1, 3, 4).requires_grad_()
    model(x, noise=NoisePlan.of(3, [0])).sum().backward()
    assert not classifier.training
    assert all(not p.requires_grad and p.grad is None for p in classifier.parameters())


# ------------------------------------------------------------------ memory


def test_replay_without_budget_grows_by_one_state_per_step() -> None:
    """Beside the last graph, ``ddpm`` on 50, 100 and 200 steps saves the input of each of its steps."""
    totals = {}
    for steps, calls in ((50, 6), (100, 11), (200, 21)):
        denoiser, x = tiny_denoiser(), uniform(2, 1, 8, 8).requires_grad_()
        denoiser.requires_grad_(False)
        sampler = make_sampler("ddpm", 0.1, steps)
        with counting(*denoiser.parameters()) as saved:
            pure = drive(sampler, denoiser, x, NoisePlan.of(3, [0, 1]), Replay(calls, 0))
        totals[calls] = saved.total
        state = x.untyped_storage().nbytes()
        del pure
    assert totals[11] - totals[6] == 5 * state
    assert totals[21] - totals[11] == 10 * state


def test_plain_autograd_keeps_far_more_than_replay() -> None:
    """So that the count above can fail: without replay the same count is several times larger."""
    denoiser, x = tiny_denoiser(), uniform(2, 1, 8, 8).requires_grad_()
    denoiser.requires_grad_(False)
    with counting(*denoiser.parameters()) as saved:
        pure = purify("ddpm", {}, x, plainly, denoiser)
    assert saved.total > 5 * 6 * x.untyped_storage().nbytes()
    del pure


@pytest.mark.parametrize("graphs", [1, 2, 4])
def test_replay_with_budget_keeps_at_most_the_budget_and_the_states(graphs: int) -> None:
    denoiser, x = tiny_denoiser(), uniform(2, 1, 3, 4).requires_grad_()
    denoiser.requires_grad_(False)
    budget = graphs * one_step_bytes("ddpm", {})
    hook = Replay(6, budget)
    with counting(*denoiser.parameters()) as saved:
        pure = purify("ddpm", {}, x, hook, denoiser)
    assert hook.kept >= 1
    assert saved.total <= budget + 6 * x.untyped_storage().nbytes()
    assert saved.total > hook.kept * x.untyped_storage().nbytes()
    del pure


@pytest.mark.parametrize(("memory_bytes", "calls"), [(0, 11), (DEFAULT_MEMORY, 6)])
def test_replay_forward_passes_are_those_of_the_kept_steps(memory_bytes: int, calls: int) -> None:
    """N steps with k kept cost 2 N - k forward passes: 11 with one of 6 kept, 6 with all."""
    denoiser, count = tiny_denoiser(), 0

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return denoiser(x, sigma)

    input_gradient("ddpm", {}, Replay(6, memory_bytes), counted)
    assert count == calls


class Remembering(Chain):
    """A state of two tensors, the second made from the first; rounds on one grid, as many as wanted."""

    rounds = 1
    steps = property(lambda self: self.rounds * (len(self.levels) - 1))

    def step(self, denoiser: Any, state: State, i: int, noise: NoisePlan) -> State:
        (x, *memory) = state
        x0 = denoiser(x, torch.tensor(self.levels[i % (len(self.levels) - 1)], dtype=x.dtype))
        mixed = 1.5 * x0 - 0.5 * memory[0] if memory else x0
        return 0.5 * x + 0.5 * mixed * x0.cos(), x0.sin()


@pytest.mark.parametrize("memory_bytes", [0, 3000, DEFAULT_MEMORY])
def test_replay_of_a_state_with_a_memory_equals_plain_autograd(memory_bytes: int) -> None:
    """First and second derivatives: each tensor of the state gets its own part only."""
    sampler, noise = Remembering((0.4, 0.3, 0.2, 0.1, 0.0)), NoisePlan.of(3, [0, 1])
    denoiser = tiny_denoiser().requires_grad_(False)

    def derivatives(hook: StepHook) -> tuple[Tensor, Tensor]:
        x = uniform(2, 1, 3, 4, low=-0.8, high=0.8).requires_grad_()
        loss = drive(sampler, denoiser, x, noise, hook).sin().sum()
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        return grad.detach(), torch.autograd.grad(grad.square().sum(), x)[0]

    hook = Replay(sampler.steps, memory_bytes, verify=True)
    for replayed, kept in zip(derivatives(hook), derivatives(plainly), strict=True):
        assert float(kept.abs().min()) > 0
        torch.testing.assert_close(replayed, kept, rtol=ROUND_OFF, atol=ROUND_OFF)


def test_replay_of_a_tensor_that_is_passed_on_unchanged_has_its_gradient() -> None:
    """As the input that guides every step of a guided sampler."""

    def step(state: State) -> State:
        return state[0].sin() + state[1] ** 2, state[1]

    def grad(hook: StepHook) -> Tensor:
        x = uniform(1, 1, 2, 2).requires_grad_()
        state = (x, x)
        for _ in range(3):
            state = hook(step, state)
        return torch.autograd.grad(state[0].sum(), x)[0]

    assert torch.equal(grad(Replay(3, 0)), grad(plainly))


def test_replay_of_a_constant_in_the_state_has_the_other_tensors_gradient() -> None:
    def step(state: State) -> State:
        return state[0].sin() * state[1], state[1]

    def grad(hook: StepHook) -> Tensor:
        x = uniform(1, 1, 2, 2).requires_grad_()
        state = (x, torch.full_like(x, 2.0, requires_grad=False))
        for _ in range(3):
            state = hook(step, state)
        return torch.autograd.grad(state[0].sum(), x)[0]

    assert torch.equal(grad(Replay(3, 0)), grad(plainly))


def kept_bytes(run: Callable[[Tensor], Tensor], denoiser: nn.Module) -> int:
    """Bytes that autograd keeps of one forward pass, weights left out."""
    x = uniform(2, 1, 8, 8).requires_grad_()
    with counting(*denoiser.parameters()) as saved:
        pure = run(x)
    total = saved.total
    del pure
    return total


def test_replay_of_several_rounds_keeps_one_graph_and_the_states() -> None:
    denoiser, totals = tiny_denoiser().requires_grad_(False), []
    noise, states = NoisePlan.of(3, [0, 1]), 2 * 8 * (2 * 8 * 8)
    for rounds in (1, 2, 4):
        sampler = type("Rounds", (Remembering,), {"rounds": rounds})((0.4, 0.3, 0.2, 0.1, 0.0))
        hook = Replay(sampler.steps, 0)
        total = kept_bytes(lambda x, s=sampler, h=hook: drive(s, denoiser, x, noise, h), denoiser)
        totals.append(total - sampler.steps * states)
    assert totals[0] == totals[1] == totals[2]


def test_replay_of_a_function_with_more_steps_than_levels_keeps_the_states_only() -> None:
    """A function of the older contract may call its hook as often as it likes."""
    denoiser, totals = tiny_denoiser().requires_grad_(False), []

    def rounds(denoiser: Any, x: Tensor, levels: Tensor, *, noise: Any, step: Any, count: int) -> Tensor:
        for _ in range(count):
            for sigma in levels[:-1]:
                x = step(lambda x, sigma=sigma: 0.5 * x + 0.5 * denoiser(x, sigma), x)
        return x

    levels = torch.tensor([0.4, 0.3, 0.2, 0.0], dtype=torch.float64)
    for count in (2, 4):
        sampler = FunctionSampler(tuple(levels.tolist()), Method(rounds), {"count": count}, levels)
        hook = Replay(sampler.steps, 0)
        run = lambda x, s=sampler, h=hook: drive(s, denoiser, x, NoisePlan.of(3, [0, 1]), h)  # noqa: E731
        totals.append(kept_bytes(run, denoiser))
    assert totals[1] - totals[0] == 2 * 3 * 8 * (2 * 8 * 8)  # six states more, no graph


# ------------------------------------------------------------------ safeguards


def test_replay_verify_network_that_draws_noise_of_its_own_raises() -> None:
    """In eval mode too, so that nothing the purifier does can mend it."""
    network = TinyNetwork()
    draws = iter(range(1000))
    network.dropout = Function(lambda hidden: hidden * (1 + 0.01 * next(draws)))
    purifier = Purifier(EDMDenoiser(network), "ddpm", steps=50, memory_bytes=0)
    purifier.verify_replay = True
    x = uniform(1, 1, 3, 4).requires_grad_()
    pure = purifier(x, noise=NoisePlan.of(3, [0]))
    with pytest.raises(
        UserError, match=r"gave another result when it was run again.*Put the network in eval mode"
    ):
        pure.sum().backward()


@pytest.mark.parametrize("memory_bytes", [0, 3000])
def test_replay_verify_deterministic_network_passes_with_the_same_gradient(memory_bytes: int) -> None:
    gradients = [input_gradient("ddpm", {}, Replay(6, memory_bytes, verify=v)) for v in (False, True)]
    assert torch.equal(gradients[0], gradients[1])


def test_replay_outside_autocast_runs_steps_in_the_precision_of_the_forward_pass() -> None:
    """The backward pass happens after autocast has ended; the replayed steps must still run in bfloat16."""
    denoiser = EDMDenoiser(TinyNetwork()).float()
    x = uniform(2, 1, 4, 4).float().requires_grad_()

    def gradient(hook: Any, autocast: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            pure = purify("ddpm", {}, x, hook, denoiser)
        return torch.autograd.grad(pure.float().sin().sum(), x)[0]

    low, full = gradient(plainly, True), gradient(plainly, False)
    # bfloat16 keeps 8 bits: a replay in the wrong precision would be off by about 2**-8 relative.
    assert float((low - full).abs().max()) > 1e-4
    for memory in (0, 3000):
        torch.testing.assert_close(gradient(Replay(6, memory), True), low, rtol=0, atol=1e-6)
        torch.testing.assert_close(gradient(Replay(6, memory, verify=True), True), low, rtol=0, atol=1e-6)


def test_replay_without_gradient_keeps_no_graph() -> None:
    hook = Replay(6, DEFAULT_MEMORY)
    assert not purify("ddpm", {}, uniform(1, 1, 3, 4), hook).requires_grad
    with torch.no_grad():
        assert not purify("ddpm", {}, uniform(1, 1, 3, 4).requires_grad_(), Replay(6, 0)).requires_grad


# ------------------------------------------------------------------ what an attacker may differentiate


@pytest.fixture
def model() -> PurifiedClassifier:
    return PurifiedClassifier(Purifier(tiny_denoiser(), "ddpm", steps=500), TinyClassifier())


def value_and_gradient(view: nn.Module) -> tuple[Tensor, Tensor]:
    x = uniform(2, 1, 4, 4, low=0.2, high=0.8).requires_grad_()
    logits = view(x, noise=NoisePlan.of(3, [4, 5]))
    return logits.detach(), torch.autograd.grad(cross_entropy(logits, torch.tensor([0, 2])).sum(), x)[0]


@pytest.mark.parametrize("name", list(gradients))
def test_gradient_view_any_gives_logits_and_a_finite_gradient(name: str, model: PurifiedClassifier) -> None:
    logits, grad = value_and_gradient(gradients.get(name)(model))
    assert logits.shape == (2, 3)
    assert bool(grad.isfinite().all())
    assert float(grad.abs().amax(dim=(1, 2, 3)).min()) > 0


@pytest.mark.parametrize("name", list(gradients))
def test_gradient_view_any_leaves_the_model_as_it_was(name: str, model: PurifiedClassifier) -> None:
    purifier, expected = model.purifier, value_and_gradient(model)
    value_and_gradient(gradients.get(name)(model))
    assert model.purifier is purifier
    for after, before in zip(value_and_gradient(model), expected, strict=True):
        assert torch.equal(after, before)


@pytest.mark.parametrize("name", list(gradients))
def test_gradient_view_any_draws_from_sites_of_the_model_only(name: str, model: PurifiedClassifier) -> None:
    assert gradients.get(name)(model).sites <= model.sites


def test_exact_is_the_model_itself(model: PurifiedClassifier) -> None:
    assert gradients.get("exact")(model) is model


def test_bpda_has_the_exact_value_and_the_classifiers_gradient_at_the_purified_image(
    model: PurifiedClassifier,
) -> None:
    logits, grad = value_and_gradient(gradients.get("bpda")(model))
    exact, exact_grad = value_and_gradient(model)
    assert torch.equal(logits, exact)
    x_pure = model.purifier(
        uniform(2, 1, 4, 4, low=0.2, high=0.8), noise=NoisePlan.of(3, [4, 5])
    ).requires_grad_()
    (expected,) = torch.autograd.grad(
        cross_entropy(model.classifier(x_pure), torch.tensor([0, 2])).sum(), x_pure
    )
    torch.testing.assert_close(grad, expected, rtol=0, atol=ROUND_OFF)
    assert float((grad - exact_grad).abs().max()) > 1e-3


def test_straight_through_value_is_exact_and_jacobian_is_the_identity() -> None:
    x = uniform(1, 1, 2, 2)
    matrix = torch.autograd.functional.jacobian(lambda x: straight_through(torch.round, x), x).reshape(4, 4)
    assert torch.equal(matrix, torch.eye(4, dtype=torch.float64))
    assert torch.equal(straight_through(lambda x: 10 * x, x), 10 * x)


def test_surrogate_is_the_purifier_with_fewer_steps(model: PurifiedClassifier) -> None:
    found = value_and_gradient(gradients.get("surrogate")(model, steps=100))
    coarse = PurifiedClassifier(Purifier(model.purifier.denoiser, "ddpm", steps=100), model.classifier)
    for a, b in zip(found, value_and_gradient(coarse), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(found[0], value_and_gradient(model)[0])


def test_surrogate_of_a_foreign_purifier_raises(model: PurifiedClassifier) -> None:
    view = gradients.get("bpda")(model)
    with pytest.raises(UserError, match="gradient 'surrogate' needs a diffusion purifier"):
        gradients.get("surrogate")(view)


def test_blind_is_the_classifier_alone(model: PurifiedClassifier) -> None:
    view = gradients.get("blind")(model)
    assert isinstance(view, Undefended)
    logits, grad = value_and_gradient(view)
    x = uniform(2, 1, 4, 4, low=0.2, high=0.8).requires_grad_()
    expected = model.classifier(x)
    assert torch.equal(logits, expected.detach())
    assert torch.equal(grad, torch.autograd.grad(cross_entropy(expected, torch.tensor([0, 2])).sum(), x)[0])


def test_gradient_unknown_name_raises_with_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown gradient 'bdpa'\. Did you mean 'bpda'\?"):
        gradients.get("bdpa")


# ------------------------------------------------------------------ the numeric check


def test_directional_derivatives_of_a_quadratic_are_exact() -> None:
    """f = sum a x^2 + b x has f'(x) d = sum (2 a x + b) d; the central difference has no error in x^2."""
    a, b, x = uniform(2, 1, 3, 3, seed=1), uniform(2, 1, 3, 3, seed=2), uniform(2, 1, 3, 3, seed=3)
    direction = uniform(2, 1, 3, 3, seed=4, low=-1, high=1)
    exact, numeric = directional_derivatives(
        lambda x: (a * x**2 + b * x).flatten(1).sum(dim=1), x, direction, step=0.01
    )
    expected = ((2 * a * x + b) * direction).flatten(1).sum(dim=1)
    torch.testing.assert_close(exact, expected, rtol=0, atol=ROUND_OFF)
    torch.testing.assert_close(numeric, expected, rtol=0, atol=ROUND_OFF)


def test_directional_derivatives_of_a_cubic_differ_by_the_step_squared() -> None:
    """((x + h)^3 - (x - h)^3) / 2 h = 3 x^2 + h^2: the two really are computed differently."""
    x, ones = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    exact, numeric = directional_derivatives(lambda x: (x**3).flatten(1).sum(dim=1), x, ones, step=0.1)
    assert float(exact) == pytest.approx(0.75, abs=ROUND_OFF)
    assert float(numeric - exact) == pytest.approx(0.01, abs=ROUND_OFF)


def test_directional_derivatives_purified_loss_agree(model: PurifiedClassifier) -> None:
    x = uniform(2, 1, 4, 4, low=0.2, high=0.8)
    direction = uniform(2, 1, 4, 4, seed=8, low=-1, high=1)
    direction = direction / direction.flatten(1).norm(dim=1)[:, None, None, None]
    noise, y = NoisePlan.of(3, [4, 5]), torch.tensor([0, 2])
    exact, numeric = directional_derivatives(
        lambda x: cross_entropy(model(x, noise=noise), y), x, direction, 1e-5
    )
    torch.testing.assert_close(
        exact, numeric, rtol=1e-5, atol=1e-8
    )  # h^2 = 1e-10, round-off 1e-16 / h = 1e-11


def test_purified_classifier_draws_are_the_repetitions_of_the_plan(model: PurifiedClassifier) -> None:
    x, noise = uniform(2, 1, 4, 4), NoisePlan.of(3, [4, 5])
    logits = model.draws(x, noise=noise.at(2), count=3)
    assert logits.shape == (2, 3, 3)
    for r in range(3):
        torch.testing.assert_close(logits[:, r], model(x, noise=noise.at(6 + r)), rtol=0, atol=ROUND_OFF)


def test_purified_classifier_without_a_plan_draws_afresh_at_every_call() -> None:
    models = [
        PurifiedClassifier(Purifier(tiny_denoiser(), "ddim", steps=50), TinyClassifier(), seed=s)
        for s in (0, 0, 1)
    ]
    x = uniform(2, 1, 4, 4)
    first = [m(x) for m in models]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    assert not torch.equal(models[0](x), first[0])


def test_bound_classifier_is_deterministic_and_refuses_another_batch(model: PurifiedClassifier) -> None:
    x, noise = uniform(2, 1, 4, 4), NoisePlan.of(3, [4, 5])
    bound = model.bind(noise)
    assert torch.equal(bound(x), bound(x))
    assert torch.equal(bound(x), model(x, noise=noise))
    with pytest.raises(UserError, match="noise plan of 2 examples was used on a batch of 1"):
        bound(x[:1])


def test_undefended_ignores_the_noise() -> None:
    classifier = TinyClassifier()
    x = uniform(2, 1, 4, 4)
    view = Undefended(classifier)
    assert torch.equal(view(x, noise=NoisePlan.of(0, [1, 2])), classifier(x))
    assert view.sites == frozenset()


def test_fill_makes_no_weight_zero() -> None:
    """The networks of these tests would pass many of them trivially with zero weights."""
    network = TinyNetwork()
    fill(network, 5)
    assert all(bool((p != 0).all()) for p in network.parameters())


# ------------------------------------------------------------------ second derivatives, torch.func


@each_sampler
@pytest.mark.parametrize("memory_bytes", [0, 3000], ids=["replayed", "some kept"])
def test_second_derivatives_of_a_replayed_gradient_equal_those_of_kept_graphs(
    name: str, options: dict[str, Any], memory_bytes: int
) -> None:
    """hvp, jvp and a penalty on the gradient; before, they were 0, 0 and left out without a word."""
    x = uniform(2, 1, 3, 4, low=-0.8, high=0.8)
    v = uniform(2, 1, 3, 4, seed=4, low=-1)

    def derivatives(hook: Callable[[], Any]) -> list[Tensor]:
        def pure(z: Tensor) -> Tensor:
            return purify(name, options, z, hook())

        leaf = x.clone().requires_grad_()
        loss = pure(leaf).sin().sum()
        (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
        (penalised,) = torch.autograd.grad(loss + grad.square().sum(), leaf)
        of_a_sum = torch.autograd.functional.hvp(lambda z: pure(z).sum(), x, v)[1]
        of_a_sine = torch.autograd.functional.hvp(lambda z: pure(z).sin().sum(), x, v)[1]
        return [of_a_sum, of_a_sine, torch.autograd.functional.jvp(pure, x, v)[1], penalised]

    found = derivatives(lambda: Replay(steps_of(name), memory_bytes)), derivatives(lambda: plainly)
    for replayed, kept in zip(*found, strict=True):
        assert float(kept.abs().max()) > 1e-3
        torch.testing.assert_close(replayed, kept, rtol=ROUND_OFF, atol=ROUND_OFF)


def test_second_derivative_repeated_leaves_no_tensor_behind() -> None:
    def once() -> None:
        leaf = uniform(2, 1, 3, 4).requires_grad_()
        loss = purify("ddpm", {}, leaf, Replay(6, 1)).sin().sum()
        (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
        torch.autograd.grad(grad.square().sum(), leaf)

    counts = []
    for _ in range(4):
        once()
        gc.collect()
        counts.append(sum(issubclass(type(o), Tensor) for o in gc.get_objects()))
    assert counts[1] == counts[3]


def test_transforms_of_torch_func_and_forward_mode_are_exact(model: PurifiedClassifier) -> None:
    """They keep every graph they need: no budget holds there."""
    model.purifier.memory_bytes = 0
    x, v, noise = uniform(2, 1, 4, 4), uniform(2, 1, 4, 4, seed=4, low=-1), NoisePlan.of(3, [4, 5])

    def loss(x: Tensor) -> Tensor:
        return model(x, noise=noise).sin().sum()

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected, rtol=0, atol=ROUND_OFF)
    slope = (expected * v).sum()
    torch.testing.assert_close(torch.func.jvp(loss, (x,), (v,))[1], slope, rtol=ROUND_OFF, atol=ROUND_OFF)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.clone().requires_grad_(), v)
        found = forward_ad.unpack_dual(loss(dual)).tangent
    torch.testing.assert_close(found, slope, rtol=ROUND_OFF, atol=ROUND_OFF)


def test_vmap_over_a_batch_asks_for_the_plan_of_its_rows(model: PurifiedClassifier) -> None:
    x, noise = uniform(3, 1, 4, 4), NoisePlan.of(3, [4, 5, 6])
    with pytest.raises(UserError, match="a noise plan of 3 examples was used on a batch of 1"):
        torch.func.vmap(lambda one: model(one[None], noise=noise))(x)
    same = torch.func.vmap(lambda one: model(one[None], noise=noise.rows([0]))[0])(x)
    torch.testing.assert_close(same, model(x, noise=noise.rows([0, 0, 0])), rtol=0, atol=ROUND_OFF)
