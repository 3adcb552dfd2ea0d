"""The denoising objective: its loss in the papers' own terms, and an update that the search leaves alone.

Guides come in by import path, as a user's would; a module made for the test holds them.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.models.denoisers import EDMDenoiser, VPDenoiser
from dbpkit.training.levels import noise_levels
from dbpkit.training.objectives import Batch, Denoising, make_objective
from dbpkit.training.perturb import Problem, perturbations
from tests.oracles import TinyClassifier, TinyNetwork, tiny_denoiser, uniform

ROUND_OFF = 1e-10
"""Float64 arithmetic on values up to the inverse of the smallest noise level, 100."""
GUIDE = "users_guides:guide"
NAMES = list(perturbations)
BARS = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000)))
"""alpha_bar of the linear DDPM schedule, multiplied up with numpy."""


class Normed(nn.Module):
    """A denoiser whose training and evaluation modes differ: x minus normalised features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1, bias=False, dtype=torch.float64)
        self.norm = nn.BatchNorm2d(1, dtype=torch.float64)
        self.conv.weight.data = uniform(1, 1, 3, 3, seed=50, low=-0.5, high=0.5)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x - sigma[:, None, None, None] * self.norm(self.conv(x))


class Recorder(nn.Module):
    """Keeps what it is given and what it returns."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        self.inputs.append(x.detach())
        out = self.network(x, *more)
        self.outputs.append(out.detach())
        return out


class Wrapper(nn.DataParallel):
    """What a parallel wrapper looks like from outside."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.calls = 0

    def forward(self, *inputs: Tensor) -> Tensor:
        self.calls += 1
        return self.module(*inputs)


def batch_of(count: int = 4, dtype: torch.dtype = torch.float64) -> Batch:
    noise = NoisePlan.of(3, range(20, 20 + count), "train", draw=1)
    return Batch(uniform(count, 1, 4, 4, seed=5).to(dtype), torch.arange(count) % 3, noise)


def objective_of(perturbation: Any = "addt", levels: Any = "purification", **options: Any) -> Denoising:
    table = {"levels": levels, "perturbation": perturbation, "guide": GUIDE, **options}
    objective = make_objective("denoising", table)
    assert isinstance(objective, Denoising)
    return objective


def choices(batch: Batch) -> Tensor:
    """The uniforms that decide an example's noise level and whether it is mirrored."""
    return batch.noise.uniform("level", 0, torch.zeros(len(batch.x), 2, dtype=batch.x.dtype))


def noise_of(
    name: str, denoiser: nn.Module, guide: nn.Module, batch: Batch, x0: Tensor, sigma: Tensor
) -> Tensor:
    column = sigma[:, None, None, None]
    return perturbations.get(name)().noise(Problem(denoiser, guide, x0, batch.y, column, batch.noise))


# --------------------------------------------------------------------- the loss in the papers' terms (6.1)


@pytest.mark.parametrize("name", NAMES)
def test_denoising_ddpm_loss_is_the_error_of_the_predicted_composite_noise(
    name: str, guides: ModuleType
) -> None:
    """mean (eps_theta(x_t, t) - n)**2 with x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) n."""
    network, batch = TinyNetwork(), batch_of(8)
    model = VPDenoiser(network)
    loss = objective_of(name, "ddpm", flip=False).loss(model, batch).detach()
    t = (choices(batch)[:, 0] * 1000).long()
    bar = BARS[t][:, None, None, None]
    x0, sigma = 2 * batch.x - 1, ((1 - BARS[t]) / BARS[t]).sqrt()
    n = noise_of(name, model, guides.guide, batch, x0, sigma)
    eps_theta = network(bar.sqrt() * x0 + (1 - bar).sqrt() * n, t)
    error = (eps_theta - n).square().mean().detach()
    torch.testing.assert_close(loss, error, rtol=ROUND_OFF, atol=0)
    if name != "none":  # with the plain noise as target the loss would be another
        plain = (eps_theta - batch.noise.normal("forward", 0, x0)).square().mean().detach()
        assert float(loss) != pytest.approx(float(plain), rel=1e-4)


@pytest.mark.parametrize("name", ["none", "addt"])
def test_denoising_vpsde_loss_is_the_error_of_the_predicted_composite_noise(
    name: str, guides: ModuleType
) -> None:
    network, batch = TinyNetwork(), batch_of(8)
    model = VPDenoiser(network, time="continuous")
    loss = objective_of(name, "vpsde", flip=False).loss(model, batch)
    t = 1e-3 + choices(batch)[:, 0] * (1 - 1e-3)
    bar = torch.exp(-0.1 * t - 9.95 * t**2)
    x0, sigma = 2 * batch.x - 1, ((1 - bar) / bar).sqrt()
    n = noise_of(name, model, guides.guide, batch, x0, sigma)
    bar = bar[:, None, None, None]
    eps_theta = network(bar.sqrt() * x0 + (1 - bar).sqrt() * n, 999 * t)
    torch.testing.assert_close(loss, (eps_theta - n).square().mean(), rtol=1e-8, atol=0)


