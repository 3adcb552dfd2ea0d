"""What a purifier is: images in [0, 1] and a noise plan in, purified images out; and purifiers by name.

A diffusion chain, a filter, an autoencoder or a module of the user's own: all of them are one contract,
`PurifiesImages`. A plain function or module from images to images is put under it by `as_purifier`.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from dbpkit.foundation.errors import OutputError, UserError
from dbpkit.foundation.frozen import Frozen, as_frozen, call_apart, uncompiled
from dbpkit.foundation.inputs import check_images, check_length, check_unit, whole
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import check_needed, checked_options, options_of
from dbpkit.foundation.philox import SITES
from dbpkit.foundation.registry import Registry
from dbpkit.foundation.types import Denoiser

DIFFUSION = "diffusion"
"""Name of the purifier of a spec that names none."""

PURIFIER_SITES = frozenset(SITES) & {"forward", "level", "reverse", "churn", "corrector"}
"""Noise sites of a purifier that draws from its plan and does not say where."""

GIVEN = ("denoiser", "memory_bytes")
"""Parameters of a purifier that are not options: the spec's denoiser, and the budget for kept graphs."""


class PurifiesImages(Protocol):
    """The contract of every purifier."""

    @property
    def sites(self) -> frozenset[str]:
        """Noise sites it draws from, all of its randomness; empty if it is deterministic."""
        ...

    @property
    def calls(self) -> int:
        """Network calls of one purification; 0 for a filter."""
        ...

    def __call__(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        """Purifies images (B, C, H, W) in [0, 1] with the noise of the same B examples."""
        ...


purifiers: Registry[Callable[..., Any]] = Registry(
    "purifier",
    others=["dbpkit.purification.diffusion", "dbpkit.purification.filters", "dbpkit.purification.mixture"],
)
"""Purifiers by name: ``make(**options)`` returns one, or any module from images to images.

A factory or class with a parameter ``denoiser`` gets the spec's; for the others none is loaded.
"""


class ModulePurifier(Frozen):
    """A module or function from images to images, under the contract of purifiers.

    Args:
        module: called as ``module(x)``, or as ``module(x, noise=plan)`` if it takes a plan. What it says in
            ``sites``, ``calls`` and ``gradient_note`` is believed; otherwise it is deterministic without a
            plan, draws anywhere with one, and costs one network call if it has weights and none if it has
            not.
        what: its name in errors.

    Raises:
        UserError: if it cannot be called, or its sites or calls are none.

    Example:
        >>> import torch
        >>> blur = ModulePurifier(torch.nn.AvgPool2d(3, stride=1, padding=1))
        >>> blur(torch.full((1, 3, 8, 8), 0.5), noise=NoisePlan.of(0, [0])).shape, blur.sites, blur.calls
        (torch.Size([1, 3, 8, 8]), frozenset(), 0)
    """

    def __init__(self, module: Callable[..., Tensor], what: str = "the purifier") -> None:
        super().__init__()
        self.what = what
        self.with_plan = takes_noise(module)
        self.module = as_frozen(module, what)
        self.sites = frozenset(getattr(module, "sites", PURIFIER_SITES if self.with_plan else ()))
        if unknown := sorted(self.sites - set(SITES)):
            raise UserError(
                f"{what} draws from '{unknown[0]}', which is not a noise site: {', '.join(SITES)}."
            )
        has_weights = next(self.module.parameters(), None) is not None
        self.calls = whole(getattr(module, "calls", int(has_weights)), f"calls of {what}")
        self.gradient_note = gradient_note(module)

    @uncompiled
    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        """Purifies images (B, C, H, W) in [0, 1]; UserError if what comes back has another shape."""
        check_call(x, noise, "the purifier")
        self.settle()
        plan = {"noise": noise} if self.with_plan else {}
        x_pure = call_apart(self.module, x, **plan)
        if not isinstance(x_pure, Tensor) or x_pure.shape != x.shape or not x_pure.is_floating_point():
            found = tuple(x_pure.shape) if isinstance(x_pure, Tensor) else type(x_pure).__name__
            raise OutputError(f"{self.what} must return images {tuple(x.shape)} in [0, 1], got {found}.")
        return x_pure


def as_purifier(part: Any, what: str = "the purifier") -> PurifiesImages:
    """Returns a purifier with fixed weights: the part itself if it has the contract, or it wrapped.

    Raises:
        UserError: if it cannot be called.
    """
    if isinstance(part, type) or not callable(part):
        name = part.__name__ if isinstance(part, type) else type(part).__name__
        raise UserError(
            f"{what} must be called as purifier(x) or purifier(x, noise=plan) and return images, not be"
            f" {name}. Write PurifiedClassifier(purifier, classifier)."
        )
    if not (takes_noise(part) and hasattr(part, "sites") and hasattr(part, "calls")):
        return ModulePurifier(part, what)
    if isinstance(part, nn.Module):
        as_frozen(part, what)
    found: PurifiesImages = part
    return found


def make_purifier(
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    denoiser: Denoiser | None = None,
    memory_bytes: int | None = None,
) -> PurifiesImages:
    """Makes a purifier by registered name or import path.

    Args:
        name: a part of `purifiers`.
        options: its keyword arguments, as a spec has them.
        denoiser: for a part with a parameter of this name.
        memory_bytes: the same; see `dbpkit.purification.replay.Replay`.

    Raises:
        UserError: if the name, an option or a value is wrong, or there is no denoiser where one is needed.
    """
    part, what = purifiers.resolve(name), f"purifier '{name}'"
    if isinstance(part, nn.Module):
        if options:
            raise UserError(f"{what} is a finished module and takes no options.")
        return as_purifier(part, what)
    chosen = checked_options(part, options or {}, what, GIVEN)
    check_needed(options_of(part, GIVEN), chosen, what)
    known = options_of(part)
    if "denoiser" in known and denoiser is None:
        raise UserError(f'{what} needs a denoiser, and none is named. Add denoiser = "embedded" or another.')
    given = {"denoiser": denoiser, "memory_bytes": memory_bytes}
    fixed = {k: v for k, v in given.items() if k in known and v is not None}
    return as_purifier(part(**fixed, **chosen), what)


def gradient_note(purifier: Any) -> str:
    """What a purifier says of a gradient that is not the derivative of its values; empty for an exact one.

    A purifier that rounds may give another gradient in its place, and says so in ``gradient_note``: then the
    checks do not call it an error, and every table says what it is.
    """
    return str(getattr(purifier, "gradient_note", "") or "")


def row_calls(purifier: Any) -> int:
    """Network calls of one image's purification: what it says in ``row_calls``, or else in ``calls``.

    A diffusion chain's ``calls`` are its steps, of which some make two calls.
    """
    said = getattr(purifier, "row_calls", None)
    return int(getattr(purifier, "calls", 0) if said is None else said)


def takes_denoiser(name: str) -> bool:
    """Whether a purifier is built around a denoiser; errors as `make_purifier`."""
    part = purifiers.resolve(name)
    return not isinstance(part, nn.Module) and callable(part) and "denoiser" in options_of(part)


def takes_noise(part: Callable[..., Any]) -> bool:
    """Whether a module or function is called with a noise plan, ``part(x, noise=plan)``."""
    call = part.forward if isinstance(part, nn.Module) else part
    try:
        return "noise" in inspect.signature(call).parameters
    except (TypeError, ValueError):  # written in C, and silent about itself
        return False


@uncompiled
def check_call(x: Tensor, noise: NoisePlan | None, where: str) -> None:
    """Raises UserError unless images and plan are what a call of a model needs."""
    check_images(x, where, pixels=False)
    check_unit(x, where)
    if noise is not None:
        check_length(noise, len(x), where)
