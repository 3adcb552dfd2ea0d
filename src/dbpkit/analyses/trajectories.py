"""Trajectories: where attacks go that know the noise, average over it, or draw it once a step.

All perturbations of all runs, each a point of images times pixels numbers, are embedded together; each
step's loss is taken under the noise that the DW attack knows. The thing people get wrong: reading
distances in a t-SNE picture. Only PCA keeps them, as far as its plane goes.

Source:
    Liu et al., ICLR 2025, figure 1; van der Maaten & Hinton 2008, t-SNE.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from sklearn.manifold import TSNE

from dbpkit.analyses.analysis import OfImages, Subject, Unit, analyses
from dbpkit.analyses.tools.targets import attack_path
from dbpkit.attacks import losses
from dbpkit.experiment.knowledge import known
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.options import Count, Length, Several
from dbpkit.results.analysis import Chart, Claim, Conclusion, Number, Series
from dbpkit.statistics.intervals import mean

SOURCE = "Liu et al., ICLR 2025, figure 1, DDPM, read off"
PUBLISHED = {
    "DW": (9.75, "9.5 to 10"),
    "EoT": (5.5, "3 to 8 over its runs"),
    "single draw": (4.0, "1 to 7 over its runs"),
}


@analyses.register("trajectories")
@dataclass(frozen=True)
class Trajectories(OfImages):
    """The paths of DW, EoT and single-draw attacks, embedded together, and their loss under the known noise.

    Attributes:
        images: examples.
        repeats: runs of the EoT and of the single-draw attack, each with noise of its own.
        iterations: steps of every PGD.
        eot: draws averaged in each gradient of the EoT attack.
        embedding: ``pca`` or ``tsne``.
        perplexity: of t-SNE.
    """

    images: Count = 16
    repeats: Count = 3
    iterations: Several = 10
    eot: Count = 5
    embedding: Literal["pca", "tsne"] = "pca"
    perplexity: Length = 30.0
    title = "Attack trajectories"
    follows_gradient = True

    def __post_init__(self) -> None:
        super().__post_init__()
        points = self.iterations * (1 + 2 * self.repeats) + 1
        if self.embedding == "tsne" and not 1 <= self.perplexity < points:
            raise UserError(
                f"analysis 'trajectories': perplexity {self.perplexity:g} must be a number of at least 1 and"
                f" below the {points} points that are embedded."
            )

    def measure(self, subject: Subject, unit: Unit) -> dict[str, Any]:
        """The runs' names, inner products of all perturbations, and per example losses and end products."""
        x, y, noise = subject.examples(unit.images)
        paths = {}
        for lane, name in enumerate(self._runs()):
            knowledge = known["dw_both" if name == "DW" else "white_box"]
            eot = self.eot if name.startswith("EoT") else 1
            options = {"lane": 1 + lane, "iterations": self.iterations, "eot": eot}
            paths[name] = attack_path(subject, x, y, noise, knowledge, **options)
        height = [
            [losses.get("ce")(subject.logits(x + delta, noise), y) for delta in path]
            for path in paths.values()
        ]
        loss = torch.stack([torch.stack(line) for line in height]).permute(2, 0, 1)  # (B, runs, S + 1)
        steps = torch.stack(list(paths.values())).double().flatten(3)  # (runs, S + 1, B, CHW)
        moved = steps[:, 1:].flatten(0, 1).flatten(1)
        ends = steps[:, -1].transpose(0, 1)  # (B, runs, CHW)
        return {
            "runs": list(paths),
            "ids": noise.example_ids.tolist(),
            "products": (moved @ moved.T).tolist(),
            "losses": loss.tolist(),
            "ends": (ends @ ends.mT).tolist(),
        }

    def _runs(self) -> list[str]:
        """Names of the runs, their family before the number."""
        families = ("EoT", "single draw")
        return ["DW", *[f"{family} {r + 1}" for family in families for r in range(self.repeats)]]

    def conclude(self, measured: Mapping[Unit, Any]) -> Conclusion:
        """The embedding, the losses, and whether EoT attacks go where the DW attack goes."""
        units = [measured[u] for u in sorted(measured, key=lambda u: u.images.start)]
        runs = units[0]["runs"]
        family = np.array([name.rstrip(" 0123456789") for name in runs])
        loss = np.concatenate([u["losses"] for u in units])  # (n, runs, S + 1)
        points, kept = embed(np.sum([u["products"] for u in units], axis=0))
        plane = points[:, :2] if self.embedding == "pca" else _tsne(points, self.perplexity)
        ends = {
            name: Number.of(
                f"loss under the known noise at the end, {name}",
                mean(loss[:, family == name, -1].mean(axis=1)),
                published=middle,
                source=f"{SOURCE}: {span}",
            )
            for name, (middle, span) in PUBLISHED.items()
        }
        cosines = _cosines(np.concatenate([u["ends"] for u in units]))
        is_eot = family == "EoT"
        to_dw = cosines[:, 0, is_eot].mean(axis=1)
        apart = Number.of(
            "cosine of EoT perturbations to the DW perturbation",
            mean(to_dw),
            claim=Claim("EoT attacks go another way than the DW attack (cosine below 1/2)", most=0.5),
        )
        numbers = [*ends.values(), apart]
        between = cosines[:, is_eot][:, :, is_eot][:, ~np.eye(is_eot.sum(), dtype=bool)]
        if between.size:
            name = "cosine of EoT perturbations to each other"
            numbers.append(Number.of(name, mean(between.mean(axis=1))))
        numbers.append(Number("variance of the paths within the plane of PCA", kept, method="eigenvalues"))
        ways = {True: " go another way: their", False: " go much the same way: their", None: "'"}
        kind = ways[apart.holds]
        sentences = [
            f"Under the noise it knows, the DW attack reaches a loss of {ends['DW'].value:.2f}; attacks that"
            f" average over the noise reach {ends['EoT'].value:.2f} there, and those of a single draw a step"
            f" {ends['single draw'].value:.2f}.",
            f"EoT attacks{kind} perturbations have a cosine of {to_dw.mean():.2f} to the DW attack's"
            + (f" and {between.mean():.2f} to each other." if between.size else "."),
        ]
        return Conclusion(sentences, numbers, [self._picture(plane, runs), _heights(loss, runs)])

    def _picture(self, plane: np.ndarray, runs: list[str]) -> Chart:
        start, moved = plane[:1], plane[1:].reshape(len(runs), -1, 2)
        series = []
        for name, path in zip(runs, moved, strict=True):
            line = np.concatenate([start, path])
            series.append(Series(name, line[:, 0].tolist(), line[:, 1].tolist()))
        how = "PCA" if self.embedding == "pca" else "t-SNE"
        unit = ", pixel range 1" if self.embedding == "pca" else ""
        return Chart(
            "line",
            f"Paths of the attacks, embedded by {how}",
            f"first {how} axis{unit}",
            f"second {how} axis{unit}",
            series,
            f"The paths of {len(runs)} attacks from one start, which is at the origin for PCA: one that"
            " knows the noise, the others averaging over it or drawing once a step.",
        )


