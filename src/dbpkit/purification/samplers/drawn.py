"""Noise levels that are drawn: t* from an interval, inner levels of a grid, for each image and draw.

All images walk as many steps. Levels come from the plan's site ``level``, at every step again, so that a
step is a function of its arguments and exact gradients run it again without anything having been stored.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.times import StartTime, middle
from dbpkit.foundation.types import Denoiser, State
from dbpkit.models.schedule import discrete_sigmas, vp_sigma, vp_time
from dbpkit.purification.samplers.chain import Chain
from dbpkit.purification.samplers.columns import Level

STARTS = 256
"""Most values of t* in an interval, evenly spaced."""

PLACES = 64
"""Values of an inner level of a random grid, evenly spaced in time."""


@dataclass(frozen=True, eq=False)
class Drawn(Chain):
    """A sampler whose levels are drawn for each image and draw.

    An image draws its t* from evenly spaced values of the interval, and its grid is that of the middle,
    stretched in time. Of a random grid every level between the first and the last above 0 is drawn from its
    cell, which ends half way to its neighbours in time. Draw 0 of site ``level`` has the uniforms: one for
    t*, and one for each level. Its ``levels`` are those of the middle.

    Attributes:
        chain: the sampler that walks them.
        table: (K, M, S + 1) float64; value m of level i where t* is the one numbered k.
    """

    chain: Chain
    table: Tensor
    tables: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Leaves the options alone: the sampler has checked its own."""

    @property
    def sites(self) -> frozenset[str]:
        """Noise sites of the sampler, and ``level``."""
        return self.chain.sites | {"level"}

    @property
    def clamps(self) -> bool:
        """Whether the sampler's published pipeline clips the purified image."""
        return self.chain.clamps

    @property
    def generates(self) -> bool:
        """Whether the sampler makes images of noise alone."""
        return self.chain.generates

    @property
    def steps(self) -> int:
        """How many steps the sampler takes, whatever is drawn."""
        return self.chain.steps

    @property
    def calls(self) -> int:
        """Network calls of the sampler, whatever is drawn."""
        return self.chain.calls

    @property
    def highest(self) -> float:
        """The largest noise level that can be drawn."""
        return float(self.table.max())

    def bound(self, noise: NoisePlan, x: Tensor) -> Chain:
        """Returns the sampler on the levels of these images (B, C, H, W), columns of at least float32."""
        starts, places, count = self.table.shape
        if x.device not in self.tables:
            self.tables[x.device] = self.table.to(x.device)
        u = noise.uniform("level", 0, x.new_empty(len(x), count, dtype=torch.float64))
        k = _numbered(u[:, :1], starts)
        m = _numbered(u[:, 1:], places)  # of every level but the last, which is 0
        i = torch.arange(count - 1, device=x.device)
        drawn = self.tables[x.device][k, m, i].to(torch.promote_types(x.dtype, torch.float32))
        return self.chain.on((*(c[:, None, None, None] for c in drawn.unbind(dim=1)), 0.0))

    def start(self, x: Tensor, noise: NoisePlan) -> State:
        """Returns the first state of the sampler on these images' levels."""
        return _like(x, self.bound(noise, x).start(x, noise))

    def step(self, denoiser: Denoiser, state: State, i: int, noise: NoisePlan) -> State:
        """Returns the sampler's state after step ``i`` on these images' levels."""
        return _like(state[0], self.bound(noise, state[0]).step(denoiser, state, i, noise))

    def finish(self, state: State) -> Tensor:
        """Returns the purified images of the last state."""
        return self.chain.finish(state)

    def image(self, state: State) -> Tensor:
        """Returns the noisy images of a state."""
        return self.chain.image(state)

    def scale(self, sigma: Level) -> Level:
        """Returns what the image of a state at level ``sigma`` is of ``x0 + sigma * z``."""
        return self.chain.scale(sigma)


@dataclass(frozen=True)
class Walked:
    """The table of discrete times that a grid walks, as a clock: time in whole numbers.

    Attributes:
        sigmas: (T,) increasing levels.
    """

    sigmas: Tensor

    def time(self, levels: Tensor) -> Tensor:
        """Returns the numbers of levels of the table, any shape."""
        return torch.searchsorted(self.sigmas, levels.contiguous()).clamp(max=len(self.sigmas) - 1).double()

    def sigma(self, time: Tensor) -> Tensor:
        """Returns the levels of whole times."""
        return self.sigmas[time.long()]


def following(table: Tensor | None) -> Walked:
    """Returns the clock of a denoiser's own table, or of the linear DDPM schedule."""
    return Walked(discrete_sigmas() if table is None else table.double())


