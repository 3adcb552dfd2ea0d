"""Foolbox's attacks: its PGD against ours, iterate by iterate, and the alignment contract."""

from functools import partial
from typing import Any

import pytest
import torch

from dbpkit.attacks.libraries.foolbox import foolbox
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.models.sources import load_embedded
from dbpkit.purification.classifier import Undefended
from dbpkit.threats.pixels import L2, Linf, ThreatModel
from tests.oracles import NoisyClassifier, TinyClassifier, uniform
from tests.unit.adapters.models import (
    Aligned,
    assert_any_batch_gives_the_same,
    assert_claims_what_is_wrong,
    assert_is_our_pgd,
)

pytest.importorskip("foolbox")

X, Y = uniform(4, 1, 4, 4), torch.arange(4) % 3
NOISE = NoisePlan.of(0, range(4), "attack")
THREATS: dict[str, tuple[str, ThreatModel]] = {"linf": ("LinfPGD", Linf(8 / 255)), "l2": ("L2PGD", L2(0.3))}


def settings(threat: ThreatModel) -> dict[str, Any]:
    return {"random_start": False, "abs_stepsize": threat.default_step_size}


# ------------------------------------------------------------------ against our PGD


@pytest.mark.parametrize("alignment", ["single", "constant"])
@pytest.mark.parametrize("iterations", [1, 2, 7])
@pytest.mark.parametrize("norm", list(THREATS))
def test_foolbox_pgd_started_alike_is_our_pgd_at_every_iterate(
    norm: str, iterations: int, alignment: Any
) -> None:
    name, threat = THREATS[norm]
    attack = partial(foolbox, name=name, alignment=alignment, settings=settings(threat))
    options = {"threat": threat, "noise": NOISE, "iterations": iterations}
    assert_is_our_pgd(attack, Undefended(TinyClassifier()), X, Y, **options)


@pytest.mark.parametrize("alignment", ["single", "constant"])
def test_foolbox_pgd_of_a_random_model_uses_the_draws_of_our_pgd(alignment: Any) -> None:
    """Query i of the view is draw i, as iteration i of ours is with one draw per gradient."""
    threat = Linf(8 / 255)
    attack = partial(foolbox, alignment=alignment, settings=settings(threat))
    options = {"threat": threat, "noise": NOISE, "iterations": 5}
    assert_is_our_pgd(attack, NoisyClassifier(TinyClassifier()), X, Y, **options)


def test_foolbox_pgd_of_the_embedded_classifier_is_our_pgd() -> None:
    """A ResNet of float32 weights on grey images with texture; max difference measured: 0."""
    _, classifier = load_embedded()
    x, y, threat = uniform(2, 3, 32, 32, low=0.3, high=0.7).float(), torch.tensor([3, 5]), Linf(8 / 255)
    options = {"threat": threat, "noise": NOISE.rows([0, 1]), "iterations": 3}
    attack = partial(foolbox, settings=settings(threat))
    assert_is_our_pgd(attack, Undefended(classifier), x, y, **options)


# ------------------------------------------------------------------ alignment contract


CASES: dict[str, tuple[ThreatModel, dict[str, Any], bool]] = {
    "LinfPGD": (Linf(0.05), {"iterations": 3, "eot": 2}, True),
    "L2PGD": (L2(0.05), {"iterations": 3, "eot": 2}, True),
    "L2DeepFoolAttack": (L2(0.05), {"iterations": 3, "eot": 2}, False),
    "BoundaryAttack": (L2(0.3), {"iterations": 30, "draws": "fixed", "eot": 2}, False),
    "HopSkipJumpAttack": (
        Linf(0.1),
        {
            "iterations": 2,
            "draws": "fixed",
            "eot": 2,
            "settings": {"constraint": "linf", "initial_gradient_eval_steps": 10},
        },
        False,
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_foolbox_any_batch_size_gives_the_same_images_with_aligned_noise(name: str) -> None:
    threat, options, refuses = CASES[name]
    attack = partial(foolbox, name=name, **options)
    assert_any_batch_gives_the_same(attack, Aligned(refuses=refuses), threat, used=0.5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("HopSkipJumpAttack", {"settings": {"constraint": "linf"}}),
        ("LinfPGD", {}),  # random start
        ("LinfDeepFoolAttack", {}),
    ],
)
def test_foolbox_constant_batch_is_refused_where_rows_depend_on_each_other(
    name: str, options: dict[str, Any]
) -> None:
    with pytest.raises(
        UserError, match=f"alignment 'constant' is refused: foolbox's {name} draws for the whole"
    ):
        foolbox(
            Undefended(TinyClassifier()),
            X,
            Y,
            threat=Linf(0.1),
            noise=NOISE,
            name=name,
            alignment="constant",
            **options,
        )


# ------------------------------------------------------------------ claims and errors


def test_foolbox_claim_is_its_own_success() -> None:
    assert_claims_what_is_wrong(partial(foolbox, threat=L2(0.9)), TinyClassifier(), X, Y)


def test_foolbox_without_a_start_returns_the_clean_image_without_a_claim() -> None:
    """A classifier that always says 0 cannot be left by blending noise in."""

    class Constant(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([1.0, 0.0, 0.0]).to(x) + 0 * x.sum(dim=(1, 2, 3))[:, None]

    x = X[:1]
    found = foolbox(
        Undefended(Constant()), x, Y[:1], threat=L2(0.1), noise=NOISE.rows([0]), name="BoundaryAttack", eot=1
    )
    assert torch.equal(found.x_adv, x)
    assert found.claimed.tolist() == [False]


def test_foolbox_decision_attack_with_fresh_draws_says_what_to_do() -> None:
    model = NoisyClassifier(TinyClassifier(), sigma=2.0)
    with pytest.raises(UserError, match=r"two queries of one image disagreed.*Use draws = 'fixed'"):
        foolbox(
            model,
            X,
            Y,
            threat=Linf(0.1),
            noise=NOISE,
            eot=1,
            name="HopSkipJumpAttack",
            settings={"constraint": "linf", "initial_gradient_eval_steps": 5},
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "LinfPDG"}, r"unknown foolbox attack 'LinfPDG'\. Did you mean 'LinfPGD'"),
        ({"name": "L2PGD"}, "foolbox attack 'L2PGD' measures L2 distance, the threat model is Linf"),
        ({"name": "SpatialAttack"}, "measures no Lp distance"),
        ({"settings": {"step": 3}}, r"foolbox attack '\w+' has no setting 'step'\. Available: .*steps"),
        ({"name": "HopSkipJumpAttack", "settings": {"constraint": "l3"}}, "cannot be made: a setting is out"),
        ({"eot": 0}, "eot must be a whole number of at least 1"),
    ],
)
def test_foolbox_wrong_option_raises(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        foolbox(Undefended(TinyClassifier()), X, Y, threat=Linf(0.1), noise=NOISE, **options)


def test_foolbox_default_is_pgd_in_the_threats_norm() -> None:
    model = Undefended(TinyClassifier())
    for norm, (name, threat) in THREATS.items():
        common: dict[str, Any] = {"threat": threat, "noise": NOISE, "iterations": 2, "eot": 1}
        named = foolbox(model, X, Y, **common, name=name).x_adv
        assert torch.equal(foolbox(model, X, Y, **common).x_adv, named), norm