def embed(products: np.ndarray) -> tuple[np.ndarray, float]:
    """Principal coordinates of points and the origin, from the points' inner products.

    Args:
        products: inner products (P, P) of P points.

    Returns:
        Coordinates (P + 1, P + 1) along the principal axes, widest first, moved so that the origin, which is
        row 0, stays at 0; and the share of the variance that the first two axes hold. Each axis points to
        where its farthest point lies.

    Source:
        Pearson 1901; Gower 1966, principal coordinates: the same from inner products.
    """
    centred = np.pad(products, ((1, 0), (1, 0)))
    centred = centred - centred.mean(axis=0)
    centred = centred - centred.mean(axis=1, keepdims=True)
    power, axes = np.linalg.eigh((centred + centred.T) / 2)
    power, axes = power[::-1].clip(min=0), axes[:, ::-1]
    points = axes * np.sqrt(power)
    points = points - points[0]
    farthest = points[np.abs(points).argmax(axis=0), np.arange(len(points))]
    total = power.sum()
    return points * np.where(farthest < 0, -1, 1), float(power[:2].sum() / total) if total > 0 else 1.0


def _tsne(points: np.ndarray, perplexity: float) -> np.ndarray:
    """t-SNE (P, 2) of points, from PCA's plane on and without chance."""
    start = points[:, :2] / max(points[:, 0].std(), 1e-12) * 1e-4  # scikit-learn's own scale for PCA
    return TSNE(2, perplexity=perplexity, init=start, method="exact", random_state=0).fit_transform(points)


def _cosines(products: np.ndarray) -> np.ndarray:
    """Cosines (n, R, R) from inner products; 0 where a perturbation is."""
    length = np.sqrt(np.einsum("nrr->nr", products))
    scale = length[:, :, None] * length[:, None]
    return np.divide(products, scale, out=np.zeros_like(products), where=scale > 0)


def _heights(loss: np.ndarray, runs: list[str]) -> Chart:
    return Chart(
        "line",
        "Loss of every path under the known noise, mean over images",
        "step",
        "cross-entropy",
        [
            Series(name, list(range(loss.shape[2])), line.tolist())
            for name, line in zip(runs, loss.mean(axis=0), strict=True)
        ],
        "Loss against the attack's steps, always under the noise that only the DW attack knows.",
    )
