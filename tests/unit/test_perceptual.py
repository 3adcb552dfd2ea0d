"""The feature distance by hand, the perceptual budget's projection, and specs with options for a threat."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbpkit import Execution, FeatureDistance, RunDirectory, evaluate
from dbpkit.attacks import Target, make_attack
from dbpkit.data import load_dataset
from dbpkit.experiment.build import build
from dbpkit.experiment.spec import EvaluationSpec, ThreatSpec
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.spec import as_toml, read_spec, spec_hash
from dbpkit.models.sources import embedded_classifier, state_sha256
from dbpkit.threats.perceptual import Perceptual
from dbpkit.threats.pixels import make_threat, measured_length
from tests.oracles import NoisyClassifier, TinyClassifier, uniform

ROUND_OFF = 1e-12
"""Float64 arithmetic on values of order one."""


class Convolutions(nn.Module):
    """Two layers of features with positive biases, so that no place is without any; smooth in the image."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 5, 3, padding=1, dtype=torch.float64)
        self.soft = nn.SiLU()
        self.second = nn.Conv2d(5, 4, 3, stride=2, padding=1, dtype=torch.float64)
        self.hard = nn.ReLU()
        self.head = nn.Linear(4, 2, dtype=torch.float64)
        for i, parameter in enumerate(self.parameters()):
            parameter.data.copy_(uniform(*parameter.shape, seed=i, low=-0.5, high=0.7))

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, 2)."""
        return self.head(self.hard(self.second(self.soft(self.first(x)))).mean(dim=(2, 3)))


class Flat(nn.Module):
    """A classifier of flat images: its activations have no places."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(48, 3), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, 3)."""
        return self.body(x)


def threat_of(eps: float = 0.01) -> Perceptual:
    return Perceptual(eps, FeatureDistance(Convolutions()))


# ------------------------------------------------------------------ the distance


def test_distance_by_hand() -> None:
    """One layer, the pixels themselves: (0.3, 0.4) has the direction (0.6, 0.8), (0.5, 0) has (1, 0).

    The squared difference is 0.16 + 0.64 = 0.8 at one place and, with nothing changed, 0 at the other.
    """
    x = torch.tensor([[0.3, 0.9], [0.4, 0.1]], dtype=torch.float64).reshape(1, 2, 1, 2)
    x_adv = torch.tensor([[0.5, 0.9], [0.0, 0.1]], dtype=torch.float64).reshape(1, 2, 1, 2)
    assert FeatureDistance(nn.Sequential(nn.ReLU()))(x, x_adv).tolist() == pytest.approx([0.4], abs=1e-8)


def test_distance_is_the_mean_over_layers_of_the_mean_over_places_of_an_explicit_loop() -> None:
    model, x, x_adv = Convolutions(), uniform(2, 3, 4, 4), uniform(2, 3, 4, 4, seed=1)
    first = [model.soft(model.first(image)) for image in (x, x_adv)]
    layers = [first, [model.hard(model.second(features)) for features in first]]
    expected = []
    for b in range(2):
        means = []
        for one, other in layers:
            gaps = []
            for i, j in itertools.product(range(one.shape[2]), range(one.shape[3])):
                a, c = one[b, :, i, j], other[b, :, i, j]
                gaps.append((a / a.norm() - c / c.norm()).square().sum().item())
            means.append(sum(gaps) / len(gaps))
        expected.append(sum(means) / len(means))
    found = FeatureDistance(model)(x, x_adv)
    assert found.tolist() == pytest.approx(expected, abs=1e-8)  # TINY beside squared lengths
    assert FeatureDistance(model, ["hard"])(x, x_adv).tolist() != pytest.approx(expected, abs=1e-3)


def test_distance_of_an_image_to_itself_is_zero_and_otherwise_symmetric() -> None:
    distance, x, x_adv = FeatureDistance(Convolutions()), uniform(3, 3, 4, 4), uniform(3, 3, 4, 4, seed=1)
    assert distance(x, x).tolist() == [0.0] * 3
    torch.testing.assert_close(distance(x, x_adv), distance(x_adv, x), rtol=0, atol=ROUND_OFF)
    assert float(distance(x, x_adv).min()) > 0


def test_distance_is_differentiable() -> None:
    distance, x = FeatureDistance(Convolutions()), uniform(1, 3, 3, 3)
    x_adv = uniform(1, 3, 3, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: distance(x, z), x_adv, eps=1e-6, atol=1e-7)


