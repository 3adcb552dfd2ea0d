"""Images as a purifier's network takes them, and back: another size, and margins to sides that it divides.

Only the purifier sees that size. Images, attacks, budgets and the classifier keep their own; in between the
gradient is exact, for both ways are linear.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dbpkit.foundation.errors import UserError, shown
from dbpkit.foundation.frozen import Frozen, uncompiled
from dbpkit.foundation.inputs import whole
from dbpkit.foundation.noise import NoisePlan
from dbpkit.models.stages import Resize, asked_multiple, own_multiple, padded
from dbpkit.purification.purifier import PurifiesImages, as_purifier, check_call, gradient_note, row_calls

AUTO = "auto"
"""The padding that asks the network."""


class Fit:
    """The way from images to what a network takes, and back.

    Args:
        resize: a size, a `Resize` or a table of its settings; None keeps the size.
        pad: sides are padded to a multiple of this (by reflection, at the bottom and on the right) and the
            margins cut off again; ``"auto"`` takes the network's own ``side_multiple``, and where it has none
            the smallest power of two up to 64 with which it runs. None pads nothing.

    Raises:
        UserError: if a setting is none of these.
    """

    def __init__(self, resize: Any = None, pad: Any = None) -> None:
        self.resize = Resize.of(resize)
        if isinstance(pad, str) and pad != AUTO:
            raise UserError(f"pad is a multiple such as 8, or '{AUTO}', not {shown(pad)}.")
        self.pad = pad if pad in (None, AUTO) else whole(pad, "pad", 1, 1 << 12)
        self._asked: dict[tuple[int, ...], int] = {}

    def table(self) -> dict[str, Any]:
        """Returns the settings as a spec has them, without those that do nothing."""
        resize = None if self.resize is None else self.resize.table()
        return {k: v for k, v in (("resize", resize), ("pad", self.pad)) if v is not None}

    def there(self, x: Tensor, network: Any, ask: Callable[[Tensor], Any]) -> Tensor:
        """Returns images (B, C, H, W) as the network takes them.

        Args:
            x: images of any size.
            network: may say its ``side_multiple``.
            ask: runs it on an image of zeros, (1, C, h, w), if it does not say.

        Raises:
            UserError: if it takes them with no padding.
        """
        x = x if self.resize is None else self.resize(x)
        return x if self.pad is None else padded(x, self._multiple(x, network, ask))

    def back(self, x: Tensor, sides: tuple[int, int]) -> Tensor:
        """Returns images as the network gave them with the sides (height, width) that they came with."""
        height, width = sides if self.resize is None else self.resize.sides(*sides)
        x = x[..., :height, :width]
        return x if self.resize is None else self.resize.to(x, sides)

    @property
    def overshoots(self) -> bool:
        """Whether the way back can leave [0, 1]."""
        return self.resize is not None and self.resize.mode == "bicubic"

    @uncompiled
    def _multiple(self, x: Tensor, network: Any, ask: Callable[[Tensor], Any]) -> int:
        if self.pad != AUTO:
            return int(self.pad)
        if own := own_multiple(network):
            return own
        key = tuple(x.shape[1:])
        if key not in self._asked:
            self._asked[key] = asked_multiple(ask, x)
        return self._asked[key]


class FittedPurifier(Frozen):
    """A purifier that sees images in another size or with margins; they come back in their own.

    Args:
        purifier: any `PurifiesImages` or module from images to images. A diffusion chain, `Purifier`, takes
            the same settings itself.
        resize: see `Fit`.
        pad: see `Fit`.

    Raises:
        UserError: if it is a `Purifier`, or a setting is wrong.
    """

    def __init__(self, purifier: Any, *, resize: Any = None, pad: Any = None) -> None:
        super().__init__()
        if hasattr(purifier, "driven"):
            raise UserError(
                "a diffusion purifier fits images itself. Write Purifier(..., resize=..., pad=...)."
            )
        self.purifier: PurifiesImages = as_purifier(purifier)
        self.fit = Fit(resize, pad)

    @property
    def sites(self) -> frozenset[str]:
        """Noise sites of the purifier."""
        return self.purifier.sites

    @property
    def calls(self) -> int:
        """Network calls of one purification."""
        return self.purifier.calls

    @property
    def row_calls(self) -> int:
        """Network calls of one purification, see `dbpkit.purification.purifier.row_calls`."""
        return row_calls(self.purifier)

    @property
    def gradient_note(self) -> str:
        """What the purifier says of its gradient, see `dbpkit.purification.purifier.gradient_note`."""
        return gradient_note(self.purifier)

    @uncompiled
    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        """Purifies images (B, C, H, W) in [0, 1], of any size that the settings fit."""
        check_call(x, noise, "FittedPurifier")
        self.settle()

        def ask(blank: Tensor) -> Tensor:
            return self.purifier(blank, noise=noise.rows(slice(0, 1)))

        fitted = self.fit.there(x, self.purifier, ask)
        return self.fit.back(self.purifier(fitted, noise=noise), (x.shape[-2], x.shape[-1]))


def fitted(purifier: PurifiesImages, resize: Any = None, pad: Any = None) -> PurifiesImages:
    """Returns a purifier behind a fit, or the purifier itself where there is nothing to fit."""
    return purifier if resize is None and pad is None else FittedPurifier(purifier, resize=resize, pad=pad)


def blank_level(x: Tensor) -> Tensor:
    """Returns the noise level with which a denoiser is asked whether it takes a size: 1."""
    return torch.ones((), dtype=x.dtype, device=x.device)
