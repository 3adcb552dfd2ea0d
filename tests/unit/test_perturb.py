"""Perturbed training noise: RBGM by ranks, CGPO by a loop of the test's own, and a search without traces.

With ``lambda_min = lambda_max = 1`` the composite noise is the perturbation itself, which is how most tests
see it. The reference's loop (spec 6.3) is written out here in its own variance-preserving terms.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.training.perturb import (
    Problem,
    frozen,
    gaussian_order,
    mixed,
    moment_matched,
    norm_rescaled,
    perturbations,
    rank_gaussian,
    strength,
)
from tests.oracles import TinyClassifier, cross_entropy, tiny_denoiser, uniform

ROUND_OFF = 1e-12
"""Float64 arithmetic on values of order one to ten."""
WHOLE = {"lambda_min": 1.0, "lambda_max": 1.0}
"""Options with which the composite noise is the perturbation."""
NAMES = list(perturbations)
PASSIVE = ["none", "random-order"]
"""Perturbations that need no network at all."""
SEARCHING = [name for name in NAMES if name not in PASSIVE]
GUIDED = [name for name in NAMES if perturbations.get(name).needs_guide]
SEEDS = range(4)


class Probe(nn.Module):
    """A residual step with everything that depends on the mode: dropout and batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1, dtype=torch.float64)
        self.norm = nn.BatchNorm2d(1, dtype=torch.float64)
        self.drop = nn.Dropout(0.5)
        self.conv.weight.data = uniform(1, 1, 3, 3, seed=50, low=-0.5, high=0.5)
        self.conv.bias.data.fill_(0.1)
        self.seen: list[tuple[bool, bool]] = []

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        """Notes whether any part is in train mode and whether any weight asks for a gradient."""
        trains = any(m.training for m in self.modules())
        self.seen.append((trains, any(p.requires_grad for p in self.parameters())))
        return x + self.drop(self.norm(self.conv(x)))


class ProbeGuide(nn.Module):
    """A classifier behind a probe, as it comes before any loader has frozen it."""

    def __init__(self) -> None:
        super().__init__()
        self.probe = Probe()
        self.head = TinyClassifier()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.probe(x))


class Broken(nn.Module):
    """A network that fails whenever it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, *_: Tensor) -> Tensor:
        raise ZeroDivisionError("a broken network was called")


class Times(nn.Module):
    """Multiplies what another network returns by a number."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network = network
        self.factor = factor

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.factor * self.network(*inputs)


class Identity(nn.Module):
    """The identity, as a denoiser."""

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        return x


class Linear(nn.Module):
    """Logits that are linear in the image, with weights (K, C * H * W)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


class Band(nn.Module):
    """Two classes. Every pixel has a centre of its own where class 0 is least likely."""

    def forward(self, x: Tensor) -> Tensor:
        centre = 0.5 + 0.02 * uniform(*x.shape[1:], seed=70, low=-1)
        far = (x - centre).square().flatten(1).mean(dim=1)
        return torch.stack([far, 0 * far], dim=1)


def plan(count: int = 3, seed: int = 2) -> NoisePlan:
    return NoisePlan.of(seed, range(10, 10 + count), "train", draw=4)


def problem_of(
    count: int = 3,
    *,
    channels: int = 1,
    side: int = 4,
    denoiser: nn.Module | None = None,
    guide: nn.Module | None = None,
    seed: int = 0,
) -> Problem:
    """Float64 images with some pixels on the box's border, and levels on both sides of the caps."""
    return Problem(
        denoiser or tiny_denoiser(channels),
        guide or TinyClassifier(channels),
        uniform(count, channels, side, side, seed=100 + seed, low=-1.2, high=1.2).clamp(-1, 1),
        torch.arange(count) % 2,
        0.03 * torch.linspace(0, 3, count, dtype=torch.float64).exp()[:, None, None, None],
        plan(count, seed),
    )


def rows(problem: Problem, index: list[int]) -> Problem:
    return problem._replace(
        x0=problem.x0[index],
        y=problem.y[index],
        sigma=problem.sigma[index],
        noise=problem.noise.rows(index),
    )


def made(name: str, problem: Problem, **options: Any) -> Tensor:
    return perturbations.get(name)(**options).noise(problem)


def start(problem: Problem, step: int) -> Tensor:
    return problem.noise.normal("start", step, problem.x0)


def ordered(values: Tensor) -> Tensor:
    """The values of each image and channel, sorted."""
    return values.flatten(2).sort(dim=2).values


