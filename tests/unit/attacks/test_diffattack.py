"""DiffAttack: the deviation against closed forms and states collected apart, its gradient by differences."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbpkit.attacks import Target
from dbpkit.attacks.diffattack import diffattack
from dbpkit.attacks.pgd import pgd
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.purification.classifier import PurifiedClassifier, Undefended
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.driver import drive
from dbpkit.purification.replay import DEFAULT_MEMORY
from dbpkit.purification.samplers import make_sampler
from dbpkit.purification.views import gradients
from dbpkit.threats.pixels import L2, Linf
from tests.oracles import (
    GaussianDenoiser,
    NoisyClassifier,
    TinyClassifier,
    case_name,
    cross_entropy,
    few_steps,
    sampler_cases,
    tiny_denoiser,
    uniform,
)

ROUND_OFF = 1e-10
"""Float64 arithmetic on values of order one."""
each_sampler = pytest.mark.parametrize(("name", "options"), sampler_cases(), ids=case_name)


def purified(denoiser: Any, name: str = "ddpm", **settings: Any) -> PurifiedClassifier:
    settings = {"steps": few_steps(name), "clamp": False, **settings}
    return PurifiedClassifier(Purifier(denoiser, name, **settings), TinyClassifier())


class Deaf(nn.Module):
    """A randomised classifier that tells nothing but its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.model = NoisyClassifier(TinyClassifier())

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        return self.model(x, noise=noise)


# ------------------------------------------------------------------ the deviation


def test_deviation_one_step_gaussian_data_is_the_closed_form() -> None:
    """The only state is the estimate D(u + sigma z), u = 2 x - 1; at level 0 the forward state is u."""
    denoiser, noise = GaussianDenoiser(-0.1, 0.3), NoisePlan.of(1, [5, 6])
    purifier = Purifier(denoiser, "one_step", options={"clip": False}, clamp=False)
    sigma = float(purifier.sampler.levels[0])
    u = uniform(2, 1, 3, 4, low=-0.8, high=0.8)
    z = noise.normal("forward", 0, u)
    theta = 0.3 / (0.3 + sigma**2)
    gap = theta * (u + sigma * z) - (1 - theta) * 0.1 - u
    x = ((u + 1) / 2).requires_grad_()
    _, deviation = purifier.traced(x, noise=noise)
    torch.testing.assert_close(deviation, gap.square().flatten(1).mean(dim=1), rtol=0, atol=ROUND_OFF)
    (grad,) = torch.autograd.grad(deviation.sum(), x)
    torch.testing.assert_close(grad, 2 * (theta - 1) * 2 * gap / 12, rtol=0, atol=ROUND_OFF)


