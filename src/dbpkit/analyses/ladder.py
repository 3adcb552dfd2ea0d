"""The ladder: is a diffusion model needed? Purifiers from nothing at all up to the chain, at equal noise.

A rung adds one thing to the one below: the noise, a denoiser, the chain. So each difference of two rungs,
paired over images, is what that one thing is worth. The thing people get wrong: comparing purifiers that
start from different noise, or a filter whose gradient stops with a chain whose gradient is exact.

Source:
    Liu et al., ICLR 2025, section 6: what stochasticity gives and what purification gives are to be told
    apart; Carlini et al. 2023 (arXiv:2206.10550), one denoising step.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from dbpkit.analyses.analysis import Subject, Unit, analyses, batches, check_options, needs_diffusion
from dbpkit.analyses.tools.rungs import CHAIN, FILTER, NOISE, NOTHING, ONE, OTHER, Rung, climbed, ladder
from dbpkit.analyses.tools.targets import misclassified
from dbpkit.experiment.knowledge import Knowledge, known
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count
from dbpkit.purification.diffusion import Purifier
from dbpkit.results.analysis import Chart, Claim, Conclusion, Number, Series
from dbpkit.statistics.intervals import difference, share

WORTH = {
    (NOTHING, NOISE): "noise",
    (NOISE, ONE): "denoising",
    (NOISE, OTHER): "denoising",
    (OTHER, ONE): "the spec's denoiser instead of the other one",
    (ONE, CHAIN): "diffusion",
    (OTHER, CHAIN): "diffusion",
    (NOISE, FILTER): "a filter",
}
"""What two rungs, the lower one first, differ in."""

JUDGED = {
    "clean": "without an attack",
    "white_box": "white box",
    "fixed": "all noise known",
}
"""What every rung is measured under."""


@analyses.register("ladder")
@dataclass(frozen=True)
class Ladder:
    """Accuracy of purifiers from nothing up to the diffusion chain, at equal noise, and what each adds.

    Attributes:
        images: examples.
        draws: report draws that judge clean images and the white box.
        tapes: noises that are fixed, one attack each.
        iterations: steps of every PGD.
        eot: draws averaged in each gradient of the white box.
        blind: weights file of a denoiser that makes one more rung, one call below the spec's own denoiser.
        rungs: purifiers from the lowest up, tables with the keys of ``[purifier]``, and ``denoiser`` and
            ``label`` if wanted; none takes the classifier alone, the spec's noise alone, a median filter
            of it, one call of the denoiser, and the spec's chain.
    """

    images: Count = 16
    draws: Count = 10
    tapes: Count = 1
    iterations: Count = 10
    eot: Count = 5
    blind: str | None = None
    rungs: Sequence[Mapping[str, Any]] = ()
    title = "Is a diffusion model needed?"
    grows = frozenset({"images"})

    def __post_init__(self) -> None:
        check_options(self)

    def units(self, subject: Subject) -> list[Unit]:
        """Every rung on each batch of examples; UserError if two rungs start from different noise."""
        found = self._ladder(subject)
        if len(found) < 2:
            raise UserError("ladder compares rungs. Give at least two of them.")
        parts = batches(subject, self.images)
        return [Unit(part.images, rung) for part in parts for rung in found]

    def measure(self, subject: Subject, unit: Unit) -> list[dict[str, Any]]:
        """Accuracy of each example on one rung: clean, against the white box, and with all noise known."""
        x, y, noise = subject.examples(unit.images)
        own = climbed(subject, unit.of)
        if not own.parts.model.sites:  # nothing is random: one draw tells all, and the noise is known
            clean = _right(own, x, y, noise, range(1))
            white = _right(
                own, self._attacked(own, x, y, noise, known["white_box"], eot=1), y, noise, range(1)
            )
            columns = {"clean": clean, "white_box": white, "fixed": white}
        else:
            draws = range(self.draws)
            attacked = self._attacked(own, x, y, noise, known["white_box"], eot=self.eot)
            fixed = [
                _right(
                    own, self._attacked(own, x, y, noise, known["dw_both"], t, 1), y, noise, range(t, t + 1)
                )
                for t in range(self.tapes)
            ]
            columns = {
                "clean": _right(own, x, y, noise, draws),
                "white_box": _right(own, attacked, y, noise, draws),
                "fixed": np.mean(fixed, axis=0),
            }
        ids = noise.example_ids.tolist()
        return [{"id": i, **{k: float(v[b]) for k, v in columns.items()}} for b, i in enumerate(ids)]

    def conclude(self, measured: Mapping[Unit, Any]) -> Conclusion:
        """Accuracy of every rung, and what each adds to the one below, paired over images."""
        table = _table(measured)
        numbers = [
            Number.of(f"{words}, {rung}", share(column[how]))
            for how, words in JUDGED.items()
            for rung, column in table.items()
        ]
        steps = [(low, high, words) for low, high, words in _steps(list(table))]
        for how, words in JUDGED.items():
            for low, high, worth in steps:
                claim = None
                if worth == "diffusion" and how != "clean":
                    claim = Claim("above 0: the chain is worth more than one call of a denoiser", least=0)
                found = difference(table[high][how] - table[low][how])
                numbers.append(Number.of(f"{words}: {worth} ({high} minus {low})", found, claim=claim))
        return Conclusion(_sentences(table, steps), numbers, [_chart(table)])

    def _attacked(
        self,
        own: Subject,
        x: Tensor,
        y: Tensor,
        noise: NoisePlan,
        attacker: Knowledge,
        tape: int = 0,
        eot: int = 1,
    ) -> Tensor:
        lane = 1 if attacker.name == "white_box" else 2 + tape
        how: dict[str, Any] = {"lane": lane, "iterations": self.iterations, "eot": eot}
        return own.attack(x, y, noise, attacker, tape, **how).x_adv

    def _ladder(self, subject: Subject) -> list[Rung]:
        """The rungs from the lowest up."""
        return ladder(subject, list(self.rungs) or self._default(needs_diffusion("ladder", subject)))

    def _default(self, purifier: Purifier) -> list[Mapping[str, Any]]:
        """The rungs of a spec with a diffusion chain."""
        if isinstance(purifier.settings["t_star"], Sequence):
            raise UserError(
                "analysis 'ladder' compares purifiers at one noise level, and t_star is an interval."
                " Give one t_star, or rungs of your own."
            )
        at = {k: purifier.settings[k] for k in ("t_star", "steps")}
        chain = {k: v for k, v in purifier.settings.items() if v is not None}
        one = {"sampler": "one_step", **at}
        blind = {**one, "denoiser": {"name": "weights", "options": {"path": self.blind}}}
        return [
            {"name": "identity", "label": "classifier alone"},
            {"name": "noise_only", "options": at, "label": "noise alone"},
            {"name": "median", "options": at, "label": "noise, then a median filter"},
            *([{**blind, "label": "one call of a blind denoiser"}] if self.blind else []),
            {**one, "label": "one call of the denoiser"},
            *([] if purifier.calls == 1 else [{**chain, "label": f"chain of {purifier.calls} calls"}]),
        ]


def _right(own: Subject, x: Tensor, y: Tensor, noise: NoisePlan, tapes: range) -> np.ndarray:
    """The share of draws on which each image is classified correctly, (B,)."""
    return 1 - misclassified(own, x, y, noise, tapes).double().mean(dim=1).cpu().numpy()


Table = dict[Rung, dict[str, np.ndarray]]
"""Values of every image, by rung and by what it was measured under; images in one order."""


def _table(measured: Mapping[Unit, Any]) -> Table:
    found: Table = {}
    for rung in dict.fromkeys(unit.of for unit in measured):
        units = sorted((u for u in measured if u.of == rung), key=lambda u: u.images.start)
        records = [record for unit in units for record in measured[unit]]
        found[rung] = {how: np.array([r[how] for r in records]) for how in JUDGED}
    return found


def _steps(rungs: Sequence[Rung]) -> list[tuple[Rung, Rung, str]]:
    """Pairs of rungs and what they differ in: each on the one below, filters on the noise alone."""
    noise = next((r for r in rungs if r.role == NOISE), None)
    main = [r for r in rungs if r.role != FILTER]
    pairs = [*pairwise(main), *((noise, r) for r in rungs if r.role == FILTER and noise is not None)]
    return [(low, high, WORTH.get((low.role, high.role), "the upper rung")) for low, high in pairs]


def _sentences(table: Table, steps: Iterable[tuple[Rung, Rung, str]]) -> list[str]:
    found = []
    for how, words in (("white_box", "against the white box"), ("fixed", "with all noise known")):
        right = ", ".join(f"{column[how].mean():.0%} ({rung})" for rung, column in table.items())
        parts = []
        for low, high, worth in steps:
            if high.role == FILTER:
                continue
            gap = difference(table[high][how] - table[low][how])
            parts.append(
                f"{worth} {100 * gap.value:+.0f} points ({100 * gap.low:.0f} to {100 * gap.high:.0f})"
            )
        worths = ", ".join(parts)
        found.append(
            f"Right {words}, from the lowest rung up: {right}. Worth, from rung to rung,"
            f" filters aside: {worths}."
        )
    return found


def _chart(table: Table) -> Chart:
    names = [rung.name for rung in table]
    series = [
        Series.of(words, names, [share(column[how]) for column in table.values()])
        for how, words in JUDGED.items()
    ]
    return Chart(
        "bar",
        "Accuracy by rung, at equal noise",
        "",
        "share of all images",
        series,
        "Bars for each purifier, from the classifier alone up to the chain: accuracy without an attack,"
        " against the white box, and with all noise known.",
    )