def places(values: Tensor) -> Tensor:
    """Where the smallest value of each image and channel lies, the next one, ..."""
    return values.flatten(2).argsort(dim=2)


def ranked(order: Tensor, values: Tensor) -> Tensor:
    """RBGM as the reference writes it: v = sort(values), rank = argsort(argsort(order)), v[rank]."""
    rank = np.argsort(np.argsort(order.flatten(2).numpy(), axis=2), axis=2)
    out = np.take_along_axis(np.sort(values.flatten(2).numpy(), axis=2), rank, axis=2)
    return torch.from_numpy(out).view(values.shape)


def classification_error(problem: Problem, x0_hat: Tensor, eps_theta: Tensor, eps: Tensor) -> Tensor:
    """CE(C(x0_hat / 2 + 0.5), y), mean over the batch."""
    assert problem.guide is not None
    return cross_entropy(problem.guide(x0_hat / 2 + 0.5), problem.y).mean()


def noise_error(problem: Problem, x0_hat: Tensor, eps_theta: Tensor, eps: Tensor) -> Tensor:
    """MSE(eps_theta, eps) against the plain noise, mean over the batch."""
    return (eps_theta - eps).square().mean()


def reference(
    problem: Problem,
    error: Callable[[Problem, Tensor, Tensor, Tensor], Tensor] = classification_error,
    *,
    lam: Tensor | None = None,
    iterations: int = 5,
    accumulate: bool = True,
) -> tuple[Tensor, Tensor]:
    """The loop of spec 6.3 in variance-preserving terms: the last D, and the noise trained on."""
    x, alpha_bar = problem.x0, 1 / (1 + problem.sigma**2)
    lam = (0.03 * (alpha_bar / (1 - alpha_bar)).sqrt()).clip(0.0, 0.3) if lam is None else lam
    d, a = start(problem, 0), torch.zeros_like(x)
    for k in range(1, iterations + 1):
        d.requires_grad_()
        eps = problem.noise.normal("forward", k, x)
        x_t = alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * ((1 - lam**2).sqrt() * eps + lam * d)
        x0_hat = problem.denoiser(x_t / alpha_bar.sqrt(), problem.sigma.flatten())
        eps_theta = (x_t - alpha_bar.sqrt() * x0_hat) / (1 - alpha_bar).sqrt()
        gradient = torch.autograd.grad(error(problem, x0_hat, eps_theta, eps), d)[0]
        a = a + gradient if accumulate else gradient
        d = ranked(a, start(problem, k))
    return d, (1 - lam**2).sqrt() * problem.noise.normal("forward", 0, x) + lam * d


# ------------------------------------------------------------------------------------------ RBGM (spec 6.2)


