"""Critical thresholds: how far along an adversarial direction the class changes, and the cap beyond it.

Four lengths per image: of the classifier alone and of the whole system with its randomness fixed, each at
the image x and at its anchor f(x). The thing people get wrong: a threshold belongs to a direction. It is an
upper bound of the margin, and each of the four has its own direction: that of an attack on it, from there.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import betainc
from torch import Tensor

from dbpkit.analyses.analysis import OfImages, Subject, Unit, analyses, rows
from dbpkit.analyses.thresholds.slope import slope_chart, slope_numbers
from dbpkit.analyses.tools.boundary import finite, first_change
from dbpkit.analyses.tools.directions import TINY, along, budget_length, lengths, unit_direction
from dbpkit.attacks import Target
from dbpkit.experiment.knowledge import known
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count, Length
from dbpkit.results.analysis import Chart, Claim, Conclusion, Number, Series
from dbpkit.statistics.intervals import mean, median, rank_correlation, share
from dbpkit.threats.pixels import make_threat

KINDS = ("classifier at image", "classifier at anchor", "system at image", "system at anchor")
"""The four thresholds."""


@analyses.register("thresholds")
@dataclass(frozen=True)
class Thresholds(OfImages):
    """Critical thresholds of classifier and system, at images and anchors, and the spherical cap behind them.

    Attributes:
        images: examples.
        norm: norm of the attack whose perturbation gives the direction, ``l2`` or ``linf``.
        iterations: steps of that attack.
        longest: where the search along a direction ends, Euclidean, in pixel units.
        points: of the scan, before bisection.
        slices: planes per image, spanned by the adversarial and a random direction.
        samples: points per plane, in a disc of twice the threshold.
    """

    images: Count = 16
    norm: Literal["l2", "linf"] = "l2"
    iterations: Count = 10
    longest: Length = 5.0
    points: Count = 24
    slices: Count = 4
    samples: Count = 32
    title = "Critical thresholds"
    follows_gradient = True

    def measure(self, subject: Subject, unit: Unit) -> list[dict[str, Any]]:
        """Thresholds, adversarial compression and slices of every example of the unit."""
        x, _, noise = subject.examples(unit.images)
        anchor = subject.purify(x, noise)
        systems = (partial(_classes, subject), lambda z: subject.logits(z, noise).argmax(1))
        records: list[dict[str, Any]] = [{"id": int(i), "pixels": x[0].numel()} for i in noise.example_ids]
        for kind, (which, point) in zip(KINDS, ((0, x), (0, anchor), (1, x), (1, anchor)), strict=True):
            delta = self._attack(subject, which, point, systems[which](point), noise)
            size = lengths(delta)
            eta = delta / size.clamp_min(TINY)[:, None, None, None]
            found = first_change(systems[which], point, eta, self.longest, self.points)
            _note(records, kind, finite(found))
            if kind == KINDS[0]:
                _note(records, "changes", self._changes(systems[0], x, eta, subject))
                _note(records, "slices", self._slices(systems[0], x, eta, found, noise))
                _note(records, "random", self._random(systems[0], x, noise, subject))
            if kind == KINDS[2]:
                moved = lengths(subject.purify(x + delta, noise) - anchor)
                _note(records, "attack_rate", (moved / size.clamp_min(TINY)).tolist())
        _note(records, "radius", budget_length(subject, x).tolist())
        return records

    def _attack(self, subject: Subject, which: int, x: Tensor, y: Tensor, noise: NoisePlan) -> Tensor:
        """Perturbation that leads away from the class ``y`` of the classifier (0) or the system (1)."""
        target = Target(subject.parts.model if which else subject.alone, subject.limit)
        found, length = torch.zeros_like(x), budget_length(subject, x)
        for one in length.unique().tolist():  # a budget on pixels has one length for all images
            index = (length == one).nonzero().flatten()
            eps = one if self.norm == "l2" else one / (x[0].numel() / 3) ** 0.5
            changed = subject._replace(parts=subject.parts._replace(threat=make_threat(self.norm, eps)))
            found[index] = changed.attack(
                x[index],
                y[index],
                noise.rows(index),
                known["dw_both"],
                target=target,
                iterations=self.iterations,
                eot=1,
            ).x_adv
        return found - x

    def _changes(
        self, classify: Callable[[Tensor], Tensor], x: Tensor, eta: Tensor, subject: Subject
    ) -> list[int]:
        """How often "the class is that of the image" flips on the way to the length of the budget."""
        radius = budget_length(subject, x)
        start = classify(x)
        same = [classify(x + along(radius * j / self.points, eta)) == start for j in range(self.points + 1)]
        return (torch.stack(same[1:]) != torch.stack(same[:-1])).sum(0).tolist()

    def _slices(
        self,
        classify: Callable[[Tensor], Tensor],
        x: Tensor,
        eta: Tensor,
        threshold: Tensor,
        noise: NoisePlan,
    ) -> list[list[list[float]] | None]:
        """Per image (s / threshold, whether the class changed) of points in its planes; None if censored."""
        start, found = classify(x), threshold.isfinite()
        gamma = torch.where(found, threshold, 0.0)[:, None, None, None]
        points: list[list[Any]] = [[] for _ in x]
        for which in range(self.slices):
            plan = noise.on("control").in_lane(which)
            rho = unit_direction("gaussian", plan, x)
            rho = rho - (rho * eta).flatten(1).sum(1)[:, None, None, None] * eta
            rho = rho / lengths(rho)[:, None, None, None]
            draws = plan.uniform("probe", 2, x.new_zeros(len(x), 2, self.samples))
            radius, angle = 2 * draws[:, 0].sqrt(), 2 * math.pi * draws[:, 1]  # uniform in the disc
            along, across = radius * angle.cos(), radius * angle.sin()  # (B, samples), in thresholds
            for s, b in zip(along.T, across.T, strict=True):
                z = x + gamma * (s[:, None, None, None] * eta + b[:, None, None, None] * rho)
                for one, u, hit in zip(points, s.tolist(), (classify(z) != start).tolist(), strict=True):
                    one.append([round(u, 4), int(hit)])
        return [one if ok else None for one, ok in zip(points, found.tolist(), strict=True)]

    def _random(
        self, classify: Callable[[Tensor], Tensor], x: Tensor, noise: NoisePlan, subject: Subject
    ) -> list[float]:
        """Share of random perturbations of the budget's length that change the class."""
        start, radius = classify(x), budget_length(subject, x)
        plans = [noise.on("control").in_lane(which) for which in range(8)]
        hits = [classify(x + along(radius, unit_direction("gaussian", p, x))) != start for p in plans]
        return torch.stack(hits).double().mean(0).tolist()

    def conclude(self, measured: Mapping[Unit, Any]) -> Conclusion:
        """Medians, correlations, what the purifier adds, the slope, and the size of the cap."""
        records = rows(measured)
        table = np.array([[self.longest if r[k] is None else r[k] for k in KINDS] for r in records])
        censored = [sum(r[k] is None for r in records) for k in KINDS]
        rate = np.array([r["attack_rate"] for r in records])
        radius = float(np.median([r["radius"] for r in records]))
        gain = _ratio("system / classifier, threshold at the image", table[:, 2], table[:, 0])
        hits = Number.of(
            "random perturbations of the budget's length that change the class",
            share([r["random"] for r in records]),
        )
        numbers = [
            *_medians(table, censored, self.longest),
            *_correlations(table),
            gain,
            _ratio("anchor / image, threshold of the system", table[:, 3], table[:, 2], (0.5, 2.0)),
            Number.of("adversarial compression rate", mean(rate)),
            *_two_factors(table[:, 1] / rate.clip(TINY), table[:, 2]),
            Number.of(
                "images whose class changes at most once within the budget's length",
                share([r["changes"] <= 1 for r in records]),
            ),
            *slope_numbers(records),
            Number(
                "adversarial share of the budget's ball, by the cap formula",
                cap_fraction(float(np.median(table[:, 0])) / radius, records[0]["pixels"]),
                examples=len(records),
                method="cap beyond the median threshold of the classifier at the image",
            ),
            hits,
        ]
        at_least = ["at least " if 2 * c > len(records) else "" for c in censored]
        medians = [f"{low}{m:.2f}" for low, m in zip(at_least, np.median(table, axis=0), strict=True)]
        low, high = gain.low, gain.high
        ends = "" if low is None or high is None else f" ({low:.1f} to {high:.1f})"
        sentences = [
            f"Along the attack's direction the classifier alone changes its mind at {medians[0]} (Euclidean,"
            f" pixel units), the purified system with its randomness known at {medians[2]}:"
            f" {gain.value:.1f} times as far{ends}.",
            f"The purifier passes on {rate.mean():.0%} of an adversarial perturbation, and the classifier's"
            f" threshold at the purified images is {medians[1]}; random noise of the budget's length changes"
            f" {hits.value:.1%} of the classes.",
        ]
        charts = [_distribution(table), _scatter(table), slope_chart(records)]
        return Conclusion(sentences, numbers, charts)


