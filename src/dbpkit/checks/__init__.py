"""Checks of a model and its settings, before a number is believed: one function each.

They run in the order in which the modules are imported here; those of a plugin come after them.
"""

from dbpkit.checks import model

# isort: split
from dbpkit.checks import outputs

# isort: split
from dbpkit.checks import denoising

# isort: split
from dbpkit.checks import conventions

# isort: split
from dbpkit.checks import gradient

# isort: split
from dbpkit.checks import short_attacks

# isort: split
from dbpkit.checks import draws

# isort: split
from dbpkit.checks import precision

# isort: split
from dbpkit.checks import levels

# isort: split
from dbpkit.checks.check import (
    STAGES,
    Check,
    Checked,
    Note,
    Planned,
    Probe,
    Stage,
    checks,
    run_check,
    verdict,
)
from dbpkit.results.flags import Flag

__all__ = [
    "STAGES",
    "Check",
    "Checked",
    "Flag",
    "Note",
    "Planned",
    "Probe",
    "Stage",
    "checks",
    "conventions",
    "denoising",
    "draws",
    "gradient",
    "levels",
    "model",
    "outputs",
    "precision",
    "run_check",
    "short_attacks",
    "verdict",
]