def drawn_levels(
    levels: Tensor,
    t_star: StartTime,
    random: bool,
    levels_at: Callable[[float], Tensor],
    walked: Walked | None,
    what: str,
) -> Tensor:
    """All values that the levels of a purification can have.

    Args:
        levels: (S + 1,) those of the middle.
        t_star: one time, or the ends of the interval.
        random: whether inner levels are drawn.
        levels_at: gives the grid of one t*.
        walked: the clock of a grid of discrete times; None takes VP time.
        what: the sampler's name, for errors.

    Returns:
        (K, M, S + 1) float64, see `Drawn`.

    Raises:
        UserError: if nothing would be drawn, or neighbouring levels could meet.
    """
    levels = levels.double()
    times = (vp_time(levels[:-1]) if walked is None else walked.time(levels[:-1]))[None]
    sigmas = levels[None, :-1]
    if not isinstance(t_star, float):
        starts = _starts(t_star, walked, float(times[0, 0]))
        sigmas, times = _stretched(levels, times, starts, starts / middle(t_star), levels_at, walked, what)
    table = sigmas[:, None]
    if random:
        if len(levels) < 4:
            raise UserError(
                f"{what}: random = true needs a level between the first and the last. Take more steps."
            )
        inner = _inner(times, walked)
        ends = [table[..., :1], table[..., -1:]]
        first, last = (end.expand(-1, PLACES, -1) for end in ends)
        inner = vp_sigma(inner) if walked is None else walked.sigma(inner)
        table = torch.cat([first, inner, last], dim=2)
    table = torch.cat([table, table.new_zeros(*table.shape[:2], 1)], dim=2)
    if bool((table[..., :-1].amin(dim=1) <= table[..., 1:].amax(dim=1)).any()):
        raise UserError(
            f"{what}: levels that are drawn could meet: too many steps for so low a t_star. Take fewer."
        )
    if len(table) == 1 and not random:
        raise UserError(f"{what}: t_star is an interval, and no two of its grids differ. Give one t_star.")
    return table


def _starts(t_star: Any, walked: Walked | None, top: float) -> Tensor:
    """The values of t* in an interval, (K,): those of whole times, or evenly spaced ones."""
    low, high = t_star
    if walked is None:
        starts: Tensor = low + (torch.arange(STARTS, dtype=torch.float64) + 0.5) / STARTS * (high - low)
        return starts
    most = len(walked.sigmas) - 1
    first, last = (min(round(top * t / middle(t_star)), most) for t in (low, high))
    return torch.arange(first, last + 1, dtype=torch.float64) / top * middle(t_star)


def _stretched(
    levels: Tensor,
    times: Tensor,
    starts: Tensor,
    shares: Tensor,
    levels_at: Callable[[float], Tensor],
    walked: Walked | None,
    what: str,
) -> tuple[Tensor, Tensor]:
    """Levels and times (K, S) of every start: its own grid if that has as many, or that of the middle."""
    if walked is not None:
        times = torch.round(times * shares[:, None])
        return walked.sigma(times), times
    own = [levels_at(float(t)) for t in starts]
    if all(len(found) == len(levels) for found in own):
        sigmas = torch.stack(own).double()[:, :-1]
        if bool((sigmas[0] == sigmas[-1]).all()):
            raise UserError(f"{what}: its grid does not depend on t_star, so no interval can be drawn from.")
        return sigmas, vp_time(sigmas)
    times = times * shares[:, None]
    return vp_sigma(times), times


def _inner(times: Tensor, walked: Walked | None) -> Tensor:
    """Values (K, M, S - 2) of the times between the first and the last, each from its cell."""
    half = (times[:, 1:] + times[:, :-1]) / 2
    low, high = half[:, None, 1:], half[:, None, :-1]
    at = ((torch.arange(PLACES, dtype=torch.float64) + 0.5) / PLACES)[None, :, None]
    if walked is None:
        inner: Tensor = low + at * (high - low)
        return inner
    first: Tensor = torch.ceil(low)  # of cells [low, high) no two have a time in common
    return first + torch.floor(at * (torch.ceil(high) - first))


def _like(x: Tensor, state: State) -> State:
    """A state in the type of ``x``: columns may be wider, so that no level is taken for another."""
    return tuple(t.to(x.dtype) for t in state)


def _numbered(u: Tensor, count: int) -> Tensor:
    """The number of the part of [0, 1] that a uniform lies in, of ``count`` equal ones."""
    return (u * count).long().clamp(max=count - 1)
