"""Purifiers without a network against other libraries, closed forms and numeric derivatives."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import median_filter
from torch import Tensor

from dbpkit import NoisePlan, PurifiedClassifier, Purifier, UserError, evaluate, load_dataset
from dbpkit.checks.check import Planned, Probe, checks
from dbpkit.checks.gradient import derivative, inexact_gradient, jacobian
from dbpkit.experiment.knowledge import known
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.spec import validate
from dbpkit.models.schedule import discrete_sigmas
from dbpkit.purification.filters import BPDA_LIKE, Filter
from dbpkit.purification.filters.jpeg import surrogate
from dbpkit.purification.fitting import FittedPurifier
from dbpkit.purification.purifier import gradient_note, make_purifier, purifiers
from dbpkit.threats.pixels import Linf
from tests.derivatives import assert_derivatives
from tests.oracles import GaussianDenoiser, uniform
from tests.parts import TINY, ChannelMean

NOISE = NoisePlan.of(0, [4, 9])
EXACT, INEXACT = ["identity", "median", "noise_only"], ["bit_depth", "jpeg", "total_variation"]


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    """Two photographs, (2, 3, 32, 32)."""
    return load_dataset("embedded").x()[:2]


def random_images(side: int = 9, channels: int = 3) -> Tensor:
    return uniform(2, channels, side, side, seed=3)


def pure(name: str, x: Tensor, **options: Any) -> Tensor:
    return make_purifier(name, options)(x, noise=NOISE)


def test_every_filter_is_exact_or_says_that_it_is_not() -> None:
    filters = {n for n in purifiers if isinstance(p := purifiers.get(n), type) and issubclass(p, Filter)}
    assert filters == {*EXACT, *INEXACT}
    for name in filters:
        assert gradient_note(make_purifier(name)).startswith(BPDA_LIKE) == (name in INEXACT)
    assert gradient_note(FittedPurifier(make_purifier("jpeg"), pad=8)) == gradient_note(make_purifier("jpeg"))
    assert gradient_note(Purifier(GaussianDenoiser(0.0, 0.5), "one_step")) == ""


def test_identity_is_the_classifier_itself() -> None:
    assert torch.equal(pure("identity", random_images()), random_images())


@pytest.mark.parametrize("t_star", [0.05, 0.1])
def test_noise_is_what_a_sampler_denoises(t_star: float) -> None:
    """A denoiser that does nothing hands the sampler's noisy image on."""
    x = random_images()
    chain = Purifier(lambda u, sigma: u, "one_step", t_star=t_star, options={"clip": False})
    expected = chain(x, noise=NOISE)
    found = pure("noise_only", x, t_star=t_star)
    assert torch.allclose(found, expected, atol=1e-12)
    assert make_purifier("noise_only").sites == {"forward"}
    spread = float((pure("noise_only", torch.full((2, 3, 64, 64), 0.5), t_star=0.01) - 0.5).std())
    assert spread == pytest.approx(float(discrete_sigmas()[10]) / 2, rel=0.02)


@pytest.mark.parametrize("name", ["bit_depth", "jpeg", "median", "total_variation"])
def test_noise_before_a_filter_is_that_of_noise_only(name: str, photographs: Tensor) -> None:
    noisy = pure("noise_only", photographs, t_star=0.1)
    assert torch.equal(pure(name, photographs, t_star=0.1), pure(name, noisy))


@pytest.mark.parametrize("name", ["bit_depth", "jpeg", "median", "noise_only", "total_variation"])
def test_attacker_who_knows_the_forward_noise_meets_a_fixed_function(name: str, photographs: Tensor) -> None:
    purifier = make_purifier(name, {"t_star": 0.1})
    known_plan = known["dw_both"].apply(NOISE.on("attack"), 0)
    assert torch.equal(purifier(photographs, noise=known_plan), purifier(photographs, noise=NOISE))


@pytest.mark.parametrize("size", [1, 3, 5])
def test_median_is_that_of_scipy(size: int) -> None:
    x = random_images().double()
    expected = median_filter(x.numpy(), size=(1, 1, size, size), mode="nearest")
    assert np.array_equal(pure("median", x, size=size).numpy(), expected)


def test_median_has_the_gradient_of_the_pixel_that_it_is() -> None:
    """Distinct pixels, so that a short step changes no order; with noise too."""
    assert_derivatives_of_sum("median")
    assert_derivatives_of_sum("noise_only", t_star=0.01)


def assert_derivatives_of_sum(name: str, **options: Any) -> None:
    """A pixel that is no median has gradient 0, so not the share of other gradients is asserted."""
    x = (0.3 + 0.4 * random_images(6)).double().requires_grad_()
    purifier = make_purifier(name, options)
    assert torch.autograd.gradcheck(lambda a: purifier(a, noise=NOISE), (x,), eps=1e-7, atol=1e-6)


def test_even_median_is_refused() -> None:
    with pytest.raises(UserError, match=r"median: size 4 is even and has no middle\. Use 3 or 5"):
        make_purifier("median", {"size": 4})


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_bit_depth_leaves_the_nearest_of_its_levels(bits: int) -> None:
    x = random_images().double()
    levels = torch.linspace(0, 1, 2**bits, dtype=torch.float64)
    nearest = levels[(x[..., None] - levels).abs().argmin(dim=-1)]
    assert torch.allclose(pure("bit_depth", x, bits=bits), nearest, atol=1e-12)


@pytest.mark.parametrize("name", ["bit_depth", "total_variation"])
def test_straight_through_gradient_is_the_identitys(name: str, photographs: Tensor) -> None:
    x = photographs.clone().requires_grad_()
    weights = uniform(2, 3, 32, 32, seed=7).float()
    (grad,) = torch.autograd.grad((pure(name, x) * weights).sum(), x)
    assert torch.equal(grad, weights)


