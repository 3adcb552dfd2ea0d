"""What a purifier is: images in [0, 1] and a noise plan in, purified images out."""

from typing import Protocol

from torch import Tensor

from dbpkit.foundation.frozen import uncompiled
from dbpkit.foundation.inputs import (
    check_images,
    check_length,
    check_unit,
)
from dbpkit.foundation.noise import NoisePlan
from dbpkit.purification.samplers.chain import Chain


class PurifiesImages(Protocol):
    """What `PurifiedClassifier` needs of a purifier; `Purifier` and the attackers' views of it have it."""

    sampler: Chain

    def __call__(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        """Purifies images (B, C, H, W) in [0, 1]."""
        ...


@uncompiled
def check_call(x: Tensor, noise: NoisePlan | None, where: str) -> None:
    """Raises UserError unless images and plan are what a call of a model needs."""
    check_images(x, where, pixels=False)
    check_unit(x, where)
    if noise is not None:
        check_length(noise, len(x), where)
