"""Every random number of the package, as a pure function of its key.

A key is (seed, stream, lane, draw, example id, site, step). It addresses the Philox4x32-10 counter-based
generator, so a value does not depend on batch size, order, device, process count or earlier calls.
The thing people get wrong: a plan is bound to its examples. Slice it (`rows`) together with ``x`` and
``y``; a batch of another length is refused, never silently re-drawn.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dbpkit.foundation.coupling import MIRRORED, coupled_values, numbers
from dbpkit.foundation.drawing import Rows, values
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.frozen import uncompiled
from dbpkit.foundation.inputs import LIMIT, check_seed, whole
from dbpkit.foundation.noise_keys import (
    MAX_ID as MAX_ID,
)
from dbpkit.foundation.noise_keys import (
    check_site,
    check_stream,
    checked_draw,
    checked_ids,
    checked_rows,
)
from dbpkit.foundation.philox import BLOCK_BITS, LOW, UNIFORM, place, stream_key
from dbpkit.foundation.philox import SITES as SITES
from dbpkit.foundation.philox import STREAMS as STREAMS

MAX_ROWS = 1 << 24
"""Most rows of one plan; as many small images take 200 GB."""


@dataclass(frozen=True, eq=False)
class NoisePlan:
    """The noise of a batch of examples: row ``b`` belongs to ``example_ids[b]``, whatever the batch.

    Attributes:
        seed: run seed, 0 <= seed < 2**32.
        example_ids: (B,) int64, stable ids of the examples, each in [0, 2**44).
        stream: one of `STREAMS`.
        draw: (B,) int64, index of the independent repetition of each row, each in [0, 2**32); above its 32
            bits stands how it depends on others, see `dbpkit.foundation.coupling`.
        lane: which of 2**24 independent copies of the stream; one per attack and tape.
        shared: sites whose values come from another plan, see `sharing`.
        group: most draws that depend on each other; 0 where every draw is independent.
        twins: ids and draws on the devices where it has drawn, see `placed`.

    Example:
        >>> plan = NoisePlan.of(seed=0, example_ids=[3, 7])
        >>> z = plan.normal("forward", 0, torch.zeros(2, 3, 8, 8))
        >>> bool((z[1] == plan.rows([1]).normal("forward", 0, torch.zeros(1, 3, 8, 8))[0]).all())
        True
    """

    seed: int
    example_ids: Tensor
    stream: str
    draw: Tensor
    shared: Mapping[str, "NoisePlan"] = field(default_factory=dict)
    lane: int = 0
    group: int = 0
    twins: dict[torch.device, Rows] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(
        cls, seed: int, example_ids: Iterable[int] | Tensor, stream: str = "report", draw: int = 0
    ) -> "NoisePlan":
        """Makes a plan for examples, checking the ranges of every part of the key.

        Raises:
            UserError: if the seed or an id is out of range, or the stream is unknown.
        """
        seed, draw = check_seed(seed), checked_draw(draw)
        check_stream(stream)
        ids = checked_ids(example_ids)
        return cls(seed, ids, stream, torch.full_like(ids, draw))

    def __len__(self) -> int:
        return self.example_ids.numel()

    @uncompiled
    def normal(self, site: str, step: int, like: Tensor) -> Tensor:
        """Draws standard normals for every row.

        Args:
            site: one of `SITES`.
            step: index of the use within the site (sampler step), 0 <= step < 2**24.
            like: (B, ...) gives shape, dtype and device.

        Returns:
            (B, ...) independent N(0, 1) values, |z| <= 6.77, computed in float64 and rounded.

        Raises:
            UserError: if ``like`` has another number of rows than the plan.

        Source:
            Salmon et al. 2011, Philox4x32-10; Box & Muller 1958.
        """
        return self._drawn(site, step, like, kind=0)

    @uncompiled
    def uniform(self, site: str, step: int, like: Tensor) -> Tensor:
        """Draws uniforms on [0, 1), multiples of 2**-24; arguments and errors as `normal`."""
        return self._drawn(site, step, like, kind=UNIFORM)

    def repeat(
        self,
        draws: int,
        *,
        antithetic: bool = False,
        orthogonal: bool = False,
        skip: int = 0,
        of: int | None = None,
    ) -> "NoisePlan":
        """Returns a plan of B * draws rows: row ``b * draws + r`` is repetition r of example b.

        Draw d becomes the draws ``d * draws + r``, so ``plan.at(i).repeat(eot)`` never repeats a value
        for another i. Shared sites keep the source's own draw in every repetition. Repetitions of a mirror
        image are mirror images of those of its twin; of rows at right angles they are independent.

        Args:
            draws: repetitions of each row.
            antithetic: whether repetition 2 k + 1 is the mirror image of 2 k: normals -z, uniforms 1 - u on
                their grid. Both count as one draw, ``d * draws + k``.
            orthogonal: whether the normals of an example's draws, at one site and step, are at right angles.
            skip: how many repetitions of the same draw are made elsewhere, before these.
            of: how many are made in all, here and elsewhere; None for ``skip + draws``.

        Raises:
            UserError: if there is no repetition, or one would be a draw of 2**32 or more.
        """
        draws = whole(draws, "count of draws", 1, LIMIT)
        of = skip + draws if of is None else of
        if len(self) * draws > MAX_ROWS:
            raise UserError(f"{draws} draws of {len(self)} examples are more rows than fit one batch.")
        last = int((self.draw & LOW).max()) if len(self) else 0
        if (last + 1) * of > LIMIT:
            raise UserError(f"{of} repetitions of draw {last} go beyond the last draw, 2**32 - 1.")

        def numbered(first: Tensor) -> Tensor:
            own = numbers(draws, antithetic, orthogonal, first.device)
            made = (first & LOW)[:, None] * of + skip + own
            return (made ^ (first & MIRRORED)[:, None]).flatten()

        made = self._changed(lambda rows: rows.repeat_interleave(draws), numbered)
        group = -(-draws // 2) if antithetic else draws
        coupled = antithetic or orthogonal or self.group > 0
        return made._made(made.twins, group=(group if orthogonal else 1) * coupled)

    def rows(self, index: Tensor | list[int] | slice) -> "NoisePlan":
        """Returns the plan of the chosen rows, in the order of ``index``; slices copy nothing to a device."""
        if isinstance(index, slice):
            return self._changed(lambda rows: rows[index])
        here = checked_rows(index, len(self))
        there = {device: here.to(device) for device in self.twins}
        return self._changed(lambda rows: rows[there.get(rows.device, here)])

    def padded(self, count: int) -> "NoisePlan":
        """Returns the plan of ``count`` rows, at least those there are: the last one as often as needed."""
        more = count - len(self)
        return self._changed(lambda rows: torch.cat([rows, rows[-1:].expand(more)])) if more > 0 else self

    def on(self, stream: str) -> "NoisePlan":
        """Returns the same rows on another stream."""
        check_stream(stream)
        return self._made(self.twins, stream=stream)

    def at(self, draw: int) -> "NoisePlan":
        """Returns the same rows at another draw, each independent; shared sites keep theirs."""
        draw = checked_draw(draw)
        twins = {there: Rows(t.ids, torch.full_like(t.draws, draw)) for there, t in self.twins.items()}
        return self._made(twins, draw=torch.full_like(self.draw, draw), group=0)

    def tape(self, draw: int) -> "NoisePlan":
        """Returns draw ``draw`` of the same examples in lane 0 of the attack stream, with nothing shared."""
        return self._made(self.twins, stream="attack", lane=0, shared={}).at(draw)

    def in_lane(self, lane: int) -> "NoisePlan":
        """Returns the same rows in another lane of the stream, whose draws are all new; 0 <= lane < 2**24."""
        if not 0 <= whole(lane, "noise lane", low=-(1 << 62)) < 1 << 24:
            raise UserError(f"noise lane {lane} is outside [0, 2**24).")
        return self._made(self.twins, lane=lane)

    def branch(self, part: int) -> "NoisePlan":
        """Returns the same rows in lanes of their own for part 1 to 15 of an attack made of several.

        No branch of one lane meets a branch of another, or an unbranched lane.

        Raises:
            UserError: if the part is out of range, or the lane is (as that of a branch).
        """
        if not 0 < whole(part, "part of a noise lane", low=-(1 << 62)) < 16 or self.lane >= 1 << 20:
            raise UserError(
                f"noise lane {self.lane} has no branch {part}: parts are 1 to 15, lanes below 2**20."
            )
        return self.in_lane(part << 20 | self.lane)

    def sharing(self, sites: Iterable[str], source: "NoisePlan") -> "NoisePlan":
        """Returns a plan that takes the values of ``sites`` from ``source``, row by row.

        This is how an attacker is told the defender's noise: the attack's plan shares sites with
        the report's plan.

        Raises:
            UserError: if the two plans hold other examples.
        """
        if not isinstance(source, NoisePlan) or not torch.equal(self.example_ids, source.example_ids):
            raise UserError("noise can be shared only between plans of the same examples in the same order.")
        if isinstance(sites, str) or not isinstance(sites, Iterable):
            raise UserError("the noise sites to share are given as a list of names.")
        sites = list(sites)
        for site in sites:
            check_site(site)
        return self._made(self.twins, shared={**self.shared, **dict.fromkeys(sites, source)})

    def placed(self, device: torch.device) -> "NoisePlan":
        """Returns the same plan with a twin of ids and draws on ``device``, which plans made of it inherit.

        Drawing there then copies nothing from the host. A plan that is placed already is returned as it is; a
        draw places the plan that it is asked of, but not the one that it was made of.
        """
        self._rows_on(device)
        for source in self.shared.values():
            source.placed(device)
        return self

    def _rows_on(self, device: torch.device) -> Rows:
        """Ids and draws on a device; the twin is kept, but for one that ends before the plan does."""
        twin = self.twins.get(device) or Rows(self.example_ids, self.draw).to(device)
        if device.type != "cpu" and twin.lasts:
            self.twins[device] = twin
        return twin

    def __getstate__(self) -> dict[str, Any]:  # who reads it may have no such device
        return {**self.__dict__, "twins": {}}

    def _changed(
        self, rows: Callable[[Tensor], Tensor], draws: Callable[[Tensor], Tensor] | None = None
    ) -> "NoisePlan":
        """Other rows, of this plan and of those it shares with; ``draws`` is for its own draws."""
        twins = {there: Rows(rows(t.ids), (draws or rows)(t.draws)) for there, t in self.twins.items()}
        shared = {site: source._changed(rows) for site, source in self.shared.items()}
        own = (draws or rows)(self.draw)
        return self._made(twins, example_ids=rows(self.example_ids), draw=own, shared=shared)

    def _made(self, twins: Mapping[torch.device, Rows], **changes: Any) -> "NoisePlan":
        """A plan with changes and twins that fit them; `dataclasses.replace` alone leaves it without any."""
        made = replace(self, **changes)
        made.twins.update(twins)
        return made

    def _drawn(self, site: str, step: int, like: Tensor, kind: int) -> Tensor:
        """The values of the key, or of the plan that the site is shared with."""
        check_site(site)
        if not isinstance(like, Tensor) or not like.ndim or not like.is_floating_point():
            raise UserError("noise is drawn like a tensor of floating point, (B, ...).")
        if like.shape[0] != len(self):
            raise UserError(
                f"a noise plan of {len(self)} examples was used on a batch of {like.shape[0]}. "
                "Slice the plan with rows() together with the batch."
            )
        if site in self.shared:
            return self.shared[site]._drawn(site, step, like, kind)
        if not 0 <= whole(step, "noise step", low=-(1 << 62)) < 1 << 24:
            raise UserError(f"noise step {step} is outside [0, 2**24).")
        if math.prod(like.shape[1:]) > 4 << BLOCK_BITS:
            shape = tuple(like.shape[1:])
            raise UserError(f"an example of {shape} values exceeds 2**22, the most a noise plan draws.")
        key = stream_key(self.seed, self.stream, self.lane)
        rows, last = self._rows_on(like.device), place(kind, site, step)
        if self.group:
            return coupled_values(like, rows, key, last, kind, self.group)
        return values(like, rows, key, last, kind)


def permutation(seed: int, count: int, epoch: int) -> Tensor:
    """Returns a random order of ``range(count)``, (count,) int64, one per epoch and seed."""
    plan = NoisePlan.of(seed, torch.arange(count), "train", draw=epoch)
    order = plan.uniform("order", 0, torch.zeros(count, 1, dtype=torch.float64))[:, 0]
    return torch.argsort(order, stable=True)


@contextlib.contextmanager
def seeded_generator(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Makes torch's own random layers reproducible inside the block; the global state is restored.

    This is the one place where torch's global generator is used: networks draw their first weights and
    dropout layers their masks from it.

    Args:
        seed: of the CPU's generator and the device's, 0 <= seed < 2**64.
        device: an accelerator whose generator is seeded too.
    """
    devices = [device] if device is not None and device.type != "cpu" else []
    with torch.random.fork_rng(devices=devices, device_type=devices[0].type if devices else "cuda"):
        torch.manual_seed(seed)  # noqa: TID251 - the one place
        yield