@pytest.mark.parametrize("weight", [0.05, 0.3])
def test_total_variation_is_that_of_the_library(weight: float, photographs: Tensor) -> None:
    restoration = pytest.importorskip("skimage.restoration")
    found = pure("total_variation", photographs, weight=weight)
    for image, expected in zip(found, photographs, strict=True):
        last = restoration.denoise_tv_chambolle(
            expected.permute(1, 2, 0).double().numpy(), weight=weight, channel_axis=-1
        )
        assert np.abs(image.permute(1, 2, 0).numpy() - last).max() < 1e-6


def test_total_variation_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "skimage.restoration", None)
    with pytest.raises(UserError, match=r"needs scikit-image. Install it: pip install 'dbpkit\[filters\]'"):
        make_purifier("total_variation")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("quality", "subsampling"), [(30, "4:2:0"), (75, "4:4:4")])
def test_jpeg_has_the_values_of_the_real_codec(
    channels: int, quality: int, subsampling: str, photographs: Tensor
) -> None:
    x = photographs[:, :channels, :20, :27]
    found = pure("jpeg", x, quality=quality, subsampling=subsampling)
    for image, own in zip(found, x, strict=True):
        pixels = np.rint(255 * own.permute(1, 2, 0).numpy()).astype(np.uint8)
        whole = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
        whole.save(file := BytesIO(), "JPEG", quality=quality, subsampling=subsampling)
        read = np.asarray(Image.open(file)).reshape(20, 27, channels)
        assert np.array_equal(np.rint(255 * image.permute(1, 2, 0).numpy()), read)


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
def test_jpeg_surrogate_takes_the_steps_of_the_codec(subsampling: Any) -> None:
    """With true rounding it is the codec but for the codec's whole numbers in between, about one level."""
    x = load_dataset("embedded").x()[:16]
    plan = NoisePlan.of(0, range(16))
    codec = make_purifier("jpeg", {"quality": 30, "subsampling": subsampling})(x, noise=plan)
    near = surrogate(x, 30, subsampling, rounded="exact").clamp(0, 1)
    assert float((near - codec).abs().mean()) * 255 < 1.5
    assert float((x - codec).abs().mean()) * 255 > 6


def test_jpeg_gradient_is_that_of_its_surrogate(photographs: Tensor) -> None:
    x = photographs.double().requires_grad_()
    weights = uniform(2, 3, 32, 32, seed=7)
    (found,) = torch.autograd.grad((pure("jpeg", x) * weights).sum(), x)
    (expected,) = torch.autograd.grad((surrogate(x, 75, "4:2:0") * weights).sum(), x)
    assert torch.equal(found, expected)
    assert_derivatives(lambda a: surrogate(a, 60, "4:2:0"), photographs[:1, :, :10, :7], step=1e-6)


def test_jpeg_surrogate_of_coefficients_that_the_codec_keeps_whole_moves_nothing() -> None:
    """A flat grey image has whole coefficients at quality 50, and a cubic is flat there."""
    grey = torch.full((1, 1, 8, 8), 128 / 255, dtype=torch.float64, requires_grad=True)
    out = surrogate(grey, 50, "4:4:4")
    assert torch.allclose(out, grey, atol=1e-12)
    (grad,) = torch.autograd.grad(out.square().sum(), grey)
    assert float(grad.abs().max()) < 1e-12


def test_jpeg_of_two_channels_is_refused() -> None:
    with pytest.raises(UserError, match="jpeg: images must have 1 or 3 channels, not 2"):
        pure("jpeg", random_images(8, 2))


def probe(name: str, x: Tensor) -> Probe:
    model = PurifiedClassifier(make_purifier(name), ChannelMean())
    return Probe(model, x, torch.tensor([0, 1]), NOISE, Linf(8 / 255), Planned(sees_noise=False))


@pytest.mark.parametrize("name", INEXACT)
def test_check_of_the_derivative_is_left_out_and_the_flag_says_why(name: str, photographs: Tensor) -> None:
    looked_at = probe(name, photographs)
    chosen = {check.name for check in checks.of("model", looked_at)}
    assert not chosen & {"derivative", "jacobian", "piecewise_constant"}
    assert "inexact_gradient" in chosen
    (flag,) = inexact_gradient(looked_at)
    assert (flag.name, flag.severity) == ("inexact_gradient", "warning")
    assert flag.message.startswith(f"{BPDA_LIKE}: ")


@pytest.mark.parametrize("name", EXACT)
def test_exact_filters_pass_the_check_of_the_derivative(name: str, photographs: Tensor) -> None:
    looked_at = probe(name, photographs)
    chosen = {check.name for check in checks.of("model", looked_at)}
    assert {"derivative", "jacobian", "piecewise_constant"} <= chosen
    assert "inexact_gradient" not in chosen
    assert [*derivative(looked_at), *jacobian(looked_at)] == []


@pytest.mark.parametrize(("t_star", "still"), [(0.0, True), (0.1, False)])
def test_run_without_noise_says_nothing_of_randomness(t_star: float, still: bool, tmp_path: Path) -> None:
    table = {k: v for k, v in TINY.items() if k != "denoiser"}
    table |= {
        "purifier": {"name": "median", "options": {"t_star": t_star}},
        "knowledge": ["white_box", "dw_both"],
    }
    summary = evaluate(validate(table, EvaluationSpec, "median"), tmp_path / "run")
    assert summary.sentence.startswith("The defence draws no noise") is still
