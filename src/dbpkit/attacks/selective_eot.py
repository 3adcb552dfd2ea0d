"""Selective EoT: weighs the gradients of single draws by whether the draws share a weakness.

The thing people get wrong: a mean over draws may cancel. Where purifications pull to different sides, the
mean follows none of them; here those that are close to failing together decide.

Every gradient is exact on its own purification. The publication grafts: it takes one purification's backward
pass for all of them to save time, which is not done here.
"""

import torch
from torch import Tensor
from torch.nn import functional

from dbpkit.attacks.attack import AttackOutcome, Path, attacks
from dbpkit.attacks.loss import LossName, margin
from dbpkit.attacks.passing import mean_in_order
from dbpkit.attacks.target import Target
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count, Length, Share
from dbpkit.threats.pixels import ThreatModel


@attacks.register("selective_eot")
def selective_eot(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    noise: NoisePlan,
    iterations: Count = 50,
    eot: Count = 10,
    step_size: Length | None = None,
    temperature: Length = 1.0,
    momentum: Share = 0.5,
    loss: LossName = "margin",
) -> AttackOutcome:
    """PGD on the draws that share a vulnerability, found by EM (DiffHammer's idea).

    A draw either shares the vulnerability that the attack exploits, as a share pi of them does, or not. With
    m the margin by which a draw is misclassified, it does with probability r = sigmoid(m / temperature +
    logit pi). E-step: r of every draw. M-step: pi moves to the mean r, x along the r-weighted mean gradient.
    Both averages carry over from step to step with weight t**-momentum on the new value.

    Args:
        target: the classifier, as an attack may use it.
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).
        threat: budget, projection and steepest direction.
        noise: draws of the attack; iteration i uses draws i * eot to i * eot + eot - 1.
        iterations: number of steps.
        eot: draws in each step; with 1 there is nothing to select.
        step_size: step length in [0, 1] pixel units; None takes the threat model's published share.
        temperature: of the sigmoid, in logits; a high one weighs all draws alike.
        momentum: exponent in [0, 1]; 0 forgets earlier steps.
        loss: registered loss that is maximised.

    Returns:
        The attacked images and, per iteration, expected loss and norm of the weighted gradient.

    Raises:
        UserError: if an option is out of range.

    Source:
        Wang et al. 2024 (DiffHammer, NeurIPS): responsibilities by a sigmoid of the loss, weight t**-0.5.
        The margin and the share pi are ours. Stepwise EM: Cappe & Moulines 2009 (arXiv:0712.4273).
    """
    target = Target.of(target)
    step_size = threat.default_step_size if step_size is None else step_size
    x_adv, direction = x.clone(), torch.zeros_like(x)
    share, path = torch.full_like(x[:, 0, 0, 0], 0.5), Path()
    for i in range(iterations):
        found = target.per_draw(x_adv, y, noise=noise.at(i), eot=eot, loss=loss)
        log_r = _log_responsibility(found.logits, y, share, temperature)
        weights = eot * log_r.softmax(dim=1)[:, :, None, None, None]  # mean 1 over an image's draws
        grad = mean_in_order(weights * found.grad)
        path.note(mean_in_order(found.loss), grad)
        new = (i + 1) ** -momentum
        share = (1 - new) * share + new * (eot * mean_in_order(log_r.exp()) + 1) / (eot + 2)  # inside (0, 1)
        direction = (1 - new) * direction + new * grad
        x_adv = threat.project(x, x_adv + step_size * threat.steepest(direction))
        target.visit(x_adv, noise)
    return path.outcome(x_adv)


def _log_responsibility(logits: Tensor, y: Tensor, share: Tensor, temperature: float) -> Tensor:
    """The E-step: log r = log sigmoid(m / temperature + logit pi) of every draw, (B, R)."""
    m = margin(logits.flatten(0, 1), y.repeat_interleave(logits.shape[1])).unflatten(0, logits.shape[:2])
    return functional.logsigmoid(m / temperature + share.logit()[:, None])
