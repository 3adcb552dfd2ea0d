"""A mixture of purifiers: each image and draw draws which of them purifies it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.frozen import Frozen, uncompiled
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Length
from dbpkit.foundation.types import Denoiser, Traced
from dbpkit.purification.purifier import (
    DIFFUSION,
    PurifiesImages,
    check_call,
    gradient_note,
    make_purifier,
    purifiers,
    row_calls,
)
from dbpkit.purification.replay import DEFAULT_MEMORY

CHOICE = 1
"""Number of the choice among the draws of site ``level``; draw 0 belongs to the levels of a member."""


@purifiers.register("mixture")
class Mixture(Frozen):
    """Purifies each image with one of several purifiers, drawn anew for every image and draw.

    The choice is noise of site ``level``, so attackers who know ``forward`` know it. Each member purifies
    its images as it would alone: with the same noise, exact gradients, and its own memory budget.

    Args:
        denoiser: that of every member that takes one.
        members: a table each: the keys of a diffusion chain, or ``name`` and ``options`` of another purifier.
        weights: how often each is drawn, in any unit; None draws them equally often.
        memory_bytes: budget for kept graphs, see `dbpkit.purification.replay.Replay`.

    Raises:
        UserError: if there are fewer than two members, one is wrong or a mixture itself, or weights do not
            match.

    Example:
        >>> from dbpkit import load_embedded
        >>> chains = [{"sampler": "one_step"}, {"sampler": "ddim", "steps": 20}]
        >>> mixture = Mixture(load_embedded()[0], chains)
        >>> mixture(torch.full((2, 3, 32, 32), 0.5), noise=NoisePlan.of(0, [4, 9])).shape, mixture.calls
        (torch.Size([2, 3, 32, 32]), 3)
    """

    def __init__(
        self,
        denoiser: Denoiser,
        members: tuple[Mapping[str, Any], ...] | list[Mapping[str, Any]],
        *,
        weights: tuple[Length, ...] | None = None,
        memory_bytes: int = DEFAULT_MEMORY,
    ) -> None:
        super().__init__()
        made = [_member(table, denoiser, memory_bytes) for table in members]
        if len(made) < 2:
            raise UserError("a mixture has at least two members. Use the one alone, or add another.")
        weights = (1.0,) * len(made) if weights is None else tuple(weights)
        if len(weights) != len(made):
            raise UserError(f"a mixture of {len(made)} members has as many weights, not {len(weights)}.")
        self._hold(made, weights)

    def _hold(self, members: list[PurifiesImages], weights: tuple[float, ...]) -> None:
        self.members = members
        self.modules_of_members = nn.ModuleList(m for m in members if isinstance(m, nn.Module))
        self.weights = weights
        share = torch.tensor(weights, dtype=torch.float64).cumsum(0)
        self.bounds = share[:-1] / share[-1]

    @property
    def sites(self) -> frozenset[str]:
        """Noise sites of the members, and ``level``."""
        return frozenset({"level"}).union(*(member.sites for member in self.members))

    @property
    def calls(self) -> int:
        """Steps of the longest member, see `Purifier.calls`."""
        return max(member.calls for member in self.members)

    @property
    def row_calls(self) -> int:
        """Network calls of the member that makes most."""
        return max(map(row_calls, self.members))

    @property
    def gradient_note(self) -> str:
        """What members say of gradients that are not exact, see `dbpkit.purification.purifier`."""
        notes = dict.fromkeys(note for member in self.members if (note := gradient_note(member)))
        return "; ".join(notes)

    def choice(self, noise: NoisePlan, x: Tensor) -> Tensor:
        """Returns the number of each image's member, (B,) int64."""
        u = noise.uniform("level", CHOICE, x.new_empty(len(x), 1, dtype=torch.float64))[:, 0]
        return torch.bucketize(u, self.bounds.to(x.device), right=True)

    @uncompiled
    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        """Purifies images (B, C, H, W) in [0, 1] with the noise of the same B examples."""
        check_call(x, noise, "Mixture")
        self.settle()
        return self._shared(x, noise, lambda member, x, plan: (member(x, noise=plan),))[0]

    @uncompiled
    def traced(self, x: Tensor, *, noise: NoisePlan) -> tuple[Tensor, Tensor]:
        """Purifies images and tells their deviations (B,), as `Purifier.traced` does.

        Raises:
            UserError: if a member has no states to compare.
        """
        check_call(x, noise, "Mixture")
        if not all(isinstance(member, Traced) for member in self.members):
            raise UserError(
                "the deviation of purification states needs diffusion purifiers, and a member of the mixture"
                " is none. Use an attack without it."
            )
        self.settle()
        pure, deviation = self._shared(x, noise, lambda member, x, plan: member.traced(x, noise=plan))
        return pure, deviation

    def _shared(
        self, x: Tensor, noise: NoisePlan, purify: Callable[[Any, Tensor, NoisePlan], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """What the members make of their images, in the order of the batch."""
        choice = self.choice(noise, x)
        rows = [(choice == k).nonzero()[:, 0] for k in range(len(self.members))]
        found = [
            purify(member, x[own], noise.rows(own))
            for member, own in zip(self.members, rows, strict=True)
            if len(own)
        ]
        back = torch.cat(rows).argsort()
        return tuple(torch.cat(parts)[back] for parts in zip(*found, strict=True))

    def coarser(self, steps: int) -> "Mixture":
        """Returns the mixture of the same members on a grid of ``steps`` steps, where they have one."""
        made = type(self).__new__(type(self))
        Frozen.__init__(made)
        changed = [m.coarser(steps) if hasattr(m, "coarser") else m for m in self.members]
        made._hold(changed, self.weights)
        return made


def _member(table: Any, denoiser: Denoiser, memory_bytes: int) -> PurifiesImages:
    """One member, from its table."""
    if not isinstance(table, Mapping):
        raise UserError('a member of a mixture is a table such as { sampler = "ddim", steps = 20 }.')
    name = table.get("name", DIFFUSION)
    rest = {key: value for key, value in table.items() if key != "name"}
    if name != DIFFUSION:
        if more := sorted(rest.keys() - {"options"}):
            raise UserError(f"member '{name}' of a mixture has name and options only, not '{more[0]}'.")
        rest = rest.get("options", {})
    made = make_purifier(name, rest, denoiser=denoiser, memory_bytes=memory_bytes)
    if isinstance(made, Mixture):
        raise UserError("a member of a mixture is a mixture itself. List its members.")
    return made
