"""A purifier that sees another size: the same contracts, exact gradients, and hashes of specs as before."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dbpkit import (
    EvaluationSpec,
    NoisePlan,
    PurifiedClassifier,
    Purifier,
    PurifierSpec,
    RunDirectory,
    UserError,
    benchmark,
    check_spec,
    evaluate,
    report,
)
from dbpkit.attacks import Target, attacks
from dbpkit.checks import Checked
from dbpkit.checks.check import Probe
from dbpkit.checks.levels import check_assumptions
from dbpkit.experiment.build import build, make_purifier
from dbpkit.foundation.spec import spec_hash, validate
from dbpkit.models.stages import StagedClassifier
from dbpkit.purification.fitting import FittedPurifier
from dbpkit.purification.replay import directional_derivatives
from dbpkit.purification.views import gradients
from dbpkit.threats.pixels import Linf
from tests import parts
from tests.oracles import GaussianDenoiser, tiny_denoiser, uniform

NOISE = NoisePlan.of(3, [5, 9])


class Fixed(nn.Module):
    """A convolution that takes sides that are multiples of 8 only."""

    side_multiple = 8

    def __init__(self, *, says: bool = True) -> None:
        super().__init__()
        self.says = says
        self.layer = nn.Conv2d(3, 3, 3, padding=1).double()
        for weight in self.layer.parameters():
            weight.data = uniform(*weight.shape, seed=weight.ndim, low=-0.3, high=0.3)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns an image (B, 3, H, W)."""
        if x.shape[-2] % 8 or x.shape[-1] % 8:
            raise ValueError("sides must be multiples of 8")
        return self.layer(x) / (1 + sigma**2)


def darker() -> Any:
    """A filter of the user's own."""
    return lambda x: 0.9 * x


class Silent(Fixed):
    """The same network, which does not say so."""

    side_multiple = None


def test_a_resized_purifier_is_the_pipeline_of_the_papers() -> None:
    """[0, 1] -> bilinear -> purify -> bilinear: written out with torch, around the plain purifier."""
    x, denoiser = uniform(2, 3, 7, 7), GaussianDenoiser()
    plain = Purifier(denoiser, "ddim", steps=50)
    made = Purifier(denoiser, "ddim", steps=50, resize=8)(x, noise=NOISE)
    inner = plain(functional.interpolate(x, (8, 8), mode="bilinear", align_corners=False), noise=NOISE)
    expected = functional.interpolate(inner, (7, 7), mode="bilinear", align_corners=False)
    assert torch.equal(made, expected)
    assert made.shape == x.shape


@pytest.mark.parametrize("pad", [8, "auto"])
@pytest.mark.parametrize("kind", [Fixed, Silent])
def test_a_padded_purifier_is_the_plain_one_on_the_reflected_image(pad: Any, kind: type) -> None:
    x, denoiser = uniform(2, 3, 13, 8), kind()
    made = Purifier(denoiser, "ddim", steps=50, pad=pad)(x, noise=NOISE)
    reflected = functional.pad(x, (0, 0, 0, 3), mode="reflect")
    expected = Purifier(denoiser, "ddim", steps=50)(reflected, noise=NOISE)[..., :13, :]
    assert torch.equal(made, expected)


def test_sizes_that_fit_are_left_as_they_are_bit_for_bit() -> None:
    x = uniform(2, 3, 8, 16)
    plain = Purifier(Fixed(), "ddpm", steps=50)(x, noise=NOISE)
    assert torch.equal(Purifier(Fixed(), "ddpm", steps=50, pad="auto")(x, noise=NOISE), plain)
    assert torch.equal(Purifier(Fixed(), "ddpm", steps=50, resize=[8, 16])(x, noise=NOISE), plain)


def test_bicubic_on_the_way_back_is_clipped_where_the_sampler_clips() -> None:
    x = (uniform(2, 3, 8, 8) > 0.5).double()
    for clamp in (True, False):
        sharp = Purifier(lambda x, sigma: x + 0 * sigma, "one_step", t_star=0.01, clamp=clamp,
                         resize={"size": 12, "mode": "bicubic"})  # fmt: skip
        made = sharp(x, noise=NOISE)
        assert bool((made < 0).any() | (made > 1).any()) is not clamp


