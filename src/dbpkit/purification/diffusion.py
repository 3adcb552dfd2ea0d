"""Diffusion as a purifier: noise an image to t*, denoise it.

Only this file knows that diffusion models want [-1, 1].
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from dbpkit.foundation.errors import UserError, shown
from dbpkit.foundation.frozen import Counter, Frozen, call_apart, uncompiled
from dbpkit.foundation.inputs import real, whole
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.precision import Precision, current_precision, kept
from dbpkit.foundation.times import StartTime, read_start
from dbpkit.foundation.types import Denoiser, StepHook
from dbpkit.models.adapters import Adapter
from dbpkit.purification.driver import Trace, drive
from dbpkit.purification.fitting import Fit, blank_level
from dbpkit.purification.purifier import DIFFUSION, check_call, purifiers
from dbpkit.purification.replay import DEFAULT_MEMORY, Replay
from dbpkit.purification.samplers import Chain, make_sampler


@purifiers.register(DIFFUSION)
class Purifier(Frozen):
    """Noises images to t* and denoises them.

    Weights are frozen and in eval mode at every call; gradients with respect to the image are exact, second
    ones too. A denoiser in another precision gets images in its own.

    Args:
        denoiser: any `Denoiser`.
        sampler: registered name or import path.
        t_star: diffusion time where purification starts, in (0, 1); of an interval, two numbers, each image
            and draw draws its own.
        steps: S of the sampler's published grid.
        options: keyword arguments of the sampler.
        grid: further keyword arguments of its grid; ``random = True`` draws the levels between its ends.
        clamp: whether the purified image is clipped to [0, 1]; None does as published for the sampler.
        resize: size of the images that the network sees, see `dbpkit.purification.fitting.Fit`; or None.
        pad: what their sides are padded to a multiple of, a number or ``"auto"``; None pads nothing.
        memory_bytes: budget for kept graphs, see `dbpkit.purification.replay.Replay`.

    Raises:
        UserError: if a name or an option is unknown or out of range.

    Example:
        >>> import torch
        >>> from dbpkit import NoisePlan, Purifier, load_embedded
        >>> denoiser, _ = load_embedded()
        >>> purifier = Purifier(denoiser, "ddim", steps=100)
        >>> purifier(torch.full((1, 3, 32, 32), 0.5), noise=NoisePlan.of(0, [0])).shape
        torch.Size([1, 3, 32, 32])
    """

    fit: Fit | None = None

    def __init__(
        self,
        denoiser: Denoiser,
        sampler: str = "ddpm",
        *,
        t_star: StartTime = 0.1,
        steps: int = 1000,
        options: Mapping[str, Any] | None = None,
        grid: Mapping[str, Any] | None = None,
        clamp: bool | None = None,
        resize: Any = None,
        pad: Any = None,
        memory_bytes: int = DEFAULT_MEMORY,
    ) -> None:
        super().__init__()
        if isinstance(denoiser, nn.Module):
            denoiser.requires_grad_(False).eval()
        elif isinstance(denoiser, type) or not callable(denoiser):
            raise UserError(f"the denoiser must be callable as denoiser(x, sigma), not {denoiser!r:.60}.")
        if not isinstance(sampler, str):
            raise UserError(f"the sampler is given by name or import path, not as {type(sampler).__name__}.")
        t_star = _checked_start(t_star)
        self.denoiser = denoiser
        self.settings: dict[str, Any] = {
            "sampler": sampler,
            "t_star": t_star,
            "steps": whole(steps, "steps", 1),
            "options": options,
            "grid": grid,
        }
        if not (resize is None and pad is None):  # absent otherwise: hashes of models made earlier stay
            self.fit = Fit(resize, pad)
            self.settings |= self.fit.table()
        table = getattr(denoiser, "discrete_levels", None)
        self.sampler = make_sampler(sampler, t_star, steps, options, grid, table)
        _check_fit(self.sampler, denoiser)
        self.clamp = self.sampler.clamps if clamp is None else bool(clamp)
        self.memory_bytes = whole(memory_bytes, "memory_bytes")
        self.verify_replay = False
        self._network_calls = Counter()

    @property
    def sites(self) -> frozenset[str]:
        """Noise sites the sampler draws from."""
        return self.sampler.sites

    @property
    def calls(self) -> int:
        """Sampler steps of one purification, each one or two network calls."""
        return self.sampler.steps

    @property
    def row_calls(self) -> int:
        """Network calls of one purification, as its sampler tells them."""
        return self.sampler.calls

    @property
    def network_calls(self) -> int:
        """How often the denoiser has been called, by all purifications so far; replayed steps count too."""
        return self._network_calls.value

    @uncompiled
    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        """Purifies images.

        Args:
            x: images (B, C, H, W), nominally in [0, 1].
            noise: plan of the same B examples.

        Returns:
            Purified images (B, C, H, W), in [0, 1] if ``clamp``.

        Raises:
            UserError: if ``x`` holds no such images, or the plan is one of another batch.
        """
        check_call(x, noise, "Purifier")
        return self._purify(x, noise, self._hook())

    @uncompiled
    def driven(self, x: Tensor, *, noise: NoisePlan, hook: StepHook) -> Tensor:
        """Purifies images as ``forward`` does, with a hook of the caller's around every step."""
        check_call(x, noise, "Purifier")
        return self._purify(x, noise, hook)

    @uncompiled
    def traced(self, x: Tensor, *, noise: NoisePlan) -> tuple[Tensor, Tensor]:
        """Purifies images and tells how far the way back strays from the way there.

        The deviation is that of `dbpkit.purification.driver.Trace.deviation`.

        Args:
            x: images (B, C, H, W), nominally in [0, 1].
            noise: plan of the same B examples.

        Returns:
            Purified images (B, C, H, W) and deviations (B,), both differentiable in ``x``.

        Raises:
            UserError: if a sampler function does not pass one state per level to its step hook.
        """
        check_call(x, noise, "Purifier")
        bound = self.sampler.bound(noise, x)
        trace = Trace(bound, self._hook())
        x_pure = self._purify(x, noise, trace)
        if len(trace.images) != self.calls:
            raise UserError(
                f"sampler '{self.settings['sampler']}' made {len(trace.images)} steps on a grid of"
                f" {self.calls}; its states cannot be compared with forward states. Use an attack without"
                " their deviation."
            )
        return x_pure, trace.deviation(2 * self.fitted(x) - 1, noise)

    def fitted(self, x: Tensor) -> Tensor:
        """Returns images (B, C, H, W) in [0, 1] in the size and with the margins that the network sees."""
        if self.fit is None:
            return x
        return self.fit.there(x, self.denoiser, lambda blank: self._estimate(blank, blank_level(blank)))

    def _hook(self) -> Replay:
        return Replay(self.calls, self.memory_bytes, verify=self.verify_replay, settle=self.settle)

    def _estimate(self, x: Tensor, sigma: Tensor) -> Tensor:
        if isinstance(self.denoiser, Adapter):  # they see to their network themselves
            estimate: Tensor = self.denoiser(x, sigma)
            return estimate
        x0 = call_apart(self.denoiser, x, sigma)
        if not isinstance(x0, Tensor) or x0.shape != x.shape:
            found = tuple(x0.shape) if isinstance(x0, Tensor) else type(x0).__name__
            raise UserError(f"the denoiser must return clean images {tuple(x.shape)}, got {found}.")
        return x0

    def _purify(self, x: Tensor, noise: NoisePlan, hook: StepHook) -> Tensor:
        self.settle()
        x0 = drive(self.sampler, Asked(self), 2 * self.fitted(x) - 1, noise, hook)
        x_pure = (x0 + 1) / 2
        x_pure = x_pure.clamp(0, 1) if self.clamp else x_pure
        if self.fit is None:
            return x_pure
        x_pure = self.fit.back(x_pure, (x.shape[-2], x.shape[-1]))
        return x_pure.clamp(0, 1) if self.clamp and self.fit.overshoots else x_pure

    def coarser(self, steps: int) -> "Purifier":
        """Returns the purifier on a grid of ``steps`` steps; for 1 that no grid has, denoising once."""
        try:
            return self.with_steps(steps)
        except UserError:
            if steps > 1:
                raise
        once = {**self.settings, "sampler": "one_step", "options": None, "grid": None}
        return Purifier(self.denoiser, **once, clamp=self.clamp, memory_bytes=self.memory_bytes)

    def with_steps(self, steps: int) -> "Purifier":
        """Returns the same purifier on another step grid, sharing the weights."""
        return Purifier(
            self.denoiser,
            **{**self.settings, "steps": steps},
            clamp=self.clamp,
            memory_bytes=self.memory_bytes,
        )


