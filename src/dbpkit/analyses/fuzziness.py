"""Fuzziness: how often fresh randomness lets an attacked image through, and the curve of it over images.

phi = Pr(misclassified) of one attacked image over fresh draws; CFR(p) = share of images with phi <= p. CFR(0)
and the share of fuzzy images depend on how many draws were looked at: more draws find more images that are
fooled at least once.

Source:
    Liu & Wei 2025, fuzzy adversarial robustness; Wang et al., NeurIPS 2024 (DiffHammer), N-evaluation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np

from dbpkit.analyses.analysis import OfImages, Subject, Unit, analyses, columns, records
from dbpkit.analyses.tools.targets import misclassified
from dbpkit.experiment.knowledge import known
from dbpkit.foundation.options import Count, Several
from dbpkit.results.analysis import Chart, Claim, Conclusion, Number, Series
from dbpkit.statistics.intervals import Interval, share

DIFFHAMMER_DRAWS = 10
"""N of DiffHammer's N-evaluation."""


@analyses.register("fuzziness")
@dataclass(frozen=True)
class Fuzziness(OfImages):
    """How often each attacked image fools the defence over fresh draws, and the CFR curve.

    Attributes:
        images: examples.
        draws: fresh report draws per attacked image.
        iterations: steps of the white-box PGD.
        eot: draws averaged in each of its gradients.
    """

    images: Count = 16
    draws: Several = 100
    iterations: Count = 10
    eot: Count = 5
    title = "Fuzzy robustness: how often an attack succeeds"
    follows_gradient = True

    def measure(self, subject: Subject, unit: Unit) -> list[dict[str, Any]]:
        """For every example of the unit, on how many report draws its attacked image is misclassified."""
        x, y, noise = subject.examples(unit.images)
        outcome = subject.attack(x, y, noise, known["white_box"], iterations=self.iterations, eot=self.eot)
        wrong = misclassified(subject, outcome.x_adv, y, noise, range(self.draws)).sum(dim=1)
        return records(noise, wrong=wrong, draws=[self.draws] * len(x))

    def conclude(self, measured: Mapping[Unit, Any]) -> Conclusion:
        """The curve, its values at 0 and one half, its area, and the share of images strictly between."""
        found = columns(measured)
        wrong, draws = found["wrong"], int(found["draws"][0])
        phi = wrong / draws
        never, half = share(phi == 0), share(phi < 0.5)
        average, fuzzy = share(1 - phi), share((phi > 0) & (phi < 1))
        numbers = [
            Number.of("never fooled, CFR(0)", never, how=f"{draws} draws"),
            Number.of("right in more than half of the draws, CFR just below 1/2", half),
            Number.of("right in a single draw, 1 - mean phi", average),
            Number.of(
                f"fooled by some of {draws} draws and not by others",
                fuzzy,
                claim=Claim("a substantial share (above 10 %) of attacked images is fuzzy", least=0.1),
            ),
        ]
        if draws >= DIFFHAMMER_DRAWS:
            mixed = [_mixed(int(k), draws, DIFFHAMMER_DRAWS) for k in wrong]
            numbers.append(
                Number.of(
                    f"the same, expected in {DIFFHAMMER_DRAWS} draws",
                    share(mixed),
                    published=0.463,
                    source="DiffHammer, DiffPure, N = 10; 32.6 to 46.3 % over its defences",
                )
            )
        return Conclusion(_sentences(draws, never, half, average, fuzzy), numbers, [_curve(wrong, draws)])


def _sentences(
    draws: int,
    never: Interval,
    half: Interval,
    average: Interval,
    fuzzy: Interval,
) -> list[str]:
    return [
        f"{fuzzy[0]:.0%} of the attacked images are fooled by some of {draws} draws and not by others"
        f" ({fuzzy[1]:.0%} to {fuzzy[2]:.0%}), so one draw cannot tell whether such an image is safe.",
        f"{never[0]:.0%} are never fooled: what is left if the attacker may try again and again (the curve"
        f" at 0). {half[0]:.0%} are right in more than half of the draws, so a majority vote gets them (the"
        " curve just below one half; a tie counts against the defence). One query is right in"
        f" {average[0]:.0%} (the area under the curve).",
    ]


def _curve(wrong: np.ndarray, draws: int) -> Chart:
    """CFR at every probability that this many draws can tell apart."""
    found = [share(wrong <= k) for k in range(draws + 1)]
    at = [k / draws for k in range(draws + 1)]
    return Chart(
        "line",
        "Share of attacked images that are fooled at most so often",
        "p: share of draws in which an image is misclassified",
        "CFR(p): share of images",
        [Series.of("white box", at, found)],
        "Cumulative share of images over how often they are fooled: at 0 those never fooled, just"
        " below one half those a majority vote gets right; the higher the curve, the more robust.",
    )


def _mixed(wrong: int, draws: int, few: int) -> float:
    """Probability that ``few`` of the draws, picked at random, hold both outcomes (hypergeometric)."""
    return 1 - (comb(wrong, few) + comb(draws - wrong, few)) / comb(draws, few)
