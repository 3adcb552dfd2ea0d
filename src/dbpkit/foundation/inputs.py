"""The one validator of what a Python caller hands over: images, labels, plans' lengths, seeds, counts.

Every public function looks at its arguments here first, so that a wrong one is a sentence and not a traceback
or, worse, a number: arrays in 0..255, in -1..1 and of uint8 all run through a network without a complaint.
"""

import contextlib
import math
from collections.abc import Iterator, Sized
from contextvars import ContextVar
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from dbpkit.foundation.errors import OutputError, UserError
from dbpkit.foundation.later import refuse

PIXEL_TOLERANCE = 1e-6
"""How far float rounding may take a pixel out of [0, 1]; such pixels are used as they are."""

LOOSE = (-0.5, 1.5)
"""Where the pixels of a single call of a model may lie: numeric differences and attacks on their way leave
[0, 1] a little, images in 0..255 or -1..1 a lot."""

LIMIT = 1 << 32
"""Seeds and draws lie below this."""

DIVIDE = "Divide 8-bit values by 255 and undo any normalisation."


_anywhere: ContextVar[bool] = ContextVar("anywhere", default=False)


@contextlib.contextmanager
def pixels_anywhere() -> Iterator[None]:
    """Inside the block models take pixels of any value: a scan along a ray leaves [0, 1] on purpose."""
    token = _anywhere.set(True)
    try:
        yield
    finally:
        _anywhere.reset(token)


def check_images(x: Any, where: str, *, pixels: bool = True, empty: bool = False) -> Tensor:
    """Returns ``x`` if it holds images (B, C, H, W) of floating point.

    Args:
        x: what the caller gave.
        where: who asks, such as ``"pgd"``.
        pixels: whether every value must be finite and in [0, 1], to `PIXEL_TOLERANCE`.
        empty: whether a batch of none is fine.

    Raises:
        UserError: if it is anything else; says what to do about NumPy arrays, uint8, (C, H, W) and NHWC.
    """
    if not isinstance(x, Tensor):
        raise UserError(
            f"{where}: images must be a torch tensor (B, C, H, W), not {_kind(x)}."
            f" {'Use torch.from_numpy(x).float().' if hasattr(x, '__array__') else 'Stack them into one.'}"
        )
    if x.layout != torch.strided:
        raise UserError(f"{where}: images must be dense, not sparse. Use x.to_dense().")
    if not x.is_floating_point():
        raise UserError(
            f"{where}: images must be floating point in [0, 1], not {_name(x.dtype)}, whose arithmetic wraps"
            " or rounds. Use x.float() / 255."
        )
    if x.ndim != 4:
        hint = " Add the batch with x[None]." if x.ndim == 3 else ""
        raise UserError(f"{where}: images must have shape (B, C, H, W), not {tuple(x.shape)}.{hint}")
    if x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        raise UserError(
            f"{where}: images of shape {tuple(x.shape)} have their channels last; (B, C, H, W) is expected."
            " Use x.permute(0, 3, 1, 2)."
        )
    if 0 in x.shape and not (empty and 0 not in x.shape[1:]):
        raise UserError(
            f"{where}: there are no pixels in images of shape {tuple(x.shape)}. Give at least one."
        )
    if pixels:
        check_pixels(x, where)
    return x


def check_pixels(x: Tensor, where: str, ids: Tensor | None = None) -> None:
    """Raises UserError unless images ``x`` (B, C, H, W) are finite and in [0, 1], to `PIXEL_TOLERANCE`."""
    if not len(x):
        return
    low, high = x.amin(), x.amax()  # NaN goes through both
    if bool(~((low >= -PIXEL_TOLERANCE) & (high <= 1 + PIXEL_TOLERANCE))):
        inside = (x >= -PIXEL_TOLERANCE) & (x <= 1 + PIXEL_TOLERANCE)
        bad = int((~inside.flatten(1).all(dim=1)).nonzero()[0])
        name = f"example {int(ids[bad])}" if ids is not None else f"image {bad}"
        values = x[bad]
        raise UserError(
            f"{where}: pixels must be finite and in [0, 1]; {name} spans {float(values.min()):g} to"
            f" {float(values.max()):g}{'' if bool(torch.isfinite(values).all()) else ' and is not finite'}."
            f" {DIVIDE}"
        )


def check_unit(x: Tensor, where: str) -> None:
    """Raises UserError if pixels are clearly in another unit than [0, 1], see `LOOSE`; NaN is let through."""
    if _anywhere.get() or torch._C._functorch.is_batchedtensor(x):  # inside vmap no value can be looked at
        return
    if not x.numel():
        return

    def error(low: Tensor, high: Tensor) -> UserError:
        span = f"{float(low):g} to {float(high):g}"
        return UserError(f"{where}: pixels must be in [0, 1]; these span {span}. {DIVIDE}")

    low, high = x.amin(), x.amax()
    refuse((low < LOOSE[0]) | (high > LOOSE[1]), error, low, high, about=f"pixels of {where}")


