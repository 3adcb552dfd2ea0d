"""How strong the attack of a run was, and in what one is weaker than another.

The thing people get wrong: believing one number of several attacks. A long attack hides a short one beside
it, and a bad attack that is tried first keeps images which one lucky draw decides.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from dbpkit.foundation.amounts import amount, is_amount
from dbpkit.results.columns import RowColumns
from dbpkit.results.headline import white_box_eot
from dbpkit.results.summary import Summary, has_purifier

RESTARTS = ("n_restarts", "restarts")
COUNTED = ("iterations", "eot", *RESTARTS)
"""Options of attacks of which more is stronger."""

SHARE_OF_PASSES = 0.9
"""Of the passes of another attack; with as many iterations and draws, fewer passes are fewer restarts."""

CHOOSING = 10
"""Draws that choose among several attacks, at least: with fewer, a bad one more raises accuracy by much."""

_DESIGN = "design."


class Strength(NamedTuple):
    """How strong an attack was, as recorded; of several attacks each as it was told.

    Attributes:
        names: of the attacks; the worst image of each example counts.
        iterations: of the longest; 0 where the attack left no path of its loss.
        eot: draws per gradient; None where that is not the same everywhere.
        exact: whether its gradient is the exact one.
        random: whether the defence draws noise that it does not know, or may do so.
        passes: differentiated passes of the image that got most, restarts included.
        select: draws that choose among several attacks; 0 where there is one.
        settings: what each attack was told, as JSON, in the order in which they attack.
    """

    names: tuple[str, ...]
    iterations: int
    eot: int | None
    exact: bool
    random: bool
    passes: int = 0
    select: int = 0
    settings: tuple[tuple[str, str], ...] = ()

    def weaker_than(self, other: "Strength") -> list[str]:
        """Returns in what this attack is weaker than another; nothing if in nothing that is known."""
        found = []
        if self._alone(other):
            if self.iterations < other.iterations:
                found.append(f"{self.iterations or 'unknown'} iterations against {other.iterations}")
            if self.random and other.random and (self.eot or 0) < (other.eot or 0):
                found.append(f"EoT {self.eot or 'unknown'} against {other.eot}")
        if other.exact and not self.exact:
            found.append("an inexact gradient")
        if missing := set(other.names) - set(self.names):
            found.append(f"without {', '.join(sorted(missing))}")
        found += self._worse_choice(other)
        told = list(self._told_differently(other))
        found += [why for why, _ in told if why]
        if not found and self.passes < SHARE_OF_PASSES * other.passes and self.random == other.random:
            found.append(f"{self.passes} differentiated passes of an image against {other.passes}")
        return found + [why for _, why in told if why]

    def _alone(self, other: "Strength") -> bool:
        """Whether each is one attack, whose iterations and draws its records count."""
        return len(self.names) == len(other.names) == 1

    def _worse_choice(self, other: "Strength") -> Iterator[str]:
        """In what the choice of the worst of several attacks is weaker; a defence without noise has none."""
        if len(self.names) < 2 or not self.random:
            return
        asked = max(other.select, CHOOSING if set(self.names) - set(other.names) else 0)
        if self.select < asked:
            yield f"{self.select} draws that choose the worst attack against {asked}"
        shared = set(self.names) & set(other.names)
        orders = [[name for name, _ in each.settings if name in shared] for each in (self, other)]
        if self.select < CHOOSING and orders[0] != orders[1]:
            yield f"another order of attacks, and {self.select} draws that choose the worst"

    def _told_differently(self, other: "Strength") -> Iterator[tuple[str, str]]:
        """For each attack that both have: in what it is weaker, and what else it was told.

        Of other settings nobody knows which is weaker. An option that one leaves out is another setting, too:
        defaults change, and a run does not say which it had.
        """
        for name in sorted(set(self.names) & set(other.names)):
            a, b = ([_values(text) for of, text in each.settings if of == name] for each in (self, other))
            if len(a) != len(b):
                yield "", f"other settings of {name} (how often it is named)"
                continue
            fewer, others = set[str](), set[str]()
            for own, its in zip(a, b, strict=True):
                for key in own.keys() | its.keys():
                    one, two = own.get(key), its.get(key)
                    if one == two or self._is_idle(other, key) or self._is_recorded(other, key):
                        continue
                    if key not in COUNTED or not (type(one) is type(two) is int):
                        others.add(key)
                    elif one < two:
                        fewer.add(f"{one} {key} of {name} against {two}")
            said = f"other settings of {name} ({', '.join(sorted(others))})" if others else ""
            yield "; ".join(sorted(fewer)), said

    def _is_idle(self, other: "Strength", key: str) -> bool:
        """Whether an option is of draws, of which one of two defences has none."""
        return (key == "eot" or key.startswith(_DESIGN)) and not (self.random and other.random)

    def _is_recorded(self, other: "Strength", key: str) -> bool:
        """Whether the records of both say what an option came to."""
        if not self._alone(other):
            return False
        if key in RESTARTS:
            return min(self.passes, other.passes) > 0 and self.random == other.random
        return (key == "iterations" and min(self.iterations, other.iterations) > 0) or (
            key == "eot" and None not in (self.eot, other.eot)
        )

    def __str__(self) -> str:
        eot = "" if not self.random else f", EoT {self.eot or 'varies'}"
        gradient = "" if self.exact else ", inexact gradient"
        return f"{' + '.join(self.names)}, {self.iterations or 'unknown'} iterations{eot}{gradient}"


def read_strength(summary: Summary, row: str, group: RowColumns) -> Strength:
    """Returns how strong the attack of a row was."""
    spec = summary.spec
    counts, passes = group.paths["loss"].counts, group.measures["gradient_passes"]
    iterations = int(counts.max(initial=0))
    whole = counts == iterations
    pairs = [(p, int(c)) for p, c in zip(passes[whole].tolist(), counts[whole].tolist(), strict=True)]
    knowledge = next((k for k in spec.knowledge if k.name == row), None)
    # One draw of each image does not say whether there is anything to draw.
    random = int(group.draws.max(initial=1)) > 1 or (spec.draws.report == 1 and has_purifier(spec))
    told = [(a.name, {**a.options, **{_DESIGN + k: v for k, v in a.design.items()}}) for a in spec.attacks]
    return Strength(
        tuple(sorted(a.name for a in spec.attacks)),
        iterations,
        white_box_eot(spec.attacks, pairs) if random else 1,
        knowledge is None or knowledge.gradient == "exact",
        random,
        int(np.nan_to_num(passes).max(initial=0)),
        spec.draws.select if len(told) > 1 else 0,
        tuple((name, json.dumps(options, sort_keys=True)) for name, options in told),
    )


def _values(text: str) -> dict[str, Any]:
    """What an attack was told, in one form: "2/255" is a number, and null is as good as nothing."""
    told = {k: amount(v) if isinstance(v, str) and is_amount(v) else v for k, v in json.loads(text).items()}
    return {key: value for key, value in told.items() if value is not None}
