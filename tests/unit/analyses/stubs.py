"""Subjects of analyses with known answers; they look up image and label by id."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dbpkit.analyses.analysis import Subject
from dbpkit.experiment.build import build
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.spec import validate
from tests import parts

EPS = 8 / 255
FIRST_ID = 100
TINY = {
    "name": "tiny",
    "data": "tests.parts:data",
    "examples": {"order": "file"},
    "classifier": "tests.parts:ChannelMean",
    "denoiser": "tests.parts:gaussian_denoiser",
    "purifier": {"sampler": "ddpm", "steps": 50},
}


def tiny() -> EvaluationSpec:
    """The spec of every test here: 12 images of 3 x 8 x 8, three classes."""
    return validate(TINY, EvaluationSpec, "tiny")


def subject(model: nn.Module | None = None) -> Subject:
    """The tiny spec's parts, with another model if one is given."""
    made = Subject(tiny(), build(tiny()))
    return made if model is None else made._replace(parts=made.parts._replace(model=model))


class Stub(nn.Module):
    """A randomised classifier that knows the clean images; the label's logit is 0, one other's is `other`."""

    sites = frozenset({"forward"})

    def __init__(self) -> None:
        super().__init__()
        data = parts.data()
        self.images, self.labels = data.x(), data.labels
        self.classifier = parts.ChannelMean().requires_grad_(False)
        self.streams: dict[bool, set[str]] = {True: set(), False: set()}

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        place = noise.example_ids - FIRST_ID
        self.streams[x.requires_grad].add(noise.shared.get("forward", noise).stream)
        other = self.other(x - self.images[place], noise)
        label = self.labels[place]
        logits = torch.full((len(x), 3), -1e4)
        logits[torch.arange(len(x)), label] = 0.0
        return logits.index_put((torch.arange(len(x)), (label + 1) % 3), other)

    def other(self, delta: Tensor, noise: NoisePlan) -> Tensor:
        """The wrong class's logit (B,) at a perturbation; positive is misclassified."""
        raise NotImplementedError


class Linear(Stub):
    """other = <m + s z, delta>: a gradient with a part common to all draws."""

    common, spread = 0.5, 1.0

    def other(self, delta: Tensor, noise: NoisePlan) -> Tensor:
        g = self.common + self.spread * noise.normal("forward", 0, delta)
        return (g * delta).flatten(1).sum(dim=1)


def gradient(example: int, draw: int, stream: str = "report", lane: int = 0) -> np.ndarray:
    """The vector m + s z of `Linear` for one example and draw, (3, 8, 8)."""
    plan = NoisePlan.of(0, [example], stream, draw).in_lane(lane)
    return (Linear.common + Linear.spread * plan.normal("forward", 0, torch.zeros(1, 3, 8, 8))[0]).numpy()


BLOCKS = 4


class Blocks(Stub):
    """Every draw looks at one of four blocks of rows and is fooled if these are raised by 0.4 eps."""

    def other(self, delta: Tensor, noise: NoisePlan) -> Tensor:
        u = noise.uniform("forward", 0, delta[:, 0, 0, :1])[:, 0]
        chosen = (u * BLOCKS).long()
        height = delta.mean(dim=(1, 3)).unflatten(1, (BLOCKS, -1)).mean(dim=2)  # (B, blocks)
        return 100 * (height[torch.arange(len(delta)), chosen] - 0.4 * EPS)


def block(example: int, draw: int, stream: str = "report", lane: int = 0) -> int:
    """The block of `Blocks` for one example and draw."""
    plan = NoisePlan.of(0, [example], stream, draw).in_lane(lane)
    return int(plan.uniform("forward", 0, torch.zeros(1, 1))[0, 0] * BLOCKS)


def softplus(v: Any) -> Any:
    """Cross-entropy of logits (0, v) at the first."""
    return np.logaddexp(0, v)


def measure_all(analysis: Any, of: Subject) -> dict[str, Any]:
    """What all units measured."""
    return {unit: analysis.measure(of, unit) for unit in analysis.units(of)}


def numbers(result: Any) -> dict[str, Any]:
    """Numbers by name."""
    return {n.name: n for n in result.numbers}


def judged(number: Any) -> bool | None:
    """The verdict that the interval would give if the images were enough."""
    return number._replace(needs=1).holds