def cap_fraction(height: float, dimensions: int) -> float:
    """Share of a ball's volume beyond a plane at ``height`` radii from its centre.

    It is 0.5 I_{1 - h^2}((d + 1) / 2, 1 / 2) with the regularised incomplete beta function I.

    Args:
        height: threshold / radius, >= 0.
        dimensions: d of the ball.

    Returns:
        A share in [0, 0.5]; 0 for heights of 1 and more.

    Source:
        Li 2011, "Concise formulas for the area and volume of a hyperspherical cap"; used by Liu & Wei,
        ICLR 2025 submission, section 5.
    """
    return 0.5 * float(betainc((dimensions + 1) / 2, 0.5, 1 - height**2)) if height < 1 else 0.0


def _classes(subject: Subject, x: Tensor) -> Tensor:
    """Classes (B,) by the classifier alone."""
    return subject.classify(x).argmax(1)


def _note(records: list[dict[str, Any]], name: str, values: Sequence[Any]) -> None:
    for record, value in zip(records, values, strict=True):
        record[name] = value


def _medians(table: np.ndarray, censored: Sequence[int], longest: float) -> list[Number]:
    """Median of each threshold, and how many lie beyond the search."""
    return [
        Number.of(
            f"threshold, {kind}",
            median(table[:, k]),
            how=f"{censored[k]} of {len(table)} beyond {longest:g}, taken as that",
        )
        for k, kind in enumerate(KINDS)
    ]