def test_distance_of_places_without_features_is_zero_with_a_finite_gradient() -> None:
    x = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    x_adv = x.clone().requires_grad_()
    distance = FeatureDistance(nn.Sequential(nn.ReLU()))(x, x_adv)
    assert distance.tolist() == [0.0]
    assert bool(torch.autograd.grad(distance.sum(), x_adv)[0].isfinite().all())


def test_distance_takes_every_activation_of_the_embedded_classifier_and_leaves_no_hook() -> None:
    model = embedded_classifier(mirror=False)
    distance, x = FeatureDistance(model), uniform(2, 3, 32, 32).float()
    shapes = [tuple(f.shape[1:]) for f in distance.features(x)]
    stages = [(32, 32, 32), (64, 16, 16), (128, 8, 8), (192, 4, 4)]
    assert shapes == [stages[i] for i in (0, 1, 1, 1, 2, 3, 3, 3)]
    lengths = [float((f.norm(dim=1) - 1).abs().max()) for f in distance.features(x)]
    assert max(lengths) < 1e-4
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(p.requires_grad for p in model.parameters())


def test_distance_images_of_another_type_are_taken_and_given_back() -> None:
    distance, x = FeatureDistance(embedded_classifier(mirror=False)), uniform(2, 3, 32, 32)
    assert distance(x, x + 0.1).dtype == torch.float64


def test_distance_unknown_layer_raises_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"no layer 'third'\. Available: first, soft, second, hard, head\."):
        FeatureDistance(Convolutions(), ["third"])


def test_distance_classifier_without_activation_layers_raises() -> None:
    with pytest.raises(UserError, match=r"no activation layers .* threat\.options\.layers"):
        FeatureDistance(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))


def test_distance_layers_without_places_raise() -> None:
    x = uniform(1, 3, 4, 4).float()
    with pytest.raises(UserError, match=r"no output of the layers body\.2 has the shape \(B, C, H, W\)"):
        FeatureDistance(Flat())(x, x)


# ------------------------------------------------------------------ the budget


@pytest.mark.parametrize("reach", [0.001, 0.5, 5.0])
def test_project_any_image_lands_within_budget_and_box_on_the_way_to_it(reach: float) -> None:
    threat, x = threat_of(), uniform(8, 3, 4, 4)
    x_adv = x + uniform(8, 3, 4, 4, seed=1, low=-reach, high=reach)
    p = threat.project(x, x_adv)
    assert float(threat.distance(x, p).max()) <= threat.eps
    assert 0 <= float(p.min()) <= float(p.max()) <= 1
    way, gone = (x_adv.clamp(0, 1) - x).flatten(1), (p - x).flatten(1)
    share = (gone * way).sum(dim=1) / way.square().sum(dim=1)
    torch.testing.assert_close(gone, share[:, None] * way, rtol=0, atol=ROUND_OFF)
    if reach > 0.1:
        assert float(threat.distance(x, p).min()) > 0.998 * threat.eps  # the budget is used up
    else:
        assert torch.equal(p, x_adv.clamp(0, 1))  # allowed as it is


@pytest.mark.parametrize("reach", [0.002, 0.5, 1.0])
def test_projection_that_waits_for_nothing_is_the_same(reach: float) -> None:
    threat, x = threat_of(), uniform(1, 3, 6, 6, seed=1, low=0.1, high=0.9)
    end = (x + uniform(1, 3, 6, 6, seed=2, low=-reach, high=reach)).clamp(0, 1)
    budget = torch.tensor([threat.eps], dtype=x.dtype)
    with torch.no_grad():
        there, here = threat._shrunk_unseen(x, end, budget), threat._shrunk(x, end, budget)
        assert torch.equal(here, end) == (reach == 0.002)
    torch.testing.assert_close(there, here, rtol=0, atol=ROUND_OFF)


def test_project_twice_is_once() -> None:
    threat, x = threat_of(), uniform(8, 3, 4, 4)
    once = threat.project(x, x + uniform(8, 3, 4, 4, seed=1, low=-1, high=1))
    assert torch.equal(threat.project(x, once), once)


