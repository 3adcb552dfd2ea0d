"""Attacks of other libraries, as attacks of ours: Foolbox, ART and pyautoattack, imported only when used.

The thing people get wrong: these libraries call ``model(x)`` and drop, reorder and repeat rows as they like,
so a model that draws noise cannot know whose noise a row needs. `alignment` keeps noise and example together.
"""

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
    norm_of,
    refuse_constant,
    seeded_libraries,
)
from dbpkit.foundation.registry import import_siblings

import_siblings(__name__, __path__)

__all__ = [
    "AlignedView",
    "Alignment",
    "Draws",
    "Queries",
    "Returned",
    "Routine",
    "attack_aligned",
    "checked_settings",
    "class_count",
    "find_attack",
    "import_library",
    "norm_of",
    "refuse_constant",
    "seeded_libraries",
]
