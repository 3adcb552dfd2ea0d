"""What a defence's noise does to an attack: checks of random models.

The thing people get wrong: an attack that averages over too few draws walks at random, and the defence looks
strong because it is random.
"""

import torch

from dbpkit.attacks import Target, make_attack
from dbpkit.checks.attacking import ROWS
from dbpkit.checks.check import Probe, checks
from dbpkit.results.flags import Flag

EOT_DRAWS = 16
"""Gradients per image for the signal-to-noise ratio; before a run half of them, of two images."""

ENOUGH_COSINE = 0.5
FAR_BELOW = 4
"""An averaged gradient should reach this cosine with the mean of endless draws; a spec with a fourth of the
draws that it takes, or fewer, is warned."""

WORST_OF = 8
"""N of the worst of N draws."""

ITERATIONS = 5
"""Of the short attack that ought to lower the worst of N."""


@checks.add(
    "gradient_noise",
    stage="short attacks",
    expects="enough draws are averaged for each gradient",
    remedy="Raise eot, or attack with the noise known (dw_both).",
    needs="noise",
)
def gradient_noise(probe: Probe, draws: int = EOT_DRAWS) -> list[Flag]:
    """Flags an attack that averages its gradient over far too few draws.

    With the signal-to-noise ratio s of one draw, two draws have the expected cosine s / (s + 1), and the mean
    of n draws has the cosine sqrt(s / (s + 1 / n)) with the mean of endless ones. All pairs are used.

    Args:
        probe: the model and its images, and the draws per gradient that are planned.
        draws: gradients per image, at least 2.

    Source:
        Athalye et al. 2018 (arXiv:1707.07397), EoT; Kassis et al. 2025 (arXiv:2411.16598), too few samples.
    """
    if not probe.is_random():
        return []
    share = _mean_cosine(probe, draws)
    ratio = share / (1 - share)
    needed = ENOUGH_COSINE**2 / (1 - ENOUGH_COSINE**2) / ratio if ratio > 0 else torch.inf
    if needed < FAR_BELOW * probe.planned.eot:
        return []
    many = f"About {needed:.0f}" if needed < 1e6 else "More than a million"
    message = (
        f"One draw's gradient has a signal-to-noise ratio of {ratio:.2g} (mean cosine of two draws"
        f" {share:.2g} from {draws} draws of {len(probe)} images). {many} draws reach a cosine of"
        f" {ENOUGH_COSINE:g} with the expected gradient; the attack averages over {probe.planned.eot}."
    )
    return [Flag("gradient_noise", "warning", message)]


@checks.add(
    "worst_of_n_control",
    stage="short attacks",
    expects="the worst of several draws is lower under attack than without one",
    remedy="Report the mean over draws: a worst of N measures the defence's own noise here.",
    needs="noise",
)
def worst_of_n_control(probe: Probe) -> list[Flag]:
    """Flags a worst of N that an attack does not lower, where it lowers no mean over draws either.

    Where no draw changes whether a clean image is right, the worst of N does not come from noise.

    Source:
        DiffBreak issue 1: with fresh noise at every query, unattacked images fail as well.
    """
    if not probe.is_random():
        return []
    x, target = probe.x, Target(probe.model, ROWS)
    attack = make_attack("pgd", {"iterations": ITERATIONS, "eot": 2})
    found = attack(target, x, probe.y, threat=probe.threat, noise=probe.noise.on("attack")).x_adv
    clean, attacked = (
        target.draws(images, noise=probe.noise, count=WORST_OF).argmax(-1) == probe.y[:, None]  # (B, draws)
        for images in (x, probe.threat.project(x, found))
    )
    control, worst = int(clean.all(dim=1).sum()), int(attacked.all(dim=1).sum())
    if not control or worst < control or int(attacked.sum()) < int(clean.sum()):
        return []
    if int(clean.sum()) == control * WORST_OF:
        return []
    message = (
        f"The worst of {WORST_OF} draws is right for {control} of {len(x)} images without any attack and for"
        f" {worst} under a short one, which does not lower the mean over draws either: it measures the"
        " defence's own noise."
    )
    return [Flag("worst_of_n_control", "warning", message)]


def _mean_cosine(probe: Probe, draws: int) -> float:
    """Estimates the expected cosine of two draws' gradients, s / (s + 1), over all pairs and images."""
    target, plan = Target(probe.model, ROWS), probe.noise.on("attack")
    grads = [
        target.gradient(probe.x, probe.y, noise=plan.at(r)).grad.flatten(1).double() for r in range(draws)
    ]
    stacked = torch.stack(grads)  # (draws, B, values)
    own = stacked.square().sum(dim=2).mean(dim=0)  # (B,)
    mean = stacked.mean(dim=0).square().sum(dim=1)
    shared = (draws * mean - own) / (draws - 1)  # mean product of two different draws
    moved = own > 0
    share = float((shared[moved] / own[moved]).mean()) if bool(moved.any()) else 0.0
    return min(max(share, 0.0), 1 - 1e-9)
