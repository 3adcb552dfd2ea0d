"""Randomness inside a network, such as dropout masks: seeded for each update, if there is any at all."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dbpkit.foundation.noise import seeded_generator

LAYERS = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.MultiheadAttention)
"""Layers that may draw from torch's own generator in train mode."""


class Masks:
    """Seeds torch's generators around an update's loss, unless nothing is drawn from them.

    Whether a network draws is known by its layers, or seen at the first update: a generator that was used is
    in another state. A network that draws nothing is not seeded any more, with the same results.

    Args:
        model: the network in training.
        seed: of the run.
        rank: number of this process; each has masks of its own.
        device: where the network is.
    """

    def __init__(self, model: nn.Module, seed: int, rank: int, device: torch.device) -> None:
        self._seed, self._rank, self._device = seed, rank, device
        layers = any(isinstance(m, LAYERS) and getattr(m, "p", 1) for m in model.modules())
        self.drawn: bool | None = True if layers else None

    @contextlib.contextmanager
    def of(self, update: int) -> Iterator[None]:
        """Inside the block, what the network draws is a function of seed, update and process."""
        if self.drawn is False:
            yield
            return
        with seeded_generator(self._seed << 32 | update << 8 | self._rank, self._device):
            before = self._states() if self.drawn is None else []
            yield
            if self.drawn is None:
                self.drawn = not all(map(torch.equal, before, self._states()))

    def _states(self) -> list[Tensor]:
        """The states of the generators of the CPU and the device."""
        states = [torch.get_rng_state()]
        return [*states, torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else states
