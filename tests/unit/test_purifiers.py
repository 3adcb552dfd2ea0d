"""Purifiers: one contract for a diffusion chain, a filter, an autoencoder and a module of the user's own."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbpkit import NoisePlan, PurifiedClassifier, UserError, evaluate
from dbpkit.analyses.analysis import analyses
from dbpkit.analyses.run import analyse
from dbpkit.cli.listing import check_parts
from dbpkit.evaluation.cost import network_calls
from dbpkit.experiment.build import build
from dbpkit.experiment.spec import EvaluationSpec, PurifierSpec
from dbpkit.foundation.frozen import Frozen
from dbpkit.foundation.registry import Registry
from dbpkit.foundation.spec import validate
from dbpkit.purification.purifier import PURIFIER_SITES, as_purifier, make_purifier, purifiers, takes_denoiser
from tests.oracles import GaussianDenoiser
from tests.parts import TINY, ChannelMean

X = torch.linspace(0.2, 0.8, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
NOISE = NoisePlan.of(0, [4, 9])


def halved(x: Tensor) -> Tensor:
    return x / 2


class Shift(nn.Module):
    """Draws from its plan and does not say where."""

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        return x + 0.01 * noise.normal("forward", 0, x)


class Blur(nn.Module):
    """A filter with an option."""

    def __init__(self, strength: float = 0.5) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(x, nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False), self.strength)


class Rounded(nn.Module):
    """A filter that leaves no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.detach() * 255).round() / 255


class OwnContract(Frozen):
    """A purifier with the whole contract and two parts, one of which happens to be called module."""

    sites, calls = frozenset[str](), 2

    def __init__(self, weight: float = 0.0) -> None:
        super().__init__()
        self.module = nn.Identity()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        del noise
        return self.module(x) + self.weight


def denoised(denoiser: Any, sigma: float = 0.1) -> Callable[[Tensor], Tensor]:
    """A purifier around the spec's denoiser that is no chain."""
    return lambda x: (denoiser(2 * x - 1, torch.tensor(sigma)) + 1) / 2


def spec(**changed: Any) -> EvaluationSpec:
    table = {k: v for k, v in TINY.items() if k != "denoiser"}
    return EvaluationSpec.model_validate({**table, "examples": {"count": 3}, **changed})


@pytest.mark.parametrize("name", list(purifiers))
def test_registered_purifier_keeps_the_contract(name: str) -> None:
    """Images of the same shape; a function of image and plan alone, and of the image without sites."""
    denoiser = GaussianDenoiser(0.0, 0.5) if takes_denoiser(name) else None
    needed = {"mixture": {"members": [{"sampler": "one_step"}, {"sampler": "ddpm", "steps": 50}]}}
    purifier = make_purifier(name, needed.get(name), denoiser=denoiser)
    x_pure = purifier(X, noise=NOISE)
    assert x_pure.shape == X.shape
    assert torch.equal(purifier(X, noise=NOISE), x_pure)
    assert torch.equal(purifier(X, noise=NOISE.at(1)), x_pure) == (not purifier.sites)
    assert (purifier.calls > 0) == (denoiser is not None)


def test_function_of_images_is_a_deterministic_purifier_without_a_network() -> None:
    purifier = as_purifier(halved)
    assert (purifier.sites, purifier.calls) == (frozenset(), 0)
    assert torch.equal(purifier(X, noise=NOISE), X / 2)


def test_module_with_weights_is_one_network_call_with_its_weights_fixed() -> None:
    network = nn.Conv2d(3, 3, 1)
    purifier = as_purifier(network)
    assert purifier.calls == 1
    assert not any(p.requires_grad for p in network.parameters())


def test_module_that_takes_a_plan_draws_anywhere_unless_it_says_where() -> None:
    assert as_purifier(Shift()).sites == PURIFIER_SITES
    told = Shift()
    told.sites = frozenset({"forward"})
    assert as_purifier(told).sites == {"forward"}


