"""What is measured: two networks with images and labels, and bare calls of them."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.timing import now, synchronise
from dbpkit import NoisePlan, Purifier, load_dataset, load_embedded
from dbpkit.foundation.noise import seeded_generator
from dbpkit.foundation.precision import lowered
from dbpkit.models.denoisers import EDMDenoiser, VPDenoiser
from dbpkit.models.diffusers import build_unet
from dbpkit.models.networks.diffusers import CONFIGS

DDPM_CIFAR10: dict[str, Any] = {"in_channels": 3, "out_channels": 3, **CONFIGS["ddpm-cifar10"]}
"""The network of Ho et al. 2020 for CIFAR-10."""

TINY: dict[str, Any] = DDPM_CIFAR10 | {
    "block_out_channels": [8, 8],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
"""The same kinds of blocks with 8 channels, to see whether a program runs."""

NETWORKS = {"embedded, 1.9 M": None, "DDPM, 35.7 M": DDPM_CIFAR10, "tiny": TINY}
"""Networks by name; None is the package's own. The others have random weights, which take as long."""

KEEP_ALL = 1 << 50
"""A memory budget that all graphs fit."""

Gradient = Callable[[], Tensor]


class Subject(NamedTuple):
    """A denoiser and a classifier with a batch of images.

    Attributes:
        name: of the network.
        denoiser: with frozen weights.
        classifier: the embedded one.
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).
        noise: plan of the same B examples.
    """

    name: str
    denoiser: EDMDenoiser | VPDenoiser
    classifier: nn.Module
    x: Tensor
    y: Tensor
    noise: NoisePlan

    @property
    def network(self) -> nn.Module:
        """The network inside the denoiser, without what scales its input and output."""
        return self.denoiser.network

    def label(self) -> Tensor:
        """A noise level in the unit in which the network takes it, (B,)."""
        edm = isinstance(self.denoiser, EDMDenoiser)
        return torch.full((len(self.x),), -0.3 if edm else 50, device=self.x.device)

    def purifier(self, steps: int, memory_bytes: int = KEEP_ALL, sampler: str = "ddpm") -> Purifier:
        """A purifier of ``steps`` network calls, from t* = 0.1 if its grid allows that number."""
        even = steps > 1 and 100 % (steps - 1) == 0
        t_star, grid = (0.1, 10 * steps - 10) if even else ((steps - 1) / 1000, 1000)
        made = Purifier(self.denoiser, sampler, t_star=t_star, steps=grid, memory_bytes=memory_bytes)
        assert made.calls == steps, (made.calls, steps)
        return made

    def first(self, count: int) -> "Subject":
        """The same with fewer images."""
        rows = slice(0, count)
        return self._replace(x=self.x[rows], y=self.y[rows], noise=self.noise.rows(rows))

    def double(self) -> "Subject":
        """A copy in double precision."""
        import copy

        denoiser, classifier = (copy.deepcopy(m).double() for m in (self.denoiser, self.classifier))
        return self._replace(denoiser=denoiser, classifier=classifier, x=self.x.double())


@functools.cache
def _parts(name: str, device: str) -> tuple[Any, nn.Module]:
    denoiser, classifier = load_embedded()
    if (config := NETWORKS[name]) is not None:
        with seeded_generator(0):
            denoiser = VPDenoiser(build_unet(config)).requires_grad_(False).eval()
    return denoiser.to(device), classifier.to(device)


def subject(name: str, count: int, device: str = "cpu") -> Subject:
    """The named network with ``count`` images; more than 256 are the same again, as other examples."""
    denoiser, classifier = _parts(name, device)
    data, rows = load_dataset("embedded"), torch.arange(count)
    x, y = data.x(rows % len(data)), data.labels[rows % len(data)]
    x = x[:, :, :16, :16] if name == "tiny" else x
    return Subject(name, denoiser, classifier, x.to(device), y.to(device), NoisePlan.of(0, rows, "attack"))


def bare_forward(one: Subject, calls: int) -> Callable[[], float]:
    """Seconds of one forward pass of the network, on average over ``calls`` of them in a row."""
    label = one.label()

    @torch.no_grad()
    def way() -> float:
        synchronise()
        start = now()
        for _ in range(calls):
            with lowered(one.x.device.type):
                one.network(one.x, label)
        synchronise()
        return (now() - start) / calls

    return way


def bare_backward(one: Subject, calls: int, *, weights: bool = False) -> Callable[[], float]:
    """Seconds of one backward pass with respect to the input, and to the weights too where asked."""
    label = one.label()
    seed = torch.ones_like(one.x)

    def way() -> float:
        total = 0.0
        for parameter in one.network.parameters():
            parameter.requires_grad_(weights)
        try:
            for _ in range(calls):
                leaf = one.x.clone().requires_grad_()
                with lowered(one.x.device.type):
                    out = one.network(leaf, label)
                out = getattr(out, "sample", out).float()
                synchronise()
                start = now()
                out.backward(seed) if weights else torch.autograd.grad(out, leaf, seed)
                synchronise()
                total += now() - start
        finally:
            for parameter in one.network.parameters():
                parameter.requires_grad_(False)
                parameter.grad = None
        return total / calls

    return way
