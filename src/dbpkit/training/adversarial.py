"""Adversarial training: each batch is attacked at the weights of the moment, and trained on as attacked.

The thing people get wrong: the attack must leave no trace. The network is frozen and in eval mode meanwhile,
so that its batch statistics are those of the update alone, and no gradient of the attack reaches the weights.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count, Length, NonNegative
from dbpkit.foundation.registry import Registry
from dbpkit.training.losses import Expect, at_once
from dbpkit.training.perturb import frozen

adversaries: Registry = Registry("adversary")


class Attacked(NamedTuple):
    """What an adversary moves.

    Attributes:
        classifier: the network in training, maps pixels in [0, 1] to logits (B, K).
        x: augmented images (B, C, H, W) in [0, 1].
        y: labels (B,).
        noise: the images' noise; site ``start`` step 0 is the random start.
        expect: told of what must hold of the attack.
    """

    classifier: nn.Module
    x: Tensor
    y: Tensor
    noise: NoisePlan
    expect: Expect = at_once


@adversaries.register("pgd")
@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent of the cross-entropy in an Linf ball, from a random start.

    Attributes:
        eps: radius in [0, 1] pixel units.
        steps: gradients per image and update.
        step_size: length of a step in [0, 1] pixel units.

    Source:
        Madry et al. 2018 (arXiv:1706.06083), section 5: 7 steps of 2/255 within 8/255.
    """

    eps: NonNegative = 8 / 255
    steps: Count = 7
    step_size: Length = 2 / 255

    def moved(self, problem: Attacked) -> Tensor:
        """Returns the attacked images; (B, C, H, W) in [0, 1], within eps of ``x``, without a graph."""
        x = problem.x.detach()
        start = 2 * problem.noise.uniform("start", 0, x) - 1
        x_adv = (x + self.eps * start).clamp(0, 1)
        with frozen(problem.classifier), torch.enable_grad():
            for _ in range(self.steps):
                x_adv.requires_grad_()
                logits = problem.classifier(x_adv).float()
                loss = functional.cross_entropy(logits, problem.y, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, x_adv)
                problem.expect(
                    torch.isfinite(gradient).all(),
                    "the gradient of adversarial training's attack is not finite. Lower optimiser.lr.",
                )
                ascended = x_adv.detach() + self.step_size * gradient.sign()
                x_adv = (x + (ascended - x).clamp(-self.eps, self.eps)).clamp(0, 1)
        return x_adv
