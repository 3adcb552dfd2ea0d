"""The sentence a run is remembered by: what the difference between white box and DW_Both can mean.

The thing people get wrong: reading the difference as what randomness gives. A white box that averages over
too few draws leaves images right that a better one would not, so the difference is an upper bound at its EoT,
and the sentence says whether more draws were tried.
"""

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from dbpkit.results.analysis import AnalysisResult
from dbpkit.results.flags import Flag
from dbpkit.results.schemas import RecordedPart
from dbpkit.statistics.estimates import Estimate
from dbpkit.statistics.intervals import VERDICT_EXAMPLES

PUBLISHED_EOT = 10
"""Draws per gradient of the papers' white-box attacks, at least."""

NOTHING = (
    "No example has been attacked both with the noise unknown (white box) and known (DW_Both),"
    " so this run cannot yet tell randomness from purification."
)


STILL = (
    "The defence draws no noise that an attacker could know or not, so white box and DW_Both are the same"
    " attack, and this run says nothing of randomness."
)


class Trend(NamedTuple):
    """What the analysis ``eot`` found in the same run.

    Attributes:
        accuracy: draws per gradient to robust accuracy, draws ascending.
        lost: whether accuracy fell from the fewest to the most draws; None where that is open.
    """

    accuracy: dict[int, float]
    lost: bool | None


def headline_sentence(
    white: float,
    known: float,
    gap: Estimate | None,
    eot: int | None,
    flags: Sequence[Flag] = (),
    trend: Trend | None = None,
) -> str:
    """Says how much of the white box's accuracy may rest on noise that the attacker does not know.

    Args:
        white: accuracy per draw of the white box, over the examples that both rows have.
        known: that of DW_Both.
        gap: the paired difference; None if no example is in both rows.
        eot: draws per gradient of the white box; None if its attack has no such option.
        flags: of the run; ``gradient_noise`` says that these draws are too few.
        trend: accuracy over EoT, if it was measured.
    """
    if gap is None:
        return NOTHING
    points = f"{100 * gap.value:.0f} points (95 % interval {100 * gap.low:.0f} to {100 * gap.high:.0f})"
    head = (
        f"An attacker who must guess the noise leaves {white:.0%} right, one who knows it leaves {known:.0%}"
    )
    at = f", at EoT {eot}" if eot else ""
    if gap.low <= 0:
        return f"{head}: the difference, {points}{at}, does not show that randomness adds robustness here."
    few = "" if gap.examples >= VERDICT_EXAMPLES else f" {gap.examples} images are too few to be sure."
    return (
        f"{head}: at most {points} of the white-box robustness come from randomness the attacker cannot"
        f" foresee{at}.{few}{_more_draws(eot, flags, trend)}"
    )


def white_box_eot(attacks: Sequence[RecordedPart], passes: Collection[tuple[float, int]] = ()) -> int | None:
    """Draws per gradient of the white box: what the spec's attacks say, or what was counted; None if neither.

    Args:
        attacks: of the spec; the most draws among them are taken.
        passes: differentiated passes and iterations of the white box's records.
    """
    asked = [attack.options.get("eot") for attack in attacks]
    if asked and all(type(eot) is int for eot in asked):
        return max(int(eot or 0) for eot in asked)
    counted = {gradients / iterations for gradients, iterations in passes if iterations}
    return int(min(counted)) if len(counted) == 1 and min(counted).is_integer() else None


def measured_trend(results: Sequence[AnalysisResult]) -> Trend | None:
    """What the analysis ``eot`` of the same run found, if it was run for several numbers of draws."""
    numbers = next((result.numbers for result in results if result.name == "eot"), [])
    accuracy = {
        int(match[1]): n.value
        for n in numbers
        if (match := re.fullmatch(r"robust accuracy, N = (\d+)", n.name))
    }
    lost = next((n.holds for n in numbers if n.name.startswith("robust accuracy lost from N")), None)
    return Trend(dict(sorted(accuracy.items())), lost) if len(accuracy) > 1 else None


def _more_draws(eot: int | None, flags: Sequence[Flag], trend: Trend | None) -> str:
    """What is known of attacks with more draws per gradient, or what to do."""
    said = ""
    noisy = next((flag.message for flag in flags if flag.name == "gradient_noise"), "")
    if noisy:
        said += f" The check doubts this white box: {_about(noisy)}"
    if trend:
        few, many = min(trend.accuracy), max(trend.accuracy)
        path = f"{trend.accuracy[few]:.0%} at EoT {few}, {trend.accuracy[many]:.0%} at EoT {many}"
        verdicts = {
            True: "robust accuracy falls with EoT, and this bound with it",
            False: "robust accuracy does not fall with EoT",
            None: "whether robust accuracy falls with EoT is open",
        }
        said += f" In the analysis of EoT, {verdicts[trend.lost]} ({path})."
    if noisy or (eot is not None and eot < PUBLISHED_EOT):
        said += " More draws per gradient can only lower it: raise the attack's eot."
    return said


def _about(message: str) -> str:
    """The part of the flag's message that says how many draws it takes."""
    return (
        message[message.index("About ") :].replace("About ", "about ", 1) if "About " in message else message
    )
