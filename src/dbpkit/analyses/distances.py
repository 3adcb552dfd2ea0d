"""Distances to the clean image: before purification, after it, and along every step of the way.

All distances are in [0, 1] pixel units. States on the way are ``x0 + sigma z``, mapped from [-1, 1] to
pixels and not clipped. SSIM is a similarity: 1 means equal, and lower is farther.

Source:
    Liu & Wei 2025 (arXiv:2505.22839) and its discussion on OpenReview; figure 1 of the ICLR 2025 submission.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dbpkit.analyses.analysis import OfImages, Subject, Unit, analyses, needs_diffusion, rows
from dbpkit.experiment.knowledge import known
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count
from dbpkit.foundation.types import Denoiser, State
from dbpkit.purification.driver import drive
from dbpkit.purification.samplers import diffuse
from dbpkit.results.analysis import Chart, Claim, Conclusion, Number, Series
from dbpkit.statistics.intervals import bands, mean
from dbpkit.statistics.ssim import ssim

STARTS = ("clean", "random", "attacked")
"""Images that are purified: the clean one, a random one of the budget, and the attacked one."""

METRICS: dict[str, str] = {
    "l1": "L1 distance",
    "l2": "L2 distance",
    "linf": "Linf distance",
    "ssim": "SSIM",
}

PUBLISHED: dict[str, dict[str, float]] = {
    "attacked": {"l2": 1.188, "linf": 0.031, "ssim": 0.963},
    "random": {"linf": 0.031, "ssim": 0.966},
    "ddpm": {"ssim": 0.791},
    "ddim": {"l2": 2.895, "linf": 0.249},
    "one_step": {"l2": 2.692, "linf": 0.239},
    "reverse_only": {"l2": 3.084, "linf": 0.273, "ssim": 0.834},
}
"""Published for CIFAR-10 at Linf 8/255 and t* = 0.1: inputs, and attacked images after each sampler."""

SOURCE = "Liu & Wei, ICLR 2025 discussion: CIFAR-10, Linf 8/255, t* = 0.1, PGD-EoT"


@analyses.register("distances")
@dataclass(frozen=True)
class Distances(OfImages):
    """Whether purification brings an image closer to the clean one, in four distances and at every step.

    Attributes:
        images: examples.
        tapes: fixed noises per example.
        attack_iterations: steps of PGD on the tape (DW_Both).
    """

    images: Count = 16
    tapes: Count = 1
    attack_iterations: Count = 10
    title = "Distance to the clean image"

    def units(self, subject: Subject) -> list[Unit]:
        """Batches of examples."""
        needs_diffusion("distances", subject)
        return super().units(subject)

    def measure(self, subject: Subject, unit: Unit) -> list[dict[str, Any]]:
        """Distances of every example along its way, per tape, start and metric."""
        x, y, noise = subject.examples(unit.images)
        sampler = subject.spec.purifier.sampler if _as_published(subject, x) else ""
        records: list[dict[str, Any]] = [
            {"id": int(i), "published": sampler, "turn": _turn(subject), "tapes": []}
            for i in noise.example_ids
        ]
        for tape in range(self.tapes):
            plan = noise.at(tape)
            outcome = subject.attack(
                x, y, noise, known["dw_both"], tape, iterations=self.attack_iterations, eot=1
            )
            images = (x, subject.parts.threat.random_start(x, plan.on("control")), outcome.x_adv)
            ways = [distances_on_the_way(subject, x, start, plan).tolist() for start in images]
            for record, way in zip(records, zip(*ways, strict=True), strict=True):
                named = [dict(zip(METRICS, one, strict=True)) for one in way]
                record["tapes"].append(dict(zip(STARTS, named, strict=True)))
        return records

    def conclude(self, measured: Mapping[Unit, Any]) -> Conclusion:
        """Means over tapes, then over images; the purified image against the attacked one, in pairs."""
        records = rows(measured)
        turn, sampler = records[0]["turn"], records[0]["published"]
        way = {
            (start, metric): np.mean([[t[start][metric] for t in r["tapes"]] for r in records], axis=1)
            for start in STARTS
            for metric in METRICS
        }  # (images, points) each
        numbers = [_change(metric, way["attacked", metric]) for metric in METRICS]
        for (start, metric), table in way.items():
            after = PUBLISHED.get(sampler, {}) if start == "attacked" else {}
            before = PUBLISHED.get(start, {}) if sampler else {}
            if start != "clean":
                numbers.append(_number(f"{METRICS[metric]}, {start} image", table[:, 0], before.get(metric)))
            name = f"{METRICS[metric]}, {start} image after purification"
            numbers.append(_number(name, table[:, -1], after.get(metric)))
        charts = [_chart(metric, {s: way[s, metric] for s in STARTS}, turn) for metric in METRICS]
        return Conclusion(_sentences(way), numbers, charts)


class Recorder:
    """Shows every state from which a sampler's step starts, as ``x0 + sigma z``.

    A sampler may keep its state at another scale (``vpsde`` does), but every sampler asks its denoiser about
    ``x0 + sigma z``. So the hook marks where steps start, and the first question of a step is its state.

    Args:
        denoiser: the sampler's.
        note: called with each state (B, C, H, W), x0 in [-1, 1].
    """

    def __init__(self, denoiser: Denoiser, note: Callable[[Tensor], None]) -> None:
        self._denoiser = denoiser
        self._note = note
        self._starts = False

    def step(self, function: Callable[[State], State], state: State) -> State:
        """The step hook."""
        self._starts = True
        return function(state)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The denoiser that a recorded sampler gets."""
        self._see(x)
        return self._denoiser(x, sigma)

    def with_variance(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The same of a denoiser with a learned variance."""
        self._see(x)
        found: tuple[Tensor, Tensor] = self._denoiser.with_variance(x, sigma)  # type: ignore[attr-defined]
        return found

    def _see(self, x: Tensor) -> None:
        if self._starts:
            self._starts = False
            self._note(x)


@torch.no_grad()
def distances_on_the_way(subject: Subject, x: Tensor, start: Tensor, noise: NoisePlan) -> Tensor:
    """Distances to ``x`` at every step of the purification of ``start``.

    Args:
        subject: gives the purifier and the micro-batch.
        x: clean images (B, C, H, W) in [0, 1].
        start: images to purify, same shape.
        noise: plan of the same examples; the noise of the purification.

    Returns:
        (B, 4, points) in the order of `METRICS`. Points are the start; if the sampler noises it, each level
        on the way up, with the draw that is used at the top; the state before each step; the purified image.
    """
    purifier = needs_diffusion("distances", subject)

    def distances_of(part: slice) -> Tensor:
        clean, plan = purifier.fitted(x[part]), noise.rows(part)  # compared in the network's size
        image = 2 * purifier.fitted(start[part]) - 1
        points: list[Tensor] = []

        def note(state: Tensor) -> None:
            points.append(distances(clean, (state + 1) / 2))

        levels = purifier.sampler.bound(plan, image).levels
        note(image)
        if "forward" in purifier.sampler.sites:
            for level in reversed(levels[1:-1]):
                note(diffuse(image, level, plan))
        recorder = Recorder(purifier.denoiser, note)
        x0 = drive(purifier.sampler, recorder, image, plan, recorder.step)
        note(x0.clamp(-1, 1) if purifier.clamp else x0)
        return torch.stack(points, dim=2)

    return torch.cat(subject.over(len(x), distances_of))


def distances(x: Tensor, y: Tensor) -> Tensor:
    """L1, L2 and Linf norm of ``y - x`` and SSIM, of images (B, C, H, W) in [0, 1]; (B, 4) float64."""
    difference = (y - x).double().flatten(1)
    norms = [difference.norm(p, dim=1) for p in (1, 2, torch.inf)]
    return torch.stack([*norms, ssim(x, y)], dim=1)


def _turn(subject: Subject) -> int:
    """The point at which noise is highest and denoising starts."""
    sampler = needs_diffusion("distances", subject).sampler
    return len(sampler.levels) - 1 if "forward" in sampler.sites else 1


def _as_published(subject: Subject, x: Tensor) -> bool:
    """Whether images and budget are those of the published distances."""
    threat = subject.spec.threat
    published = threat.norm == "linf" and abs(subject.parts.threat.eps - 8 / 255) < 1e-9
    return published and x.shape[1:] == (3, 32, 32) and subject.spec.purifier.t_star == 0.1


def _change(metric: str, table: np.ndarray) -> Number:
    """What purification does to an attacked image's distance (images, points), and what the paper says."""
    claim = None
    if metric in ("l2", "linf"):
        claim = Claim("above 0: purified images are farther from the clean image", least=0)
    if metric == "ssim":
        claim = Claim("below 0: purified images are less similar to the clean image", most=0)
    name = f"{METRICS[metric]}, attacked image: change by purification"
    return Number.of(name, mean(table[:, -1] - table[:, 0]), claim=claim, how="after minus before")


def _number(name: str, values: np.ndarray, published: float | None) -> Number:
    source = SOURCE if published is not None else ""
    return Number.of(name, mean(values), published=published, source=source)


def _chart(metric: str, tables: Mapping[str, np.ndarray], turn: int) -> Chart:
    """One line a start, from the start over the highest noise to the purified image."""
    series = []
    for start, table in tables.items():
        series.append(Series(f"{start} image", list(range(table.shape[1])), *bands(table)))
    scale = "1 = equal" if metric == "ssim" else "[0, 1] pixel units"
    before, top, after = (float(tables["attacked"][:, i].mean()) for i in (0, turn, -1))
    return Chart(
        "line",
        f"{METRICS[metric]} to the clean image at every step",
        f"step (denoising starts at {turn}, the last is the purified image)",
        f"{METRICS[metric]} ({scale})",
        series,
        f"{METRICS[metric]} to the clean image, step by step. For the attacked image it starts at"
        f" {before:.3g}, is {top:.3g} where denoising starts and ends at {after:.3g}.",
    )


def _sentences(way: Mapping[tuple[str, str], np.ndarray]) -> list[str]:
    before, after = (float(way["attacked", "l2"][:, i].mean()) for i in (0, -1))
    clean = float(way["clean", "l2"][:, -1].mean())
    similar = [float(way["attacked", "ssim"][:, i].mean()) for i in (0, -1)]
    direction = "away from the clean image, not back to it" if after > before else "back to the clean image"
    changes = "falls" if similar[1] < similar[0] else "rises"
    return [
        f"Purification moves attacked images {direction}: their L2 distance to it goes from"
        f" {before:.2f} to {after:.2f}.",
        f"Even the clean image itself ends {clean:.2f} away, and the similarity of attacked images (SSIM, 1 ="
        f" equal) {changes} from {similar[0]:.2f} to {similar[1]:.2f}.",
    ]
