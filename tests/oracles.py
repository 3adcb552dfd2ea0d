"""Closed forms and tiny networks that tests compare the package with.

The thing people get wrong: an oracle must not call what it judges. Nothing here uses a sampler or a
schedule of the package, except to list the registered names.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dbpkit.foundation.noise import NoisePlan
from dbpkit.models.denoisers import EDMDenoiser
from dbpkit.purification.samplers import samplers

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> dict[str, Any]:
    """Returns published or independently computed numbers; their origin is in the file."""
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def uniform(*shape: int, seed: int = 0, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Returns reproducible float64 values in [low, high), independent of the package's own noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(shape, dtype=torch.float64).uniform_(low, high, generator=generator)


class GaussianDenoiser(NamedTuple):
    """The exact posterior mean of x0 ~ N(mean, variance I) given x0 + sigma z."""

    mean: float = 0.0
    variance: float = 0.25

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x, sigma) = (variance x + sigma^2 mean) / (variance + sigma^2); one sigma, or (B,)."""
        sigma = torch.as_tensor(sigma)
        sigma = sigma[:, None, None, None] if sigma.ndim == 1 else sigma
        return (self.variance * x + sigma**2 * self.mean) / (self.variance + sigma**2)

    def theta(self, sigma: float) -> float:
        """The Jacobian of D; alpha_bar v / (alpha_bar v + 1 - alpha_bar) in variance-preserving terms."""
        return self.variance / (self.variance + sigma**2)


class CountingDenoiser:
    """Counts how often a denoiser is called."""

    def __init__(self, denoiser: Any) -> None:
        self.denoiser = denoiser
        self.calls = 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Passes the call on."""
        self.calls += 1
        return self.denoiser(x, sigma)


class TinyNetwork(nn.Module):
    """Two convolutions with the noise label between them; smooth, so that gradients can be checked."""

    def __init__(self, channels: int = 1, width: int = 3, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        fill(self, seed)

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        """Maps (B, C, H, W) and labels (B,) to (B, C, H, W)."""
        hidden = torch.tanh(self.first(x) + noise_label[:, None, None, None])
        return self.last(self.dropout(hidden))


class TinyClassifier(nn.Module):
    """A small nonlinear classifier of (B, C, H, W) images in [0, 1]."""

    def __init__(self, channels: int = 1, classes: int = 3, seed: int = 1) -> None:
        super().__init__()
        self.body = nn.Conv2d(channels, 4, 3, padding=1)
        self.head = nn.Linear(4, classes)
        fill(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, K)."""
        return 4 * self.head(torch.tanh(2 * self.body(x)).mean(dim=(2, 3)))


class NoisyClassifier(nn.Module):
    """A randomised classifier: fresh noise from one site, then a classifier."""

    sites = frozenset({"forward"})

    def __init__(self, classifier: nn.Module, sigma: float = 0.1) -> None:
        super().__init__()
        self.classifier = classifier.requires_grad_(False).eval()
        self.sigma = sigma

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        """Returns logits (B, K)."""
        return self.classifier(x + self.sigma * noise.normal("forward", 0, x))

    def traced(self, x: Tensor, *, noise: NoisePlan) -> tuple[Tensor, Tensor]:
        """Returns logits (B, K), and the mean square of the noisy image as a deviation (B,)."""
        noisy = x + self.sigma * noise.normal("forward", 0, x)
        return self(x, noise=noise), noisy.square().flatten(1).mean(dim=1)


def fill(module: nn.Module, seed: int) -> None:
    """Gives a module nonzero float64 weights in [-0.5, 0.5), reproducibly."""
    module.to(torch.float64)
    for i, parameter in enumerate(module.parameters()):
        parameter.data.copy_(uniform(*parameter.shape, seed=1000 * seed + i, low=-0.5, high=0.5))


def tiny_denoiser(channels: int = 1, seed: int = 0, dropout: float = 0.0) -> EDMDenoiser:
    """Returns a float64 denoiser with a tiny random network."""
    return EDMDenoiser(TinyNetwork(channels, seed=seed, dropout=dropout))


def sampler_cases() -> list[tuple[str, dict[str, Any]]]:
    """Returns every registered sampler with its defaults, and options that change what it draws."""
    more: dict[str, list[dict[str, Any]]] = {
        "ddim": [{"eta": 0.5}, {"corrector_steps": 1}],
        "ddpm": [{"variance": "small"}, {"clip": False}, {"corrector_steps": 2}],
        "gdmp": [
            {"distance": "ssim", "guidance": 0.01},
            {"compares": "estimate"},
        ],  # SSIM of 4 pixels is stiff
        "heun": [{"churn": 6.0}],
        "likelihood": [{"drawn": False}],
        "multi_stage": [{"inner": "gdmp"}],
        "restart": [{"restarts": 2, "eta": 0.5}],
        "reverse_only": [{"scaled": True}],
        "vpsde": [{"corrector_steps": 1}],
    }
    return [(name, options) for name in samplers for options in [{}, *more.get(name, [])]]


def few_steps(name: str) -> int:
    """Returns a small S: 6 calls on the grids of whole chains, 10 steps of EDM, which counts its own only."""
    return {"heun": 10, "likelihood": 3}.get(name, 50)


def case_name(value: Any) -> str:
    """Names a test case after its options."""
    return (
        ",".join(f"{k}={v}" for k, v in value.items()) or "default" if isinstance(value, dict) else str(value)
    )


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log softmax at the label, (B,), written out."""
    return torch.logsumexp(logits, dim=1) - logits.gather(1, y[:, None])[:, 0]