@pytest.mark.parametrize("memory_bytes", [0, 2**30])
def test_gradient_through_resize_pad_and_normalise_is_exact(memory_bytes: int) -> None:
    """Central differences in float64, with replay and without, of the sum of random logits."""
    torch_classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, 4, bias=False)).double()
    torch_classifier[1].weight.data = uniform(4, 108, seed=4, low=-1)
    classifier = StagedClassifier(torch_classifier, resize=[6, 6], normalise="imagenet").double()
    purifier = Purifier(Silent(), "ddpm", steps=50, resize=12, pad="auto", clamp=False,
                        memory_bytes=memory_bytes)  # fmt: skip
    model = PurifiedClassifier(purifier, classifier)
    x, weights = uniform(2, 3, 9, 11, low=0.3, high=0.7), uniform(2, 4, seed=7, low=-1)
    for seed in range(3):
        direction = uniform(*x.shape, seed=20 + seed, low=-1)
        exact, numeric = directional_derivatives(
            lambda x: (model(x, noise=NOISE) * weights).sum(dim=1), x, direction, 1e-5
        )
        assert torch.allclose(exact, numeric, rtol=1e-7, atol=1e-9)
        assert bool((exact.abs() > 1e-6).all())


def test_every_view_and_the_deviation_see_the_fitted_purifier() -> None:
    purifier = Purifier(tiny_denoiser(3).requires_grad_(False), "ddpm", steps=100, resize=6, pad=4)
    model = PurifiedClassifier(purifier, parts.ChannelMean().double())
    x = uniform(2, 3, 7, 7)
    value = model(x, noise=NOISE)
    assert torch.equal(gradients.get("bpda")(model)(x, noise=NOISE), value)
    surrogate = gradients.get("surrogate")(model, steps=50)
    assert surrogate.purifier.settings["resize"]["size"] == 6
    assert surrogate(x, noise=NOISE).shape == value.shape
    logits, deviation = model.traced(x, noise=NOISE)
    assert torch.allclose(logits, value)
    assert deviation.shape == (2,)
    inner = Purifier(purifier.denoiser, "ddpm", steps=100)
    grown = functional.interpolate(x, (6, 6), mode="bilinear", align_corners=False)
    grown = functional.pad(grown, (0, 2, 0, 2), mode="reflect")
    assert torch.allclose(deviation, inner.traced(grown, noise=NOISE)[1])
    outcome = attacks.get("diffattack")(
        Target(model), x, torch.tensor([0, 1]), threat=Linf(0.03), noise=NOISE, iterations=2, eot=1
    )
    assert outcome.x_adv.shape == x.shape


def test_a_filter_is_fitted_from_outside() -> None:
    even = nn.AvgPool2d(2, stride=2)
    filtering = FittedPurifier(lambda x: functional.interpolate(even(x), scale_factor=2.0), pad="auto")
    x = uniform(2, 3, 5, 7)
    assert filtering(x, noise=NOISE).shape == x.shape
    assert (filtering.sites, filtering.calls) == (frozenset(), 0)
    with pytest.raises(UserError, match=r"Write Purifier\(\.\.\., resize=\.\.\., pad=\.\.\.\)"):
        FittedPurifier(Purifier(GaussianDenoiser()), pad=8)
    spec = PurifierSpec.model_validate({"name": f"{__name__}:darker", "resize": 4})
    assert isinstance(make_purifier(spec, None), FittedPurifier)
    assert spec.model_dump(mode="json").keys() == {"name", "options", "resize"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pad": "yes"}, "pad is a multiple such as 8, or 'auto'"),
        ({"pad": 0}, "pad must be a whole number"),
        ({"resize": "big"}, "a size to resize to"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Purifier(GaussianDenoiser(), **settings)


def spec_of(**changes: Any) -> EvaluationSpec:
    return validate({**parts.TINY, **changes}, EvaluationSpec, "test")


def test_tables_without_stages_have_none_and_stages_change_the_hash() -> None:
    plain = spec_of()
    table = plain.model_dump(mode="json")
    assert table["classifier"].keys() == {"name", "options"}
    assert not table["purifier"].keys() & {"resize", "pad"}
    said = [
        spec_of(purifier={**parts.TINY["purifier"], "pad": "auto"}),
        spec_of(purifier={**parts.TINY["purifier"], "resize": 16}),
        spec_of(classifier={"name": "tests.parts:ChannelMean", "resize": 16}),
        spec_of(classifier={"name": "tests.parts:ChannelMean", "normalise": "half"}),
        spec_of(classifier={"name": "tests.parts:ChannelMean", "normalise": {"mean": [0.5], "std": [1.0]}}),
    ]  # fmt: skip
    assert len({spec_hash(s) for s in [plain, *said]}) == 6
    for s in said:
        assert validate(s.model_dump(mode="json"), EvaluationSpec, "again") == s


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classifier": {"name": "x", "normalise": "imagnet"}}, "normalise = imagnet: .*'imagenet'"),
        ({"classifier": {"name": "x", "normalise": {"mean": [0.5]}}}, "normalise is a name .* or { mean"),
        (
            {"classifier": {"name": "x", "resize": 0}},
            "resize.size = 0: size must be a whole number",
        ),
        ({"purifier": {"pad": "most"}}, "pad = most: pad is a multiple such as 8, or 'auto', not 'most'.$"),
        ({"purifier": {"pad": 0}}, "pad = 0: pad must be a whole number"),
        ({"purifier": {"resize": [8, 8, 8]}}, "a size to resize to is a number or"),
        ({"purifier": {"resize": {"size": 8, "mode": "nearest"}}}, "resize.mode = nearest"),
        ({"purifier": {"name": f"{__name__}:darker", "t_star": 0.2}}, "name, options, resize and pad only"),
    ],
)
def test_wrong_stages_in_a_spec_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        spec_of(**changes)


