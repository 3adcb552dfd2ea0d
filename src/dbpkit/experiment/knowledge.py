"""What the attacker knows of the defence: its gradient, and which of its random numbers.

The runner applies it by sharing sites of the attack's noise with the report's noise; no attack knows of it.
A tape is one draw of all the noise of one purification. The thing people get wrong: the noise that is
shared must be the noise the defender is then judged with.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.philox import SITES
from dbpkit.foundation.plugins import load_plugins
from dbpkit.purification.samplers import FORWARD_SITES, REVERSE_SITES


class Knowledge(NamedTuple):
    """One attacker.

    Attributes:
        name: row of the table.
        gradient: registered gradient: ``exact``, ``bpda``, ``surrogate``, ``blind``, ``other_tape``,
            ``unsquashed`` or ``mean_logits``.
        gradient_options: its keyword arguments.
        shared_sites: noise the attacker knows; ``forward`` stands for all that is drawn before the way back,
            a drawn t*, grid or sampler too, and ``reverse`` for all noise of the way back.
        tapes: independent repetitions of the whole attack, each against another tape.
    """

    name: str
    gradient: str = "exact"
    gradient_options: Mapping[str, Any] = {}
    shared_sites: frozenset[str] = frozenset()
    tapes: int = 1

    @property
    def sites(self) -> frozenset[str]:
        """The sites, with ``forward`` and ``reverse`` spelled out; UserError if one is unknown."""
        for site in self.shared_sites:
            if site not in SITES:
                raise UserError(
                    f"knowledge '{self.name}': unknown noise site '{site}'. Available: {', '.join(SITES)}."
                )
        groups = {"forward": FORWARD_SITES, "reverse": REVERSE_SITES}
        return self.shared_sites.union(
            *(group for name, group in groups.items() if name in self.shared_sites)
        )

    def leaves_nothing_random(self, sites: frozenset[str]) -> bool:
        """Whether a model that draws from ``sites`` is deterministic for this attacker."""
        return sites <= self.sites

    def apply(self, noise: NoisePlan, tape: int) -> NoisePlan:
        """Returns ``noise`` with the known sites taken from the report's draw number ``tape``."""
        return noise.sharing(self.sites, noise.on("report").in_lane(0).at(tape))


_BOTH = frozenset({"forward", "reverse"})

known: dict[str, Knowledge] = {
    k.name: k
    for k in (
        Knowledge("white_box"),
        Knowledge("dw_fwd", shared_sites=frozenset({"forward"})),
        Knowledge("dw_rev", shared_sites=frozenset({"reverse"})),
        Knowledge("dw_both", shared_sites=_BOTH),
        Knowledge("fixed", shared_sites=_BOTH, tapes=5),
        Knowledge("bpda", gradient="bpda"),
        Knowledge("surrogate", gradient="surrogate"),
        Knowledge("blind", gradient="blind"),
        Knowledge("other_tape", gradient="other_tape"),
        Knowledge("unsquashed", gradient="unsquashed"),
    )
}
"""Settings by name. Source: Liu et al., ICLR 2025, section 3 (DW); Liu & Wei 2025 (fixed randomness)."""


def find_known(name: str) -> Knowledge | None:
    """Returns the setting of this name, also one that an installed package brings; None if there is none."""
    if name not in known:
        load_plugins()
    return known.get(name)
