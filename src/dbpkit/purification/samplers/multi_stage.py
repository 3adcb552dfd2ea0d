"""Several purifications one after the other, with little noise first and more at the end."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import checked_options
from dbpkit.foundation.types import Denoiser, State
from dbpkit.models.schedule import vp_time
from dbpkit.purification.samplers.chain import GIVEN, Chain, samplers
from dbpkit.purification.samplers.columns import Level

USES = 1 << 14
"""How often a round may use a noise site; 2**24 uses are addressed, so there are at most 1,024 rounds."""


@samplers.register("multi_stage")
@dataclass(frozen=True)
class MultiStage(Chain):
    """Rounds of another sampler, each from the image that the last one left.

    A round that starts below t* walks the lower end of the same grid, from the level nearest to its time.

    Attributes:
        rounds: pairs of a share of t* and how often a round starts there, in order. The published ones are
            times 30, 50 and 125 of 1000, four times, twice and twice, so t* is 0.125.
        inner: the sampler of a round: registered name or import path.
        inner_options: its options.

    Source:
        Lee & Kim 2023 (arXiv:2303.09051), gradual noise scheduling; they average the predictions of ten runs,
        which is the protocol ``mean_logits@10``.
    """

    rounds: tuple[tuple[float, int], ...] = ((0.24, 4), (0.4, 2), (1.0, 2))
    inner: str = "ddpm"
    inner_options: Any = None
    generates = False

    def __post_init__(self) -> None:
        super().__post_init__()
        shares, counts = [s for s, _ in self.rounds], [n for _, n in self.rounds]
        if not all(0 < s <= 1 for s in shares) or min(counts, default=0) < 1 or sum(counts) > 1000:
            raise UserError(
                "rounds of sampler 'multi_stage' are pairs of a share of t* in (0, 1] and a count of at least"
                f" 1, 1,000 rounds at most, not {list(map(list, self.rounds))}."
            )
        _ = self._inners  # a mistaken name or option is found when the sampler is made

    @cached_property
    def _inners(self) -> tuple[Chain, ...]:
        """The sampler of every round, on its part of the grid."""
        part, what = samplers.resolve(self.inner), f"inner sampler '{self.inner}'"
        if not (isinstance(part, type) and issubclass(part, Chain)) or issubclass(part, MultiStage):
            raise UserError(f"{what} of 'multi_stage' must be a sampler of one round, such as 'ddpm'.")
        chosen = checked_options(part, self.inner_options or {}, what, GIVEN)
        made = []
        for first, (_, count) in zip(self.starts, self.rounds, strict=True):
            made += [part(self.levels[first:], **chosen)] * count
        return tuple(made)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Position in the grid where the rounds of each pair start."""
        times = vp_time(torch.tensor(self.levels[:-1], dtype=torch.float64))
        return tuple(int((times - share * times[0]).abs().argmin()) for share, _ in self.rounds)

    def fallen_together(self) -> str:
        """Says which rounds of different shares start at one level of the grid; nothing if none do."""
        shares: dict[int, list[float]] = {}
        for start, (share, _) in zip(self.starts, self.rounds, strict=True):
            own = shares.setdefault(start, [])
            own += [share] * (share not in own)
        both = next((own for own in shares.values() if len(own) > 1), None)
        if both is None:
            return ""
        said = " and ".join(f"{share:g}" for share in both)
        return (
            f"Rounds of 'multi_stage' that should start at {said} of t* start at the same level, because the"
            f" grid has only {len(self.levels) - 1} levels above 0 from t* down. Raise steps."
        )

    @cached_property
    def _places(self) -> tuple[tuple[int, int], ...]:
        """Round and step within it of every step."""
        return tuple((r, i) for r, inner in enumerate(self._inners) for i in range(inner.steps))

    @property
    def sites(self) -> frozenset[str]:
        """Noise sites of the sampler of the rounds."""
        return self._inners[0].sites

    @property
    def clamps(self) -> bool:
        """Whether images are clipped to the pixel range after every round."""
        return self._inners[0].clamps

    @property
    def steps(self) -> int:
        """How many steps all rounds take."""
        return len(self._places)

    @property
    def calls(self) -> int:
        """Network calls of all rounds."""
        return sum(inner.calls for inner in self._inners)

    def start(self, x: Tensor, noise: NoisePlan) -> State:
        """Returns the images; every round noises them itself."""
        del noise
        return (x,)

    def step(self, denoiser: Denoiser, state: State, i: int, noise: NoisePlan) -> State:
        """A step of a round, with what begins and ends it."""
        (r, j), own = self._places[i], RoundNoise(noise, self._first_use(self._places[i][0]))
        inner = self._inners[r]
        if j == 0:
            state = inner.start(state[0], own)  # type: ignore[arg-type]
        state = inner.step(denoiser, state, j, own)  # type: ignore[arg-type]
        if j + 1 < inner.steps:
            return state
        image = inner.finish(state)
        return (image.clamp(-1, 1) if self.clamps and i + 1 < self.steps else image,)

    def image(self, state: State) -> Tensor:
        """Returns the images of a state."""
        return self._inners[0].image(state)

    def scale(self, sigma: Level) -> Level:
        """As the sampler of the rounds."""
        return self._inners[0].scale(sigma)

    def place(self, i: int) -> tuple[Level, int]:
        """Returns where a step leads, and the number of the forward draw of its round."""
        r, j = self._places[i]
        return self._inners[r].place(j)[0], self._first_use(r)

    def _first_use(self, number: int) -> int:
        """Where the draws of a round begin in every noise site."""
        return number * USES


class RoundNoise:
    """The noise of one round: that of the plan, from another use on.

    Args:
        plan: the plan of the whole purification.
        first: the use of each site that is the round's first.
    """

    def __init__(self, plan: NoisePlan, first: int) -> None:
        self.plan = plan
        self.first = first

    def normal(self, site: str, step: int, like: Tensor) -> Tensor:
        """As `NoisePlan.normal`, counted from the round's first use."""
        return self.plan.normal(site, self._use(step), like)

    def uniform(self, site: str, step: int, like: Tensor) -> Tensor:
        """As `NoisePlan.uniform`, counted from the round's first use."""
        return self.plan.uniform(site, self._use(step), like)

    def _use(self, step: int) -> int:
        if step >= USES:
            raise UserError(
                f"a round of sampler 'multi_stage' draws more than {USES} times at one noise site."
            )
        return self.first + step