def pair(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Gradients (4, 3, 8, 8) without ties, and standard normals."""
    gradient = uniform(4, 3, 8, 8, seed=300 + seed, low=-1e-3, high=1e-3).to(dtype)
    return gradient, plan(4, seed).normal("start", 1, gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", SEEDS)
def test_rank_gaussian_values_are_the_drawn_normals_bit_by_bit(seed: int, dtype: torch.dtype) -> None:
    gradient, z = pair(seed, dtype)
    out = rank_gaussian(gradient, z)
    assert (out.shape, out.dtype) == (z.shape, dtype)
    assert torch.equal(ordered(out), ordered(z))


@pytest.mark.parametrize("seed", SEEDS)
def test_rank_gaussian_order_is_the_order_of_the_gradient(seed: int) -> None:
    gradient, z = pair(seed)
    assert not torch.equal(places(z), places(gradient))
    assert torch.equal(places(rank_gaussian(gradient, z)), places(gradient))


@pytest.mark.parametrize("seed", SEEDS)
def test_rank_gaussian_agrees_with_double_argsort_and_with_scipy_ranks(seed: int) -> None:
    gradient, z = pair(seed)
    out = rank_gaussian(gradient, z)
    assert torch.equal(out, ranked(gradient, z))
    rank = stats.rankdata(gradient.flatten(2).numpy(), axis=2).astype(int) - 1
    expected = np.take_along_axis(ordered(z).numpy(), rank, axis=2)
    assert np.array_equal(out.flatten(2).numpy(), expected)


def test_rank_gaussian_case_by_hand() -> None:
    gradient = torch.tensor([[[[0.1, 5.0], [-2.0, 0.3]]]])
    z = torch.tensor([[[[0.4, -1.0], [0.8, 0.2]]]])
    assert torch.equal(rank_gaussian(gradient, z), torch.tensor([[[[0.2, 0.8], [-1.0, 0.4]]]]))


def test_rank_gaussian_ties_keep_the_order_of_z() -> None:
    gradient, z = pair()
    steps = (3000 * gradient).round()  # seven different values
    out = rank_gaussian(steps, z)
    assert torch.equal(ordered(out), ordered(z))
    for g, before, after in zip(steps.flatten(0, 1), z.flatten(0, 1), out.flatten(0, 1), strict=True):
        assert torch.equal(g.flatten()[after.flatten().argsort()], g.flatten().sort().values)
        for level in g.unique():
            tied = g == level
            assert torch.equal(before[tied].argsort(), after[tied].argsort())


@pytest.mark.parametrize("level", [0.0, -3.5])
def test_rank_gaussian_constant_channel_is_z_itself(level: float) -> None:
    gradient, z = pair()
    gradient[1, 2] = level
    out = rank_gaussian(gradient, z)
    assert torch.equal(out[1, 2], z[1, 2])
    assert torch.equal(rank_gaussian(torch.full_like(z, level), z), z)


@pytest.mark.parametrize(
    "rising",
    [torch.exp, lambda g: g**3, lambda g: 1e-30 * g, lambda g: 3 * g + 5, torch.special.ndtr],
    ids=["exp", "cube", "tiny", "affine", "ndtr"],
)
def test_rank_gaussian_rising_transform_of_the_gradient_changes_nothing(
    rising: Callable[[Tensor], Tensor],
) -> None:
    gradient, z = pair()
    assert torch.equal(rank_gaussian(rising(gradient), z), rank_gaussian(gradient, z))
    assert not torch.equal(rank_gaussian(-rising(gradient), z), rank_gaussian(gradient, z))


def test_rank_gaussian_images_and_channels_do_not_see_each_other() -> None:
    gradient, z = pair()
    before = rank_gaussian(gradient, z)
    gradient[1, 2], z[1, 2] = 1e9 * -gradient[1, 2], 7 + z[0, 0]
    after = rank_gaussian(gradient, z)
    changed = (before != after).flatten(2).any(dim=2)
    assert changed.nonzero().tolist() == [[1, 2]]
    for b in range(4):
        for c in range(3):
            alone = rank_gaussian(gradient[b : b + 1, c : c + 1], z[b : b + 1, c : c + 1])
            assert torch.equal(alone[0, 0], after[b, c])


def test_rank_gaussian_memory_layout_is_of_no_account() -> None:
    gradient, z = pair()
    expected = rank_gaussian(gradient, z)
    for a in (gradient, gradient.to(memory_format=torch.channels_last)):
        for b in (z, z.to(memory_format=torch.channels_last)):
            assert torch.equal(rank_gaussian(a, b), expected)


@pytest.mark.parametrize("iterations", range(6))
def test_addt_each_search_step_draws_fresh_values(iterations: int) -> None:
    problem = problem_of()
    out = made("addt", problem, iterations=iterations, **WHOLE)
    assert torch.equal(ordered(out), ordered(start(problem, iterations)))
    others = [start(problem, step) for step in range(6) if step != iterations]
    others += [problem.noise.normal("forward", step, problem.x0) for step in range(6)]
    assert not any(torch.isin(out, other).any() for other in others)


# --------------------------------------------------------------------- lambda and the composite (spec 6.1)

BARS = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))
GAMMA = torch.from_numpy(np.sqrt(BARS / (1 - BARS)))
"""sqrt(alpha_bar_t / (1 - alpha_bar_t)) of the linear DDPM schedule, multiplied up with numpy."""


def test_strength_is_a_clipped_multiple_of_gamma() -> None:
    sigma = torch.logspace(-4, 3, 200, dtype=torch.float64)
    expected = np.minimum(0.03 / sigma.numpy(), 0.3)
    assert strength(sigma).tolist() == pytest.approx(expected.tolist(), rel=ROUND_OFF)
    shaped = strength(sigma.view(-1, 1, 1, 1), 0.5, 0.2, 0.9)
    assert shaped.shape == (200, 1, 1, 1)
    expected = np.maximum(np.minimum(0.5 / sigma.numpy(), 0.9), 0.2)
    assert shaped.flatten().tolist() == pytest.approx(expected.tolist(), rel=ROUND_OFF)


def test_strength_ddpm_times_match_the_published_values() -> None:
    lam = strength(1 / GAMMA)
    torch.testing.assert_close(lam, (0.03 * GAMMA).clip(0, 0.3), rtol=ROUND_OFF, atol=0)
    assert (lam == 0.3).nonzero().flatten().tolist() == list(range(27))  # the cap binds up to t = 26
    assert 0.29 < float(lam[27]) < 0.3
    assert float(lam[100]) == pytest.approx(0.0877, abs=5e-5)
    assert bool((lam > 0).all())


@pytest.mark.parametrize(
    ("t", "pixels"), [(0, 0.38), (10, 1.8), (27, 3.8), (100, 3.8), (300, 3.8), (999, 3.8)]
)
def test_strength_referred_to_the_image_has_the_published_deviation(t: int, pixels: float) -> None:
    """In units of 1/255 of a [0, 1] image, to the digits that are published."""
    deviation = float(strength(1 / GAMMA[t]) / GAMMA[t]) * 255 / 2
    assert deviation == pytest.approx(pixels, abs=0.05 if pixels > 1 else 0.005)


def test_strength_continuous_vp_times_match_mean_over_std() -> None:
    t = np.linspace(1e-3, 1, 300)
    integral = 0.1 * t + 9.95 * t**2
    mean, std = np.exp(-integral / 2), np.sqrt(1 - np.exp(-integral))
    expected = np.clip(0.03 * mean / std, 0, 0.3)
    assert strength(torch.from_numpy(std / mean)).tolist() == pytest.approx(expected.tolist(), rel=1e-9)
    assert 0 < int((expected == 0.3).sum()) < 300


def test_strength_edm_levels_match_their_own_formula() -> None:
    sigma = np.exp(1.2 * np.linspace(-4, 4, 50) - 1.2)
    expected = np.clip(0.03 / sigma, 0, 0.3)
    assert strength(torch.from_numpy(sigma)).tolist() == pytest.approx(expected.tolist(), rel=ROUND_OFF)


@pytest.mark.parametrize("share", [0.0, 0.0877, 0.3, 1.0])
def test_mixed_independent_parts_have_unit_variance(share: float) -> None:
    like = torch.empty(4, 1, 250, 250, dtype=torch.float64)
    z, d = plan(4).normal("forward", 0, like), plan(4).normal("start", 5, like)
    composite = mixed(z, d, torch.full((4, 1, 1, 1), share, dtype=torch.float64))
    n = like.numel()
    assert float(composite.var()) == pytest.approx(1, abs=5 * math.sqrt(2 / n))
    assert float((composite * d).mean()) == pytest.approx(share, abs=5 * math.sqrt(2 / n))
    ones, zeros = torch.ones(1), torch.zeros(1)
    weights = mixed(ones, zeros, torch.tensor(share)), mixed(zeros, ones, torch.tensor(share))
    assert float(weights[0] ** 2 + weights[1] ** 2) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("t", [0, 26, 27, 100, 500])
def test_mixed_noisy_image_is_the_papers_state_over_root_alpha_bar(t: int) -> None:
    x0, bar = uniform(2, 3, 4, 4, low=-1), torch.tensor(BARS[t])
    eps, d = plan(2).normal("forward", 0, x0), plan(2).normal("start", 5, x0)
    lam = (0.03 * GAMMA[t]).clip(0, 0.3)
    x_t = bar.sqrt() * x0 + (1 - lam**2).sqrt() * (1 - bar).sqrt() * eps + lam * (1 - bar).sqrt() * d
    sigma = 1 / GAMMA[t]
    ours = x0 + sigma * mixed(z=eps, perturbation=d, share=strength(sigma))
    torch.testing.assert_close(ours, x_t / bar.sqrt(), rtol=0, atol=ROUND_OFF)


# ------------------------------------------------------------------------------------------ CGPO (spec 6.3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_addt_matches_the_reference_loop(seed: int, channels: int) -> None:
    problem = problem_of(channels=channels, seed=seed)
    _, composite = reference(problem)
    torch.testing.assert_close(made("addt", problem), composite, rtol=0, atol=ROUND_OFF)
    d, _ = reference(problem, lam=torch.ones_like(problem.sigma))
    assert torch.equal(made("addt", problem, **WHOLE), d)


def test_addt_gradients_accumulate_over_the_steps() -> None:
    """The last step's gradient alone gives another order; after one step there is no difference."""
    problem, lam = problem_of(), torch.ones(3, 1, 1, 1, dtype=torch.float64)
    forgetful, _ = reference(problem, lam=lam, accumulate=False)
    assert not torch.equal(made("addt", problem, **WHOLE), forgetful)
    for iterations, accumulate in ((1, False), (1, True), (4, True)):
        d, _ = reference(problem, lam=lam, iterations=iterations, accumulate=accumulate)
        assert torch.equal(made("addt", problem, iterations=iterations, **WHOLE), d)


@pytest.mark.parametrize("factor", [0.7, -0.7])
def test_addt_linear_networks_order_is_the_closed_form(factor: float) -> None:
    """Of two classes the loss rises along the other class's weights less the label's, at any point."""
    weight = uniform(2, 16, seed=60, low=-1)
    problem = problem_of(4, denoiser=Times(Identity(), factor), guide=Linear(weight))
    direction = factor * (weight[1 - problem.y] - weight[problem.y]).view(4, 1, 4, 4)
    assert torch.equal(made("addt", problem, **WHOLE), ranked(direction, start(problem, 5)))
    lam = (0.03 / problem.sigma).clip(0, 0.3)
    composite = (1 - lam**2).sqrt() * problem.z(0) + lam * ranked(direction, start(problem, 5))
    torch.testing.assert_close(made("addt", problem), composite, rtol=0, atol=ROUND_OFF)


def gain_in_standard_errors(name: str) -> float:
    """How much more a perturbation raises the guide's loss than a random one, paired over 64 images."""
    problem = problem_of(64, side=8)

    def losses(name: str) -> Tensor:
        noisy = problem.x0 + problem.sigma * made(name, problem)
        estimate = problem.denoiser(noisy, problem.sigma.flatten())
        return cross_entropy(problem.guide(estimate / 2 + 0.5), problem.y).detach()

    gain = losses(name) - losses("random-order")
    return float(gain.mean() / gain.std() * 8)


@pytest.mark.parametrize("name", ["addt", "norm-rescaled", "moment-matched", "linf"])
def test_guided_perturbation_raises_the_guides_loss_above_a_random_one(name: str) -> None:
    assert gain_in_standard_errors(name) > 5


def test_adversarial_values_in_random_order_do_not_raise_the_guides_loss() -> None:
    assert abs(gain_in_standard_errors("gaussian-order")) < 4


@pytest.mark.parametrize("name", NAMES)
def test_noise_of_an_example_does_not_depend_on_its_batch(name: str) -> None:
    problem = problem_of()
    together = made(name, problem)
    alone = torch.cat([made(name, rows(problem, [i])) for i in range(3)])
    torch.testing.assert_close(alone, together, rtol=0, atol=ROUND_OFF)
    backwards = made(name, rows(problem, [2, 1, 0]))
    torch.testing.assert_close(backwards.flip(0), together, rtol=0, atol=ROUND_OFF)


@pytest.mark.parametrize("name", NAMES)
def test_noise_is_a_function_of_the_plan_alone(name: str) -> None:
    problem = problem_of()
    first = made(name, problem)
    assert torch.equal(made(name, problem), first)
    assert not torch.isin(made(name, problem._replace(noise=problem.noise.at(5))), first).any()
    with torch.no_grad():
        assert torch.equal(made(name, problem), first)


# ---------------------------------------------------------------------- a search without traces (spec 6.5)


def probed() -> Problem:
    return problem_of(denoiser=Probe().train(), guide=ProbeGuide().train())


@pytest.mark.parametrize("name", NAMES)
def test_search_leaves_no_gradient_and_no_graph(name: str) -> None:
    problem = probed()
    assert problem.guide is not None
    parameters = [*problem.denoiser.parameters(), *problem.guide.parameters()]
    for i, p in enumerate(parameters):
        p.grad = torch.full_like(p, float(i)) if i % 2 else None
    assert not made(name, problem).requires_grad
    for i, p in enumerate(parameters):
        assert (p.grad is None) == (i % 2 == 0)
        assert p.grad is None or bool((p.grad == i).all())


@pytest.mark.parametrize("name", SEARCHING)
def test_search_runs_in_eval_mode_without_weight_gradients(name: str) -> None:
    problem = probed()
    made(name, problem)
    assert problem.denoiser.seen == [(False, False)] * 5
    assert problem.guide.probe.seen == ([(False, False)] * 5 if name in GUIDED else [])


@pytest.mark.parametrize("name", SEARCHING)
def test_search_leaves_weights_and_batch_statistics_as_they_were(name: str) -> None:
    problem = probed()
    before = [{k: t.clone() for k, t in m.state_dict().items()} for m in (problem.denoiser, problem.guide)]
    made(name, problem)
    for module, old in zip((problem.denoiser, problem.guide), before, strict=True):
        assert "norm.num_batches_tracked" in old or "probe.norm.num_batches_tracked" in old
        assert all(torch.equal(t, old[k]) for k, t in module.state_dict().items())


def state(*modules: nn.Module) -> list[bool]:
    return [m.training for module in modules for m in module.modules()] + [
        p.requires_grad for module in modules for p in module.parameters()
    ]


@pytest.mark.parametrize("name", SEARCHING)
def test_search_restores_every_part_to_its_own_state(name: str) -> None:
    """Some layers of a network in training may be frozen for good, and must stay so."""
    problem = probed()
    problem.denoiser.norm.eval()
    problem.denoiser.conv.bias.requires_grad_(False)
    problem.guide.head.eval().requires_grad_(False)
    before = state(problem.denoiser, problem.guide)
    assert True in before
    assert False in before
    made(name, problem)
    assert state(problem.denoiser, problem.guide) == before


@pytest.mark.parametrize("name", GUIDED)
def test_search_restores_the_networks_when_the_guide_raises(name: str) -> None:
    problem = problem_of(denoiser=Probe().train(), guide=Broken().train())
    with pytest.raises(ZeroDivisionError):
        made(name, problem)
    assert problem.denoiser.seen == [(False, False)]
    assert all(state(problem.denoiser, problem.guide))


def test_frozen_no_module_and_the_same_module_twice_are_fine() -> None:
    probe = Probe().train()
    with frozen(probe, None, probe):
        assert not any(state(probe))
    assert all(state(probe))


# -------------------------------------------------------------------------------------- variants (spec 6.4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_every_perturbation_gives_finite_noise_like_the_image(
    name: str, channels: int, dtype: torch.dtype
) -> None:
    problem = problem_of(channels=channels)
    problem = problem._replace(
        denoiser=problem.denoiser.to(dtype),
        guide=problem.guide.to(dtype),
        x0=problem.x0.to(dtype),
        sigma=problem.sigma.to(dtype),
    )
    noise = made(name, problem)
    assert (noise.shape, noise.dtype) == (problem.x0.shape, dtype)
    assert bool(noise.isfinite().all())
    if name != "none":
        assert not torch.isin(noise, problem.noise.normal("forward", 0, problem.x0)).all()


