"""DiffAttack: also drives the way back of a purification away from the way there.

The purification that is classified is the one whose states are compared, on the same draw, and its gradient
is exact for both parts of the loss.
"""

from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from dbpkit.attacks.attack import AttackOutcome, Path, attacks
from dbpkit.attacks.loss import LossName
from dbpkit.attacks.target import Target
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count, Length
from dbpkit.threats.pixels import ThreatModel


@attacks.register("diffattack")
def diffattack(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    noise: NoisePlan,
    iterations: Count = 20,
    eot: Count = 10,
    step_size: Length | None = None,
    weight: Annotated[float, Ge(0)] = 1.0,
    loss: LossName = "ce",
) -> AttackOutcome:
    """PGD on the classifier's loss and the purification's deviation (DiffAttack).

    L = L_cls + weight * L_dev, where L_dev is the mean squared distance between forward and reverse states at
    about a third of the levels, see `dbpkit.foundation.types.Traced`. It is 0 without a purification.

    Args:
        target: the classifier, as an attack may use it; it must tell its deviation.
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).
        threat: budget, projection and steepest direction.
        noise: draws of the attack; iteration i averages over draws i * eot to i * eot + eot - 1.
        iterations: number of steps.
        eot: draws averaged in each gradient.
        step_size: step length in [0, 1] pixel units; None takes the threat model's published share.
        weight: of the deviation, >= 0; with 0 the attack is PGD.
        loss: registered loss L_cls.

    Returns:
        The attacked images and, per iteration, L and gradient norm.

    Raises:
        UserError: if an option is out of range, or the model does not tell its deviation.

    Source:
        Kang et al. 2023 (DiffAttack, NeurIPS), deviated-reconstruction loss. Here all levels weigh the same,
        the distance is a mean over pixel values in the sampler's units, and the weight's default is ours.
    """
    target = Target.of(target)
    step_size = threat.default_step_size if step_size is None else step_size
    x_adv, path = x.clone(), Path()
    for i in range(iterations):
        grad, value, _ = target.gradient(x_adv, y, noise=noise.at(i), eot=eot, loss=loss, deviation=weight)
        path.note(value, grad)
        x_adv = threat.project(x, x_adv + step_size * threat.steepest(grad))
        target.visit(x_adv, noise)
    return path.outcome(x_adv)
