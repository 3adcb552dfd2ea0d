"""The batches of a run: examples that lie where the network is, in an order that is made an epoch at a time.

Order and noise are functions of seed, epoch and example. What they need goes to the device once an epoch, so
that an update copies nothing from the host and waits for nothing.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from dbpkit.data import Dataset
from dbpkit.foundation.noise import NoisePlan, permutation
from dbpkit.training.fit import TUNED
from dbpkit.training.losses import Expect, at_once
from dbpkit.training.objectives import Batch

SHARE = 4
"""Data move to a GPU if they take at most one part in so many of its free memory."""


class Feed:
    """The training examples of one process.

    Args:
        data: all examples.
        device: where batches are wanted.
        seed: of order and noise.
        batch_size: examples of an update, of all processes together.
        rank: number of this process.
        world: how many processes share a batch.
    """

    def __init__(
        self, data: Dataset, device: torch.device, seed: int, batch_size: int, rank: int = 0, world: int = 1
    ) -> None:
        self._data, self._device, self._seed, self._size = data, device, seed, batch_size
        self._rank, self._world = rank, world
        self._white = torch.tensor(255.0, device=device)
        self.resident = resides(data.images, device)
        self._images = data.images.to(device) if self.resident else data.images
        self._labels = data.labels.to(device)

    def batches(self, done: int, updates: int, expect: Expect = at_once) -> Iterator[tuple[int, Batch]]:
        """Numbered batches of the updates from ``done`` on, this process's share of each."""
        per_epoch = len(self._data) // self._size
        epoch = -1
        for update in range(done, updates):
            if update // per_epoch != epoch:
                epoch = update // per_epoch
                order = permutation(self._seed, len(self._data), epoch)
                noise = NoisePlan.of(self._seed, self._data.ids[order], "train", draw=epoch).placed(
                    self._device
                )
                placed = order.to(self._device)
            first = update % per_epoch * self._size
            mine = slice(first + self._rank, first + self._size, self._world)
            x = self.unit(self._images[placed[mine]] if self.resident else self._sent(order[mine]))
            yield update, Batch(x, self._labels[placed[mine]], noise.rows(mine), expect)

    def unit(self, images: Tensor) -> Tensor:
        """Returns pixels (B, C, H, W) as float32 in [0, 1], the same values on every device.

        On a GPU a division by a number is a product with its inverse, which rounds otherwise; one by a
        tensor is a division.
        """
        x = images.float() / self._white if images.dtype == torch.uint8 else images.float()
        return x.contiguous(memory_format=torch.channels_last) if x.device.type in TUNED else x

    def _sent(self, index: Tensor) -> Tensor:
        """The examples at positions on the host, on their way to the device."""
        return self._images[index].pin_memory().to(self._device, non_blocking=True)


def resides(images: Tensor, device: torch.device) -> bool:
    """Whether images can lie on the device for a whole run, beside a network."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return images.nbytes * SHARE <= free