def _correlations(table: np.ndarray) -> list[Number]:
    """Spearman's correlation of every two thresholds."""
    return [
        _correlation(f"Spearman, {KINDS[a]} and {KINDS[b]}", table[:, a], table[:, b])
        for a in range(4)
        for b in range(a + 1, 4)
        if np.ptp(table[:, a]) and np.ptp(table[:, b])
    ]


def _correlation(name: str, a: np.ndarray, b: np.ndarray) -> Number:
    """A rank correlation that is claimed to be positive."""
    how = "thresholds beyond the search share the last rank"
    return Number.of(name, rank_correlation(a, b), claim=Claim("positive", least=0), how=how)


def _two_factors(explained: np.ndarray, system: np.ndarray) -> list[Number]:
    """Whether compression and the anchor's threshold make up the system's threshold."""
    name = "anchor threshold / adversarial rate"
    varied = bool(np.ptp(explained) and np.ptp(system))
    return [
        _ratio(f"({name}) / threshold of the system", explained, system),
        *(
            [_correlation(f"Spearman, {name} and threshold of the system", explained, system)]
            if varied
            else []
        ),
    ]


def _ratio(name: str, a: np.ndarray, b: np.ndarray, scale: tuple[float, float] | None = None) -> Number:
    """Median ratio of an image's two thresholds; of similar scale if ``scale`` says what that is."""
    claim = Claim(f"similar in scale: between {scale[0]:g} and {scale[1]:g}", *scale) if scale else None
    return Number.of(name, median(a / b.clip(TINY)), claim=claim, how="of each image's ratio")


def _distribution(table: np.ndarray) -> Chart:
    """Distribution functions of the four thresholds."""
    shares = ((np.arange(len(table)) + 1) / len(table)).tolist()
    return Chart(
        "line",
        "Critical thresholds",
        "Euclidean distance along the attack's direction (pixel units)",
        "share of images whose class has changed",
        [Series(kind, np.sort(table[:, k]).tolist(), shares) for k, kind in enumerate(KINDS)],
        "Share of images whose class changes within a distance: classifier and system, images and anchors.",
    )


def _scatter(table: np.ndarray) -> Chart:
    """The other three thresholds of each image against the classifier's own."""
    return Chart(
        "scatter",
        "Thresholds of the same image",
        KINDS[0],
        "threshold (pixel units)",
        [Series(kind, table[:, 0].tolist(), table[:, k].tolist()) for k, kind in enumerate(KINDS) if k],
        "Thresholds of each image against that of the classifier alone at the image.",
        x_log=True,
        y_log=True,
    )
