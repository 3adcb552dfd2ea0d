"""What a network is trained for: the loss of a batch, and the figures its model card shows.

Every random choice comes from the noise plan's ``train`` stream, keyed by example and epoch, so that a
resumed run follows the same trajectory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, NamedTuple, Protocol

import torch
from accelerate.utils import extract_model_from_parallel
from annotated_types import Ge, Lt
from torch import Tensor, nn
from torch.nn import functional

from dbpkit.data import Dataset
from dbpkit.experiment.stages import ClassifierSpec
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.frozen import own_device
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import CountOrNone
from dbpkit.foundation.registry import Registry, call_with_options
from dbpkit.foundation.spec import PartSpec, Strict, validate
from dbpkit.models.schedule import TRAIN_STEPS, discrete_sigmas
from dbpkit.models.sources import load_classifier, state_sha256
from dbpkit.training.adversarial import Attacked, adversaries
from dbpkit.training.augment import blanked, flipped, shifted
from dbpkit.training.fit import check_classifier, check_denoiser, laid_out
from dbpkit.training.levels import NoiseLevels, noise_levels
from dbpkit.training.losses import Expect, at_once
from dbpkit.training.perturb import Problem, frozen, perturbations

objectives: Registry = Registry("objective")

Time = Annotated[int, Ge(0), Lt(TRAIN_STEPS)]
"""A discrete time of the linear DDPM schedule."""

Part = str | dict[str, Any]
"""A registered name, or a table with ``name`` and ``options``."""


class Batch(NamedTuple):
    """Training examples: ``x`` (B, C, H, W) in [0, 1], labels ``y`` (B,), their noise, and who judges them.

    ``expect(fine, message)`` is told of a condition that must hold; the loop looks at it when that costs
    nothing.
    """

    x: Tensor
    y: Tensor
    noise: NoisePlan
    expect: Expect = at_once


class Objective(Protocol):
    """A loss to minimise and the figures that describe a finished model."""

    kind: str

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the scalar training loss of a batch."""
        ...

    def check(self, model: nn.Module, data: Dataset, trained: bool) -> None:
        """Raises UserError unless the model, and what else the objective uses, fits the training data."""
        ...

    def evaluate(self, model: nn.Module, data: Dataset, seed: int) -> dict[str, Any]:
        """Returns the figures of a finished model on test data, ready for JSON."""
        ...

    def picture(self, model: nn.Module, data: Dataset, seed: int) -> Tensor | None:
        """Returns one picture (C, H, W) in [0, 1] of what the model does by now, or None."""
        ...