@each_sampler
def test_deviation_any_sampler_compares_every_third_state_with_its_forward_state(
    name: str, options: dict[str, Any]
) -> None:
    """A hook of the test collects the states; variance-preserving ones are scaled by sqrt(alpha_bar)."""
    denoiser, noise = tiny_denoiser(), NoisePlan.of(1, [5, 6])
    purifier = Purifier(denoiser, name, steps=few_steps(name), options=options)
    x = uniform(2, 1, 4, 4, low=0.2, high=0.8)
    states: list[Tensor] = []

    def collect(step: Any, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        after = step(state)
        states.append(after[0])
        return after

    bound = make_sampler(name, 0.1, few_steps(name), options)
    drive(bound, denoiser, 2 * x - 1, noise, collect)
    gaps = []
    for i in range(len(states) - 1, -1, -3):
        sigma, number = bound.place(i)
        z = noise.normal("forward", number, x) if name != "reverse_only" else torch.zeros_like(x)
        forward = 2 * x - 1 + sigma * z
        if name == "vpsde":
            forward = forward * math.sqrt(1 / (1 + sigma**2))
        gaps.append((states[i] - forward).square().mean(dim=(1, 2, 3)))
    assert len(gaps) == math.ceil(len(states) / 3)
    x_pure, deviation = purifier.traced(x, noise=noise)
    torch.testing.assert_close(deviation, torch.stack(gaps).mean(dim=0), rtol=0, atol=ROUND_OFF)
    assert torch.equal(x_pure, purifier(x, noise=noise))
    assert float(deviation.min()) > 0


@pytest.mark.parametrize("memory_bytes", [0, DEFAULT_MEMORY], ids=["replayed", "kept"])
@pytest.mark.parametrize("name", ["ddpm", "ddim", "vpsde", "reverse_only"])
@pytest.mark.parametrize("denoiser", [GaussianDenoiser(-0.1, 0.3), tiny_denoiser()], ids=["gaussian", "net"])
def test_traced_logits_and_deviation_pass_gradcheck(denoiser: Any, name: str, memory_bytes: int) -> None:
    """Finite differences in float64, replayed steps included."""
    model = purified(denoiser, name, memory_bytes=memory_bytes)
    x, noise = uniform(2, 1, 2, 2, low=0.4, high=0.6).requires_grad_(), NoisePlan.of(1, [5, 6])
    assert torch.autograd.gradcheck(lambda x: model.traced(x, noise=noise), x, eps=1e-6, atol=1e-7, rtol=1e-5)


def test_traced_logits_are_those_of_the_model() -> None:
    model, x, noise = purified(tiny_denoiser()), uniform(2, 1, 4, 4), NoisePlan.of(1, [5, 6])
    assert torch.equal(model.traced(x, noise=noise)[0], model(x, noise=noise))


def test_traced_on_known_noise_compares_with_the_known_forward_draw() -> None:
    model, x, source = purified(tiny_denoiser()), uniform(2, 1, 4, 4), NoisePlan.of(1, [5, 6])
    known = source.on("attack").at(3).sharing(["forward", "reverse"], source)
    assert torch.equal(model.traced(x, noise=known)[1], model.traced(x, noise=source)[1])


# ------------------------------------------------------------------ the loss with it


@pytest.mark.parametrize("fixed_shape", [False, True])
@pytest.mark.parametrize("micro_batch", [2, 100])
def test_gradient_with_deviation_is_the_mean_of_an_explicit_loop(micro_batch: int, fixed_shape: bool) -> None:
    model, x, y = purified(tiny_denoiser()), uniform(3, 1, 4, 4), torch.tensor([0, 1, 2])
    noise = NoisePlan.of(0, [4, 5, 6], "attack")
    target = Target(model, micro_batch, fixed_shape=fixed_shape)
    found = target.gradient(x, y, noise=noise, eot=3, deviation=0.7)
    grads, values = [], []
    for r in range(3):
        leaf = x.clone().requires_grad_()
        logits, deviation = model.traced(leaf, noise=noise.at(r))
        value = cross_entropy(logits, y) + 0.7 * deviation
        grads.append(torch.autograd.grad(value.sum(), leaf)[0])
        values.append(value.detach())
    torch.testing.assert_close(found.grad, torch.stack(grads).mean(dim=0), rtol=0, atol=ROUND_OFF)
    torch.testing.assert_close(found.loss, torch.stack(values).mean(dim=0), rtol=0, atol=ROUND_OFF)
    assert target.gradient_rows == 9


def test_diffattack_without_weight_is_pgd() -> None:
    model, x, y = purified(tiny_denoiser()), uniform(2, 1, 4, 4), torch.tensor([0, 1])
    settings: dict[str, Any] = {
        "threat": L2(0.3),
        "noise": NoisePlan.of(0, [1, 2]),
        "iterations": 3,
        "eot": 2,
    }
    for a, b in zip(
        diffattack(model, x, y, weight=0.0, **settings)[:3], pgd(model, x, y, **settings)[:3], strict=True
    ):
        assert torch.equal(a, b)


def test_diffattack_undefended_is_pgd_whatever_the_weight() -> None:
    model, x, y = Undefended(TinyClassifier()), uniform(2, 1, 4, 4), torch.tensor([0, 1])
    settings: dict[str, Any] = {
        "threat": L2(0.3),
        "noise": NoisePlan.of(0, [1, 2]),
        "iterations": 3,
        "eot": 1,
    }
    for a, b in zip(
        diffattack(model, x, y, weight=5.0, **settings)[:3], pgd(model, x, y, **settings)[:3], strict=True
    ):
        assert torch.equal(a, b)


def test_diffattack_one_step_gaussian_data_a_large_weight_reaches_the_largest_deviation() -> None:
    """The deviation is quadratic in the mean gap of the draws, so it grows most along its sign.

    Its expectation's gradient has the sign of (theta - 1) gap, and theta < 1: an image above the data's mean
    moves further up, one below further down, each pixel by the whole budget.
    """
    denoiser = GaussianDenoiser(0.0, 0.01)
    model = purified(denoiser, "one_step", options={"clip": False})
    high = uniform(3, 1, 4, 4, seed=2) < 0.5
    x = 0.25 + 0.5 * high.double()
    found = diffattack(
        model,
        x,
        torch.tensor([0, 1, 2]),
        threat=Linf(0.05),
        noise=NoisePlan.of(0, range(3)),
        iterations=8,
        eot=8,
        weight=1e6,
    )
    expected = 0.2 + 0.6 * high.double()
    torch.testing.assert_close(found.x_adv, expected, rtol=0, atol=ROUND_OFF)
    assert bool((found.loss[:, -1] > found.loss[:, 0]).all())


def test_diffattack_visits_every_iterate() -> None:
    model, x, y = purified(tiny_denoiser()), uniform(2, 1, 4, 4), torch.tensor([0, 1])
    target, seen = Target(model), []
    target.visit = lambda x_adv, noise: seen.append((x_adv, noise.example_ids.tolist()))
    found = diffattack(target, x, y, threat=Linf(0.05), noise=NoisePlan.of(0, [1, 2]), iterations=3, eot=1)
    assert [ids for _, ids in seen] == [[1, 2]] * 3
    assert torch.equal(seen[-1][0], found.x_adv)


# ------------------------------------------------------------------ errors


def attack(model: Any, **options: Any) -> Any:
    x, y = uniform(2, 1, 4, 4), torch.tensor([0, 1])
    return diffattack(model, x, y, threat=Linf(0.05), noise=NoisePlan.of(0, [1, 2]), **options)


def test_diffattack_model_that_tells_no_deviation_raises() -> None:
    with pytest.raises(UserError, match=r"a deviation of purification states, which Deaf does not tell"):
        attack(Deaf())


def test_diffattack_view_that_hides_the_states_raises() -> None:
    view = gradients.get("bpda")(purified(tiny_denoiser()))
    with pytest.raises(UserError, match=r"needs a diffusion purifier, which StraightThrough is not"):
        attack(view)


def test_diffattack_sampler_without_a_state_per_level_raises() -> None:
    model = purified(GaussianDenoiser(), "tests.parts:half")
    with pytest.raises(UserError, match=r"sampler 'tests\.parts:half' made 1 steps on a grid of \d+"):
        attack(model)


@pytest.mark.parametrize("options", [{"iterations": 0}, {"eot": 0}, {"weight": -1.0}, {"weight": math.nan}])
def test_diffattack_option_out_of_range_raises(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"attack 'diffattack': {next(iter(options))} must be a"):
        attack(purified(tiny_denoiser()), **options)