def check_labels(y: Any, count: int, where: str, classes: int | None = None) -> Tensor:
    """Returns ``y`` if it holds labels (B,) as int64 in [0, K) of ``count`` = B images.

    Raises:
        UserError: if it is anything else; says what to do about one-hot, (B, 1) and float labels.
    """
    if not isinstance(y, Tensor):
        raise UserError(
            f"{where}: labels must be a torch tensor ({count},), not {_kind(y)}. Use torch.as_tensor(y)."
        )
    if y.ndim != 1:
        hint = ""
        if y.ndim == 2:
            hint = " Use y[:, 0]." if y.shape[1] == 1 else " Use y.argmax(dim=1) if they are one-hot."
        raise UserError(f"{where}: labels must have shape ({count},), not {tuple(y.shape)}.{hint}")
    if y.dtype != torch.int64:
        raise UserError(f"{where}: labels must be int64, not {_name(y.dtype)}. Use y.long().")
    if len(y) != count:
        raise UserError(f"{where}: {count} images came with {len(y)} labels.")
    if not count:
        return y

    def error(low: Tensor, high: Tensor) -> UserError:
        limit = "from 0 on" if classes is None else f"in [0, {classes})"
        return UserError(f"{where}: labels must lie {limit}; these span {int(low)} to {int(high)}.")

    low, high = y.amin(), y.amax()
    bad = low < 0 if classes is None else (low < 0) | (high >= classes)
    refuse(bad, error, low, high, about=f"labels of {where}")
    return y


def check_outputs(logits: Any, count: int) -> Tensor:
    """Returns what a classifier gave for ``count`` = B images if it is logits (B, K) of floating point.

    Raises:
        OutputError: if it is anything else; a model that squeezes returns (K,) for a batch of one.
    """
    if (
        isinstance(logits, Tensor)
        and logits.ndim == 2
        and len(logits) == count
        and logits.shape[1]
        and logits.is_floating_point()
    ):
        return logits
    found = f"{tuple(logits.shape)} of {_name(logits.dtype)}" if isinstance(logits, Tensor) else _kind(logits)
    remedy = "Let it return one tensor of floating point."
    if isinstance(logits, Tensor) and logits.ndim == 1:
        remedy = "Correct it: .squeeze() and .flatten() without an axis change the batch's as well."
    images = "1 image" if count == 1 else f"{count} images"
    raise OutputError(f"the classifier must return logits ({count}, K) for {images}, got {found}. {remedy}")


def check_length(noise: Sized, count: int, where: str) -> None:
    """Raises UserError unless a noise plan has a row for each of ``count`` images."""
    if not hasattr(noise, "example_ids"):
        raise UserError(
            f"{where}: noise must be a NoisePlan, not {_kind(noise)}. Use NoisePlan.of(seed, ids)."
        )
    if len(noise) != count:
        raise UserError(
            f"{where}: a noise plan of {len(noise)} examples was used on a batch of {count}."
            " Slice the plan with rows() together with the batch."
        )


def whole(value: Any, name: str, low: int = 0, high: int | None = None) -> int:
    """Returns a whole number in [low, high); UserError for anything else, True and 2.0 included."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UserError(f"{name} must be a whole number, not {_shown(value)}.")
    number = int(value)
    if number < low or (high is not None and number >= high):
        limit = f"of at least {low}" if high is None else f"in [{low}, {_power(high)})"
        raise UserError(f"{name} must be a whole number {limit}, not {_shown(value)}.")
    return number


def check_seed(value: Any, name: str = "seed") -> int:
    """Returns a seed; UserError unless it is a whole number in [0, 2**32)."""
    if not isinstance(value, bool) and isinstance(value, Integral) and not 0 <= int(value) < LIMIT:
        raise UserError(f"{name} {_shown(value)} is outside [0, 2**32). Choose a smaller non-negative one.")
    return whole(value, name, 0, LIMIT)


def real(value: Any, name: str) -> float:
    """Returns a finite number as float; UserError for anything else, text and True included."""
    if isinstance(value, bool) or not isinstance(value, Real):
        hint = ' Text such as "8/255" belongs into specs; write 8 / 255.' if isinstance(value, str) else ""
        raise UserError(f"{name} must be a number, not {_shown(value)}.{hint}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise UserError(f"{name} must be a finite number, not {_shown(value)}.")
    return number


def _kind(value: Any) -> str:
    return (
        "None"
        if value is None
        else f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _power(high: int) -> str:
    power = high.bit_length() - 1
    return f"2**{power}" if power > 20 and high == 1 << power else str(high)


def _shown(value: Any) -> str:
    """A value in a sentence: short, on one line."""
    try:
        text = f"{value:g}" if isinstance(value, float) else repr(value)
    except ValueError:  # an integer with more digits than Python prints
        text = f"one of {value.bit_length()} bits"
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."