class Asked:
    """The denoiser of a purifier as its sampler calls it: counted, in the precision of the first call.

    Args:
        purifier: whose denoiser is asked.
    """

    def __init__(self, purifier: Purifier) -> None:
        self.purifier = purifier
        self.precision: Precision = current_precision()

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns x0, from a copy of the sampler's state in the denoiser's own precision."""
        self.purifier._network_calls.take()
        with kept(self.precision):  # a step may run again when the block of its first run is left
            return self.purifier._estimate(x, sigma)

    def with_variance(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Returns x0 and the share of the large variance in the logarithm, as `VPDenoiser.with_variance`."""
        self.purifier._network_calls.take()
        with kept(self.precision):
            found: tuple[Tensor, Tensor] = self.purifier.denoiser.with_variance(x, sigma)  # type: ignore[attr-defined]
        return found


def _checked_start(t_star: Any) -> float | list[float]:
    """A start time as a spec has it; UserError for what is none."""
    if not isinstance(t_star, Sequence):
        t_star = real(t_star, "t_star")
    try:
        return read_start(t_star)
    except ValueError as error:
        found = f"{t_star:g}" if isinstance(t_star, int | float) else shown(t_star)
        raise UserError(
            f"t_star must lie in (0, 1), or be an interval [low, high] in it, not {found}."
        ) from error


def _check_fit(sampler: Chain, denoiser: Any) -> None:
    """Raises UserError if a denoiser has not what its sampler asks for: a class, a variance, or a time."""
    if isinstance(denoiser, Adapter):
        denoiser.check_label()
    walker = getattr(sampler, "chain", sampler)
    if getattr(walker, "variance", None) == "learned" and getattr(denoiser, "variance", None) != "learned":
        raise UserError(
            'the sampler\'s variance = "learned" needs a denoiser whose network returns one, such as'
            ' VPDenoiser with variance = "learned". Use "large" or "small".'
        )
    top = getattr(denoiser, "largest_level", None)
    if top is not None and sampler.highest > top * (1 + 1e-6):
        raise UserError(
            f"purification starts at noise level {sampler.highest:.3g}, and the denoiser's path has no"
            f" level above {top:.3g}. Lower t_star."
        )
