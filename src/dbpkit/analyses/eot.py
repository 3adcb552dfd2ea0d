"""EoT: what averaging over draws of the noise finds, against what knowing the noise finds.

DW is the attacker who knows the noise, DW_semi one who knows that it is one of N draws and averages over
all. The thing people get wrong: a cosine near 0.3 does not mean too few draws. If the gradients of single
draws share a fraction c of their power, N draws reach c / sqrt(c + (1 - c) / N), and endless draws sqrt(c).

Source:
    Liu et al., ICLR 2025, appendices A and E. That law fits appendix A's plot with c = 0.10 to 0.01.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dbpkit.analyses.analysis import OfImages, Subject, Unit, analyses, rows
from dbpkit.analyses.tools.crossed_gradients import mean_cosine
from dbpkit.analyses.tools.targets import draw_gradients, misclassified
from dbpkit.attacks import losses
from dbpkit.experiment.knowledge import known
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count, Counts
from dbpkit.results.analysis import Chart, Claim, Conclusion, Number, Series
from dbpkit.statistics.intervals import Interval, bands, difference, mean, share

PUBLISHED = {
    1: (0.60, 0.10),
    2: (0.56, 0.14),
    3: (0.51, 0.165),
    5: (0.485, 0.19),
    10: (0.445, 0.23),
    20: (0.415, 0.26),
    30: (0.405, 0.275),
    50: (0.385, 0.29),
    70: (0.42, 0.295),
    100: (0.415, 0.30),
    200: (0.40, 0.305),
    512: (0.39, 0.31),
}
"""Robust accuracy and cosine by number of draws."""
SOURCE = "Liu et al., ICLR 2025, appendix A, DDPM, read off the plot to about 0.01"
REACH = 16
"""Most steps along a direction, each of 1/255."""
DIRECTIONS = ("DW", "DW_semi", "random")


@analyses.register("eot")
@dataclass(frozen=True)
class EoT(OfImages):
    """Robust accuracy and direction of EoT against its number of draws, and the loss along DW directions.

    Attributes:
        images: examples.
        counts: numbers N of EoT draws, increasing; published are 1 to 512.
        iterations: steps of PGD.
        draws: report draws that judge an attack.
        tapes: known noises that DW gradients are taken for.
        semi: N of DW_semi, at least ``tapes``; published is 128.
        stride: every how many of the steps -16 to 16 along a direction the loss is taken; divides 16.
    """

    images: Count = 16
    counts: Counts = (1, 2, 4, 8, 16)
    iterations: Count = 5
    draws: Count = 10
    tapes: Count = 2
    semi: Count = 16
    stride: Count = 2
    title = "Averaging over the noise (EoT) against knowing it"
    follows_gradient = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if sorted(set(self.counts)) != list(self.counts):
            raise UserError(f"analysis 'eot': counts must increase, not {list(self.counts)!r}.")
        if self.semi < self.tapes:
            raise UserError(f"analysis 'eot': semi {self.semi} must be at least tapes {self.tapes}.")
        if REACH % self.stride:
            raise UserError(f"analysis 'eot': stride {self.stride} must divide {REACH}.")

    def measure(self, subject: Subject, unit: Unit) -> list[dict[str, Any]]:
        """For every example of the unit: cosines and accuracies by N, losses along the three directions."""
        x, y, noise = subject.examples(unit.images)
        fresh = draw_gradients(subject, x, y, noise.on("attack"), max(self.counts))
        tapes = draw_gradients(subject, x, y, noise, self.semi)
        found: list[dict[str, Any]] = [
            {"id": i, "cosine": {}, "accuracy": {}} for i in noise.example_ids.tolist()
        ]
        for place, count in enumerate(self.counts):
            cosine = mean_cosine(fresh, tapes[:, : self.tapes], count)
            attack: dict[str, Any] = {"lane": 1 + place, "iterations": self.iterations, "eot": count}
            x_adv = subject.attack(x, y, noise, known["white_box"], **attack).x_adv
            wrong = misclassified(subject, x_adv, y, noise, range(self.draws)).double().mean(dim=1)
            for record, c, w in zip(found, cosine.tolist(), wrong.tolist(), strict=True):
                record["cosine"][str(count)] = c
                record["accuracy"][str(count)] = 1 - w
        steps = range(-REACH, REACH + 1, self.stride)
        directions = {
            "DW": tapes[:, : self.tapes].sign(),
            "DW_semi": tapes.mean(dim=1, keepdim=True).sign(),
            "random": noise.on("control").normal("probe", 0, x)[:, None].sign(),
        }
        for record in found:
            record["steps"] = list(steps)
        for name, signs in directions.items():
            signs = signs.expand(-1, self.tapes, -1, -1, -1)
            losses_found = torch.stack([self._loss(subject, x, y, noise, k / 255 * signs) for k in steps], 1)
            for record, line in zip(found, losses_found.tolist(), strict=True):
                record[name] = line
        return found

    def _loss(self, subject: Subject, x: Tensor, y: Tensor, noise: NoisePlan, delta: Tensor) -> Tensor:
        """Loss (B,) at x + delta[:, r] under tape r, averaged over the tapes r of (B, R, C, H, W)."""
        tapes = delta.shape[1]
        logits = subject.logits((x[:, None] + delta).flatten(0, 1), noise.repeat(tapes))
        return losses.get("ce")(logits, y.repeat_interleave(tapes)).unflatten(0, (len(x), tapes)).mean(dim=1)

    def conclude(self, measured: Mapping[Unit, Any]) -> Conclusion:
        """Accuracy and cosine by N, the law of a common part, and how the loss rises along each direction."""
        records = rows(measured)
        counts = list(records[0]["cosine"])
        accuracy = {k: np.array([r["accuracy"][k] for r in records]) for k in counts}
        cosine = {k: np.array([r["cosine"][k] for r in records]) for k in counts}
        levels = {k: share(v) for k, v in accuracy.items()}
        angles = {k: mean(v) for k, v in cosine.items()}
        few, many = counts[0], counts[-1]
        numbers = []
        for k in counts:
            at = PUBLISHED.get(int(k), (None, None))
            source = SOURCE if at[0] else ""
            apart = "EoT attacks go another way than the attacker who knows the noise (cosine below 1/2)"
            numbers += [
                Number.of(f"robust accuracy, N = {k}", levels[k], published=at[0], source=source),
                Number.of(
                    f"cosine to the DW gradient, N = {k}",
                    angles[k],
                    claim=Claim(apart, most=0.5) if k == many else None,
                    published=at[1],
                    source=source,
                ),
            ]
        if few != many:
            numbers.append(
                Number.of(
                    f"robust accuracy lost from N = {few} to N = {many}",
                    difference(accuracy[few] - accuracy[many]),
                    claim=Claim("above 0: attacks with few draws overstate robustness", least=0),
                )
            )
        rises = {name: np.array([r[name][-1] - _at_zero(r, name) for r in records]) for name in DIRECTIONS}
        numbers += [
            Number.of(f"rise of the loss at {REACH}/255 along {name}", mean(rises[name]))
            for name in DIRECTIONS
        ]
        numbers.append(
            Number.of(
                "rise along DW minus along DW_semi",
                mean(rises["DW"] - rises["DW_semi"]),
                claim=Claim("above 0: no direction works for all noises", least=0),
            )
        )
        common = angles["1"][0] if "1" in angles else float("nan")
        limit = f", and {common**0.5:.2f} is what endless draws could reach" if common > 0 else ""
        sentences = [
            f"An attack that averages each gradient over {many} draws leaves {levels[many][0]:.0%} robust"
            f" accuracy ({levels[many][1]:.0%} to {levels[many][2]:.0%}); one with {few} leaves"
            f" {levels[few][0]:.0%}.",
            f"Its gradient has a cosine of {angles[many][0]:.2f} to that of an attacker who knows the noise;"
            f" with {few} it is {angles[few][0]:.2f}{limit}.",
        ]
        charts = [_accuracies(levels), _cosines(angles, common), _directions(records)]
        return Conclusion(sentences, numbers, charts)


def _at_zero(record: Mapping[str, Any], name: str) -> float:
    return record[name][record["steps"].index(0)]


def _accuracies(levels: Mapping[str, Interval]) -> Chart:
    few, many = min(levels, key=int), max(levels, key=int)
    return Chart(
        "line",
        "Robust accuracy by number of EoT draws",
        "N: draws averaged in each gradient",
        "robust accuracy",
        [
            _series("here", levels),
            Series("published, DDPM", list(PUBLISHED), [a for a, _ in PUBLISHED.values()]),
        ],
        f"Robust accuracy from {levels[few][0]:.0%} to {levels[many][0]:.0%} as the attacker"
        " averages over more draws, beside the published curve.",
        x_log=True,
    )


def _cosines(angles: Mapping[str, Interval], common: float) -> Chart:
    counts = [int(k) for k in angles]
    few, many = min(angles, key=int), max(angles, key=int)
    series = [
        _series("here", angles),
        Series("published, DDPM", list(PUBLISHED), [c for _, c in PUBLISHED.values()]),
    ]
    if common > 0:
        law = [common / (common + (1 - common) / k) ** 0.5 for k in counts]
        series.append(Series("expected from the cosine of single draws", counts, law))
    return Chart(
        "line",
        "Cosine of the EoT gradient to the gradient under known noise",
        "N: draws averaged",
        "cosine",
        series,
        f"The cosine from {angles[few][0]:.2f} to {angles[many][0]:.2f} as draws are added, beside"
        " the published curve and the one that a part common to all draws would give.",
        x_log=True,
    )


def _series(name: str, found: Mapping[str, Interval]) -> Series:
    return Series.of(name, [int(k) for k in found], found.values())


def _directions(records: list[Any]) -> Chart:
    lines = {name: bands([r[name] for r in records]) for name in DIRECTIONS}
    return Chart(
        "line",
        "Mean loss along one direction of size 1/255",
        "k: steps of 1/255",
        "cross-entropy",
        [Series(name, records[0]["steps"], *line) for name, line in lines.items()],
        "Loss against the distance along the direction made for the known noise, the one made for many"
        f" noises, and a random one: at {REACH}/255 "
        + ", ".join(f"{name} {line[0][-1]:.2f}" for name, line in lines.items())
        + ".",
    )
