"""ART's attacks: its PGD against ours, iterate by iterate, and the alignment contract."""

import inspect
from functools import partial
from typing import Any

import pytest
import torch

from dbpkit.attacks.libraries.art import UNSEEDED, art
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.purification.classifier import Undefended
from dbpkit.threats.pixels import L2, Linf, ThreatModel
from tests.oracles import NoisyClassifier, TinyClassifier, uniform
from tests.unit.adapters.models import (
    Aligned,
    assert_any_batch_gives_the_same,
    assert_claims_what_is_wrong,
    assert_is_our_pgd,
)

evasion = pytest.importorskip("art.attacks.evasion")

X, Y = uniform(4, 1, 4, 4).float(), torch.arange(4) % 3
NOISE = NoisePlan.of(0, range(4), "attack")


@pytest.mark.parametrize("alignment", ["single", "constant"])
@pytest.mark.parametrize("iterations", [1, 5])
@pytest.mark.parametrize("threat", [Linf(8 / 255), L2(0.3)], ids=["linf", "l2"])
def test_art_pgd_started_alike_is_our_pgd_at_every_iterate(
    threat: ThreatModel, iterations: int, alignment: Any
) -> None:
    """ART's own defaults have no random start; the adapter fills eps, the norm and the step."""
    options = {"threat": threat, "noise": NOISE, "iterations": iterations}
    model = Undefended(TinyClassifier().float())
    assert_is_our_pgd(partial(art, alignment=alignment), model, X, Y, **options)


def test_art_pgd_of_a_random_model_uses_the_draws_of_our_pgd() -> None:
    options = {"threat": Linf(8 / 255), "noise": NOISE, "iterations": 4}
    model = NoisyClassifier(TinyClassifier().float())
    assert_is_our_pgd(partial(art, alignment="constant"), model, X, Y, **options)


CASES: dict[str, tuple[str, ThreatModel, dict[str, Any]]] = {
    "PGD with restarts": (
        "ProjectedGradientDescent",
        Linf(0.05),
        {"iterations": 2, "settings": {"num_random_init": 2, "eps_step": "1/100"}},
    ),
    "square": ("SquareAttack", Linf(0.05), {"iterations": 5}),
    "APGD": (
        "AutoProjectedGradientDescent",
        Linf(0.05),
        {"iterations": 4, "settings": {"nb_random_init": 2}},
    ),
}


@pytest.mark.parametrize("case", list(CASES))
def test_art_any_batch_size_gives_the_same_images_with_aligned_noise(case: str) -> None:
    name, threat, options = CASES[case]
    side = 8 if case == "square" else 4
    model = Aligned(side=side, refuses=case != "APGD")  # APGD asks for a white image
    attack = partial(art, name=name, eot=2, **options)
    assert_any_batch_gives_the_same(attack, model, threat, used=0.5, side=side)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("SquareAttack", {}), ("ProjectedGradientDescent", {"num_random_init": 1}), ("DeepFool", {})],
)
def test_art_constant_batch_is_refused_where_rows_depend_on_each_other(
    name: str, settings: dict[str, Any]
) -> None:
    with pytest.raises(
        UserError, match=f"alignment 'constant' is refused: art's {name}.* draws for the whole"
    ):
        art(
            Undefended(TinyClassifier()),
            X,
            Y,
            threat=Linf(0.1),
            noise=NOISE,
            name=name,
            alignment="constant",
            settings=settings,
        )


def test_art_attacks_with_a_generator_of_their_own_are_the_listed_ones() -> None:
    """Found in ART's sources, so that a new one is noticed."""
    base = evasion.HopSkipJump.__mro__[1]
    unseeded = {
        name
        for name, cls in vars(evasion).items()
        if inspect.isclass(cls)
        and issubclass(cls, base)
        and cls is not base
        and "RandomState()" in inspect.getsource(inspect.getmodule(cls))  # type: ignore[arg-type]
    }
    assert unseeded == set(UNSEEDED)


@pytest.mark.parametrize("name", UNSEEDED)
def test_art_attack_that_no_seed_reaches_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"art's {name} draws from a generator that no seed reaches"):
        art(Undefended(TinyClassifier()), X, Y, threat=Linf(0.1), noise=NOISE, name=name)


def test_art_claim_is_a_wrong_prediction() -> None:
    attack = partial(art, threat=L2(0.9), iterations=5)
    assert_claims_what_is_wrong(attack, TinyClassifier().float(), X, Y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "ProjectedGradientDecent"}, "Did you mean 'ProjectedGradientDescent'"),
        ({"settings": {"eps": 0.2}}, "'eps' comes from the threat model"),
        ({"settings": {"max_iters": 3}}, "has no setting 'max_iters'"),
        ({"settings": {"eps_step": -1.0}}, "art attack 'ProjectedGradientDescent' cannot be made"),
    ],
)
def test_art_wrong_option_raises(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        art(Undefended(TinyClassifier().float()), X, Y, threat=Linf(0.1), noise=NOISE, eot=1, **options)
