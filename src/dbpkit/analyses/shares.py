"""Shares: how much of a robust accuracy is stochasticity, and how much is purification.

robust accuracy = undefended + (fixed randomness - undefended) + (white box - fixed randomness). The thing
people get wrong: reading the stochastic part as exact. A white-box attack with too few EoT draws overstates
it, since the attacker who knows the noise needs none: it is an upper bound at that EoT.

Source:
    Liu et al., ICLR 2025, section 3; Liu & Wei 2025, fixed randomness.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dbpkit.analyses.analysis import OfImages, Subject, Unit, analyses, rows
from dbpkit.analyses.tools.targets import misclassified
from dbpkit.attacks import Target
from dbpkit.experiment.knowledge import known
from dbpkit.foundation.options import Count
from dbpkit.results.analysis import Chart, Claim, Conclusion, Number, Series
from dbpkit.statistics.intervals import Interval, difference, ratio, share

SOURCE = "Liu et al., ICLR 2025, DDPM: 47.27 % white box, 16.80 % noise known"


@analyses.register("shares")
@dataclass(frozen=True)
class Shares(OfImages):
    """Splits robust accuracy into what stochasticity and what purification gives.

    Attributes:
        images: examples.
        draws: report draws that judge the white box and the clean images.
        tapes: noises that are fixed, one attack each.
        iterations: steps of every PGD.
        eot: draws averaged in each gradient of the white box.
    """

    images: Count = 16
    draws: Count = 10
    tapes: Count = 2
    iterations: Count = 10
    eot: Count = 5
    title = "What robustness is made of"
    follows_gradient = True

    def measure(self, subject: Subject, unit: Unit) -> list[dict[str, Any]]:
        """Accuracy of every example of the unit without attack and against the three attackers."""
        x, y, noise = subject.examples(unit.images)
        alone = Target(subject.alone, subject.limit)
        once: dict[str, Any] = {"iterations": self.iterations, "eot": 1}
        x_und = subject.attack(x, y, noise, known["white_box"], target=alone, **once).x_adv
        x_white = subject.attack(
            x, y, noise, known["white_box"], lane=2, iterations=self.iterations, eot=self.eot
        ).x_adv
        fixed = []
        for tape in range(self.tapes):
            x_adv = subject.attack(x, y, noise, known["dw_both"], tape, lane=3 + tape, **once).x_adv
            fixed.append(misclassified(subject, x_adv, y, noise, range(tape, tape + 1))[:, 0])
        wrong = {
            "undefended": (subject.classify(x_und).argmax(dim=1) != y)[:, None],
            "fixed": torch.stack(fixed, dim=1),
            "white_box": misclassified(subject, x_white, y, noise, range(self.draws)),
            "clean": misclassified(subject, x, y, noise, range(self.draws)),
        }
        columns = {name: 1 - found.double().mean(dim=1) for name, found in wrong.items()}
        return [
            {"id": i, **{name: float(column[row]) for name, column in columns.items()}}
            for row, i in enumerate(noise.example_ids.tolist())
        ]

    def conclude(self, measured: Mapping[Unit, Any]) -> Conclusion:
        """Differences between the attackers, paired over images, and each part's share of the whole."""
        records = rows(measured)
        right = {k: np.array([r[k] for r in records]) for k in ("undefended", "fixed", "white_box", "clean")}
        levels = {k: share(v) for k, v in right.items()}
        stochastic = difference(right["white_box"] - right["fixed"])
        purified = difference(right["fixed"] - right["undefended"])
        # (white - fixed) - (fixed - undefended), halved to lie in [-1, 1]
        halves = difference((right["white_box"] + right["undefended"]) / 2 - right["fixed"])
        numbers = [
            Number.of("accuracy without an attack", levels["clean"]),
            Number.of(
                "white box: the attacker averages over the noise",
                levels["white_box"],
                published=0.4727,
                source=SOURCE,
            ),
            Number.of(
                "fixed randomness: the attacker knows the noise",
                levels["fixed"],
                published=0.168,
                source=SOURCE,
            ),
            Number.of(
                "undefended classifier",
                levels["undefended"],
                published=0.0,
                source="Liu et al., ICLR 2025, table 1",
            ),
            Number.of(
                f"accuracy from stochasticity, at most: white box (EoT {self.eot}) minus fixed randomness",
                stochastic,
                published=0.3047,
                source=SOURCE,
            ),
            Number.of(
                "accuracy from purification: fixed randomness minus undefended",
                purified,
                published=0.168,
                source=SOURCE,
            ),
            Number.of(
                "accuracy from stochasticity minus accuracy from purification",
                halves.scaled(2),
                claim=Claim("above 0: more comes from stochasticity than from purification", least=0),
            ),
        ]
        if right["white_box"].mean() > 0:
            left = ratio(right["fixed"], right["white_box"])
            part = left._replace(value=1 - left.value, low=1 - left.high, high=1 - left.low)
            name = "share of the white box's accuracy that comes from stochasticity"
            numbers.append(Number.of(name, part, published=0.645, source=SOURCE))
        sentences = _sentences(levels, stochastic, purified, self.eot)
        return Conclusion(sentences, numbers, [_bars(levels, stochastic, purified)])


def _sentences(
    levels: Mapping[str, Interval], stochastic: Interval, purified: Interval, eot: int
) -> list[str]:
    return [
        f"Of the {levels['white_box'][0]:.0%} robust accuracy at EoT {eot}, at most {stochastic.value:.0%} of"
        f" all images ({stochastic.low:.0%} to {stochastic.high:.0%}) come from noise that the attacker does"
        f" not know, and {purified.value:.0%} ({purified.low:.0%} to {purified.high:.0%}) from purification"
        " itself.",
        f"With the noise known, {levels['fixed'][0]:.0%} are right; without the purifier,"
        f" {levels['undefended'][0]:.0%}; without an attack, {levels['clean'][0]:.0%}.",
    ]


def _bars(levels: Mapping[str, Interval], stochastic: Interval, purified: Interval) -> Chart:
    value, low, high = levels["undefended"][:3]
    return Chart(
        "bar",
        "What robust accuracy is made of",
        "",
        "share of all images",
        [
            Series(
                "robust accuracy",
                ["classifier alone", "+ purification", "+ stochasticity"],
                [value, purified.value, stochastic.value],
                [low, purified.low, stochastic.low],
                [high, purified.high, stochastic.high],
            )
        ],
        "Three bars that add up to the white box's robust accuracy: the undefended classifier, what"
        " purification adds with its noise known, and what unknown noise adds to that.",
    )