@objectives.register("classification")
@dataclass(frozen=True)
class Classification:
    """Cross-entropy on flipped, shifted and partly blanked images, which an adversary may attack first.

    Attributes:
        label_smoothing: share of the target spread over all classes, in [0, 1).
        flip: whether images are mirrored at random.
        shift: largest shift in pixels, borders reflected.
        cutout: side of the square that is blanked to the image's mean, in pixels.
        adversarial: registered adversary that attacks every batch: name, or name and options; None for none.
    """

    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.1
    flip: bool = True
    shift: CountOrNone = 4
    cutout: CountOrNone = 8
    adversarial: Part | None = None
    kind = "classifier"

    def __post_init__(self) -> None:
        _ = self._adversary  # a mistaken name or option is found before training

    @cached_property
    def _adversary(self) -> Any:
        if self.adversarial is None:
            return None
        return _part(adversaries, named(self.adversarial, "adversarial"))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the mean cross-entropy of augmented, and with an adversary attacked, images; scalar."""
        choices = batch.noise.uniform("augment", 0, batch.x.new_zeros(len(batch.x), 5))
        x = flipped(batch.x, choices[:, 0]) if self.flip else batch.x
        x = shifted(x, choices[:, 1], choices[:, 2], self.shift) if self.shift else x
        x = blanked(x, choices[:, 3], choices[:, 4], self.cutout) if self.cutout else x
        if self._adversary is not None:
            bare = extract_model_from_parallel(model)  # an attack must not wait for the other processes
            x = self._adversary.moved(Attacked(bare, x, batch.y, batch.noise, batch.expect))
        return functional.cross_entropy(model(x).float(), batch.y, label_smoothing=self.label_smoothing)

    def check(self, model: nn.Module, data: Dataset, trained: bool) -> None:
        """Raises UserError unless the classifier takes the images and has their classes."""
        del trained
        if self.shift >= min(data.shape[1:]):
            raise UserError(
                f"objective_options.shift {self.shift} reaches across images of {data.shape[1]} x"
                f" {data.shape[2]} pixels. Use a smaller one."
            )
        with frozen(model):
            check_classifier(model, data, "the classifier", trained=False)

    def evaluate(self, model: nn.Module, data: Dataset, seed: int) -> dict[str, Any]:
        """Returns the accuracy on all test images, and with an adversary on the first 1,000 attacked."""
        figures = {"test_images": len(data), "accuracy": _accuracy(model, data)}
        if self._adversary is None:
            return figures

        def moved(x: Tensor, part: Dataset) -> Tensor:
            noise = NoisePlan.of(seed, part.ids, "report")
            return self._adversary.moved(Attacked(model, x, part.labels.to(x.device), noise))

        return figures | {"adversarial_accuracy": _accuracy(model, data.select(slice(0, 1000)), moved)}

    def picture(self, model: nn.Module, data: Dataset, seed: int) -> None:
        """A classifier has no picture."""


@objectives.register("denoising")
@dataclass(frozen=True)
class Denoising:
    """Weighted denoising error, of plain noise or of noise that a `Perturbation` has altered.

    Attributes:
        levels: registered noise levels: name, or name and options.
        perturbation: registered perturbation of the training noise: name, or name and options.
        guide: classifier source that guides it: name, or name, options, resize and normalise.
        flip: whether images are mirrored at random.
        report_times: times whose denoising error the model card shows.
    """

    levels: Part = "purification"
    perturbation: Part = "none"
    guide: Part | None = None
    flip: bool = True
    report_times: tuple[Time, ...] = (0, 10, 25, 50, 100, 150, 200, 300)
    kind = "denoiser"

    def __post_init__(self) -> None:
        _ = self._levels  # a mistaken name or option is found before training
        if self._perturb.needs_guide and self.guide is None:
            raise UserError(
                f"perturbation '{named(self.perturbation, 'perturbation').name}' is guided by a classifier."
                " Set objective_options.guide."
            )

    @property
    def trained_levels(self) -> tuple[float, float]:
        """Noise levels between which all but one in a thousand are drawn."""
        low, high = self._levels.sigma(torch.tensor([0.0005, 0.9995])).tolist()
        return low, high

    @cached_property
    def _levels(self) -> NoiseLevels:
        return _part(noise_levels, named(self.levels, "levels"))

    @cached_property
    def _perturb(self) -> Any:
        return _part(perturbations, named(self.perturbation, "perturbation"))

    @cached_property
    def _guide(self) -> nn.Module | None:
        if self.guide is None:
            return None
        named = validate({"guide": self.guide}, _Guided, "objective_options").guide
        return load_classifier(named.name, named.options, **named.stages())

    def images(self, batch: Batch) -> Tensor:
        """Returns the batch's images (B, C, H, W) in [-1, 1], mirrored at random if ``flip``."""
        return 2 * (flipped(batch.x, _choices(batch)[:, 1]) if self.flip else batch.x) - 1

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the mean of weight * (D(x0 + sigma n, sigma) - x0)**2; scalar.

        ``n`` is the composite noise, so that removing all of it means to undo the perturbation too.

        Source:
            Karras et al. 2022 (arXiv:2206.00364), eq. 8; Liu et al., ICLR 2025, eq. 8.
        """
        x0, sigma, noise = self.noised(model, batch)
        return self.error(model(x0 + sigma[:, None, None, None] * noise, sigma).to(x0.dtype), x0, sigma)

    def noised(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Returns images in [-1, 1], their noise levels (B,), and the composite noise, as large as images."""
        x0, sigma = self.images(batch), self._levels.sigma(_choices(batch)[:, 0])
        bare = extract_model_from_parallel(model)  # a search must not wait for the other processes
        column = sigma[:, None, None, None]
        problem = Problem(bare, self._guide, x0, batch.y, column, batch.noise, batch.expect)
        return x0, sigma, self._perturb.noise(problem)

    def error(self, estimate: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
        """Returns the weighted mean squared error of estimates of x0 at noise levels (B,); scalar."""
        error = (estimate - x0).square().flatten(1).mean(dim=1)
        return (self._levels.weight(sigma) * error).mean()

    def hashes(self) -> dict[str, str]:
        """Returns the sha256 of the guide, by name, if there is one."""
        return {"guide": state_sha256(self._guide)} if self._guide is not None else {}

    def check(self, model: nn.Module, data: Dataset, trained: bool) -> None:
        """Raises UserError unless denoiser, guide and data fit in channels, size, range and classes."""
        if self._guide is not None:
            laid_out(self._guide, own_device(model))
            check_classifier(self._guide, data, "the guide", trained=True)
        with frozen(model):
            check_denoiser(model, data, trained)

    def evaluate(self, model: nn.Module, data: Dataset, seed: int) -> dict[str, Any]:
        """Returns the root mean square denoising error of 1,000 test images at each reported time."""
        data = data.select(slice(0, 1000))
        errors = {}
        for t in self.report_times:
            sigma = float(discrete_sigmas()[t])
            total = 0.0
            for index in _chunks(len(data)):
                x0, _, estimate = _denoised(model, data.select(index), seed, t)
                total += float((estimate - x0).square().sum())
            errors[str(t)] = {"sigma": sigma, "rms_error": (total / data.images.numel()) ** 0.5}
        guide = {"guide_sha256": state_sha256(self._guide)} if self._guide is not None else {}
        return {"test_images": len(data), "denoising": errors, **guide}

    def picture(self, model: nn.Module, data: Dataset, seed: int) -> Tensor:
        """Returns eight test images, clean, noised to t = 100 of 1000, and the one-step estimate, as rows."""
        rows = _denoised(model, data.select(slice(0, 8)), seed, t=100)
        return torch.cat([torch.cat(list(row / 2 + 0.5), dim=2) for row in rows], dim=1)


def _denoised(model: nn.Module, data: Dataset, seed: int, t: int) -> tuple[Tensor, Tensor, Tensor]:
    """Clean images, the same noised to time t of 1000, and the model's estimates; in [-1, 1]."""
    sigma = discrete_sigmas()[t].float()
    x0 = 2 * data.x().to(own_device(model)) - 1
    noisy = x0 + sigma * NoisePlan.of(seed, data.ids, "report").normal("forward", t, x0)
    return x0, noisy, model(noisy, sigma)


def make_objective(name: str, options: dict[str, Any]) -> Objective:
    """Builds an objective by name; UserError if an option is unknown."""
    return call_with_options(objectives.resolve(name), options, f"objective '{name}'")


class _Named(Strict):
    part: PartSpec


class _Guided(Strict):
    guide: ClassifierSpec


def named(part: Part, where: str) -> PartSpec:
    """The name and options that a spec gives a part of an objective."""
    return validate({"part": part}, _Named, f"objective_options.{where}").part


def _part(registry: Registry, spec: PartSpec) -> Any:
    """A part of an objective, built from its name and options."""
    return call_with_options(registry.resolve(spec.name), spec.options, f"{registry.kind} '{spec.name}'")


def _choices(batch: Batch) -> Tensor:
    """Uniforms (B, 2) that decide an example's noise level, and whether it is mirrored."""
    return batch.noise.uniform("level", 0, batch.x.new_zeros(len(batch.x), 2))


def _accuracy(
    model: nn.Module, data: Dataset, moved: Callable[[Tensor, Dataset], Tensor] = lambda x, _: x
) -> float:
    """Share of the images, moved first, whose class is right."""
    device, right = own_device(model), []
    for index in _chunks(len(data)):
        part = data.select(index)
        right.append(model(moved(part.x().to(device), part)).argmax(1).cpu() == part.labels)
    return float(torch.cat(right).float().mean())


def _chunks(count: int, size: int = 250) -> list[slice]:
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]
