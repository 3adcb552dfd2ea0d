"""Compression rate: how much nearby inputs are drawn together when all randomness is fixed.

CR = ||f(x + delta) - f(x)|| / ||delta|| with the same noise in both; f(x) is the anchor. The thing people get
wrong: the same *seed* is not the same noise. Here each tape's noise belongs to its example.

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

from dbpkit.analyses.analysis import Subject, analyses, batches, check_options, needs_budget, positions, rows
from dbpkit.experiment.knowledge import known
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count, CountOrNone, Length
from dbpkit.results.analysis import AnalysisResult, Chart, Claim, Number, Series
from dbpkit.statistics.intervals import mean

RANDOM = ("gaussian", "uniform", "sign")


@analyses.register("compression")
@dataclass(frozen=True)
class Compression:
    """Compression rate around the anchors, by kind of direction, by scale, and as the Jacobian's limit.

    Attributes:
        images: examples.
        tapes: fixed noises per example.
        directions: random directions per example, tape and kind.
        scales: lengths, as multiples of the length of a uniform Linf perturbation of the threat's eps.
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

    def __post_init__(self) -> None:
        check_options(self)

    def units(self, subject: Subject) -> list[str]:
        """Batches of examples."""
        needs_budget("compression", subject)
        return batches(subject, self.images)

    def measure(self, subject: Subject, unit: str) -> list[dict[str, Any]]:
        """Rates of every example of the unit, per tape."""
        x, y, noise = subject.examples(positions(unit))
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
            difference = subject.purify(x + step * u, plan) - subject.purify(x - step * u, plan)
            squares.append((lengths(difference) / (2 * step)).square())
        return torch.stack(squares).mean(0).sqrt()

    def conclude(self, measured: Mapping[str, Any]) -> AnalysisResult:
        """Mean of ratios, ratio spread over images and tapes, and what PGD directions do."""
        records = list(rows(measured))
        kinds = [k for k in records[0]["tapes"][0] if k != "survived"]
        by_kind = {k: np.array([[t[k] for t in r["tapes"]] for r in records]) for k in kinds}
        together = Claim("below 1: inputs are drawn together", most=1)
        numbers = [
            Number.of(
                f"compression rate, {kind}",
                mean(table.mean(axis=1)),
                claim=together if kind == "gaussian x1" else None,
                how="mean of ratios",
            )
            for kind, table in by_kind.items()
        ]
        scales = [k for k in kinds if k.startswith("uniform x")]
        sweep = [mean(by_kind[k].mean(axis=1)).drawn for k in scales]
        chart = Chart(
            "line",
            "Compression rate by length of the perturbation",
            "length (1 = uniform perturbation of the budget)",
            "||f(x + d) - f(x)|| / ||d||",
            [
                Series(
                    "uniform",
                    [float(k.removeprefix("uniform x")) for k in scales],
                    *[list(c) for c in zip(*sweep, strict=True)],
                )
            ],
            "Compression rate against perturbation length; below 1 everywhere means that inputs are drawn"
            " together.",
            x_log=True,
        )
        rate = numbers[0].value
        low, high = numbers[0].low, numbers[0].high
        ends = "" if low is None or high is None else f" ({low:.0%} to {high:.0%})"
        sentences = [
            f"With its randomness fixed, the purifier leaves {rate:.0%} of a random perturbation's"
            f" length{ends}."
        ]
        if "pgd" in by_kind:
            attacked = by_kind["pgd"].mean()
            least = ": that is where it protects least" if attacked > rate else ""
            sentences.append(f"Along attack directions it leaves {attacked:.0%}{least}.")
        return AnalysisResult("", "", sentences, numbers, [chart])


def compression_rate(
    subject: Subject,
    x: Tensor,
    anchor: Tensor,
    noise: NoisePlan,
    kind: str = "gaussian",
    size: float = 1.0,
    directions: Count = 2,
) -> Tensor:
    """||f(x + delta) - f(x)|| / ||delta|| at fixed noise, mean over random directions; forward passes only.

    Args:
        subject: gives the purifier f.
        x: images (B, C, H, W) in [0, 1].
        anchor: f(x) under the same noise.
        noise: the tape of the B examples.
        kind: one of `RANDOM`.
        size: Euclidean length of delta, in pixel units.
        directions: random directions per example.

    Returns:
        Rates (B,), >= 0.

    Source:
        Liu & Wei 2025 (arXiv:2505.22839), compression rate.
    """
    rates = []
    for which in range(directions):
        delta = size * unit_direction(kind, noise.on("control").in_lane(which), x)
        rates.append(lengths(subject.purify(x + delta, noise) - anchor) / lengths(delta))
    return torch.stack(rates).mean(0)


def budget_length(subject: Subject, x: Tensor) -> float:
    """Euclidean length of a uniform perturbation of the Linf budget; of the budget itself in L2."""
    threat = subject.parts.threat
    return threat.eps * ((x[0].numel() / 3) ** 0.5 if subject.spec.threat.norm == "linf" else 1.0)


def unit_direction(kind: str, noise: NoisePlan, x: Tensor) -> Tensor:
    """Random unit directions (B, C, H, W) of a kind of `RANDOM`, from the plan's ``probe`` site."""
    z = noise.normal("probe", 0, x)
    if kind == "sign":
        z = z.sign()
    if kind == "uniform":
        z = 2 * noise.uniform("probe", 1, x) - 1
    return z / lengths(z)[:, None, None, None]


def lengths(x: Tensor) -> Tensor:
    """Euclidean lengths (B,) of images or perturbations (B, ...)."""
    return x.flatten(1).norm(dim=1)


def _note(found: list[dict[str, Any]], name: str, values: Tensor) -> None:
    for one, value in zip(found, values.tolist(), strict=True):
        one[name] = value
