"""Clean estimates, scores and variances of the field's networks against those that their originals gave.

Each file of reference outputs has noisy states, their levels, and what the original pipeline made of them.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbpkit.models.denoisers import (
    ConsistencyDenoiser,
    EDMDenoiser,
    FlowDenoiser,
    IDDPMDenoiser,
    MeanFlowDenoiser,
    VEDenoiser,
    VEPrecondDenoiser,
    VPDenoiser,
    VPPrecondDenoiser,
)
from dbpkit.models.discrete import schedule_of
from dbpkit.models.networks import networks
from dbpkit.models.networks.ho_ddpm import ho_ddpm_to_diffusers
from dbpkit.purification.samplers import make_sampler
from dbpkit.purification.samplers.ddpm import between, posterior
from tests.reference import Reference, reference, row_gap
from tests.unit import test_adm, test_edm_networks, test_ncsnpp

COSINE_4000 = {"beta_schedule": "cosine", "num_train_timesteps": 4000}
CONTINUOUS = {"prediction": "noise", "time": "continuous", "time_scale": 999.0}
LEARNED = {"variance": "learned"}


def edm_opened(name: str) -> tuple[nn.Module, Reference]:
    """A network of EDM or MeanFlow."""
    return test_edm_networks.network_of(name)[0].requires_grad_(False), reference(name)


def ho_opened(name: str) -> tuple[nn.Module, Reference]:
    """The network of the PyTorch port of Ho et al."""
    found = reference(name)
    config, state = ho_ddpm_to_diffusers(found.state)
    network = networks.get("diffusers")(config)
    network.load_state_dict(state)
    return network.eval().requires_grad_(False), found


Family = tuple[Callable[[str], tuple[nn.Module, Reference]], Callable[..., Any], dict[str, Any]]

FAMILIES: dict[str, Family] = {
    "scoresde_vp_ddpmpp": (test_ncsnpp.opened, VPDenoiser, CONTINUOUS),
    "scoresde_vp_ddpmpp_deep": (test_ncsnpp.opened, VPDenoiser, CONTINUOUS),
    "scoresde_ve_ncsnpp": (test_ncsnpp.opened, VEDenoiser, {}),
    "flowpure_vp": (test_ncsnpp.opened, FlowDenoiser, {"path": "additive", "clean_at": 1}),
    "guided_unet_legacy": (test_adm.opened, VPDenoiser, LEARNED),
    "guided_unet_neworder": (test_adm.opened, VPDenoiser, LEARNED),
    "guided_unet_classcond": (test_adm.opened, VPDenoiser, LEARNED),
    "improved_unet_cifar": (
        test_adm.opened, VPDenoiser, {**LEARNED, "time": "rescaled", "schedule": COSINE_4000},
    ),
    "improved_unet_noshift": (test_adm.opened, VPDenoiser, {"time": "rescaled"}),
    "consistency_unet": (test_adm.opened, ConsistencyDenoiser, {}),
    "edm_ddpmpp_edmprecond": (edm_opened, EDMDenoiser, {}),
    "edm_ncsnpp_edmprecond": (edm_opened, EDMDenoiser, {}),
    "edm_adm_edmprecond": (edm_opened, EDMDenoiser, {}),
    "edm_ddpmpp_vpprecond": (edm_opened, VPPrecondDenoiser, {}),
    "edm_ncsnpp_veprecond": (edm_opened, VEPrecondDenoiser, {}),
    "edm_adm_iddpmprecond": (edm_opened, IDDPMDenoiser, {}),
    "meanflow_unet": (edm_opened, MeanFlowDenoiser, {}),
    "ho_ddpm": (ho_opened, VPDenoiser, {}),
}  # fmt: skip

LOOSE = {"consistency_unet": 5e-5}
"""Its original is 1e-5 from its own float64 in single precision."""

WITH_VARIANCE = [name for name, family in FAMILIES.items() if "variance" in family[2]]


def made(name: str, label: int | None = None, **changes: Any) -> tuple[Any, Reference]:
    """The denoiser of a family, and its reference outputs."""
    opened, adapter, options = FAMILIES[name]
    network, found = opened(name)
    return adapter(network, **{**options, "label": label, **changes}), found


def rows(name: str, **changes: Any) -> Callable[[Callable[[Any, Tensor, Tensor], Tensor]], Tensor]:
    """Applies a function of denoiser, states and levels to all rows, each with its own class."""
    _, found = FAMILIES[name][0](name)
    state, sigma = found.inputs["state"], found.inputs["sigma"]
    labels = found.inputs.get("state_label")
    if (classes := found.inputs.get("state_class_labels")) is not None:
        labels = [int(row.argmax()) if row.any() else None for row in classes]

    def over(function: Callable[[Any, Tensor, Tensor], Tensor]) -> Tensor:
        with torch.no_grad():
            if labels is None:
                return function(made(name, **changes)[0], image(name, state), level(name, sigma))
            each = [
                function(made(name, None if c is None else int(c), **changes)[0], *cut(state, sigma, i))
                for i, c in enumerate(labels)
            ]
            return torch.cat(each)

    return over


def cut(state: Tensor, sigma: Tensor, i: int) -> tuple[Tensor, Tensor]:
    """One row of both."""
    return state[i : i + 1], sigma[i : i + 1]


def image(name: str, state: Tensor) -> Tensor:
    """The state as x0 + sigma z, in units of images in [-1, 1]; MeanFlow's is 1 / (1 + sigma) of it."""
    if name == "meanflow_unet":
        return (state * (1 + reference(name).inputs["sigma"])[:, None, None, None]).float()
    return 2 * state - 1 if name == "scoresde_ve_ncsnpp" else state


