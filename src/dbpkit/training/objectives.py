"""What a network is trained for: loss of a batch, and the figures its model card shows.

Every random choice comes from the noise plan's ``train`` stream, keyed by example and epoch, so that a
resumed run follows the same trajectory. The thing people get wrong: the denoising loss weight. With EDM
preconditioning, weight 1 / c_out**2 makes every noise level count alike.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from dbpkit.data import Dataset
from dbpkit.noise import NoisePlan
from dbpkit.registry import Registry, call_with_options
from dbpkit.schedule import discrete_sigmas

objectives: Registry = Registry("objective")


class Batch(NamedTuple):
    """Training examples: ``x`` (B, C, H, W) in [0, 1], labels ``y`` (B,), and their noise."""

    x: Tensor
    y: Tensor
    noise: NoisePlan


class Objective(Protocol):
    """A loss to minimise and the figures that describe a finished model."""

    kind: str

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the scalar training loss of a batch."""
        ...

    def evaluate(self, model: nn.Module, data: Dataset, seed: int) -> dict[str, Any]:
        """Returns the figures of a finished model on test data, ready for JSON."""
        ...


@objectives.register("classification")
@dataclass(frozen=True)
class Classification:
    """Cross-entropy on flipped, shifted and partly blanked images.

    Attributes:
        label_smoothing: share of the target spread over all classes, in [0, 1).
        flip: whether images are mirrored at random.
        shift: largest shift in pixels, borders reflected.
        cutout: side of the square that is blanked to the image's mean, in pixels.
    """

    label_smoothing: float = 0.1
    flip: bool = True
    shift: int = 4
    cutout: int = 8
    kind = "classifier"

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the mean cross-entropy of augmented images; scalar."""
        choices = batch.noise.uniform("augment", 0, batch.x.new_zeros(len(batch.x), 5)).to(batch.x.device)
        x = _flipped(batch.x, choices[:, 0]) if self.flip else batch.x
        x = _shifted(x, choices[:, 1], choices[:, 2], self.shift) if self.shift else x
        x = _blanked(x, choices[:, 3], choices[:, 4], self.cutout) if self.cutout else x
        return functional.cross_entropy(model(x).float(), batch.y, label_smoothing=self.label_smoothing)

    def evaluate(self, model: nn.Module, data: Dataset, seed: int) -> dict[str, Any]:
        """Returns the accuracy on all test images."""
        del seed
        right = torch.cat([model(data.x(i)).argmax(1) == data.labels[i] for i in _chunks(len(data))])
        return {"test_images": len(data), "accuracy": float(right.float().mean())}


@objectives.register("denoising")
@dataclass(frozen=True)
class Denoising:
    """EDM-weighted denoising error on a range of DDPM times.

    Times are ``t_last * u**t_power`` with u uniform: ``t_power`` = 1 is the usual uniform choice, 2 spends
    more of the training on the small noise levels where a chain makes most of its calls.

    Attributes:
        t_last: largest time trained on, of 1000.
        t_power: exponent of the uniform.
        flip: whether images are mirrored at random.
        report_times: times whose denoising error the model card shows.
    """

    t_last: float = 300.0
    t_power: float = 1.0
    flip: bool = True
    report_times: tuple[int, ...] = (0, 10, 25, 50, 100, 150, 200, 300)
    kind = "denoiser"

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the mean of (D(x0 + sigma z, sigma) - x0)**2 / c_out**2; scalar.

        Source:
            Karras et al. 2022 (arXiv:2206.00364), eq. 8 and table 1.
        """
        choices = batch.noise.uniform("level", 0, batch.x.new_zeros(len(batch.x), 2))
        x0 = 2 * (_flipped(batch.x, choices[:, 1]) if self.flip else batch.x) - 1
        sigma = sigma_at(self.t_last * choices[:, 0] ** self.t_power)
        noisy = x0 + sigma[:, None, None, None] * batch.noise.normal("forward", 0, x0)
        sigma_data = getattr(model, "sigma_data", 0.5)
        weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2  # 1 / c_out**2
        error = (model(noisy, sigma).float() - x0).square().flatten(1).mean(dim=1)
        return (weight * error).mean()

    def evaluate(self, model: nn.Module, data: Dataset, seed: int) -> dict[str, Any]:
        """Returns the root mean square denoising error of 1,000 test images at each reported time."""
        data = data.select(slice(0, 1000))
        plan = NoisePlan.of(seed, data.ids, "report")
        errors = {}
        for t in self.report_times:
            sigma = discrete_sigmas()[min(t, 999)].float()
            total = 0.0
            for index in _chunks(len(data)):
                x0 = 2 * data.x(index) - 1
                noisy = x0 + sigma * plan.rows(index).normal("forward", t, x0)
                total += float((model(noisy, sigma) - x0).square().sum())
            errors[str(t)] = {
                "sigma": float(sigma),
                "rms_error": (total / data.images.numel()) ** 0.5,
            }
        return {"test_images": len(data), "denoising": errors}


def make_objective(name: str, options: dict[str, Any]) -> Objective:
    """Builds an objective by name; UserError if an option is unknown."""
    return call_with_options(objectives.get(name), options, f"objective '{name}'")


def sigma_at(t: Tensor) -> Tensor:
    """Noise levels of fractional DDPM times in [0, 999], interpolated in log sigma; same shape."""
    table = discrete_sigmas().log().to(t)
    low = t.floor().long().clamp(0, len(table) - 2)
    return torch.lerp(table[low], table[low + 1], t - low).exp()


def _flipped(x: Tensor, u: Tensor) -> Tensor:
    """Images mirrored where u < 1/2."""
    return torch.where((u < 0.5)[:, None, None, None], x.flip(-1), x)


def _shifted(x: Tensor, u: Tensor, v: Tensor, most: int) -> Tensor:
    """Images shifted by up to ``most`` pixels each way, borders reflected."""
    padded = functional.pad(x, (most,) * 4, mode="reflect")
    dy, dx = ((w * (2 * most + 1)).long() for w in (u, v))
    rows = dy[:, None] + torch.arange(x.shape[2])
    columns = dx[:, None] + torch.arange(x.shape[3])
    example = torch.arange(len(x))[:, None, None]
    return padded.permute(0, 2, 3, 1)[example, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _blanked(x: Tensor, u: Tensor, v: Tensor, side: int) -> Tensor:
    """Images with one square set to their own mean."""
    inside = []
    for w, size in ((u, x.shape[2]), (v, x.shape[3])):
        start = (w * (size + 1)).long() - side // 2
        position = torch.arange(size)[None] - start[:, None]
        inside.append((position >= 0) & (position < side))
    square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return torch.where(square, x.mean(dim=(2, 3), keepdim=True), x)


def _chunks(count: int, size: int = 250) -> list[slice]:
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]