@pytest.mark.parametrize("name", PASSIVE)
def test_unguided_controls_call_no_network(name: str) -> None:
    problem = problem_of(denoiser=Broken(), guide=Broken())
    assert bool(made(name, problem).isfinite().all())
    assert torch.equal(made(name, problem._replace(guide=None)), made(name, problem))


def test_none_is_the_plain_noise() -> None:
    problem = problem_of()
    assert torch.equal(made("none", problem), problem.noise.normal("forward", 0, problem.x0))


def test_random_order_mixes_in_a_second_gaussian_with_the_share_of_addt() -> None:
    problem = problem_of()
    lam = (0.03 / problem.sigma).clip(0, 0.3)
    composite = (1 - lam**2).sqrt() * problem.z(0) + lam * start(problem, 5)
    torch.testing.assert_close(made("random-order", problem), composite, rtol=0, atol=ROUND_OFF)


@pytest.mark.parametrize("options", [{}, {"lambda_min": 0.7, "lambda_max": 0.7}], ids=["default", "0.7"])
def test_random_order_is_as_good_as_clean_noise(options: dict[str, float]) -> None:
    """Normal, of unit variance, and independent of the image and between pixels."""
    problem = problem_of(20, side=64)
    noise = made("random-order", problem, **options)
    n = noise.numel()
    assert float(noise.mean()) == pytest.approx(0, abs=5 / math.sqrt(n))
    assert float(noise.var()) == pytest.approx(1, abs=5 * math.sqrt(2 / n))
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    assert float((noise * problem.x0).mean()) == pytest.approx(0, abs=5 / math.sqrt(n))
    assert float((noise[..., 1:] * noise[..., :-1]).mean()) == pytest.approx(0, abs=5 / math.sqrt(n))


