"""MI-FGSM: sign steps along a gradient with momentum (Dong et al. 2018, arXiv:1710.06081, algorithm 1)."""

import torch

from dbpkit.attacks import Path, attacks
from dbpkit.foundation.options import Count, NonNegative


@attacks.register("mi_fgsm")
def mi_fgsm(
    target, x, y, *, threat, noise, iterations: Count = 10, eot: Count = 10, decay: NonNegative = 1.0
):
    """MI-FGSM: momentum on gradients of unit 1-norm; decay weighs the steps before, as mu in the paper."""
    x_adv, g, path = x.clone(), torch.zeros_like(x), Path()
    for i in range(iterations):
        grad, loss, _ = target.gradient(x_adv, y, noise=noise.at(i), eot=eot)
        path.note(loss, grad)
        size = grad.abs().sum(dim=(1, 2, 3), keepdim=True)
        g = decay * g + grad / size.clamp_min(1e-12)  # eq. 6
        x_adv = threat.project(x, x_adv + threat.eps / iterations * threat.steepest(g))  # eq. 7
        target.visit(x_adv, noise)
    return path.outcome(x_adv)