def test_project_rows_do_not_depend_on_the_batch() -> None:
    """Rows that need to shrink and rows that do not, together and alone."""
    threat, x = threat_of(), uniform(6, 3, 4, 4)
    size = torch.tensor([1.0, 1e-3, 0.3, 1e-4, 2.0, 0.1])[:, None, None, None]
    x_adv = x + size * uniform(6, 3, 4, 4, seed=1, low=-1, high=1)
    whole = threat.project(x, x_adv)
    for b in range(6):
        assert torch.equal(threat.project(x[b : b + 1], x_adv[b : b + 1])[0], whole[b])


@pytest.mark.parametrize(
    ("attack", "options"), [("low_frequency", {"eot": 3}), ("pgd", {"start": "random", "eot": 3})]
)
def test_attack_any_batch_size_gives_the_same_images(attack: str, options: dict[str, Any]) -> None:
    model, threat = NoisyClassifier(TinyClassifier(channels=3)), threat_of(1e-3)  # binds after four steps
    x, y, noise = uniform(7, 3, 4, 4), torch.arange(7) % 3, NoisePlan.of(0, range(10, 17), "attack")
    run = make_attack(attack, {"iterations": 4, **options})
    whole = run(Target(model), x, y, threat=threat, noise=noise).x_adv
    assert float(threat.distance(x, whole).min()) > 0.9 * threat.eps
    for size in (1, 3):
        cuts = [slice(i, min(i + size, 7)) for i in range(0, 7, size)]
        parts = [run(Target(model), x[c], y[c], threat=threat, noise=noise.rows(c)).x_adv for c in cuts]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=ROUND_OFF)


def test_project_zero_budget_returns_the_image() -> None:
    x = uniform(4, 3, 4, 4)
    p = threat_of(0.0).project(x, x + uniform(4, 3, 4, 4, seed=1, low=-1, high=1))
    assert torch.equal(p, x)


def test_random_start_has_a_distance_uniform_in_the_budget() -> None:
    """The distance is eps times the plan's own uniform, as far as the bisection goes."""
    threat, x, noise = threat_of(), uniform(1, 3, 4, 4).expand(40, 3, 4, 4), NoisePlan.of(1, range(40))
    start = threat.random_start(x, noise)
    share = noise.uniform("start", 1, x[:, :1, :1, :1])[:, 0, 0, 0]
    found = threat.distance(x, start) / threat.eps
    assert bool((found <= share).all())
    torch.testing.assert_close(found, share, rtol=0, atol=0.01)
    assert 0.3 < float(found.mean()) < 0.7
    assert torch.equal(threat.random_start(x[:3], noise.rows([0, 1, 2])), start[:3])


def test_random_start_draws_from_the_start_site_only() -> None:
    threat, x, source = threat_of(), uniform(2, 3, 4, 4), NoisePlan.of(1, [0, 1])
    other = source.on("attack").sharing(["start"], source)
    assert torch.equal(threat.random_start(x, other), threat.random_start(x, source))
    assert not torch.equal(threat.random_start(x, source.on("attack")), threat.random_start(x, source))


def test_steepest_is_the_sign_and_the_step_that_of_pixels() -> None:
    grad = uniform(2, 3, 2, 2, low=-1, high=1)
    assert torch.equal(threat_of().steepest(grad), grad.sign())
    assert threat_of().default_step_size == 2 / 255


def test_runners_random_noise_uses_the_whole_budget_on_real_images() -> None:
    """The runner's control is eps times the steepest direction of noise, projected."""
    threat, data = make_threat("perceptual", 0.05), load_dataset("embedded").select(slice(0, 8))
    x = data.x()
    z = NoisePlan.of(0, data.ids, "control").normal("probe", 0, x)
    noisy = threat.project(x, x + threat.eps * threat.steepest(z))
    assert float(threat.distance(x, noisy).min()) > 0.998 * 0.05


# ------------------------------------------------------------------ in a spec


def test_make_threat_options_choose_classifier_and_layers() -> None:
    threat = make_threat("perceptual", 0.05, {"features": f"{__name__}:Convolutions", "layers": ["hard"]})
    assert isinstance(threat, Perceptual)
    assert isinstance(threat.features.classifier, Convolutions)
    assert threat.features.layers == ("hard",)
    assert threat.eps == 0.05


