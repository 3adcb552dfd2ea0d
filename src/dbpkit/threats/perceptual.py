"""A perceptual budget: how far an image moves in the features of a classifier.

The thing people get wrong: calling any distance of features LPIPS. LPIPS has trained weights and networks of
its own; this is its unweighted form on a network at hand, so budgets of the two cannot be compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dbpkit.foundation.errors import UserError, check_kind
from dbpkit.foundation.noise import NoisePlan
from dbpkit.models.sources import load_classifier, source
from dbpkit.threats.pixels import HALVINGS, threats, uniform_direction

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Mish)
"""Layers whose outputs are features unless layers are named."""

STEP_SIZE = 2 / 255
"""Default step of an attack, in [0, 1] pixel units: the published one for 8/255."""

TINY = 1e-10
"""Added to a squared length, so that a place without features gives 0 and a finite gradient."""


class FeatureDistance(nn.Module):
    """Distance of two images in the features of a classifier.

    At every place of every layer the channels form a vector, which is scaled to unit length. The distance is
    the squared difference of the two images' vectors, averaged over the places of a layer and then over
    layers; it lies in [0, 4], and in [0, 2] for features that are not negative.

    Args:
        classifier: maps images (B, C, H, W) in [0, 1] to logits; it is frozen.
        layers: names of the modules whose outputs (B, C', H', W') are the features; None takes every
            activation layer that has such an output.

    Raises:
        UserError: if a layer is unknown, or there is none.

    Source:
        Zhang et al. 2018 (arXiv:1801.03924), eq. 1 with all weights 1, and averaged over layers.

    Example:
        >>> import torch
        >>> from dbpkit import FeatureDistance, load_embedded
        >>> distance = FeatureDistance(load_embedded()[1])
        >>> distance(torch.full((1, 3, 32, 32), 0.5), torch.full((1, 3, 32, 32), 0.5))
        tensor([0.])
    """

    def __init__(self, classifier: nn.Module, layers: Sequence[str] | None = None) -> None:
        super().__init__()
        check_kind(classifier, nn.Module, "FeatureDistance: classifier", "Give a network with activations.")
        self.classifier = classifier.requires_grad_(False).eval()
        known = dict(self.classifier.named_modules())
        for name in layers or ():
            if name not in known:
                names = ", ".join(n for n in known if n)
                raise UserError(f"the classifier has no layer '{name}'. Available: {names}.")
        self.layers = tuple(layers or [n for n, module in known.items() if isinstance(module, ACTIVATIONS)])
        if not self.layers:
            raise UserError(
                "the classifier has no activation layers to take features from. Name its layers in"
                " threat.options.layers."
            )

    def forward(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Returns distances (B,) of images (B, C, H, W) in [0, 1], differentiable in both."""
        return self.between(self.features(x), self.features(x_adv)).to(x.dtype)

    def between(self, features: list[Tensor], others: list[Tensor]) -> Tensor:
        """Returns distances (B,) of images whose `features` are at hand."""
        pairs = zip(features, others, strict=True)
        return torch.stack([(a - b).square().sum(dim=1).mean(dim=(1, 2)) for a, b in pairs], 1).mean(dim=1)

    def features(self, x: Tensor) -> list[Tensor]:
        """Returns the features (B, C', H', W') of every layer, of unit length along C'.

        Raises:
            UserError: if no chosen layer has an output of that shape.
        """
        outputs: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                outputs.append(output)

        self.classifier.to(x.device)
        weight = next(self.classifier.parameters(), x)
        modules = dict(self.classifier.named_modules())
        hooks = [modules[name].register_forward_hook(keep) for name in self.layers]
        try:
            self.classifier(x.to(weight.dtype))
        finally:
            for hook in hooks:
                hook.remove()
        if not outputs:
            raise UserError(
                f"no output of the layers {', '.join(self.layers)} has the shape (B, C, H, W). Name others in"
                " threat.options.layers."
            )
        return [f / (f.square().sum(dim=1, keepdim=True) + TINY).sqrt() for f in outputs]


@dataclass(frozen=True)
class Perceptual:
    """The image moves by at most ``eps`` in the features of a classifier.

    Attributes:
        eps: budget in units of the feature distance, >= 0.
        features: the distance.
    """

    eps: float
    features: FeatureDistance

    @property
    def default_step_size(self) -> float:
        """2/255 in pixel units: the budget itself is none of pixels."""
        return STEP_SIZE

    def project(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Clips to [0, 1], then shrinks the perturbation towards the image until it is allowed.

        Clipping comes first because it can raise the distance; on the way back to the image every pixel
        stays in [0, 1]. Bisection finds a point where the budget is used up, the last one if the distance
        rises all the way.
        """
        return self._within(x, x_adv, torch.full_like(x[:, 0, 0, 0], self.eps))

    def random_start(self, x: Tensor, noise: NoisePlan) -> Tensor:
        """Uniform noise, shrunk to a distance drawn uniformly from [0, eps]."""
        z = 2 * noise.uniform("start", 0, x) - 1
        share = noise.uniform("start", 1, x[:, :1, :1, :1])[:, 0, 0, 0]
        return self._within(x, x + z, self.eps * share)

    def steepest(self, grad: Tensor) -> Tensor:
        """The sign of the gradient, as for a step in pixel units."""
        return grad.sign()

    @torch.no_grad()
    def distance(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Feature distance, (B,)."""
        return torch.cat([self.features(*pair) for pair in zip(x.split(1), x_adv.split(1), strict=True)])

    def typical_length(self, x: Tensor) -> Tensor:
        """Length of uniform noise that is scaled down until it is allowed, (B,); see `measured_length`.

        At 0.05 with embedded features it is 0.54 to 0.77 on four CIFAR-10 images, where PGD on the embedded
        purified classifier ends at 0.35 to 0.62 and the low-frequency attack at 0.79 to 1.02. An attack on
        the undefended classifier, which moves the features directly, ends at a third of it.
        """
        noisy = self.project(x, x + uniform_direction(x))
        length: Tensor = (noisy - x).double().flatten(1).norm(dim=1)
        return length

    @torch.no_grad()
    def _within(self, x: Tensor, x_adv: Tensor, budget: Tensor) -> Tensor:
        """The images on the way from ``x`` to ``x_adv`` whose distances are ``budget`` (B,), or the ends."""
        rows = zip(x.split(1), x_adv.clamp(0, 1).split(1), budget.split(1), strict=True)
        shrunk = self._shrunk if x.device.type == "cpu" else self._shrunk_unseen
        return torch.cat([shrunk(*row) for row in rows])

    def _shrunk(self, x: Tensor, end: Tensor, budget: Tensor) -> Tensor:
        """The same for one image alone, so that rounding never depends on the batch."""
        clean = self.features.features(x)

        def at(share: float) -> Tensor:
            return torch.lerp(x, end, share).clamp(0, 1)

        def allowed(share: float) -> bool:
            return bool(self.features.between(clean, self.features.features(at(share))) <= budget)

        if allowed(1):
            return end
        low, high = 0.0, 1.0  # at 0 it is the image itself, whose distance is exactly 0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if allowed(middle) else (low, middle)
        return at(low)

    def _shrunk_unseen(self, x: Tensor, end: Tensor, budget: Tensor) -> Tensor:
        """The same where waiting for an answer costs more than a halving that was not needed."""
        clean = self.features.features(x)

        def at(share: Tensor) -> Tensor:
            return torch.lerp(x, end, share).clamp(0, 1)

        def allowed(share: Tensor) -> Tensor:
            return self.features.between(clean, self.features.features(at(share))) <= budget

        low, high = torch.zeros_like(x[:, 0, 0, 0]), torch.ones_like(x[:, 0, 0, 0])
        whole = allowed(high)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            inside = allowed(middle)
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        return torch.where(whole, end, at(low))


@threats.register("perceptual")
def perceptual(
    eps: float,
    features: str = "embedded",
    features_options: Mapping[str, Any] | None = None,
    layers: Sequence[str] | None = None,
) -> Perceptual:
    """Distance in the features of a classifier (a relative of LPIPS) is at most ``eps``.

    Args:
        eps: budget in units of the feature distance, >= 0.
        features: classifier by registered name, weights file or import path.
        features_options: its keyword arguments.
        layers: see `FeatureDistance`.

    Raises:
        UserError: if the classifier cannot be made, or a layer is unknown.

    Source:
        Kassis et al. 2025 (arXiv:2411.16598) bound an LPIPS distance by 0.05. This distance has another
        scale: with embedded features, random changes of every CIFAR-10 pixel value by 2/255, 4/255 and 8/255
        have a median distance of 0.015, 0.064 and 0.25.
    """
    name, options = source(features)
    if name == "embedded":
        options = {"mirror": False}  # features of the mirror image would say the same at twice the cost
    model = load_classifier(name, {**options, **(features_options or {})})
    return Perceptual(eps, FeatureDistance(model, layers))
