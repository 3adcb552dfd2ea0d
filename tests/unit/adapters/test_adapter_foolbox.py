"""Foolbox's attacks: its PGD against ours, iterate by iterate, and the alignment contract."""

from typing import Any

import pytest
import torch

from dbpkit.attacks import Target
from dbpkit.attacks.libraries.foolbox import foolbox
from dbpkit.attacks.pgd import pgd
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.models.sources import load_embedded
from dbpkit.purification.classifier import Undefended
from dbpkit.threats.pixels import L2, Linf, ThreatModel
from tests.oracles import NoisyClassifier, TinyClassifier, uniform
from tests.unit.adapters.models import COUNT, Aligned, labelled_images

pytest.importorskip("foolbox")

ITERATE = 1e-6
"""Agreement of two PGDs in pixels: float rounding. A sign that flips where the gradient is zero up to
rounding moves a pixel by two steps; there the two cannot agree, and the images here have no such pixel."""
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
    model = Undefended(TinyClassifier())
    common: dict[str, Any] = {"threat": threat, "noise": NOISE, "iterations": iterations, "eot": 1}
    ours = pgd(model, X, Y, **common).x_adv
    theirs = foolbox(model, X, Y, **common, name=name, alignment=alignment, settings=settings(threat)).x_adv
    torch.testing.assert_close(theirs, ours, rtol=0, atol=ITERATE)
    assert float(threat.distance(X, theirs).min()) > 0.9 * min(
        threat.eps, iterations * threat.default_step_size
    )


@pytest.mark.parametrize("alignment", ["single", "constant"])
def test_foolbox_pgd_of_a_random_model_uses_the_draws_of_our_pgd(alignment: Any) -> None:
    """Query i of the view is draw i, as iteration i of ours is with one draw per gradient."""
    model, threat = NoisyClassifier(TinyClassifier()), Linf(8 / 255)
    common: dict[str, Any] = {"threat": threat, "noise": NOISE, "iterations": 5, "eot": 1}
    ours = pgd(model, X, Y, **common).x_adv
    theirs = foolbox(model, X, Y, **common, alignment=alignment, settings=settings(threat)).x_adv
    torch.testing.assert_close(theirs, ours, rtol=0, atol=ITERATE)


def test_foolbox_pgd_of_the_embedded_classifier_is_our_pgd() -> None:
    """A ResNet of float32 weights on grey images with texture; max difference measured: 0."""
    _, classifier = load_embedded()
    x, y, threat = uniform(2, 3, 32, 32, low=0.3, high=0.7).float(), torch.tensor([3, 5]), Linf(8 / 255)
    model = Undefended(classifier)
    common: dict[str, Any] = {"threat": threat, "noise": NOISE.rows([0, 1]), "iterations": 3, "eot": 1}
    ours = pgd(Target(model, 1), x, y, **common).x_adv
    theirs = foolbox(Target(model, 1), x, y, **common, settings=settings(threat)).x_adv
    torch.testing.assert_close(theirs, ours, rtol=0, atol=ITERATE)


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
    x, model = labelled_images(), Aligned(refuses=refuses)
    noise = NoisePlan.of(0, range(COUNT), "attack")
    y = model(x, noise=noise).argmax(dim=1)  # right, so that there is something to attack

    def attacked(rows: Any) -> torch.Tensor:
        return foolbox(
            model, x[rows], y[rows], threat=threat, noise=noise.rows(rows), name=name, **options
        ).x_adv

    whole = attacked(slice(None))
    assert float(threat.distance(x, whole).max()) > 0.5 * threat.eps
    for size in (1, 3):
        parts = [attacked(slice(i, i + size)) for i in range(0, COUNT, size)]
        assert torch.equal(torch.cat(parts), whole)
    order = torch.arange(COUNT - 1, -1, -1)
    assert torch.equal(attacked(order)[order], whole)


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
    """A deterministic model: claimed exactly where the returned image is misclassified."""
    classifier = TinyClassifier()
    found = foolbox(Undefended(classifier), X, Y, threat=L2(0.9), noise=NOISE, eot=1)
    wrong = classifier(found.x_adv).argmax(dim=1) != Y
    assert int(wrong.sum()) > 0
    assert found.claimed.tolist() == wrong.tolist()


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
