"""Small parts for end-to-end tests: named in specs by import path, fast, with known behaviour.

The thing people get wrong: parts for tests that draw random numbers of their own. These are functions.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dbpkit.data import Dataset
from dbpkit.foundation.noise import NoisePlan
from tests.oracles import GaussianDenoiser

SIDE = 8
COUNT = 12

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": "tests.parts:data",
    "classifier": "tests.parts:ChannelMean",
    "denoiser": "tests.parts:gaussian_denoiser",
    "purifier": {"sampler": "ddpm", "steps": 100},
    "attacks": [{"name": "pgd", "options": {"iterations": 3, "eot": 2}}],
    "draws": {"report": 3, "select": 2},
    "knowledge": ["white_box", "dw_both", {"name": "fixed", "tapes": 2}],
}
"""The spec of these parts: what a test evaluates that needs any evaluation; change what it is about."""


def data(count: int = COUNT, classes: int = 3, channels: int = 3) -> Dataset:
    """Images of three classes: class k is brighter in channel k, plus a little texture."""
    labels = torch.arange(count) % classes
    texture = NoisePlan.of(7, range(count)).uniform("probe", 0, torch.zeros(count, channels, SIDE, SIDE))
    images = 0.4 + 0.1 * texture
    images[torch.arange(count), labels % channels] += 0.06
    return Dataset("tiny", images, labels, torch.arange(100, 100 + count), tuple("abcdefgh"[:classes]))


class ChannelMean(nn.Module):
    """Logits are scaled channel means: linear, so every optimum is known."""

    def __init__(self, scale: float = 40.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 3) logits."""
        return self.scale * x.mean(dim=(2, 3))


class Product(nn.Module):
    """Logits are a matrix times the channel means, and it notes the type that the product has."""

    seen: ClassVar[list[torch.dtype]] = []

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 3, bias=False)
        self.body.weight.data.copy_(40 * torch.eye(3) + 0.3)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, 3)."""
        out = self.body(x.mean(dim=(2, 3)))
        self.seen.append(out.dtype)
        return out


class Softmaxed(ChannelMean):
    """Probabilities instead of logits."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 3) probabilities."""
        return super().forward(x).softmax(dim=1)


class Squashed(ChannelMean):
    """Channel means through a sigmoid that is flat for the label: 60 times 0.03 to 0.09 above 0.42."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 3) values in [0, 1]."""
        return (20 * (super().forward(x) - 40 * 0.42)).sigmoid()


class Detached(ChannelMean):
    """The same logits with a path that hides most of the gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 3) logits whose gradient is a hundredth of the true one."""
        logits = super().forward(x)
        return logits.detach() + 0.01 * (logits - logits.detach())


class Dropped(ChannelMean):
    """Draws noise of its own at every call, which no noise plan controls."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 3) logits that differ from call to call."""
        Dropped.calls += 1
        return super().forward(x) + 0.1 * (Dropped.calls % 7)


class Saturated(ChannelMean):
    """Logits so large that the loss of a right image is exactly flat in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 3) logits rounded to whole thousands."""
        return 1e4 * torch.round(super().forward(x))


class Broken(ChannelMean):
    """Fails on one example."""

    def forward(self, x: Tensor) -> Tensor:
        """Raises where any image has a pixel above 0.9 in its corner."""
        if bool((x[:, :, 0, 0] > 0.9).any()):
            raise RuntimeError("corner is too bright")
        return super().forward(x)


class RandomDenoiser(nn.Module):
    """A denoiser that changes from call to call, as one in train mode with dropout would."""

    calls = 0

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns a shrunken image with a call-dependent offset."""
        RandomDenoiser.calls += 1
        return 0.9 * x + 0.001 * (RandomDenoiser.calls % 5) + 0 * sigma


def gaussian_denoiser(variance: float = 0.05) -> GaussianDenoiser:
    """The exact denoiser of Gaussian data around grey."""
    return GaussianDenoiser(-0.1, variance)


def one_channel_denoiser() -> nn.Module:
    """A network that only takes grey images."""
    conv = nn.Conv2d(1, 1, 1)

    class Grey(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return self.conv(x) + 0 * sigma

    return Grey()


def two_classes() -> nn.Module:
    """A classifier with too few classes."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))


def grey_attack(target, x, y, *, threat, noise, shift: float = 1.0):
    """An attack of the user's own: leaves the budget on purpose and lets the runner project."""
    from dbpkit.attacks import AttackOutcome

    grad, loss, _ = target.gradient(x, y, noise=noise, eot=1)
    norm = grad.flatten(1).norm(dim=1)
    return AttackOutcome(x + shift * grad.sign(), loss[:, None], norm[:, None])


def lazy_attack(target, x, y, *, threat, noise):
    """An attack that does nothing."""
    from dbpkit.attacks import AttackOutcome

    grad, loss, _ = target.gradient(x, y, noise=noise, eot=1)
    norm = grad.flatten(1).norm(dim=1)
    return AttackOutcome(x.clone(), torch.stack([loss, loss], 1), torch.stack([norm, norm], 1))


def half(denoiser, x, levels, *, noise, step):
    """A sampler of the user's own: a plain function that makes one step."""
    x = x + float(levels[0]) * noise.normal("forward", 0, x)
    return step(lambda z: denoiser(z, z.new_tensor(float(levels[0]))), x)


def captures(denoiser, x, levels, *, noise, step):
    """A faulty sampler: its steps use the image itself, which is not their argument."""
    image = x
    x = x + float(levels[0]) * noise.normal("forward", 0, x)
    for sigma in levels[:-1].tolist():
        x = step(lambda z, sigma=sigma: 0.5 * denoiser(z, z.new_tensor(sigma)) + 0.5 * image, x)
    return x