@pytest.mark.parametrize("seed", SEEDS)
def test_mse_matches_the_reference_loop_with_the_plain_noise_as_target(seed: int) -> None:
    problem = problem_of(seed=seed)
    _, composite = reference(problem, noise_error)
    torch.testing.assert_close(made("mse", problem), composite, rtol=0, atol=ROUND_OFF)


def test_mse_target_is_not_the_composite_noise() -> None:
    """A denoiser that always answers 0 predicts x / sigma. The gradient is that less the target, by hand."""
    problem = problem_of(denoiser=Times(Identity(), 0.0), guide=Broken())
    share = {"lambda_min": 0.5, "lambda_max": 0.5}
    composite = made("mse", problem, iterations=1, **share)
    root, z = math.sqrt(0.75), problem.noise.normal("forward", 1, problem.x0)
    mixture = root * z + 0.5 * start(problem, 0)
    predicted = problem.x0 / problem.sigma + mixture
    expected = ranked(predicted - z, start(problem, 1))
    got = (composite - root * problem.z(0)) / 0.5
    torch.testing.assert_close(got, expected, rtol=0, atol=ROUND_OFF)
    assert not torch.equal(expected, ranked(predicted - mixture, start(problem, 1)))


# -------------------------------------------------------------------------- controls of the mapping (spec 9)


