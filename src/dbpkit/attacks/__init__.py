"""Attacks: one file each. They see a `Target`, never a purifier, a sampler or a knowledge setting.

The function of an attack is `dbpkit.NAME`; ``dbpkit.attacks.NAME`` is the module that it is in.
"""

from dbpkit.attacks.attack import (
    RESERVED,
    Attack,
    AttackOutcome,
    Path,
    accepted_options,
    attacks,
    checked_attack_options,
    guarded,
    make_attack,
)
from dbpkit.attacks.designs import Design, designed
from dbpkit.attacks.loss import Loss, LossName, check_classes, cross_entropy, losses, margin
from dbpkit.attacks.passing import DrawGradients, ExpectedGradient, Judgement, mean_in_order
from dbpkit.attacks.target import Target, Visit
from dbpkit.foundation.registry import import_siblings

import_siblings(__name__, __path__)

__all__ = [
    "RESERVED",
    "Attack",
    "AttackOutcome",
    "Design",
    "DrawGradients",
    "ExpectedGradient",
    "Judgement",
    "Loss",
    "LossName",
    "Path",
    "Target",
    "Visit",
    "accepted_options",
    "attacks",
    "check_classes",
    "checked_attack_options",
    "cross_entropy",
    "designed",
    "guarded",
    "losses",
    "make_attack",
    "margin",
    "mean_in_order",
]