@pytest.mark.parametrize("levels", ["edm", "purification"])
@pytest.mark.parametrize("name", ["none", "addt"])
def test_denoising_edm_loss_is_the_weighted_error_of_x0(name: str, levels: str, guides: ModuleType) -> None:
    network, batch = TinyNetwork(), batch_of(8)
    model = EDMDenoiser(network)
    loss = objective_of(name, levels, flip=False).loss(model, batch)
    x0, sigma = 2 * batch.x - 1, noise_levels.get(levels)().sigma(choices(batch)[:, 0])
    s = sigma[:, None, None, None]
    x = x0 + s * noise_of(name, model, guides.guide, batch, x0, sigma)
    total = s**2 + 0.25
    estimate = 0.25 / total * x + s * 0.5 / total.sqrt() * network(x / total.sqrt(), sigma.log() / 4)
    expected = (total / (0.5 * s) ** 2 * (estimate - x0) ** 2).mean()
    torch.testing.assert_close(loss, expected, rtol=ROUND_OFF, atol=0)


# --------------------------------------------------------------------- an update without a leak (spec 6.5)


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("make", [Normed, tiny_denoiser], ids=["batch-norm", "edm"])
@pytest.mark.parametrize("name", NAMES)
def test_loss_gradient_is_that_of_the_denoising_error_alone(
    name: str, make: Callable[[], nn.Module], guides: ModuleType
) -> None:
    """The composite noise is held fixed, and what had been in ``.grad`` before is added to, not changed."""
    model, batch = make().train(), batch_of()
    for p in model.parameters():
        p.grad = torch.full_like(p, 2.0)
    objective = objective_of(name, "edm", flip=False)
    loss = objective.loss(model, batch)
    assert all(bool((g == 2).all()) for g in gradients(model))
    loss.backward()
    got = [g - 2 for g in gradients(model)]

    fresh = make().train()
    x0, sigma = 2 * batch.x - 1, torch.exp(torch.special.ndtri(choices(batch)[:, 0]) * 1.2 - 1.2)
    n = noise_of(name, fresh, guides.guide, batch, x0, sigma)
    s = sigma[:, None, None, None]
    alone = ((s**2 + 0.25) / (0.5 * s) ** 2 * (fresh(x0 + s * n, sigma) - x0) ** 2).mean()
    torch.testing.assert_close(loss, alone, rtol=ROUND_OFF, atol=0)
    expected = torch.autograd.grad(alone, list(fresh.parameters()))
    assert any(bool(e.abs().max() > 1e-3) for e in expected)
    torch.testing.assert_close(got, list(expected), rtol=1e-9, atol=1e-9)
    assert all(p.grad is None and not p.requires_grad for p in guides.guide.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_loss_counts_batch_statistics_once_and_in_train_mode(name: str, guides: ModuleType) -> None:
    """A search that ran in train mode would count five batches more."""
    model, batch = Normed().train(), batch_of()
    objective_of(name).loss(model, batch)
    assert int(model.norm.num_batches_tracked) == 1
    assert not torch.equal(model.norm.running_mean, torch.zeros(1, dtype=torch.float64))
    assert model.training
    assert model.norm.training
    assert not guides.guide.training


@pytest.mark.parametrize("flip", [True, False])
def test_guide_sees_the_image_of_the_update_mirrored_or_not(flip: bool, guides: ModuleType) -> None:
    """With lambda 0 an input less its plain noise is the clean image; the guide gets the estimate of it."""
    batch, guide = batch_of(8), Recorder(TinyClassifier())
    guides.guide = guide
    model = Recorder(tiny_denoiser()).train()
    addt = {"name": "addt", "options": {"lambda_max": 0.0, "iterations": 3}}
    objective_of(addt, flip=flip).loss(model, batch)
    mirrored = choices(batch)[:, 1] < 0.5
    assert 0 < int(mirrored.sum()) < 8
    x0 = 2 * batch.x - 1
    if flip:
        x0[mirrored] = x0[mirrored].flip(-1)
    sigma = noise_levels.get("purification")().sigma(choices(batch)[:, 0])[:, None, None, None]
    assert (len(model.inputs), len(guide.inputs)) == (4, 3)
    for step, x in zip((1, 2, 3, 0), model.inputs, strict=True):
        z = batch.noise.normal("forward", step, x)
        torch.testing.assert_close(x - sigma * z, x0, rtol=0, atol=ROUND_OFF)
    for x, estimate in zip(guide.inputs, model.outputs[:3], strict=True):
        torch.testing.assert_close(x, estimate / 2 + 0.5, rtol=0, atol=ROUND_OFF)


def test_guide_may_want_another_size_and_normalised_images(guides: ModuleType) -> None:
    batch, guides.guide = batch_of(8), Recorder(TinyClassifier())
    side = batch.x.shape[-1] + 3
    named = {"name": GUIDE, "resize": side, "normalise": {"mean": [0.5], "std": [0.25]}}
    addt = {"name": "addt", "options": {"lambda_max": 0.0, "iterations": 1}}
    objective_of(addt, guide=named, flip=False).loss(model := Recorder(tiny_denoiser()).train(), batch)
    (seen,) = guides.guide.inputs
    estimate = torch.nn.functional.interpolate(
        model.outputs[0] / 2 + 0.5, (side, side), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(seen, (estimate - 0.5) / 0.25, rtol=0, atol=4 * ROUND_OFF)


@pytest.mark.parametrize("name", NAMES)
def test_loss_of_a_wrapped_model_goes_through_the_wrapper_once(name: str, guides: ModuleType) -> None:
    batch, inner = batch_of(), Recorder(tiny_denoiser())
    wrapper = Wrapper(inner)
    loss = objective_of(name).loss(wrapper, batch)
    assert wrapper.calls == 1
    assert len(inner.inputs) == (1 if name in ("none", "random-order") else 6)
    torch.testing.assert_close(loss, objective_of(name).loss(tiny_denoiser(), batch), rtol=0, atol=0)


def test_loss_under_autocast_still_trains_the_weights_the_search_had_frozen(guides: ModuleType) -> None:
    """Autocast keeps the low-precision copies of weights; one made without a gradient must not be used."""
    guides.guide = TinyClassifier().float()
    model, batch = tiny_denoiser().float().train(), batch_of(dtype=torch.float32)
    objective = objective_of()
    exact = torch.autograd.grad(objective.loss(model, batch), list(model.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective.loss(model, batch)
    assert loss.dtype == torch.float32
    loss.backward()
    for p, expected in zip(model.parameters(), exact, strict=True):
        assert p.grad is not None
        similarity = functional.cosine_similarity(p.grad.flatten(), expected.flatten(), dim=0)
        assert float(similarity) > 0.98  # three digits, and now and then two neighbours in rank


def test_loss_of_an_example_does_not_depend_on_its_batch(guides: ModuleType) -> None:
    model, batch, objective = tiny_denoiser(), batch_of(), objective_of()
    together = float(objective.loss(model, batch).detach())
    alone = [
        float(objective.loss(model, Batch(batch.x[[i]], batch.y[[i]], batch.noise.rows([i]))).detach())
        for i in (3, 1, 0, 2)
    ]
    assert together == pytest.approx(sum(alone) / 4, rel=ROUND_OFF)


def test_guide_is_loaded_once_and_given_its_options(guides: ModuleType) -> None:
    seen: list[int] = []

    def source(classes: int = 2) -> nn.Module:
        seen.append(classes)
        return TinyClassifier(classes=classes)

    guides.guide = source
    objective = objective_of(guide={"name": GUIDE, "options": {"classes": 3}})
    assert not seen
    losses = [float(objective.loss(tiny_denoiser(), batch_of()).detach()) for _ in range(2)]
    assert seen == [3]
    assert losses[0] == losses[1]


# ------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("name", NAMES)
def test_guided_perturbation_without_a_guide_is_refused_before_training(name: str) -> None:
    if perturbations.get(name).needs_guide:
        with pytest.raises(UserError, match=f"'{name}' is guided by .* Set objective_options.guide"):
            make_objective("denoising", {"perturbation": name})
    else:
        loss = make_objective("denoising", {"perturbation": name}).loss(tiny_denoiser(), batch_of())
        assert bool(loss.isfinite())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"perturbation": "adt"}, r"unknown perturbation 'adt'\. Did you mean 'addt'\?"),
        ({"levels": "ddpn"}, r"unknown noise levels 'ddpn'\. Did you mean 'ddpm'\?"),
        ({"guide": "embeded"}, r"unknown classifier 'embeded'\. Did you mean 'embedded'\?"),
        (
            {"perturbation": {"name": "addt", "options": {"lambda": 1}}},
            r"perturbation 'addt' has no option 'lambda'\. Available: .*lambda_unit",
        ),
        (
            {"levels": {"name": "ddpm", "options": {"t_max": 1}}},
            r"noise levels 'ddpm' has no option 't_max'\. Available: t_last",
        ),
        ({"levels": {"name": "ddpm", "option": {}}}, r"unknown key 'part\.option'\. Did you mean 'options'"),
        ({"levels": 7}, r"levels must be text or a table, not 7"),
    ],
)
def test_mistaken_options_are_one_sentence(options: dict, message: str, guides: ModuleType) -> None:
    with pytest.raises(UserError, match=message):
        objective_of(**options).loss(tiny_denoiser(), batch_of())


def test_guide_gradient_that_is_not_finite_is_refused(guides: ModuleType) -> None:
    guides.guide.head.weight.data.fill_(float("nan"))
    model = tiny_denoiser().train()
    with pytest.raises(UserError, match=r"not finite\. Check the classifier"):
        objective_of().loss(model, batch_of())
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