@pytest.mark.parametrize("name", ["norm-rescaled", "moment-matched", "gaussian-order"])
def test_controls_linear_networks_have_closed_forms(name: str) -> None:
    weight = uniform(2, 16, seed=60, low=-1)
    problem = problem_of(4, denoiser=Identity(), guide=Linear(weight))
    direction = (weight[1 - problem.y] - weight[problem.y]).numpy()
    fresh = start(problem, 5).flatten(1).numpy()
    standard = (direction - direction.mean(1, keepdims=True)) / direction.std(1, keepdims=True)
    expected = {
        "norm-rescaled": direction
        * np.linalg.norm(fresh, axis=1, keepdims=True)
        / np.linalg.norm(direction, axis=1, keepdims=True),
        "moment-matched": standard,
        "gaussian-order": np.take_along_axis(np.sort(standard, 1), np.argsort(np.argsort(fresh, 1), 1), 1),
    }[name]
    got = made(name, problem, **WHOLE).flatten(1).numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)  # the sum of five parallel gradients


def test_norm_rescaled_has_the_norm_of_the_fresh_normals_per_image() -> None:
    problem = problem_of(channels=3)
    got = made("norm-rescaled", problem, **WHOLE).flatten(1).norm(dim=1)
    torch.testing.assert_close(got, start(problem, 5).flatten(1).norm(dim=1), rtol=ROUND_OFF, atol=0)


