"""Whether a sampler's noise levels are ones that its network was trained on, and enough of them.

The thing people get wrong: a network answers at every level. Beyond those it was trained on, that is noise.
"""

from typing import Any

from torch import Tensor

from dbpkit.results.flags import Flag

TRAINED_TOLERANCE = 1.02
"""How far beyond the largest trained level one may be: training draws levels up to it, and seldom just it."""

FEW_STEPS = 5
"""Below so many steps from t* an ancestral chain purifies badly."""


def outside_trained_levels(denoiser: Any, levels: Tensor) -> list[Flag]:
    """Flags a start at a larger noise level than a denoiser's ``trained_levels``; none if it does not say.

    Args:
        denoiser: may have ``trained_levels``, the smallest and largest sigma it was trained on.
        levels: of the sampler, decreasing.
    """
    trained = getattr(denoiser, "trained_levels", None)
    if trained is None or float(levels[0]) <= TRAINED_TOLERANCE * trained[1]:
        return []
    message = (
        f"Purification starts at noise level {float(levels[0]):.3g}, but the denoiser was trained on levels"
        f" up to {trained[1]:.3g} (in [-1, 1] units): what it returns from there is no image. Lower t_star."
    )
    return [Flag("outside_trained_levels", "warning", message)]


def suspicious_grid(sampler: str, calls: int) -> list[Flag]:
    """Flags a chain of very few steps, for samplers that are not made for it."""
    if calls >= FEW_STEPS or sampler in ("one_step", "ddim", "heun"):
        return []
    message = (
        f"The chain has only {calls} steps from t*; `steps` counts the whole chain of 1000, the papers use 50"
        " to 1000."
    )
    return [Flag("suspicious_grid", "warning", message)]
