"""A low-frequency attack: searches among the slow waves of an image, which purification leaves in place.

The thing people get wrong: a low-frequency perturbation looks harmless and is large in pixels. It needs a
budget that measures what is seen (threat model ``perceptual``). In a small cube of pixels it is weak.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dbpkit.attacks.attack import AttackOutcome, Path, attacks
from dbpkit.attacks.loss import LossName
from dbpkit.attacks.target import Target
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count, Length
from dbpkit.threats.pixels import ThreatModel

BETA1, BETA2 = 0.9, 0.999
"""Decay of Adam's averages of the gradient and of its square, as published."""

TINY = 1e-12
"""Keeps Adam from dividing by zero."""


@attacks.register("low_frequency")
def low_frequency(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    noise: NoisePlan,
    iterations: Count = 40,
    eot: Count = 32,
    step_size: Length | None = None,
    frequencies: Count = 8,
    step: Literal["adam", "sign"] = "sign",
    loss: LossName = "margin",
) -> AttackOutcome:
    """Gradient ascent on the lowest DCT coefficients of the perturbation.

    The perturbation is W_h^T c W_w, with the first rows of the orthonormal DCT matrices of height and width
    and coefficients c. Its gradient is W_h g W_w^T, with the pixels' gradient g. What the projection leaves
    of the perturbation is expanded again. So every iterate is the projection of an image whose perturbation
    has no high frequency, and only clips add some.

    Args:
        target: the classifier, as an attack may use it.
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).
        threat: budget and projection.
        noise: draws of the attack; iteration i averages over draws i * eot to i * eot + eot - 1.
        iterations: number of steps.
        eot: draws averaged in each gradient; published: 128.
        step_size: length of a step, as for PGD; None takes the threat model's share. A step moves the pixels
            by the Euclidean length of the threat model's own step, Adam's by less where gradients disagree.
        frequencies: coefficients along height and along width, the slowest first; at most all of them.
        step: along the sign of the coefficients' gradient, or by Adam.
        loss: registered loss that is maximised.

    Returns:
        The attacked images and, per iteration, loss and norm of the coefficients' gradient.

    Raises:
        UserError: if an option is out of range.

    Source:
        After the low-frequency attack of Kassis et al. 2025 (DiffBreak, arXiv:2411.16598), which learns
        filters instead. Low-frequency subspace: Guo et al. 2019 (arXiv:1809.08758). Adam: Kingma & Ba 2015.
    """
    target = Target.of(target)
    step_size = threat.default_step_size if step_size is None else step_size
    basis = SlowWaves.of(x, frequencies)
    x_adv, adam, path = x.clone(), Adam(basis.coefficients(torch.zeros_like(x))), Path()
    for i in range(iterations):
        pixel_grad, value, _ = target.gradient(x_adv, y, noise=noise.at(i), eot=eot, loss=loss)
        grad = basis.coefficients(pixel_grad)
        path.note(value, grad)
        ascent = adam.direction(grad) if step == "adam" else grad.sign()
        own = threat.steepest(basis.images(ascent)).flatten(1).norm(dim=1)
        length = step_size * own / math.sqrt(ascent[0].numel())
        kept = basis.coefficients(x_adv - x) + length[:, None, None, None] * ascent
        x_adv = threat.project(x, x + basis.images(kept))
        target.visit(x_adv, noise)
    return path.outcome(x_adv)


class SlowWaves(NamedTuple):
    """The slowest waves along height and along width, (frequencies, H) and (frequencies, W)."""

    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, x: Tensor, frequencies: int) -> "SlowWaves":
        """Returns those of images (B, C, H, W)."""
        return cls(*(waves(side, x)[:frequencies] for side in x.shape[2:]))

    def coefficients(self, x: Tensor) -> Tensor:
        """Returns the coefficients W_h x W_w^T of images (B, C, H, W)."""
        return self.rows @ x @ self.columns.T

    def images(self, c: Tensor) -> Tensor:
        """Returns the images W_h^T c W_w of coefficients."""
        return self.rows.T @ c @ self.columns


class Adam:
    """Adam's direction of ascent: the debiased mean of gradients over the root of that of their squares."""

    def __init__(self, zero: Tensor) -> None:
        self.mean = self.square = zero
        self.steps = 0

    def direction(self, grad: Tensor) -> Tensor:
        """Returns the direction after one more gradient."""
        self.steps += 1
        self.mean = BETA1 * self.mean + (1 - BETA1) * grad
        self.square = BETA2 * self.square + (1 - BETA2) * grad.square()
        debiased = (self.square / (1 - BETA2**self.steps)).sqrt()
        return self.mean / (1 - BETA1**self.steps) / (debiased + TINY)


def waves(side: int, like: Tensor) -> Tensor:
    """The orthonormal DCT matrix (side, side), slowest wave first, with the type and device of ``like``.

    Source:
        Ahmed, Natarajan & Rao 1974; the "DCT-II", scaled to be orthonormal.
    """
    k = torch.arange(side, dtype=torch.float64)
    matrix = math.sqrt(2 / side) * torch.cos(math.pi / side * k[:, None] * (k + 0.5))
    matrix[0] /= math.sqrt(2)
    return matrix.to(like)