def test_moment_matched_has_mean_0_and_deviation_1_per_channel() -> None:
    got = made("moment-matched", problem_of(channels=3), **WHOLE).flatten(2)
    assert float(got.mean(dim=2).abs().max()) < ROUND_OFF
    assert float((got.std(dim=2, correction=0) - 1).abs().max()) < ROUND_OFF


def test_gaussian_order_has_the_matched_values_in_the_order_of_the_fresh_normals() -> None:
    problem = problem_of(channels=3)
    got = made("gaussian-order", problem, **WHOLE)
    assert torch.equal(places(got), places(start(problem, 5)))
    assert float(got.mean(dim=(2, 3)).abs().max()) < ROUND_OFF
    gradient, z = pair()
    assert torch.equal(ordered(gaussian_order(gradient, z)), ordered(moment_matched(gradient, z)))
    assert not torch.equal(ordered(gaussian_order(gradient, z)), ordered(z))


@pytest.mark.parametrize("control", [norm_rescaled, moment_matched, gaussian_order, rank_gaussian])
@pytest.mark.parametrize("scale", [1e-37, 1e-25, 1.0, 1e25, 1e37])
def test_controls_gradient_of_any_size_gives_the_same(
    control: Callable[[Tensor, Tensor], Tensor], scale: float
) -> None:
    """A guide that is sure of itself has float32 gradients whose squares vanish."""
    gradient, z = pair(dtype=torch.float32)
    gradient = 1e3 * gradient
    out = control(scale * gradient, z)
    torch.testing.assert_close(out, control(gradient, z), rtol=1e-4, atol=1e-5)
    assert 0.9 < float(out.square().mean()) < 1.1


@pytest.mark.parametrize("control", [norm_rescaled, moment_matched, gaussian_order])
def test_controls_no_gradient_gives_nothing(control: Callable[[Tensor, Tensor], Tensor]) -> None:
    _, z = pair()
    assert torch.equal(control(torch.zeros_like(z), z), torch.zeros_like(z))


