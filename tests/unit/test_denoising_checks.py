"""What the checks of a denoiser find: mixed-up predictions, schedules and ranges; sound ones raise nothing.

Data are Gaussian with a known spectrum, so the ideal network is known in closed form. The thing people get
wrong: images of one colour, where the best denoiser is a constant.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dbpkit import Linf, NoisePlan, PurifiedClassifier, Purifier
from dbpkit.checks import Probe
from dbpkit.checks.conventions import denoiser_mismatch
from dbpkit.checks.denoising import denoiser_worse_than_nothing, purifier_destroys
from dbpkit.models.denoisers import VPDenoiser
from dbpkit.models.schedule import discrete_sigmas
from tests.parts import ChannelMean

COUNT, SIDE = 4, 16
BASE = NoisePlan.of(9, range(COUNT)).normal("probe", 0, torch.zeros(COUNT, 3, SIDE // 4, SIDE // 4))
X = (0.5 + 0.25 * nn.functional.interpolate(BASE, scale_factor=4.0)).clamp(0, 1)
"""Images of 4x4 blocks of one colour, deviation about 0.5 in [-1, 1] units."""

Y = torch.zeros(COUNT, dtype=torch.long)
CHECKS = (denoiser_worse_than_nothing, denoiser_mismatch, purifier_destroys)
COSINE = torch.tensor(
    [math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(1, 1001)], dtype=torch.float64
)


def blocks(x: Tensor, sigma: Tensor) -> Tensor:
    """The ideal denoiser: of a block's mean, which has noise sigma / 4 and deviation 0.5."""
    mean = nn.functional.avg_pool2d(x, 4)
    return nn.functional.interpolate(mean / (1 + (sigma / 2) ** 2), scale_factor=4.0)


class Network(nn.Module):
    """The ideal network under a schedule of alpha_bar (1000,), predicting ``kind``."""

    def __init__(self, kind: str, alpha_bar: Tensor | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.sigmas = discrete_sigmas() if alpha_bar is None else (1 / alpha_bar - 1).clamp(max=1e4).sqrt()

    def forward(self, state: Tensor, times: Tensor) -> Tensor:
        sigma = self.sigmas[times].to(state)[:, None, None, None]
        signal = (1 + sigma**2).rsqrt()
        x0 = blocks(state / signal, sigma)
        z = (state / signal - x0) / sigma
        return {"noise": z, "x0": x0, "v": signal * z - signal * sigma * x0, "nothing": 0 * z}[self.kind]


def purified(denoiser: nn.Module, **options: object) -> PurifiedClassifier:
    settings = {"sampler": "ddim", "steps": 100, **options}
    return PurifiedClassifier(Purifier(denoiser, **settings), ChannelMean())


def found(model: PurifiedClassifier, seed: int = 0) -> list[str]:
    plan = NoisePlan.of(seed, range(COUNT), "select")
    return [f.name for check in CHECKS for f in check(Probe(model, X, Y, plan, Linf(8 / 255)))]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("t_star", [0.02, 0.05, 0.1, 0.2, 0.3])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "one_step", "vpsde", "heun", "reverse_only"])
def test_denoiser_checks_ideal_network_raises_nothing(sampler: str, t_star: float, seed: int) -> None:
    steps = 10 if sampler == "heun" else 200
    assert (
        found(purified(VPDenoiser(Network("noise")), sampler=sampler, t_star=t_star, steps=steps), seed) == []
    )


@pytest.mark.parametrize("kind", ["noise", "x0", "v"])
def test_denoiser_checks_right_prediction_raises_nothing(kind: str) -> None:
    assert found(purified(VPDenoiser(Network(kind), kind))) == []


@pytest.mark.parametrize("t_star", [0.1, 0.2])
@pytest.mark.parametrize(("kind", "taken"), [("noise", "x0"), ("x0", "noise"), ("v", "x0"), ("x0", "v")])
def test_denoiser_checks_mixed_up_prediction_is_found_and_named(kind: str, taken: str, t_star: float) -> None:
    model = purified(VPDenoiser(Network(kind), taken), t_star=t_star)
    assert "denoiser_mismatch" in found(model)
    plan = NoisePlan.of(0, range(COUNT), "select")
    (flag,) = denoiser_mismatch(Probe(model, X, Y, plan, Linf(8 / 255)))
    assert f'if its output is read as prediction = "{kind}"' in flag.message
    assert flag.severity == "error"


def test_denoiser_checks_untrained_network_is_no_better_than_nothing() -> None:
    """With the output 0 the estimate is the noisy image: its error is sigma squared."""
    model = purified(VPDenoiser(Network("nothing")))
    plan = NoisePlan.of(0, range(COUNT), "select")
    (flag,) = denoiser_worse_than_nothing(Probe(model, X, Y, plan, Linf(8 / 255)))
    assert flag.severity == "error"
    sigma = float(model.purifier.sampler.levels[0])
    assert f"At noise level {sigma:.3g}, where purification starts" in flag.message
    assert "was trained on other images" in flag.message


@pytest.mark.parametrize("t_star", [0.05, 0.1, 0.2])
def test_denoiser_checks_cosine_schedule_taken_as_linear_is_found(t_star: float) -> None:
    assert "denoiser_mismatch" in found(purified(VPDenoiser(Network("noise", COSINE)), t_star=t_star))


class InAnotherRange(nn.Module):
    """A network of images in [0, 1] that is given those in [-1, 1]."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return (blocks(2 * x - 1, 2 * sigma) + 1) / 2 + 0.5


def test_denoiser_checks_other_pixel_range_is_found() -> None:
    assert "denoiser_worse_than_nothing" in found(purified(InAnotherRange()))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [(lambda x: x, []), (lambda x: -x, ["purifier_destroys"]), (lambda x: 0 * x - 1, ["purifier_destroys"])],
)
def test_purifier_destroys_sampler_that_spoils_images_is_found(
    spoil: Callable[[Tensor], Tensor], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiling(denoiser, x, levels, *, noise, step):
        x = x + float(levels[0]) * noise.normal("forward", 0, x)
        return step(lambda z: spoil(denoiser(z, z.new_tensor(float(levels[0])))), x)

    monkeypatch.setattr("tests.parts.spoiling", spoiling, raising=False)
    assert found(purified(VPDenoiser(Network("noise")), sampler="tests.parts:spoiling")) == expected
