"""Restart sampling: the deterministic way down, repeated between two levels with fresh noise."""

from dataclasses import dataclass
from functools import cached_property

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count, Share
from dbpkit.foundation.types import Denoiser, State
from dbpkit.purification.samplers.chain import samplers
from dbpkit.purification.samplers.columns import Level, root
from dbpkit.purification.samplers.ddim import DDIM

MOST = 1000
"""Most restarts; every one is steps of a purification, which are listed."""


@samplers.register("restart")
@dataclass(frozen=True)
class Restart(DDIM):
    """DDIM that goes back up from a level, with noise, and down again.

    The noise of the way up is that of site ``churn``, one draw for each restart. The paper walks by Heun's
    method; here it is DDIM's step, which is Euler's.

    Attributes:
        restarts: K, how often.
        restart_from: where a restart begins, as a share of the steps down.
        restart_to: where it leads up to, as a share of the steps down; 0 is t*.

    Source:
        Xu et al. 2023 (arXiv:2306.14878, NeurIPS), algorithm 1 and eq. 4.
    """

    restarts: Count = 1
    restart_from: Share = 0.5
    restart_to: Share = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.levels) < 3:
            raise UserError(
                "sampler 'restart' needs two levels above 0. Take more steps, or a higher t_star."
            )
        if self.restarts > MOST:
            raise UserError(f"sampler 'restart' restarts at most {MOST:,} times, not {self.restarts:,}.")
        if not self.restart_to < self.restart_from:
            raise UserError(
                f"sampler 'restart' goes up from restart_from = {self.restart_from:g} to restart_to ="
                f" {self.restart_to:g}, which must be the smaller share of the way down."
            )

    @property
    def sites(self) -> frozenset[str]:
        """Noise sites of ``ddim``, and that of the way up."""
        return super().sites | {"churn"}

    @property
    def ends(self) -> tuple[int, int]:
        """The numbers of the upper and the lower level of a restart."""
        last = len(self.levels) - 2
        upper = min(round(self.restart_to * last), last - 1)
        return upper, max(upper + 1, round(self.restart_from * last))

    @cached_property
    def path(self) -> list[int]:
        """The number of the level that each step starts from."""
        upper, lower = self.ends
        again = [*range(upper, lower)] * self.restarts
        return [*range(lower), *again, *range(lower, len(self.levels) - 1)]

    @property
    def steps(self) -> int:
        """How many steps one purification takes, those of the restarts too."""
        return len(self.path)

    def step(self, denoiser: Denoiser, state: State, i: int, noise: NoisePlan) -> State:
        """One step of ``ddim``, after the noise of a restart where one begins."""
        (x,), (upper, lower) = state, self.ends
        number, first = divmod(i - lower, lower - upper)
        if first == 0 and 0 <= number < self.restarts:
            rise = root(self.levels[upper] ** 2 - self.levels[lower] ** 2)
            x = x + rise * noise.normal("churn", number, x)
        return (self.down(denoiser, x, self.path[i], i, noise),)

    def place(self, i: int) -> tuple[Level, int]:
        """Returns the level that step ``i`` leads to, and the number of the forward draw."""
        return self.levels[self.path[i] + 1], 0
