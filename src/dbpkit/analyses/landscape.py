"""Loss landscape: the loss under known noise over the directions of the DW and the EoT attack.

Per image d is the DW attack's perturbation and u the unit vector of what the EoT attack's leaves over across
d; the surface is the mean cross-entropy at x + i d + j |d| u under the DW noise. Points on the way of a path
are projected; only its end lies on the plane.

Source:
    Liu et al., ICLR 2025, figure 3, and the authors' script: the grid is not clipped to the pixel range.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from dbpkit.analyses.analysis import OfImages, Subject, Unit, analyses, rows
from dbpkit.analyses.tools.directions import TINY
from dbpkit.analyses.tools.targets import attack_path
from dbpkit.attacks import losses
from dbpkit.experiment.knowledge import known
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count, Several
from dbpkit.results.analysis import Chart, Claim, Conclusion, Number, Series
from dbpkit.statistics.intervals import mean

ENDS = {
    "start": "loss of the image itself",
    "DW": "loss at the end of the DW attack, (1, 0)",
    "EoT": "loss at the end of the EoT attack",
    "single draw": "loss at the end of the single-draw attack",
    "residual": "loss as far along the residual direction, (0, 1)",
}
"""Points of the plane at which the loss is told."""

PATHS = ("DW", "EoT", "single draw")
_PARALLEL = 1e-5
"""A residual shorter than this share of the EoT perturbation is rounding."""
SOURCE = "Liu et al., ICLR 2025, figure 3, DDPM, read off"


@analyses.register("landscape")
@dataclass(frozen=True)
class Landscape(OfImages):
    """The loss over the plane of the DW attack and the EoT attack, and the paths of attacks on it.

    Attributes:
        images: examples.
        grid: points along each axis.
        extent: length of the axes, in lengths of the DW perturbation.
        iterations: steps of every PGD.
        eot: draws averaged in each gradient of the EoT attack.
    """

    images: Count = 16
    grid: Several = 9
    extent: Annotated[float, Ge(1)] = 2.0
    iterations: Count = 10
    eot: Count = 5
    title = "Loss landscape under known noise"
    follows_gradient = True

    def measure(self, subject: Subject, unit: Unit) -> list[dict[str, Any]]:
        """For every example of the unit: loss and accuracy on the grid, the paths' coordinates and ends."""
        x, y, noise = subject.examples(unit.images)
        one = {"iterations": self.iterations, "eot": 1}
        averaged = {**one, "eot": self.eot}
        paths = {
            "DW": attack_path(subject, x, y, noise, known["dw_both"], lane=1, **one),
            "EoT": attack_path(subject, x, y, noise, known["white_box"], lane=2, **averaged),
            "single draw": attack_path(subject, x, y, noise, known["white_box"], lane=3, **one),
        }
        d, v = plane(paths["DW"][-1], paths["EoT"][-1])
        ticks = [self.extent * i / (self.grid - 1) for i in range(self.grid)]
        judged = [_judge(subject, x + i * d + j * v, y, noise) for j in ticks for i in ticks]
        surface, right = (
            torch.stack(one, 1).unflatten(1, (self.grid,) * 2) for one in zip(*judged, strict=True)
        )
        ends = {name: path[-1] for name, path in paths.items()} | {"start": 0 * d, "residual": v}
        end_losses = {name: _judge(subject, x + delta, y, noise)[0].tolist() for name, delta in ends.items()}
        on_plane = {name: coordinates(path, d, v).transpose(0, 1).tolist() for name, path in paths.items()}
        return [
            {
                "id": example,
                "ticks": ticks,
                "surface": surface[row].tolist(),
                "right": right[row].int().tolist(),
                "paths": {name: path[row] for name, path in on_plane.items()},
                "ends": {name: values[row] for name, values in end_losses.items()},
            }
            for row, example in enumerate(noise.example_ids.tolist())
        ]

    def conclude(self, measured: Mapping[Unit, Any]) -> Conclusion:
        """The mean surface, the mean paths on it, and how much steeper it is along the DW direction."""
        records = rows(measured)
        ticks, how = records[0]["ticks"], "cross-entropy"
        ends = {k: np.array([r["ends"][k] for r in records]) for k in records[0]["ends"]}
        surface = np.array([r["surface"] for r in records])
        found = {k: mean(v) for k, v in ends.items()}
        published, source = (15.5, SOURCE) if ticks[-1] == 2 else (None, "")
        numbers = [
            *(Number.of(name, found[end], how=how) for end, name in ENDS.items()),
            Number.of(
                f"loss at ({ticks[-1]:g}, 0)",
                mean(surface[:, 0, -1]),
                published=published,
                source=source,
                how=how,
            ),
            Number.of(
                "loss at (1, 0) minus loss at (0, 1)",
                mean(ends["DW"] - ends["residual"]),
                claim=Claim("above 0: the landscape is steep in the DW direction", least=0),
                how=how,
            ),
        ]
        paths = {k: np.array([r["paths"][k] for r in records]).mean(axis=0) for k in PATHS}
        along = paths["EoT"][-1]
        sentences = [
            f"With the noise known, the loss rises from {found['start'].value:.2f} to {found['DW'].value:.2f}"
            " along the attack that knows it; as long a step along the rest of the attack that averages"
            f" over noise (EoT) brings it to {found['residual'].value:.2f}.",
            f"The EoT attack goes {along[0]:.2f} of the way in the first direction and {along[1]:.2f} in the"
            f" second; there the loss is {found['EoT'].value:.2f}.",
        ]
        return Conclusion(sentences, numbers, [_heat(surface.mean(axis=0), ticks), _lines(paths)])


