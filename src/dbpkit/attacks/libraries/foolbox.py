"""Foolbox's attacks, as one registered attack.

The thing people get wrong: Foolbox's decision-based attacks assume that a query twice gives the same answer.
Against a random model they stop with an assertion; give them the same draws every time (``draws = "fixed"``).
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dbpkit.attacks.attack import AttackOutcome, attacks
from dbpkit.attacks.libraries.alignment import (
    AlignedView,
    Alignment,
    Draws,
    Queries,
    Returned,
    Routine,
    attack_aligned,
)
from dbpkit.attacks.libraries.library import (
    checked_settings,
    find_attack,
    import_library,
    make_attack,
    norm_of,
    refuse_constant,
)
from dbpkit.attacks.target import Target
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count
from dbpkit.threats.pixels import ThreatModel

NO_START = "init_attack failed"
"""How Foolbox says that a decision-based attack found nothing to start from."""


@attacks.register("foolbox")
def foolbox(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    noise: NoisePlan,
    name: str | None = None,
    iterations: Count | None = None,
    eot: Count = 10,
    draws: Draws = "fresh",
    alignment: Alignment = "single",
    settings: Mapping[str, Any] | None = None,
) -> AttackOutcome:
    """An attack of Foolbox 3, untargeted, at the threat model's budget.

    Args:
        target: the classifier.
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).
        threat: ``Linf`` or ``L2``; the attack must measure distance in the same norm.
        noise: draws of the attack; query q uses draws q * eot to q * eot + eot - 1.
        name: class in ``foolbox.attacks``; None is PGD in the threat's norm.
        iterations: the attack's ``steps``; None leaves its own number, attacks that have none ignore it.
        eot: draws averaged in every query.
        draws: ``fresh`` ones at every query, or the same ``fixed`` ones.
        alignment: ``single``, or ``constant`` for gradient descent without a random start.
        settings: keyword arguments of the class.

    Returns:
        Foolbox's images, clipped to the budget by it, and its claim per example. Where a decision-based
        attack finds no start, the clean image without a claim.

    Raises:
        UserError: if Foolbox is missing, a name or a setting is unknown, the norm is another, the alignment
            cannot be kept, or the attack needs a deterministic model.

    Source:
        Rauber et al. 2020, "Foolbox Native", JOSS 5(53), 2607; called, not copied.
    """
    library = import_library("foolbox", "foolbox")
    p = norm_of(threat, "foolbox")
    name = ("LinfPGD" if p == float("inf") else "L2PGD") if name is None else name
    attack = _make(library, name, p, iterations, settings)
    _check_alignment(attack, name, alignment)
    routine = _routine(library, attack, name, threat.eps)
    queries = Queries(eot, draws, alignment)
    return attack_aligned(routine, target, x, y, threat=threat, noise=noise, queries=queries)


def _routine(library: Any, attack: Callable[..., Any], name: str, eps: float) -> Routine:
    """How Foolbox is called."""

    def routine(view: AlignedView, x: Tensor, y: Tensor) -> Returned:
        model = library.PyTorchModel(view, bounds=(0, 1), device=x.device)
        try:
            _, x_adv, claimed = attack(model, x, y, epsilons=eps)
        except ValueError as error:
            if NO_START not in str(error):
                raise
            return Returned(x, torch.zeros(len(x), dtype=torch.bool))
        except AssertionError as error:
            raise UserError(
                f"foolbox's {name} stopped because two queries of one image disagreed: it assumes a"
                " deterministic model. Use draws = 'fixed'."
            ) from error
        return Returned(x_adv, claimed)

    return routine


def _check_alignment(attack: Any, name: str, alignment: Alignment) -> None:
    """Raises UserError if a batch must stay whole and the attack does not leave rows alone."""
    base = import_library("foolbox.attacks.gradient_descent_base", "foolbox").BaseGradientDescent
    if not isinstance(attack, base) or attack.random_start:
        refuse_constant(
            alignment,
            f"foolbox's {name} draws for the whole batch, or stops or drops rows by what other rows do; only"
            " its gradient descent with random_start = false does not",
        )


def _make(
    library: Any, name: str, p: float, iterations: Count | None, settings: Mapping[str, Any] | None
) -> Any:
    """The attack with its settings; UserError if its distance is not that of the threat."""
    cls: Any = find_attack("foolbox", library.attacks, name, library.attacks.Attack)
    known = inspect.signature(cls).parameters
    filled = checked_settings("foolbox", cls, settings, taken=("distance",))
    if "distance" in known:
        filled["distance"] = library.distances.LpDistance(p)
    if iterations is not None and "steps" in known:
        filled.setdefault("steps", iterations)
    attack = make_attack("foolbox", name, cls, **filled)
    distance = getattr(attack, "distance", None)
    if distance is None or distance.p != p:
        raise UserError(
            f"foolbox attack '{name}' measures {distance or 'no Lp distance'}, the threat model is L{p:g}."
            " Choose an attack in its norm."
        )
    return attack