def test_purifier_with_the_whole_contract_is_taken_as_it_is() -> None:
    class Own(Frozen):
        sites, calls = frozenset({"forward"}), 7

        def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
            del noise
            return x

    own = Own()
    assert as_purifier(own) is own


def test_module_that_works_in_place_leaves_the_callers_images_alone() -> None:
    before = X.clone()
    as_purifier(lambda x: x.mul_(0.5))(X, noise=NOISE)
    assert torch.equal(X, before)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: as_purifier(Blur), "the purifier must be called as purifier"),
        (lambda: as_purifier(lambda x: x[:, :1])(X, noise=NOISE), r"must return images \(2, 3, 8, 8\)"),
        (lambda: make_purifier("difusion"), "unknown purifier 'difusion'. Did you mean 'diffusion'"),
        (lambda: make_purifier("diffusion"), "purifier 'diffusion' needs a denoiser, and none is named"),
        (
            lambda: make_purifier(f"{__name__}:Blur", {"strength": "x"}),
            "Blur': strength must be a number, not 'x'",
        ),
        (lambda: make_purifier(f"{__name__}:Blur", {"strong": 1}), "has no option 'strong'. Available: str"),
    ],
)
def test_what_is_no_purifier_is_refused(made: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made()


def test_purified_classifier_takes_a_filter_and_costs_one_call_of_the_classifier() -> None:
    model = PurifiedClassifier(halved, ChannelMean())
    assert model.sites == frozenset()
    assert torch.equal(model(X, noise=NOISE), ChannelMean()(X / 2))
    assert network_calls(model, X[:1], NOISE.rows([0])) == 1


def test_spec_of_another_purifier_has_its_own_keys_and_no_denoiser() -> None:
    found = spec(purifier={"name": "m:Blur", "options": {"strength": 0.2}})
    assert found.model_dump(mode="json")["purifier"] == {"name": "m:Blur", "options": {"strength": 0.2}}
    assert found.denoiser.name == "none"
    assert spec(purifier="m:Blur").purifier == PurifierSpec(name="m:Blur")
    assert spec(purifier="m:Blur", denoiser="embedded").denoiser.name == "embedded"


def test_spec_of_a_diffusion_is_written_as_it_always_was() -> None:
    table = {"sampler": "ddim", "t_star": 0.1, "steps": 1000, "options": {}, "grid": {}, "clamp": None}
    for given in ({"sampler": "ddim"}, {"name": "diffusion", "sampler": "ddim"}):
        assert PurifierSpec.model_validate(given).model_dump(mode="json") == table


@pytest.mark.parametrize(
    ("purifier", "message"),
    [
        (
            {"name": "jpeg", "sampler": "ddpm"},
            "'sampler' is a key of a diffusion chain, and purifier 'jpeg' has name, options, resize and pad "
            """only. Leave it out; to replace a whole table, --set 'purifier={name="jpeg"}'""",
        ),
        ({"name": "jpeg", "option": {}}, "'option'. Did you mean 'options'"),
        ({"samplr": "ddpm"}, "unknown key 'purifier.samplr'. Did you mean 'sampler'"),
    ],
)
def test_key_of_another_purifier_is_refused(purifier: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate({"purifier": purifier}, EvaluationSpec, "spec")


def test_filter_is_evaluated_without_a_denoiser(tmp_path: Path) -> None:
    made = spec(purifier={"name": f"{__name__}:Blur"}, knowledge=["white_box", "bpda", "blind"])
    parts = build(made)
    assert parts.denoiser is None
    assert "denoiser_sha256" not in parts.hashes
    summary = evaluate(made, tmp_path / "run")
    assert {"undefended", "clean", "white_box", "bpda", "blind"} <= {row.name for row in summary.rows}
    session = json.loads((tmp_path / "run" / "env.json").read_text())[0]
    assert session["purifier_sha256"] == parts.hashes["purifier_sha256"]


def test_purifier_with_a_denoiser_of_its_own_gets_the_one_of_the_spec() -> None:
    made = spec(purifier=f"{__name__}:denoised", denoiser="tests.parts:gaussian_denoiser")
    assert build(made).denoiser is not None
    with pytest.raises(UserError, match="needs a denoiser, and none is named"):
        build(spec(purifier=f"{__name__}:denoised"))


def test_hash_of_a_purifier_covers_all_of_its_weights() -> None:
    own = {"name": f"{__name__}:OwnContract"}
    hashes = [
        build(spec(purifier={**own, "options": {"weight": w}})).hashes["purifier_sha256"]
        for w in (0.0, 0.1, 0.0)
    ]
    assert hashes[0] != hashes[1]
    assert hashes[0] == hashes[2]


def test_denoiser_that_the_purifier_does_not_take_is_refused() -> None:
    with pytest.raises(UserError, match="takes no denoiser, and the spec names 'embedded'"):
        build(spec(purifier=f"{__name__}:Blur", denoiser="embedded"))


def test_spec_that_is_only_shown_is_refused_for_the_same_denoiser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(purifiers._parts, "blurred", Blur)
    check_parts(spec(purifier="blurred"))
    with pytest.raises(UserError, match="takes no denoiser, and the spec names 'embedded'"):
        check_parts(spec(purifier="blurred", denoiser="embedded"))


def test_spec_that_is_only_shown_may_have_steps_that_another_schedule_divides() -> None:
    """How many times its denoiser knows is not known before it is loaded; the embedded one's are."""
    purifier = {"sampler": "ddpm", "steps": 4000}
    check_parts(spec(purifier=purifier, denoiser={"name": "diffusers", "options": {"path": "x"}}))
    with pytest.raises(UserError, match="steps 4000 does not divide 1000"):
        check_parts(spec(purifier=purifier, denoiser="embedded"))


def test_exact_gradient_of_a_filter_that_leaves_none_is_refused_and_bpda_works(tmp_path: Path) -> None:
    rounded = {"name": f"{__name__}:Rounded"}
    with pytest.raises(UserError, match="does not depend on its input for autograd: a path is detached"):
        evaluate(spec(purifier=rounded, knowledge=["white_box"]), tmp_path / "exact")
    assert not (tmp_path / "exact").exists()
    bpda = evaluate(spec(purifier=rounded, knowledge=["bpda"]), tmp_path / "bpda")
    assert bpda.row("bpda").failed == 0
    square = spec(purifier=rounded, knowledge=["white_box"], attacks=["square"])
    assert evaluate(square, tmp_path / "square").row("white_box").failed == 0


@pytest.mark.parametrize(
    ("analysis", "message"),
    [
        ("distances", "needs a diffusion purifier"),
        ("recommend", "needs a diffusion purifier"),
        ("eot", "follows the exact gradient, and none comes through"),
        ("randomness", "varies the purifier's noise, and"),
    ],
)
def test_analysis_that_a_filter_does_not_admit_is_refused_before_any_work(
    analysis: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        analyse(spec(purifier={"name": f"{__name__}:Rounded"}), tmp_path / "run", {analysis: {"images": 2}})
    assert not (tmp_path / "run" / "spec.json").exists()


def test_analysis_of_a_filter_by_forward_passes(tmp_path: Path) -> None:
    rounded = spec(purifier={"name": f"{__name__}:Rounded"})
    (found,) = analyse(rounded, tmp_path / "run", {"compression": {"images": 2, "attack_iterations": 0}})
    assert found.numbers


def test_all_analyses_of_a_filter_are_those_it_admits_and_the_others_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    few = Registry("analysis")
    few.register("compression")(partial(analyses.get("compression"), images=2, attack_iterations=0))
    few.register("distances")(analyses.get("distances"))
    few.register("randomness")(analyses.get("randomness"))
    monkeypatch.setattr("dbpkit.analyses.run.analyses", few)
    found = analyse(spec(purifier={"name": f"{__name__}:Rounded"}), tmp_path / "run")
    assert len(found) == 1
    assert "left out: analysis 'distances' needs a diffusion purifier" in caplog.text
    assert "left out: analysis 'randomness' varies the purifier's noise" in caplog.text
