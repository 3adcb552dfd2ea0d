"""Stages between images and a network: another size, a margin, a mean and a deviation.

All are linear in the image (but for the constant of the mean), so their gradients are exact. The thing people
get wrong: a size or a normalisation that lives in a data loader, where no attacker differentiates it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from dbpkit.foundation.errors import UserError, excerpt, shown, unknown_name
from dbpkit.foundation.inputs import real, whole
from dbpkit.foundation.rows import is_out_of_memory
from dbpkit.models.networks.layers import Normalise

Interpolation = Literal["bilinear", "bicubic"]
"""How pixels between pixels are made."""

NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar10-kuangliu": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""Mean and deviation of each channel by name; ``half`` maps [0, 1] to [-1, 1]."""

MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
"""What sides may have to be a multiple of, tried in this order where a network does not say."""


@dataclass(frozen=True)
class Resize:
    """Images of one size as images of another, differentiable.

    Attributes:
        size: height and width; a number alone is the shorter side's, and the sides keep their proportion.
        mode: ``"bilinear"``, or ``"bicubic"``, which overshoots.
        antialias: whether making images smaller averages over all pixels that an output covers, as Pillow
            does; otherwise only the nearest two (four) in each direction count, as in the papers' code.

    Raises:
        UserError: if a value is none of these.

    Example:
        >>> Resize(256)(torch.zeros(1, 3, 480, 640)).shape
        torch.Size([1, 3, 256, 341])
    """

    size: int | tuple[int, int]
    mode: Interpolation = "bilinear"
    antialias: bool = False

    def __post_init__(self) -> None:
        pair = (self.size, self.size) if isinstance(self.size, int) else self.size
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise UserError(f"a size to resize to is a number or [height, width], not {shown(self.size)}.")
        sides = whole(pair[0], "size", 1, 1 << 16), whole(pair[1], "size", 1, 1 << 16)
        object.__setattr__(self, "size", sides[0] if isinstance(self.size, int) else sides)
        if self.mode not in get_args(Interpolation):
            raise unknown_name("way to resize", str(self.mode), get_args(Interpolation))
        if not isinstance(self.antialias, bool):
            raise UserError(f"antialias is true or false, not {shown(self.antialias)}.")

    @classmethod
    def of(cls, value: Any) -> "Resize | None":
        """Returns the stage that a size, a table of its settings, a stage or None stands for."""
        if value is None or isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            if unknown := sorted(map(str, value.keys() - {"size", "mode", "antialias"})):
                raise unknown_name("key of resize", unknown[0], ("size", "mode", "antialias"))
            if "size" not in value:
                raise UserError("resize needs a size: a number, or { size = 256, mode = ... }.")
            return cls(**value)
        return cls(tuple(value) if isinstance(value, list) else value)

    def table(self) -> dict[str, Any]:
        """Returns the settings as a spec has them."""
        size = self.size if isinstance(self.size, int) else list(self.size)
        return {"size": size, "mode": self.mode, "antialias": self.antialias}

    def sides(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width of what becomes of an image of this height and width."""
        if not isinstance(self.size, int):
            return self.size
        shorter = min(height, width)
        return tuple(max(1, round(side * self.size / shorter)) for side in (height, width))  # type: ignore[return-value]

    def __call__(self, x: Tensor) -> Tensor:
        """Returns images (B, C, H, W) in the new size; those that have it already as they are."""
        return self.to(x, self.sides(x.shape[-2], x.shape[-1]))

    def to(self, x: Tensor, sides: tuple[int, int]) -> Tensor:
        """Returns images (B, C, H, W) with these sides (height, width)."""
        return resized(x, sides, self.mode, self.antialias)


def resized(
    x: Tensor, sides: tuple[int, int], mode: Interpolation = "bilinear", antialias: bool = False
) -> Tensor:
    """Returns images (B, C, H, W) with other sides (height, width), pixels taken for little squares.

    Cubic weights are those of a = -0.75, and of a = -0.5 with ``antialias``, as in Pillow. Where kernels must
    give the same bits every time and a GPU has none for the backward pass, two products with the matrices of
    the same weights take their place, in float64.
    """
    if tuple(x.shape[-2:]) == tuple(sides):
        return x
    if x.is_cuda and torch.are_deterministic_algorithms_enabled() and (antialias or mode == "bicubic"):
        return by_matrices(x, sides, mode, antialias)
    return functional.interpolate(x, sides, mode=mode, align_corners=False, antialias=antialias)


def by_matrices(x: Tensor, sides: tuple[int, int], mode: Interpolation, antialias: bool) -> Tensor:
    """Returns what `resized` does, by a matrix for the rows and one for the columns."""
    down, across = (
        _weights(before, after, mode, antialias).to(x.device)
        for before, after in zip(x.shape[-2:], sides, strict=True)
    )
    return (down @ x.double() @ across.T).to(x.dtype)


@cache
def _weights(before: int, after: int, mode: Interpolation, antialias: bool) -> Tensor:
    """The matrix (after, before) float64 that resizes a column."""
    unit = torch.eye(before, dtype=torch.float64)[None, None]
    made = functional.interpolate(unit, (after, before), mode=mode, align_corners=False, antialias=antialias)
    return made[0, 0]


def padded(x: Tensor, multiple: int) -> Tensor:
    """Returns images (B, C, H, W) reflected at the bottom and on the right until sides are multiples.

    The edge itself is not repeated; where a side is too short to be reflected once, it goes back and forth.
    """
    for axis in (-2, -1):
        side = x.shape[axis]
        if more := -side % multiple:
            x = x.index_select(axis, _mirrored(side, side + more).to(x.device))
    return x


def _mirrored(side: int, length: int) -> Tensor:
    """Positions 0, 1, ..., side - 1, side - 2, ..., 0, 1, ... of a given length."""
    period = max(1, 2 * (side - 1))
    position = torch.arange(length) % period
    return torch.minimum(position, period - position) if side > 1 else torch.zeros(length, dtype=torch.int64)


def own_multiple(network: Any) -> int | None:
    """Returns what a network's sides must be multiples of, if it or a part of it says ``side_multiple``."""
    parts = network.modules() if isinstance(network, nn.Module) else [network]
    return next((m for part in parts if isinstance(m := getattr(part, "side_multiple", None), int)), None)


@torch.no_grad()
def asked_multiple(ask: Callable[[Tensor], Any], x: Tensor, first: int = 1) -> int:
    """Returns the smallest multiple that sides must be padded to for a network to take images.

    Args:
        ask: runs the network, on one image of zeros.
        x: images (B, C, H, W) that are meant for it.
        first: multiples below this are not tried.

    Raises:
        UserError: if it takes none; says what it said to the image as it is.
    """
    said = "it returns another shape"
    tried: set[torch.Size] = set()
    for multiple in (m for m in MULTIPLES if m >= first):
        blank = padded(torch.zeros_like(x[:1]), multiple)
        if blank.shape in tried:
            continue
        try:
            if getattr(ask(blank), "shape", None) == blank.shape:
                return multiple
        except Exception as error:  # a network says in its own way that it does not take this
            if is_out_of_memory(error):
                raise
            said = said if tried else excerpt(error)
        tried.add(blank.shape)
    raise UserError(
        f"the network takes no images of {x.shape[-2]} x {x.shape[-1]} pixels, nor with margins to a multiple"
        f" of up to {MULTIPLES[-1]} ({said}). Resize them to a size that it was made for."
    )


class StagedClassifier(nn.Module):
    """A classifier behind stages of its own: a size, then a mean and a deviation.

    Args:
        classifier: maps what the stages give to logits (B, K).
        resize: a size, `Resize` or table of its settings; None leaves images as they are.
        normalise: a name of `NORMALISATIONS`, or ``{"mean": [...], "std": [...]}``; None for a classifier
            that takes pixels in [0, 1].

    Raises:
        UserError: if a setting is none of these.
    """

    def __init__(self, classifier: nn.Module, *, resize: Any = None, normalise: Any = None) -> None:
        super().__init__()
        self.classifier = classifier
        self.resize = Resize.of(resize)
        statistics = None if normalise is None else statistics_of(normalise)
        self.normalise = None if statistics is None else Normalise(*statistics)
        size = () if self.resize is None else tuple(map(str, self.resize.table().values()))
        self.told_by = (size, statistics)  # plain values, which tell one model from another

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, K) of images (B, C, H, W) in [0, 1] of any size."""
        x = x if self.resize is None else self.resize(x)
        logits: Tensor = self.classifier(x if self.normalise is None else self.normalise(x))
        return logits


def staged(classifier: nn.Module, resize: Any = None, normalise: Any = None) -> nn.Module:
    """Returns a classifier behind stages, or the classifier itself if there are none; see above."""
    if resize is None and normalise is None:
        return classifier
    return StagedClassifier(classifier, resize=resize, normalise=normalise)


def statistics_of(value: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and deviation of each channel.

    Args:
        value: a name of `NORMALISATIONS`, or a table with ``mean`` and ``std``, one number a channel.

    Raises:
        UserError: if it is neither, or a deviation is not positive.
    """
    if isinstance(value, str):
        if value not in NORMALISATIONS:
            raise unknown_name("normalisation", value, NORMALISATIONS)
        return NORMALISATIONS[value]
    if not isinstance(value, Mapping) or value.keys() != {"mean", "std"}:
        raise UserError(
            f"normalise is a name ({', '.join(NORMALISATIONS)}) or {{ mean = [...], std = [...] }}, not"
            f" {shown(value)}."
        )
    mean, std = (_channels(value[key], key) for key in ("mean", "std"))
    if len(mean) != len(std) or min(std) <= 0:
        raise UserError("normalise needs as many means as deviations, and deviations above 0.")
    return mean, std


def _channels(value: Any, what: str) -> tuple[float, ...]:
    numbers = value if isinstance(value, list | tuple) else [value]
    if not numbers:
        raise UserError(f"normalise.{what} has one number for each channel.")
    return tuple(real(number, f"normalise.{what}") for number in numbers)