def test_evaluate_check_and_benchmark_run_with_stages(tmp_path: Path) -> None:
    spec = spec_of(
        purifier={"sampler": "ddpm", "steps": 40, "resize": {"size": 10, "antialias": True}, "pad": 4},
        classifier={"name": "tests.parts:ChannelMean", "resize": 16, "normalise": "half"},
        attacks=[{"name": "pgd", "options": {"iterations": 1, "eot": 1}}],
        knowledge=["white_box", {"name": "few", "gradient": "surrogate", "gradient_options": {"steps": 20}}],
        examples={"count": 2},
        draws={"report": 2, "select": 1},
    )  # fmt: skip
    made = build(spec, "cpu")
    assert made.data.shape[-2:] == (8, 8)
    assert isinstance(made.model.classifier, StagedClassifier)
    summary = evaluate(spec, tmp_path / "run")
    assert summary.row("white_box").headline.examples == 2
    assert "denoiser_worse_than_nothing" not in {f.name for f in check_spec(spec, examples=2).flags}
    assert "ddpm, t* = 0.1, 40 steps, at 10 pixels" in report([tmp_path / "run"]).read_text()
    given = benchmark(
        made.model, "tests.parts:data", attacks=[spec.attacks[0].model_dump()], examples=2, draws=2,
        out=tmp_path / "bench",
    )  # fmt: skip
    recorded = (tmp_path / "bench" / "spec.json").read_text()
    assert '"resize"' in recorded
    assert given.robust.value <= 1


def test_the_size_that_is_flagged_is_the_one_that_the_network_sees() -> None:
    denoiser = tiny_denoiser(3).requires_grad_(False)
    denoiser.sample_size = (16, 16)

    def flags(**settings: Any) -> list[str]:
        model = PurifiedClassifier(Purifier(denoiser, steps=50, **settings), parts.ChannelMean().double())
        probe = Probe(model, uniform(2, 3, 8, 8), torch.tensor([0, 1]), NOISE, Linf(0.03))
        return [f.name for f in check_assumptions(probe)]

    assert flags() == ["other_image_size"]
    assert flags(resize=16) == []


def test_a_fitted_filter_is_evaluated_from_a_spec_and_from_python(tmp_path: Path) -> None:
    spec = spec_of(
        purifier={"name": f"{__name__}:darker", "resize": 4, "pad": 3},
        denoiser="none",
        attacks=[{"name": "pgd", "options": {"iterations": 1, "eot": 1}}],
        knowledge=["white_box", {"name": "through", "gradient": "bpda"}],
        examples={"count": 2},
    )
    by_spec = evaluate(spec, tmp_path / "spec", checks=lambda *_: Checked([], ()))
    model = PurifiedClassifier(FittedPurifier(darker(), resize=4, pad=3), parts.ChannelMean())
    attack = spec.attacks[0].model_dump()
    found = benchmark(model, "tests.parts:data", attacks=[attack], examples=2, out=tmp_path / "python")
    assert found.robust.value == by_spec.row("white_box").headline.value
    recorded = RunDirectory(tmp_path / "python").spec()["spec"]["purifier"]
    assert (recorded["name"], recorded["resize"]["size"], recorded["pad"]) == ("given", 4, 3)