def plane(dw: Tensor, eot: Tensor) -> tuple[Tensor, Tensor]:
    """The axes of the plane through two perturbations (B, C, H, W), both of the length of the first.

    Returns:
        d, the first perturbation, and |d| u, where u is the second's part across d at unit length, 0 where
        the two are parallel.
    """
    flat, other = dw.flatten(1), eot.flatten(1)
    square = flat.square().sum(dim=1, keepdim=True)
    across = other - (other * flat).sum(dim=1, keepdim=True) / square.clamp_min(TINY) * flat
    length = across.norm(dim=1, keepdim=True)
    parallel = length < _PARALLEL * other.norm(dim=1, keepdim=True)
    unit = torch.where(parallel, 0 * across, across / length.clamp_min(TINY))
    return dw, (square.sqrt() * unit).view_as(dw)


def coordinates(path: Tensor, d: Tensor, v: Tensor) -> Tensor:
    """Coordinates (S, B, 2) of perturbations (S, B, C, H, W) on the axes d and v, (B, C, H, W) each."""
    axes = [
        (path * axis).flatten(2).sum(dim=2) / axis.flatten(1).square().sum(dim=1).clamp_min(TINY)
        for axis in (d, v)
    ]
    return torch.stack(axes, dim=2)


def _judge(subject: Subject, x: Tensor, y: Tensor, noise: NoisePlan) -> tuple[Tensor, Tensor]:
    """Cross-entropy (B,) and whether the prediction is right (B,), under tape 0."""
    logits = subject.logits(x, noise)
    return losses.get("ce")(logits, y), logits.argmax(dim=1) == y


def _heat(surface: np.ndarray, ticks: list[float]) -> Chart:
    labels = [f"{t:g}" for t in ticks]
    return Chart(
        "heat",
        "Mean cross-entropy under the known noise",
        "along the DW attack",
        "along the rest of the EoT attack",
        [Series(name, labels, line.tolist()) for name, line in zip(labels, surface, strict=True)],
        "Loss over the plane of both attacks, in lengths of the DW perturbation: from"
        f" {surface[0, 0]:.2f} at the image to {surface[0, -1]:.2f} at the far end of the DW direction and"
        f" {surface[-1, 0]:.2f} at that across it.",
    )


def _lines(paths: Mapping[str, np.ndarray]) -> Chart:
    return Chart(
        "line",
        "Paths of the attacks on that plane, mean over images",
        "along the DW attack",
        "along the rest of the EoT attack",
        [Series(name, path[:, 0].tolist(), path[:, 1].tolist()) for name, path in paths.items()],
        "The DW attack ends at (1, 0); how far the others end from there shows how much their directions"
        " differ.",
    )