@pytest.mark.parametrize("control", [moment_matched, gaussian_order])
def test_moment_matched_constant_gradient_gives_nothing(control: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Round-off of the mean must not be blown up to deviation 1."""
    z = plan(2).normal("start", 1, torch.zeros(2, 3, 7, 9))
    assert torch.equal(control(torch.full_like(z, 0.1), z), torch.zeros_like(z))


# -------------------------------------------------------------------------------- without RBGM (spec 6.4)


def linf_by_the_reference(problem: Problem, *, accumulate: bool = False, cap: float = 10.0) -> Tensor:
    """ADDT_Linf: delta = 0; five signed steps of 8/255 within 16/255 and the box; n = eps + c delta."""
    carry = (1 / problem.sigma).clamp(max=cap)
    delta, memory = torch.zeros_like(problem.x0), torch.zeros_like(problem.x0)
    for k in range(1, 6):
        delta.requires_grad_()
        n = problem.noise.normal("forward", k, problem.x0) + carry * delta
        x0_hat = problem.denoiser(problem.x0 + problem.sigma * n, problem.sigma.flatten())
        error = cross_entropy(problem.guide(x0_hat / 2 + 0.5), problem.y).mean()
        gradient = torch.autograd.grad(error, delta)[0]
        memory = memory + gradient if accumulate else gradient
        delta = torch.clip(delta.detach() + 8 / 255 * memory.sign(), -16 / 255, 16 / 255)
        delta = torch.maximum(torch.minimum(delta, 1 - problem.x0), -1 - problem.x0)
    return problem.noise.normal("forward", 0, problem.x0) + carry * delta


@pytest.mark.parametrize("seed", SEEDS)
def test_linf_matches_the_reference_loop(seed: int) -> None:
    problem = problem_of(channels=3, seed=seed)
    torch.testing.assert_close(made("linf", problem), linf_by_the_reference(problem), rtol=0, atol=ROUND_OFF)


def test_linf_gradients_do_not_accumulate() -> None:
    """A loss that turns round at a centre: a sum of gradients would go on where the last one turns back."""
    problem = problem_of(denoiser=Identity(), guide=Band())
    faint = torch.full_like(problem.sigma, 1e-6)
    problem = problem._replace(x0=0.05 * problem.x0, y=torch.zeros_like(problem.y), sigma=faint)
    expected = linf_by_the_reference(problem, cap=1e6)
    assert not torch.allclose(expected, linf_by_the_reference(problem, accumulate=True, cap=1e6))
    torch.testing.assert_close(made("linf", problem, gamma_max=1e6), expected, rtol=ROUND_OFF, atol=0)


@pytest.mark.parametrize("iterations", [0, 1, 2, 5])
def test_linf_stays_within_the_budget_and_the_box(iterations: int) -> None:
    problem = problem_of(6, channels=3)
    gamma = (1 / problem.sigma).clamp(max=10)
    assert len(gamma.unique()) < 6  # the cap binds on some
    delta = (made("linf", problem, iterations=iterations) - problem.z(0)) / gamma
    largest = float(delta.abs().max())
    assert largest == pytest.approx(min(iterations, 2) * 8 / 255, abs=ROUND_OFF)  # two steps fill it
    assert float((problem.x0 + delta).abs().max()) <= 1 + ROUND_OFF


def test_linf_uncapped_noisy_image_is_a_noisy_adversarial_image() -> None:
    """gamma sigma = 1 there, so the denoiser must undo the whole of delta."""
    problem = problem_of()
    problem = problem._replace(sigma=problem.sigma + 0.1)
    x = problem.x0 + problem.sigma * made("linf", problem, eps=0.02, step_size=0.02, iterations=1)
    delta = x - problem.x0 - problem.sigma * problem.z(0)
    inside = (problem.x0.abs() < 0.95).expand_as(delta)
    assert delta[inside].abs().tolist() == pytest.approx([0.04] * int(inside.sum()), abs=ROUND_OFF)


# ------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("name", NAMES)
def test_perturbation_without_a_guide_asks_for_one_where_it_is_needed(name: str) -> None:
    problem = problem_of()._replace(guide=None)
    if name in GUIDED:
        with pytest.raises(UserError, match=r"guided by a classifier\. Set objective_options\.guide"):
            made(name, problem)
    else:
        assert bool(made(name, problem).isfinite().all())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", SEARCHING)
def test_search_gradient_that_is_not_finite_is_refused(name: str, bad: float) -> None:
    """Ranks of nan would be as good-looking as any."""
    problem = problem_of(denoiser=Times(Probe(), bad).train())
    with pytest.raises(UserError, match="the gradient that guides the perturbation is not finite"):
        made(name, problem)
    assert all(state(problem.denoiser))


def test_unknown_perturbation_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown perturbation 'adt'\. Did you mean 'addt'\?"):
        perturbations.get("adt")


def test_problem_classification_loss_is_the_sum_over_the_batch() -> None:
    problem = problem_of()
    noise = problem.z(1)
    estimate = problem.denoiser(problem.x0 + problem.sigma * noise, problem.sigma.flatten())
    expected = functional.cross_entropy(problem.guide(estimate / 2 + 0.5), problem.y) * 3
    torch.testing.assert_close(problem.classification_loss(noise), expected, rtol=ROUND_OFF, atol=0)
