"""Transfer between tapes: does an attack on one draw of the noise work on another?

The diagonal of the matrix is fixed randomness, the rest is what stochasticity protects; attacks that average
over K tapes lie between, judged on tapes that they were not made on.

Source:
    Liu & Wei 2025: EoT read as a transfer attack from known tapes to unseen ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dbpkit.analyses.analysis import OfImages, Subject, Unit, analyses, rows
from dbpkit.analyses.tools.targets import OnTapes, misclassified
from dbpkit.experiment.knowledge import known
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.options import Count, Counts, Several
from dbpkit.results.analysis import Chart, Claim, Conclusion, Number, Series
from dbpkit.statistics.intervals import difference, share


@analyses.register("transfer")
@dataclass(frozen=True)
class Transfer(OfImages):
    """Success of attacks on one tape when judged on another, and of attacks that average over K tapes.

    Attributes:
        images: examples.
        tapes: rows and columns of the matrix, at least 2.
        averaged: numbers K of known tapes, each averaged over by an attack of its own.
        unseen: tapes that judge them, known to none.
        iterations: steps of PGD.
    """

    images: Count = 16
    tapes: Several = 4
    averaged: Counts = (1, 2, 4, 8)
    unseen: Count = 8
    iterations: Count = 10
    title = "Transfer between draws of the noise"
    follows_gradient = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if sorted(set(self.averaged)) != list(self.averaged):
            raise UserError(f"analysis 'transfer': averaged must increase, not {list(self.averaged)!r}.")

    def measure(self, subject: Subject, unit: Unit) -> list[dict[str, Any]]:
        """For every example of the unit, whether each attack succeeds on each tape (1) or not (0)."""
        x, y, noise = subject.examples(unit.images)
        first = max(self.tapes, *self.averaged)
        unseen = range(first, first + self.unseen)
        attack: dict[str, Any] = {"iterations": self.iterations, "eot": 1}
        found: list[dict[str, Any]] = [
            {"id": i, "matrix": [], "known": {}, "unseen": {}} for i in noise.example_ids.tolist()
        ]
        clean = misclassified(subject, x, y, noise, unseen)
        for record, row in zip(found, clean.int().tolist(), strict=True):
            record["clean"] = row
        for tape in range(self.tapes):
            x_adv = subject.attack(x, y, noise, known["dw_both"], tape, **attack).x_adv
            success = misclassified(subject, x_adv, y, noise, range(self.tapes))
            for record, row in zip(found, success.int().tolist(), strict=True):
                record["matrix"].append(row)
        for count in self.averaged:
            target = OnTapes(subject, noise, count)
            x_adv = subject.attack(x, y, noise, known["white_box"], target=target, **attack).x_adv
            for where, tapes in (("known", range(count)), ("unseen", unseen)):
                success = misclassified(subject, x_adv, y, noise, tapes)
                for record, row in zip(found, success.int().tolist(), strict=True):
                    record[where][str(count)] = row
        return found

    def conclude(self, measured: Mapping[Unit, Any]) -> Conclusion:
        """Diagonal against the rest, paired over images, and what K tapes buy on unseen ones."""
        records = rows(measured)
        matrix = np.array([r["matrix"] for r in records], dtype=float)  # (n, attacked, judged)
        tapes = matrix.shape[1]
        same = np.einsum("nii->n", matrix) / tapes
        other = (matrix.sum(axis=(1, 2)) - tapes * same) / (tapes * (tapes - 1))
        counts = list(records[0]["known"])
        unseen = {k: np.array([np.mean(r["unseen"][k]) for r in records]) for k in counts}
        seen = {k: np.array([np.mean(r["known"][k]) for r in records]) for k in counts}
        clean = np.array([np.mean(r["clean"]) for r in records])
        gap = difference(same - other)
        numbers = [
            Number.of("misclassified without an attack", share(clean), how="mean over tapes"),
            Number.of(
                "success on the tape it was made on (diagonal)",
                share(same),
                published=0.763,
                source="Liu & Wei 2025, fixed randomness, CIFAR-10: 23.7 % robust",
            ),
            Number.of("success on another tape (off the diagonal)", share(other)),
            Number.of(
                "stochastic protection: diagonal minus the rest",
                gap,
                claim=Claim("above 0: attacks on one tape do not carry over in full to another", least=0),
            ),
            *[Number.of(f"success of {k} averaged tapes on unseen ones", share(unseen[k])) for k in counts],
        ]
        few, many = counts[0], counts[-1]
        if few != many:
            better = "above 0: averaging over more tapes transfers better (EoT is a transfer attack)"
            numbers.append(
                Number.of(
                    f"gained on unseen tapes by averaging over {many} instead of {few}",
                    difference(unseen[many] - unseen[few]),
                    claim=Claim(better, least=0),
                )
            )
        sentences = [
            f"An attack on a known draw of the noise succeeds on {same.mean():.0%} of images under that draw"
            f" and on {other.mean():.0%} under another: stochasticity protects {gap.value:.0%} of images"
            f" ({gap.low:.0%} to {gap.high:.0%}).",
            f"Averaged over {many} known draws, the attack succeeds on {unseen[many].mean():.0%} under draws"
            f" it has not seen; without an attack {clean.mean():.0%} are misclassified.",
        ]
        return Conclusion(sentences, numbers, [_heat(matrix.mean(axis=0)), _lines(seen, unseen)])


def _heat(matrix: np.ndarray) -> Chart:
    labels = [f"tape {j}" for j in range(len(matrix))]
    return Chart(
        "heat",
        "Success of an attack made on one tape, judged on another",
        "judged on",
        "attack made on",
        [Series(name, labels, row.tolist()) for name, row in zip(labels, matrix, strict=True)],
        "Share of images misclassified for every pair of tapes: on the diagonal the attacker knew the"
        " tape, and what is lower beside it is protected by stochasticity.",
    )


def _lines(seen: Mapping[str, np.ndarray], unseen: Mapping[str, np.ndarray]) -> Chart:
    curves = {"tapes the attack averaged over": seen, "unseen tapes": unseen}
    return Chart(
        "line",
        "Success of attacks that average over K tapes",
        "K: tapes averaged over",
        "share of images misclassified",
        [
            Series.of(name, [int(k) for k in found], map(share, found.values()))
            for name, found in curves.items()
        ],
        "Success on known and on unseen tapes against the number of tapes averaged over; the lines meet where"
        " knowing the draws no longer helps.",
        x_log=True,
    )
