"""Averaged weights: an exponential moving average of everything in a network's state.

The thing people get wrong: averaged weights need averaged batch-norm statistics too, so the average covers
buffers.
"""

import torch
from torch import nn


class Average:
    """Moves the state of one network towards that of another, all tensors in one call.

    Args:
        average: the network that is moved; its state has the same names, shapes and types.
        model: the one in training. Both must keep their tensors: they are looked up here, once.
    """

    def __init__(self, average: nn.Module, model: nn.Module) -> None:
        pairs = list(zip(average.state_dict().values(), model.state_dict().values(), strict=True))
        self._reals = [pair for pair in pairs if pair[0].is_floating_point()]
        self._others = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, weight: float) -> None:
        """Average + weight * (newest - average) for real numbers; whole numbers are the newest."""
        if self._reals:
            old, new = zip(*self._reals, strict=True)
            torch._foreach_lerp_(old, new, weight)
        for count, newest in self._others:
            count.copy_(newest)


def ema_weight(update: int, decay: float) -> float:
    """Weight of the newest state in the average after update 0, 1, ...

    Source:
        Inverse-gamma warm-up with power 3/4, capped at ``decay``, as in diffusers' EMAModel.
    """
    return 1 - min(decay, 1 - (1 + update) ** -0.75)
