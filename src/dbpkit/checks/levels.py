"""Whether a sampler's noise levels are ones that its network was trained on, and enough of them.

The thing people get wrong: a network answers at every level. Beyond those it was trained on, that is noise.
"""

from collections.abc import Sequence
from typing import Any

from dbpkit.checks.check import Probe, checks
from dbpkit.foundation.times import start_words
from dbpkit.results.flags import Flag

TRAINED_TOLERANCE = 1.02
"""How far beyond the largest trained level one may be: training draws levels up to it, and seldom just it."""

LEAST_LEVEL, MOST_LEVEL = 0.1, 1.5
"""Noise levels, in [-1, 1] units, below which little is removed and above which little is left."""

FEW_STEPS = 5
"""Below so many steps from t* an ancestral chain purifies badly."""


@checks.add(
    "suspicious_level",
    stage="settings",
    expects="purification starts well above what the attack can do, and below pure noise",
    remedy="Choose t_star by the levels in the message; the papers use 0.1.",
    needs="diffusion",
)
def check_level(probe: Probe) -> list[Flag]:
    """Flags a start of purification that is hardly noisier than the attack, or noisier than the image."""
    spec, purifier = probe.planned.spec, probe.diffusion
    if spec is None or purifier is None:
        return []
    settings, norm = spec.purifier, spec.threat.norm
    start = (
        f"t* = {start_words(settings.t_star)}"
        if settings.sampler != "heun"
        else f"grid of {settings.sampler}"
    )
    reach = reach_of(norm, probe.threat.eps, probe.x[0].numel())
    return suspicious_level(purifier.sampler.levels[0], norm, str(spec.threat.eps), reach, start)


@checks.add(
    "outside_trained_levels",
    stage="settings",
    expects="purification starts at a level that the denoiser was trained on",
    remedy="Lower t_star.",
    needs="diffusion",
)
def check_trained(probe: Probe) -> list[Flag]:
    """Flags a start at a larger noise level than the denoiser was trained on."""
    purifier = probe.diffusion
    return [] if purifier is None else outside_trained_levels(purifier.denoiser, [purifier.sampler.highest])


@checks.add(
    "suspicious_grid",
    stage="settings",
    expects="the sampler takes enough steps",
    remedy="Raise steps; they count the whole chain, of which t_star is a share.",
    needs="diffusion",
)
def check_grid(probe: Probe) -> list[Flag]:
    """Flags a chain of very few steps, for samplers that are not made for it."""
    spec, purifier = probe.planned.spec, probe.diffusion
    if spec is None or purifier is None:
        return []
    return suspicious_grid(spec.purifier.sampler, purifier.sampler.steps, purifier.sampler)


@checks.add(
    "assumptions",
    stage="settings",
    expects="the denoiser's files say how it was trained, and on images of this size",
    remedy="Give its schedule in denoiser.options, and data of its size.",
    needs="diffusion",
    raises=("schedule_assumed", "other_image_size"),
)
def check_assumptions(probe: Probe) -> list[Flag]:
    """Flags what a denoiser's files do not say, and images of another size than its network's."""
    purifier = probe.diffusion
    if purifier is None:
        return []
    height, width = purifier.fitted(probe.x[:1]).shape[-2:]
    return assumptions(purifier.denoiser, (height, width))


def outside_trained_levels(denoiser: Any, levels: Sequence[float]) -> list[Flag]:
    """Flags a start at a larger noise level than a denoiser's ``trained_levels``; none if it does not say.

    Args:
        denoiser: may have ``trained_levels``, the smallest and largest sigma it was trained on.
        levels: of the sampler, decreasing.
    """
    trained = getattr(denoiser, "trained_levels", None)
    if trained is None or levels[0] <= TRAINED_TOLERANCE * trained[1]:
        return []
    message = (
        f"Purification starts at noise level {levels[0]:.3g}, but the denoiser was trained on levels"
        f" up to {trained[1]:.3g} (in [-1, 1] units): what it returns from there is no image. Lower t_star."
    )
    return [Flag("outside_trained_levels", "warning", message)]


def assumptions(denoiser: Any, size: tuple[int, ...]) -> list[Flag]:
    """Flags what a denoiser's files do not say (``assumed``), and images of another size than its network's.

    Args:
        denoiser: may have ``assumed``, a sentence, and ``sample_size``, height and width.
        size: height and width of the images.
    """
    flags = []
    if assumed := getattr(denoiser, "assumed", None):
        flags.append(Flag("schedule_assumed", "warning", assumed))
    made_for = getattr(denoiser, "sample_size", None)
    if made_for is not None and tuple(made_for) != size:
        message = (
            f"The denoising network was made for images of {made_for[0]} x {made_for[1]}, the data have"
            f" {size[0]} x {size[1]}. It runs, but it has learned no images of this size."
        )
        flags.append(Flag("other_image_size", "warning", message))
    return flags


def suspicious_level(sigma: float, norm: str, eps: str, reach: float, start: str) -> list[Flag]:
    """Flags a start of purification that is hardly noisier than the attack, or noisier than the image.

    Args:
        sigma: noise level of the start, in [-1, 1] units.
        norm: registered name of the threat model.
        eps: the budget as the user wrote it.
        reach: how far the budget moves a value, in [-1, 1] units; 0 if unknown.
        start: what chose the level, such as ``t* = 0.1``.
    """
    where = f"Purification starts at noise level {sigma:.3g} in [-1, 1] units ({start})"
    meant = " t = 10 of 1000 where t = 100 (t* = 0.1) was meant gives 0.047." if sigma < LEAST_LEVEL else ""
    if sigma < 2 * reach:
        how = "up to" if norm == "linf" else "by a root mean square of"
        message = (
            f"{where}, below {2 * reach:.3g}, which is twice what the attack can do: {norm} with eps = {eps}"
            f" moves values {how} {reach:.3g} in these units, so the noise hardly covers it.{meant}"
        )
    elif sigma < LEAST_LEVEL:
        message = (
            f"{where}, below {LEAST_LEVEL:g}: so little noise removes little, whatever the attack. The papers"
            f" use 0.34 (t* = 0.1, t = 100 of 1000).{meant}"
        )
    elif sigma > MOST_LEVEL:
        message = (
            f"{where}, above {MOST_LEVEL:g}: more noise than image. t* is a fraction of 1, not a percentage."
        )
    else:
        return []
    return [Flag("suspicious_level", "warning", message)]


def reach_of(norm: str, eps: float, values: int) -> float:
    """How far a budget in [0, 1] units moves a value in [-1, 1] units; 0 for norms that are not of pixels.

    Args:
        norm: registered name of the threat model.
        eps: the budget.
        values: number of values of an image.
    """
    root: float = values**0.5
    return {"linf": 2 * eps, "l2": 2 * eps / root}.get(norm, 0.0)


def suspicious_grid(sampler: str, calls: int, made: Any = None) -> list[Flag]:
    """Flags a chain of very few steps, for samplers that are not made for it, and rounds that fall together.

    Args:
        sampler: its name.
        calls: steps from t* down to 0.
        made: the sampler itself; one of several rounds says of its grid which start at the same level.
    """
    if together := getattr(getattr(made, "chain", made), "fallen_together", str)():
        return [Flag("suspicious_grid", "warning", together)]
    if calls >= FEW_STEPS or sampler in ("one_step", "ddim", "heun", "likelihood"):
        return []
    message = (
        f"The chain has only {calls} steps from t*; `steps` counts the whole chain of 1000, the papers use 50"
        " to 1000."
    )
    return [Flag("suspicious_grid", "warning", message)]
