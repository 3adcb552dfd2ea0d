"""Purified classifiers whose purifier is affine, so that every analysis has a closed form.

For data N(0, lambda) per pixel the ideal denoiser multiplies by theta = lambda / (lambda + sigma^2). One call
of it at t* maps a pixel x to theta x + (1 - theta) / 2 + theta sigma z / 2. The thing people get wrong: the
1/2 in front of sigma; noise levels are in units of [-1, 1].
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dbpkit.analyses.analysis import Subject
from dbpkit.data import Dataset
from dbpkit.experiment.build import build
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.spec import validate
from tests.oracles import GaussianDenoiser, golden, uniform

VARIANCE = 0.05
SIGMA = (1 / golden("step_grids")["forward_at_100"]["alpha_bar"] - 1) ** 0.5
"""Noise level at t* = 0.1; alpha_bar is published to five digits."""


def images(count: int = 12, side: int = 8, low: float = 0.3, high: float = 0.7) -> Dataset:
    """Images of uniform pixels, (count, 3, side, side)."""
    pixels = uniform(count, 3, side, side, seed=5, low=low, high=high).float()
    return Dataset("linear", pixels, torch.arange(count) % 3, torch.arange(50, 50 + count), ("a", "b", "c"))


def gaussian(variance: float = VARIANCE) -> GaussianDenoiser:
    """The ideal denoiser of N(0, variance) per pixel."""
    return GaussianDenoiser(0.0, variance)


class Diagonal(NamedTuple):
    """The ideal denoiser of independent pixels, each with its own variance."""

    variances: Tensor

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Multiplies each pixel by its theta."""
        return x * self.theta(float(sigma)).to(x)

    def theta(self, sigma: float) -> Tensor:
        """Factor of each pixel, (3, side, side)."""
        return self.variances / (self.variances + sigma**2)


def diagonal(side: int = 4, kept: int = 5) -> Diagonal:
    """A few pixels with large and different variances, the others with small ones."""
    variances = torch.full((3 * side * side,), 1e-3, dtype=torch.float64)
    variances[7 : 7 + kept] = torch.linspace(0.2, 1.0, kept, dtype=torch.float64)
    return Diagonal(variances.reshape(3, side, side))


def spec(sampler: str = "one_step", steps: int = 50, **changes: Any) -> EvaluationSpec:
    """A spec of an affine purifier: nothing is clipped."""
    clips = sampler in ("ddpm", "ddim", "one_step", "reverse_only")
    table = {
        "data": "tests.unit.analyses.linear:images",
        "examples": {"order": "file"},
        "classifier": "tests.parts:ChannelMean",
        "denoiser": "tests.unit.analyses.linear:gaussian",
        "purifier": {
            "sampler": sampler,
            "steps": steps,
            "clamp": False,
            "options": {"clip": False} if clips else {},
        },
        **changes,
    }
    return validate(table, EvaluationSpec, "linear")


def subject(sampler: str = "one_step", steps: int = 50, micro_batch: int = 32, **changes: Any) -> Subject:
    """What is analysed, built as the runner builds it."""
    made = spec(sampler, steps, **changes)
    return Subject(made, build(made), micro_batch)


def measured(analysis: Any, of: Subject) -> dict[str, Any]:
    """All units of an analysis."""
    return {unit: analysis.measure(of, unit) for unit in analysis.units(of)}


def values(result: Any) -> dict[str, float]:
    """The numbers of a result by name."""
    return {n.name: n.value for n in result.numbers}
