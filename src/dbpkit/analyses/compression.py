"""Compression rate: how much nearby inputs are drawn together when all randomness is fixed.

CR = ||f(x + delta) - f(x)|| / ||delta|| with the same noise in both; see `dbpkit.analyses.tools.directions`.

Source:
    Liu & Wei 2025; `Jacobian`: the limit of small delta, RMS over directions = ||J||_F / sqrt(d).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import MinLen
from torch import Tensor

from dbpkit.analyses.analysis import OfImages, Subject, Unit, analyses, needs_budget, needs_gradient, rows
from dbpkit.analyses.tools.directions import (
    RANDOM,
    along,
    budget_length,
    compression_rate,
    lengths,
    unit_direction,
)
from dbpkit.experiment.knowledge import known
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count, CountOrNone, Length
from dbpkit.results.analysis import Chart, Claim, Conclusion, Number, Series
from dbpkit.statistics.intervals import mean


@analyses.register("compression")
@dataclass(frozen=True)
class Compression(OfImages):
    """Compression rate around the anchors, by kind of direction, by scale, and as the Jacobian's limit.

    Attributes:
        images: examples.
        tapes: fixed noises per example.
        directions: random directions per example, tape and kind.
        scales: lengths, as multiples of the typical length of a perturbation of the budget.
        attack_iterations: steps of the PGD direction; 0 leaves it out.
        jacobian_step: relative length at which the limit is taken by a central difference.
    """

    images: Count = 16
    tapes: Count = 2
    directions: Count = 2
    scales: Annotated[tuple[Length, ...], MinLen(1)] = (0.0625, 0.25, 1.0, 2.0)
    attack_iterations: CountOrNone = 5
    jacobian_step: Length = 1e-2
    title = "Compression at fixed randomness"

    def units(self, subject: Subject) -> list[Unit]:
        """Batches of examples."""
        needs_budget("compression", subject)
        if self.attack_iterations:
            needs_gradient("compression", subject)
        return super().units(subject)

    def measure(self, subject: Subject, unit: Unit) -> list[dict[str, Any]]:
        """Rates of every example of the unit, per tape."""
        x, y, noise = subject.examples(unit.images)
        records: list[dict[str, Any]] = [{"id": int(i), "tapes": []} for i in noise.example_ids]
        for tape in range(self.tapes):
            plan = noise.at(tape)
            anchor = subject.purify(x, plan)
            found: list[dict[str, Any]] = [{} for _ in records]
            for kind in RANDOM:
                for scale in self.scales if kind == "uniform" else (1.0,):
                    size = scale * budget_length(subject, x)
                    rate = compression_rate(subject, x, anchor, plan, kind, size, self.directions)
                    _note(found, f"{kind} x{scale:g}", rate)
            _note(found, "jacobian", self._limit(subject, x, plan))
            if self.attack_iterations:
                outcome = subject.attack(
                    x, y, noise, known["dw_both"], tape, iterations=self.attack_iterations, eot=1
                )
                delta = outcome.x_adv - x
                _note(found, "pgd", lengths(subject.purify(x + delta, plan) - anchor) / lengths(delta))
                survived = subject.logits(outcome.x_adv, plan).argmax(1) == y
                for one, right in zip(found, survived.tolist(), strict=True):
                    one["survived"] = right
            for record, one in zip(records, found, strict=True):
                record["tapes"].append(one)
        return records

    def _limit(self, subject: Subject, x: Tensor, plan: NoisePlan) -> Tensor:
        """RMS (B,) of ||J u|| over random unit directions u, by central differences."""
        squares = []
        for which in range(self.directions):
            u = unit_direction("gaussian", plan.on("control").in_lane(which), x)
            step = self.jacobian_step * budget_length(subject, x)
            difference = subject.purify(x + along(step, u), plan) - subject.purify(x - along(step, u), plan)
            squares.append((lengths(difference) / (2 * step).to(x)).square())
        return torch.stack(squares).mean(0).sqrt()

    def conclude(self, measured: Mapping[Unit, Any]) -> Conclusion:
        """Mean of ratios, ratio spread over images and tapes, and what PGD directions do."""
        records = rows(measured)
        kinds = [k for k in records[0]["tapes"][0] if k != "survived"]
        by_kind = {k: np.array([[t[k] for t in r["tapes"]] for r in records]) for k in kinds}
        together = Claim("below 1: inputs are drawn together", most=1)
        numbers = {
            kind: Number.of(
                f"compression rate, {kind}",
                mean(table.mean(axis=1)),
                claim=together if kind == "gaussian x1" else None,
                how="mean of ratios",
            )
            for kind, table in by_kind.items()
        }
        random = numbers["gaussian x1"]
        low, high = random.low, random.high
        ends = "" if low is None or high is None else f" ({low:.0%} to {high:.0%})"
        sentences = [
            f"With its randomness fixed, the purifier leaves {random.value:.0%} of a random perturbation's"
            f" length{ends}."
        ]
        if "pgd" in by_kind:
            attacked = by_kind["pgd"].mean()
            least = ": that is where it protects least" if attacked > random.value else ""
            sentences.append(f"Along attack directions it leaves {attacked:.0%}{least}.")
        return Conclusion(sentences, list(numbers.values()), [_by_length(by_kind)])


def _by_length(by_kind: Mapping[str, np.ndarray]) -> Chart:
    scales = {k: float(k.removeprefix("uniform x")) for k in by_kind if k.startswith("uniform x")}
    return Chart(
        "line",
        "Compression rate by length of the perturbation",
        "length (1 = uniform perturbation of the budget)",
        "||f(x + d) - f(x)|| / ||d||",
        [Series.of("uniform", list(scales.values()), [mean(by_kind[k].mean(axis=1)) for k in scales])],
        "Compression rate against perturbation length; below 1 everywhere means that inputs are drawn"
        " together.",
        x_log=True,
    )


def _note(found: list[dict[str, Any]], name: str, values: Tensor) -> None:
    for one, value in zip(found, values.tolist(), strict=True):
        one[name] = value
