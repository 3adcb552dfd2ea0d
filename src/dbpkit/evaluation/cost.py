"""What a pass of the model costs in network calls, found by counting.

The thing people get wrong: a formula. A second-order sampler makes two calls a step and one in the last, a
corrector one more, and a sampler of the user's own whatever it likes.
"""

import contextlib
import math
from typing import Any

import torch
from torch import Tensor, nn

from dbpkit.foundation.errors import OutputError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.ensemble import Ensemble
from dbpkit.purification.mixture import Mixture


@torch.no_grad()
def network_calls(model: Any, x: Tensor, noise: NoisePlan) -> int:
    """Forward calls of the denoiser in one pass of a model, counted while it classifies an image.

    Args:
        model: a randomised classifier, or an attacker's view of it.
        x: any image (1, C, H, W).
        noise: plan of one example.

    Returns:
        The calls, of a mixture those of the member that makes most; without a dbpkit `Purifier` what the
        model's purifier says of itself, and 1 where that is none, for then the classifier is the network.
    """
    modules = model.modules() if isinstance(model, nn.Module) else ()
    if (mixture := mixture_in(model)) is not None:
        return max(1, repeats(model) * max(network_calls(m, x, noise) for m in mixture.members))
    purifiers = [m for m in modules if isinstance(m, Purifier)]
    if not purifiers:
        return max(1, int(getattr(getattr(model, "purifier", None), "calls", 0)))
    before = sum(p.network_calls for p in purifiers)
    with contextlib.suppress(OutputError):  # whoever asks for its logits is told
        model(x, noise=noise)
    return sum(p.network_calls for p in purifiers) - before


def mixture_in(model: Any) -> Mixture | None:
    """The mixture in a model, if it has one: what one image's pass calls says nothing of the others'."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return next((m for m in modules if isinstance(m, Mixture)), None)


def repeats(model: Any) -> int:
    """How often a pass of a model asks its purifier: once, or as often as an ensemble has members."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return math.prod(m.members for m in modules if isinstance(m, Ensemble))
