"""What several analyses put between an attack and the model: fixed tapes, the attack's path, the judge.

A tape is one draw of all the noise of one purification; tape r is draw r of the report stream. The thing
people get wrong: an attack that averages over a few known tapes is not EoT, which draws afresh at every step.
"""

from typing import Any

import torch
from torch import Tensor

from dbpkit.analyses.analysis import Subject
from dbpkit.attacks import ExpectedGradient, Target
from dbpkit.experiment.knowledge import Knowledge
from dbpkit.foundation.noise import NoisePlan


class OnTapes(Target):
    """A target whose every gradient averages over tapes 0 to K - 1, whatever the attack's noise and eot.

    Args:
        subject: gives the model and how many rows go through it at once.
        noise: the examples' noise on the report stream.
        count: K.

    Source:
        Liu et al., ICLR 2025, DW_semi: the noise is restricted to a fixed set that the attacker knows.
    """

    def __init__(self, subject: Subject, noise: NoisePlan, count: int) -> None:
        super().__init__(subject.parts.model, subject.limit)
        self.tapes = noise.at(0)  # its repetitions are draws 0 to count - 1
        self.count = count

    def gradient(self, x: Tensor, y: Tensor, **options: Any) -> ExpectedGradient:
        """Averages over the tapes, see `Target.gradient`; ``noise`` and ``eot`` are ignored."""
        return super().gradient(x, y, **{**options, "noise": self.tapes, "eot": self.count})


class Recording(Target):
    """A target that remembers where it was asked for gradients: an attack's iterates before its steps.

    Attributes:
        iterates: images (B, C, H, W), one per gradient.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject.parts.model, subject.limit)
        self.iterates: list[Tensor] = []

    def gradient(self, x: Tensor, y: Tensor, **options: Any) -> ExpectedGradient:
        """Passes the question on and notes ``x``."""
        self.iterates.append(x.detach())
        return super().gradient(x, y, **options)


def attack_path(
    subject: Subject, x: Tensor, y: Tensor, noise: NoisePlan, knowledge: Knowledge, **options: Any
) -> Tensor:
    """The perturbations of PGD from its start to its end, (iterations + 1, B, C, H, W).

    Args:
        subject: what is attacked.
        x: images (B, C, H, W).
        y: labels (B,).
        noise: the examples' noise on the report stream.
        knowledge: what the attacker knows of tape 0.
        options: ``lane`` and options of PGD.
    """
    target = Recording(subject)
    outcome = subject.attack(x, y, noise, knowledge, target=target, **options)
    return torch.stack([*target.iterates, outcome.x_adv]) - x


def draw_gradients(subject: Subject, x: Tensor, y: Tensor, noise: NoisePlan, draws: int) -> Tensor:
    """The loss gradient of every single draw, (B, R, C, H, W), for ``draws`` = R draws of a plan."""
    image = torch.arange(len(x)).repeat_interleave(draws)
    target = Target(subject.parts.model, subject.limit)
    grad = target.gradient(x[image], y[image], noise=noise.repeat(draws)).grad
    return grad.unflatten(0, (len(x), draws))


def misclassified(subject: Subject, x: Tensor, y: Tensor, noise: NoisePlan, tapes: range) -> Tensor:
    """Whether images (B, C, H, W) with labels (B,) are misclassified on each of R tapes, (B, R) bool."""
    image = torch.arange(len(x)).repeat_interleave(len(tapes))
    plan = noise.at(0).repeat(tapes.stop).rows(image * tapes.stop + torch.tensor(tapes).repeat(len(x)))
    return (subject.logits(x[image], plan).argmax(dim=1) != y[image]).unflatten(0, (len(x), len(tapes)))
