"""Attacks of the Adversarial Robustness Toolbox (ART), as one registered attack.

The thing people get wrong: ART calls an attack a success where the prediction differs from the one on the
clean image, right or wrong, within the budget or not. Here its claim is what its users report: that
``classifier.predict`` misses the label.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

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
    class_count,
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

PACKAGE = "adversarial-robustness-toolbox"

CONSTANT = (
    "BasicIterativeMethod",
    "FastGradientMethod",
    "MomentumIterativeMethod",
    "ProjectedGradientDescent",
    "ProjectedGradientDescentPyTorch",
)
"""Attacks that ask for all rows of a batch equally often, if they draw nothing."""

DRAWING = {"num_random_init": 0, "random_eps": False, "minimal": False}
"""What their settings must be for that."""

UNSEEDED = ("BoundaryAttack", "HopSkipJump")
"""Attacks that draw from a generator of their own that no seed reaches."""

TAKEN = ("estimator", "classifier", "eps", "norm", "targeted", "batch_size", "verbose", "summary_writer")
"""Arguments that the adapter fills."""


@attacks.register("art")
def art(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    noise: NoisePlan,
    name: str = "ProjectedGradientDescent",
    iterations: Count | None = None,
    eot: Count = 10,
    draws: Draws = "fresh",
    alignment: Alignment = "single",
    settings: Mapping[str, Any] | None = None,
) -> AttackOutcome:
    """An evasion attack of ART, untargeted, at the threat model's budget.

    Args:
        target: the classifier.
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).
        threat: ``Linf`` or ``L2``; fills ``eps`` and ``norm`` where the attack has them, and ``eps_step``
            with its default step where the settings do not.
        noise: draws of the attack; query q uses draws q * eot to q * eot + eot - 1.
        name: class in ``art.attacks.evasion``.
        iterations: the attack's ``max_iter``; None leaves its own number, attacks that have none ignore it.
        eot: draws averaged in every query.
        draws: ``fresh`` ones at every query, or the same ``fixed`` ones.
        alignment: ``single``, or ``constant`` for the attacks in `CONSTANT` without a random start.
        settings: keyword arguments of the class.

    Returns:
        ART's images and its claim per example. ART computes in float32.

    Raises:
        UserError: if ART is missing, a name or a setting is unknown, the attack cannot be seeded, or the
            alignment cannot be kept.

    Source:
        Nicolae et al. 2018 (arXiv:1807.01069); called, not copied.
    """
    p, cls = norm_of(threat, "art"), _class(name)
    given = checked_settings("art", cls, settings, TAKEN)
    _check_alignment(name, given, alignment)
    offered = {
        "eps": threat.eps,
        "norm": p,
        "eps_step": threat.default_step_size,
        "max_iter": iterations,
        "batch_size": 1 if alignment == "single" else len(x),
        "verbose": False,
    }
    known = inspect.signature(cls).parameters
    filled = {**{k: v for k, v in offered.items() if k in known and v is not None}, **given}
    routine = _routine(cls, name, filled, class_count(target, x, noise))
    queries = Queries(eot, draws, alignment)
    return attack_aligned(routine, target, x, y, threat=threat, noise=noise, queries=queries)


def _class(name: str) -> Callable[..., Any]:
    """The attack's class; UserError for one whose randomness cannot be seeded."""
    evasion = import_library("art.attacks.evasion", PACKAGE)
    cls = find_attack("art", evasion, name, import_library("art.attacks.attack", PACKAGE).EvasionAttack)
    if name in UNSEEDED:
        raise UserError(
            f"art's {name} draws from a generator that no seed reaches, so no run can be repeated. Use"
            " foolbox's attack of this kind."
        )
    return cls


def _check_alignment(name: str, given: Mapping[str, Any], alignment: Alignment) -> None:
    """Raises UserError if a batch must stay whole and the attack does not leave rows alone."""
    drawn = [k for k, off in DRAWING.items() if given.get(k, off) != off]
    if name not in CONSTANT or drawn:
        refuse_constant(
            alignment,
            f"art's {name}{' with ' + drawn[0] if drawn else ''} draws for the whole batch, or stops or drops"
            f" rows by what other rows do; {', '.join(CONSTANT[:4])} without a random start do not",
        )


def _routine(cls: Callable[..., Any], name: str, filled: Mapping[str, Any], classes: int) -> Routine:
    """How ART is called."""
    estimators = import_library("art.estimators.classification", PACKAGE)

    def routine(view: AlignedView, x: Tensor, y: Tensor) -> Returned:
        estimator = estimators.PyTorchClassifier(
            view,
            loss=nn.CrossEntropyLoss(reduction="sum"),  # rows do not share a gradient
            input_shape=tuple(x.shape[1:]),
            nb_classes=classes,
            clip_values=(0.0, 1.0),
            device_type="cpu" if x.device.type == "cpu" else "gpu",
        )
        attack = make_attack("art", name, cls, estimator, **filled)
        labels = nn.functional.one_hot(y, classes)
        x_adv = attack.generate(x=x.float().cpu().numpy(), y=labels.cpu().numpy())
        y_pred = estimator.predict(x_adv, batch_size=len(x_adv)).argmax(axis=1)
        return Returned(torch.from_numpy(x_adv), torch.from_numpy(y_pred) != y.cpu())

    return routine
