"""Attacks: one file each. They see a `Target`, never a purifier, a sampler or a knowledge setting.

The runner, not the attack, projects onto the budget and decides success.
"""

from dbpkit.attacks.target import AttackOutcome, Target, attacks, losses, make_attack
from dbpkit.foundation.registry import import_siblings

import_siblings(__name__, __path__)

__all__ = ["AttackOutcome", "Target", "attacks", "losses", "make_attack"]