def level(name: str, sigma: Tensor) -> Tensor:
    return 2 * sigma if name == "scoresde_ve_ncsnpp" else sigma


@pytest.mark.parametrize("name", list(FAMILIES))
def test_clean_estimate_is_that_of_the_original(name: str) -> None:
    _, found = FAMILIES[name][0](name)
    estimate = rows(name)(lambda denoiser, x, sigma: denoiser(x, sigma))
    expected = found.outputs["x0"] if name == "meanflow_unet" else image(name, found.outputs["x0"])
    assert row_gap(estimate, expected) < LOOSE.get(name, 1e-5)


def test_consistency_with_the_scalings_of_its_teacher() -> None:
    _, found = FAMILIES["consistency_unet"][0]("consistency_unet")
    estimate = rows("consistency_unet", scalings="edm")(lambda denoiser, x, sigma: denoiser(x, sigma))
    assert row_gap(estimate, found.outputs["x0_edm"]) < 5e-5


@pytest.mark.parametrize("name", ["scoresde_vp_ddpmpp", "scoresde_vp_ddpmpp_deep", "scoresde_ve_ncsnpp"])
def test_score_is_that_of_the_original(name: str) -> None:
    """Of the variance-preserving state; their float32 deviation loses 4e-5 at t = 0.002."""
    denoiser, found = made(name)
    x, sigma = (
        image(name, found.inputs["state"]).double(),
        level(name, found.inputs["sigma"])[:, None, None, None],
    )
    x0 = denoiser.double()(x, sigma.flatten())
    score = (x0 - x) / sigma**2
    score = 2 * score if name == "scoresde_ve_ncsnpp" else score * (1 + sigma**2).sqrt()
    assert row_gap(score, found.outputs["score"]) < 1e-4


@pytest.mark.parametrize("name", WITH_VARIANCE)
def test_learned_variance_and_mean_of_a_step_are_those_of_the_original(name: str) -> None:
    """Ours are of x0 + sigma z, theirs of the state that is sqrt(alpha_bar) of the next time as large.

    At index 0 nothing is drawn, and the variance that they return there is another index's.
    """
    _, found = FAMILIES[name][0](name)
    table = schedule_of(FAMILIES[name][2].get("schedule")).levels()
    x0 = rows(name)(lambda denoiser, x, sigma: denoiser.with_variance(x, sigma)[0])
    share = rows(name)(lambda denoiser, x, sigma: denoiser.with_variance(x, sigma)[1])
    for row, index in enumerate(found.inputs["state_index"].tolist()):
        x = found.inputs["state"][row : row + 1]
        if index == 0:
            assert row_gap(x0[row : row + 1], found.outputs["posterior_mean"][row : row + 1]) < 1e-5
            continue
        sigma, below = float(table[index]), float(table[index - 1])
        signal = (1 + below**2) ** -0.5
        mean, large = posterior(x, x0[row : row + 1], sigma, below, "large")
        _, small = posterior(x, x0[row : row + 1], sigma, below, "small")
        std = between(share[row : row + 1], small, large)
        assert row_gap(signal * mean, found.outputs["posterior_mean"][row : row + 1]) < 1e-5
        log_variance = 2 * (signal * std).log()
        assert row_gap(log_variance, found.outputs["log_variance"][row : row + 1]) < 1e-5


def test_ddpm_steps_with_the_learned_mean_and_variance() -> None:
    """One step of the sampler from a fixed state, its noise taken out again."""
    from dbpkit import NoisePlan

    name, index = "guided_unet_legacy", 150
    denoiser, found = made(name)
    row = found.inputs["state_index"].tolist().index(index)
    sampler = make_sampler("ddpm", 0.2, 1000, {"variance": "learned", "clip": False})
    i = sampler.steps - 1 - index
    plan = NoisePlan.of(3, [0])
    x = found.inputs["state"][row : row + 1]
    with torch.no_grad():
        (after,) = sampler.step(denoiser, (x,), i, plan)
    signal = (1 + sampler.levels[i + 1] ** 2) ** -0.5
    std = (found.outputs["log_variance"][row : row + 1] / 2).exp()
    expected = found.outputs["posterior_mean"][row : row + 1] + std * plan.normal("reverse", i, x)
    assert row_gap(signal * after, expected) < 1e-5


@pytest.mark.parametrize("name", ["guided_unet_legacy", "improved_unet_cifar"])
def test_index_is_told_as_the_original_was_told(name: str) -> None:
    denoiser, found = made(name)
    times = denoiser._times(found.inputs["sigma"])
    torch.testing.assert_close(times.double(), found.inputs["state_t"].double(), rtol=0, atol=0)
