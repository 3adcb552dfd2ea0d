"""How many draws a gradient needs: the signal-to-noise ratio of one draw.

The thing people get wrong: an attack that averages over too few draws walks at random, and the defence looks
strong because it is random.
"""

import torch
from torch import Tensor

from dbpkit.attacks import Target
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.types import RandomisedClassifier
from dbpkit.results.flags import Flag
from dbpkit.threats.pixels import ThreatModel

EOT_DRAWS = 16
"""Gradients per image for the signal-to-noise ratio; before a run half of them, of two images."""

ENOUGH_COSINE = 0.5
FAR_BELOW = 4
"""An averaged gradient should reach this cosine with the mean of endless draws; a spec with a fourth of the
draws that it takes, or fewer, is warned."""

ROWS = 8
"""Rows in one call of the model."""


def gradient_noise(
    model: RandomisedClassifier,
    x: Tensor,
    y: Tensor,
    noise: NoisePlan,
    threat: ThreatModel,
    *,
    eot: int = 10,
    draws: int = EOT_DRAWS,
) -> list[Flag]:
    """Flags an attack that averages its gradient over far too few draws.

    With the signal-to-noise ratio s of one draw, two draws have the expected cosine s / (s + 1), and the mean
    of n draws has the cosine sqrt(s / (s + 1 / n)) with the mean of endless ones. All pairs are used.

    Args:
        model: the classifier.
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).
        noise: their plan.
        threat: the budget.
        eot: draws per gradient of the planned attack.
        draws: gradients per image, at least 2.

    Source:
        Athalye et al. 2018 (arXiv:1707.07397), EoT; Kassis et al. 2025 (arXiv:2411.16598), too few samples.
    """
    del threat
    if not is_random(model, x, noise):
        return []
    target, plan = Target(model, ROWS), noise.on("attack")
    grads = [target.gradient(x, y, noise=plan.at(r)).grad.flatten(1).double() for r in range(draws)]
    stacked = torch.stack(grads)  # (draws, B, values)
    own = stacked.square().sum(dim=2).mean(dim=0)  # (B,)
    mean = stacked.mean(dim=0).square().sum(dim=1)
    shared = (draws * mean - own) / (draws - 1)  # mean product of two different draws
    moved = own > 0
    share = float((shared[moved] / own[moved]).mean()) if bool(moved.any()) else 0.0
    share = min(max(share, 0.0), 1 - 1e-9)
    ratio = share / (1 - share)
    needed = ENOUGH_COSINE**2 / (1 - ENOUGH_COSINE**2) / ratio if ratio > 0 else torch.inf
    if needed < FAR_BELOW * eot:
        return []
    many = f"About {needed:.0f}" if needed < 1e6 else "More than a million"
    message = (
        f"One draw's gradient has a signal-to-noise ratio of {ratio:.2g} (mean cosine of two draws"
        f" {share:.2g} from {draws} draws of {len(x)} images). {many} draws reach a cosine of"
        f" {ENOUGH_COSINE:g} with the expected gradient; the attack averages over {eot}."
    )
    return [Flag("gradient_noise", "warning", message)]


@torch.no_grad()
def is_random(model: RandomisedClassifier, x: Tensor, noise: NoisePlan) -> bool:
    """Whether the logits depend on the draw."""
    return not torch.equal(model(x[:1], noise=noise.rows([0])), model(x[:1], noise=noise.rows([0]).at(1)))