def test_make_threat_features_options_reach_the_classifier() -> None:
    threat = make_threat(
        "perceptual", 0.05, {"features": f"{__name__}:Convolutions", "features_options": {"channels": 1}}
    )
    assert isinstance(threat, Perceptual)
    assert threat.distance(uniform(2, 1, 4, 4), uniform(2, 1, 4, 4)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        ("perceptual", "'perceptual' has no option 'feature'. Available: features, features_options, layers"),
        ("linf", "'linf' has no option 'feature'. Available: none"),
    ],
)
def test_make_threat_unknown_option_raises_with_the_known_ones(norm: str, message: str) -> None:
    with pytest.raises(UserError, match=f"threat model {message}"):
        make_threat(norm, 0.05, {"feature": "embedded"})


def test_threat_spec_without_options_is_what_it_was_before_there_were_any() -> None:
    """Old run directories hold this dump and the hash made of it; both must go on matching."""
    assert ThreatSpec().model_dump(mode="json") == {"norm": "linf", "eps": "8/255"}
    assert EvaluationSpec().model_dump(mode="json")["threat"] == {"norm": "linf", "eps": "8/255"}
    named = EvaluationSpec(threat=ThreatSpec(options={"features": "embedded"}))
    assert spec_hash(named) != spec_hash(EvaluationSpec())


def test_threat_spec_with_options_is_read_back_with_the_same_hash(tmp_path: Path) -> None:
    spec = EvaluationSpec(
        threat=ThreatSpec(norm="perceptual", eps="0.05", options={"features": "embedded", "layers": ["a.b"]})
    )
    (tmp_path / "spec.toml").write_text(as_toml(spec.model_dump(mode="json")))
    again = read_spec(tmp_path / "spec.toml", EvaluationSpec)
    assert again == spec
    assert spec_hash(again) == spec_hash(spec)


def small(**settings: Any) -> EvaluationSpec:
    """Two images of the tests' own parts against the perceptual budget."""
    return EvaluationSpec.model_validate(
        {
            "data": {"name": "tests.parts:data"},
            "classifier": {"name": "tests.parts:ChannelMean"},
            "denoiser": {"name": "tests.parts:gaussian_denoiser"},
            "purifier": {"sampler": "one_step"},
            "threat": {"norm": "perceptual", "eps": 0.02, "options": {"features": "embedded"}},
            "attacks": [
                {"name": "low_frequency", "options": {"iterations": 3, "eot": 2, "frequencies": 2}},
                {"name": "pgd", "options": {"iterations": 3, "eot": 2, "start": "random"}},
            ],
            "knowledge": ["white_box"],
            "examples": {"count": 2},
            "draws": {"report": 2, "select": 2},
            **settings,
        }
    )


def test_evaluate_perceptual_threat_records_distances_within_budget(tmp_path: Path) -> None:
    evaluate(small(), tmp_path / "run", Execution(batch_size=2))
    records = [r for r in RunDirectory(tmp_path / "run").records() if r["row"] == "white_box"]
    assert len(records) == 2
    for record in records:
        assert 0 < record["distance"] <= 0.02 + 1e-6
        assert record["excess"] <= 1e-6


def test_build_perceptual_threat_notes_the_hash_of_its_features() -> None:
    parts = build(small())
    assert parts.hashes["features_sha256"] == state_sha256(embedded_classifier(mirror=False))
    assert "features_sha256" not in build(small(threat={"norm": "linf"})).hashes


def test_typical_length_perceptual_noise_uses_the_budget_up() -> None:
    """Bisection along the clipped noise and along the noise, then clipped, find nearly the same."""
    threat, x = threat_of(0.004), uniform(3, 3, 8, 8, low=0.4, high=0.6)
    torch.testing.assert_close(threat.typical_length(x), measured_length(threat, x), rtol=0.02, atol=0)


@pytest.mark.slow
def test_typical_length_perceptual_is_that_of_attacks_within_a_factor_of_two() -> None:
    spec = small(
        classifier={"name": "embedded"},
        data={"name": "embedded"},
        denoiser={"name": "embedded"},
        purifier={"sampler": "ddim", "steps": 50},
        threat={"norm": "perceptual", "eps": 0.05},
    )
    parts = build(spec)
    x, noise = parts.data.x(), NoisePlan.of(0, parts.data.ids, "attack")
    attack = make_attack("pgd", {"iterations": 8, "eot": 2})
    found = attack(Target(parts.model), x, parts.data.labels, threat=parts.threat, noise=noise)
    ratio = (found.x_adv - x).flatten(1).norm(dim=1) / parts.threat.typical_length(x)
    assert 0.5 < float(ratio.min()) <= float(ratio.max()) < 2
