"""How sharply the class changes across the boundary: a logistic slope, fitted to points of planes through it.

Source:
    Liu & Wei, ICLR 2025 submission, section 5; how they scale distances is not published.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dbpkit.results.analysis import Chart, Claim, Number, Series
from dbpkit.statistics.intervals import Interval, root, share

PUBLISHED_SLOPE = (5.9106, 1.0737)
"""Mean and standard deviation over 100 slices; Liu & Wei, ICLR 2025 submission, CIFAR-10 WRN-28-10."""

STEEPEST = 100.0
"""Largest slope that is fitted; a perfect step has none."""

BINS = np.linspace(-2, 2, 17)


def fit_slope(position: np.ndarray, changed: np.ndarray, steepest: float = STEEPEST) -> float:
    """Slope k of P(changed) = 1 / (1 + exp(-k (s / threshold - 1))), by maximum likelihood.

    Args:
        position: s / threshold of each point, (n,).
        changed: whether its class is another, (n,) of 0 and 1.
        steepest: largest slope; a perfect step has none.

    Returns:
        k in [0, ``steepest``].

    Source:
        Liu & Wei, ICLR 2025 submission, section 5; how they scale s is not published.
    """
    offset = position - 1
    low, high = 0.0, steepest
    for _ in range(24):  # the likelihood is concave in k: its derivative falls through 0 once
        k = (low + high) / 2
        rising = ((changed - 1 / (1 + np.exp(-k * offset))) * offset).sum() > 0
        low, high = (k, high) if rising else (low, k)
    return (low + high) / 2


def slope_interval(position: np.ndarray, changed: np.ndarray) -> Interval:
    """`fit_slope` of the slices of several images, (n, m) each, with the interval over images."""
    grid = np.concatenate([[0.0], np.geomspace(0.05, STEEPEST, 200)])
    offset = (position - 1)[:, None]
    scores = ((changed[:, None] - 1 / (1 + np.exp(-grid[:, None] * offset))) * offset).mean(axis=2)
    return root(fit_slope(position.ravel(), changed.ravel()), grid, scores)


def slope_numbers(records: Sequence[Mapping[str, Any]]) -> list[Number]:
    """The slope over all slices, and how many images show a perfect step."""
    points = np.array([r["slices"] for r in records if r["slices"]])  # (n, slices * samples, 2)
    if not len(points):
        return []
    middle, deviation = PUBLISHED_SLOPE
    steps = [
        max(s[s[:, 1] == 0, 0], default=-np.inf) <= min(s[s[:, 1] == 1, 0], default=np.inf) for s in points
    ]
    return [
        Number.of(
            "psychometric slope k of the classifier, in distance / threshold",
            slope_interval(points[..., 0], points[..., 1]),
            claim=Claim(f"{middle:g} +- {deviation:g}", middle - deviation, middle + deviation),
            published=middle,
            source="Liu & Wei, ICLR 2025 submission: mean of 100 slices",
            how=f"logistic fit over all slices, at most {STEEPEST:g}",
        ),
        Number.of("images whose slices show a perfect step", share(steps)),
    ]


def slope_chart(records: Sequence[Mapping[str, Any]]) -> Chart:
    """Share of changed classes by projected distance, with the fit."""
    points = np.array([p for r in records for p in r["slices"] or []]).reshape(-1, 2)
    place = np.digitize(points[:, 0], BINS) - 1
    filled = [b for b in range(len(BINS) - 1) if (place == b).any()]
    middle = (BINS[:-1] + BINS[1:])[filled] / 2
    series = [Series("measured", middle.tolist(), [float(points[place == b, 1].mean()) for b in filled])]
    if len(points):
        k, at = fit_slope(*points.T), np.linspace(-2, 2, 41)
        series.append(
            Series(f"logistic, k = {k:.1f}", at.tolist(), (1 / (1 + np.exp(-k * (at - 1)))).tolist())
        )
    return Chart(
        "line",
        "How sharply the class changes",
        "distance along the adversarial direction / threshold",
        "share of points with another class",
        series,
        "Share of points in planes through the adversarial direction whose class changed, by distance.",
    )
