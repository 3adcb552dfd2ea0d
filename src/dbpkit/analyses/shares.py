"""Shares: how much of a robust accuracy is stochasticity, and how much is purification.

robust accuracy = undefended + (fixed randomness - undefended) + (white box - fixed randomness). The thing
people get wrong: a white-box attack with too few EoT draws overstates what stochasticity gives, since the
attacker who knows the noise needs none.

Source:
    Liu et al., ICLR 2025, section 3; Liu & Wei 2025, fixed randomness.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dbpkit.analyses.analysis import Subject, analyses, batches, check_options, positions, rows
from dbpkit.analyses.targets import misclassified
from dbpkit.attacks import Target
from dbpkit.evaluation.knowledge import known
from dbpkit.options import Count
from dbpkit.results.analysis import AnalysisResult, Chart, Number, Series, above
from dbpkit.results.estimates import Estimate, paired_difference, wilson
from dbpkit.results.intervals import bootstrap

SOURCE = "Liu et al., ICLR 2025, DDPM: 47.27 % white box, 16.80 % noise known"


@analyses.register("shares")
@dataclass(frozen=True)
class Shares:
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

    def __post_init__(self) -> None:
        check_options(self)

    def units(self, subject: Subject) -> list[str]:
        """Batches of examples."""
        return batches(subject, self.images)

    def measure(self, subject: Subject, unit: str) -> list[dict[str, Any]]:
        """Accuracy of every example of the unit without attack and against the three attackers."""
        x, y, noise = subject.examples(positions(unit))
        alone = Target(subject.parts.undefended, subject.micro_batch)
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

    def conclude(self, measured: Mapping[str, Any]) -> AnalysisResult:
        """Differences between the attackers, paired over images, and each part's share of the whole."""
        records = list(rows(measured))
        n = len(records)
        right = {k: np.array([r[k] for r in records]) for k in ("undefended", "fixed", "white_box", "clean")}
        stochastic = _difference(right["white_box"], right["fixed"])
        purified = _difference(right["fixed"], right["undefended"])
        # (white - fixed) - (fixed - undefended), halved to lie in [-1, 1]
        halves = _difference((right["white_box"] + right["undefended"]) / 2, right["fixed"])
        parts = np.stack([right["white_box"], right["fixed"]], axis=1)
        share = bootstrap(parts, _share_of_stochasticity)
        levels = {k: (float(v.mean()), *wilson(float(v.mean()), n)) for k, v in right.items()}
        wilsons, paired = "Wilson over images", "paired bootstrap over images"
        numbers = [
            Number("accuracy without an attack", *levels["clean"], n, wilsons),
            Number(
                "white box: the attacker averages over the noise",
                *levels["white_box"],
                n,
                wilsons,
                0.4727,
                SOURCE,
            ),
            Number(
                "fixed randomness: the attacker knows the noise", *levels["fixed"], n, wilsons, 0.168, SOURCE
            ),
            Number(
                "undefended classifier",
                *levels["undefended"],
                n,
                wilsons,
                0.0,
                "Liu et al., ICLR 2025, table 1",
            ),
            _part("from stochasticity: white box minus fixed randomness", stochastic, 0.3047),
            _part("from purification: fixed randomness minus undefended", purified, 0.168),
            Number(
                "stochasticity minus purification",
                2 * halves.value,
                2 * halves.low,
                2 * halves.high,
                n,
                paired,
                claim="robustness comes mainly from stochasticity",
                holds=above(halves.low, halves.high),
            ),
        ]
        if np.isfinite(share[0]):
            # Where no resample differs, as with 0 % under known noise, the bootstrap says nothing.
            low, high = (None, None) if share[1] == share[2] else share[1:]
            numbers.append(
                Number(
                    "share of stochasticity in the white box's accuracy",
                    share[0],
                    low,
                    high,
                    n,
                    paired,
                    0.645,
                    SOURCE,
                )
            )
        return AnalysisResult(
            "", "", _sentences(levels, stochastic, purified), numbers, [_bars(levels, stochastic, purified)]
        )


def _difference(a: np.ndarray, b: np.ndarray) -> Estimate:
    return paired_difference(a.tolist(), b.tolist())


def _part(name: str, found: Estimate, published: float) -> Number:
    return Number(name, found.value, found.low, found.high, found.examples, found.method, published, SOURCE)


def _share_of_stochasticity(sample: np.ndarray) -> float:
    """1 - fixed / white box of (n, 2); nan where nothing is robust."""
    white, fixed = sample.mean(axis=0)
    return float(1 - fixed / white) if white > 0 else float("nan")


def _sentences(
    levels: Mapping[str, tuple[float, float, float]], stochastic: Estimate, purified: Estimate
) -> list[str]:
    return [
        f"Of the {levels['white_box'][0]:.0%} robust accuracy, {stochastic.value:.0%} of all images"
        f" ({stochastic.low:.0%} to {stochastic.high:.0%}) come from noise that the attacker does not know,"
        f" and {purified.value:.0%} ({purified.low:.0%} to {purified.high:.0%}) from purification itself.",
        f"With the noise known, {levels['fixed'][0]:.0%} are right; without the purifier,"
        f" {levels['undefended'][0]:.0%}; without an attack, {levels['clean'][0]:.0%}.",
    ]


def _bars(
    levels: Mapping[str, tuple[float, float, float]], stochastic: Estimate, purified: Estimate
) -> Chart:
    value, low, high = levels["undefended"]
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
