"""What a board needs of a run or bundle: its headline row image by image, and how strong its attack was.

The strength is read from what the attack left in the records, not from what the spec promises.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dbpkit.bundles.opening import opened_bundle
from dbpkit.foundation.amounts import amount
from dbpkit.foundation.errors import UserError
from dbpkit.results.columns import RowColumns
from dbpkit.results.completeness import unfinished
from dbpkit.results.headline import white_box_eot
from dbpkit.results.kinds import BASELINE_ROWS
from dbpkit.results.protocols import DEFAULT, protocols, recorded_protocol
from dbpkit.results.run_directory import RunDirectory
from dbpkit.results.summary import Row, Summary, summarise
from dbpkit.statistics.estimates import Estimate

COUNTED = frozenset({"iterations", "eot", "n_restarts", "restarts"})
"""Options of attacks whose strength is counted in the records."""

SHARE_OF_PASSES = 0.9
"""Of the passes of another attack; with as many iterations and draws, fewer passes are fewer restarts."""


class Strength(NamedTuple):
    """How strong an attack was, as recorded.

    Attributes:
        names: of the attacks; the worst image of each example counts.
        iterations: of the longest; 0 where the attack left no path of its loss.
        eot: draws per gradient; None where that is not the same everywhere.
        exact: whether its gradient is the exact one.
        random: whether the defence draws noise that it does not know.
        passes: differentiated passes of the image that got most, restarts included.
        select: draws that choose among several attacks; 0 where there is one.
        settings: what else each attack was told, as JSON: no order of strength, but not the same attack.
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
        """Returns in what this attack is weaker than another; nothing if in nothing that was recorded."""
        found = []
        if self.iterations < other.iterations:
            found.append(f"{self.iterations or 'unknown'} iterations against {other.iterations}")
        if self.random and other.random and (self.eot or 0) < (other.eot or 0):
            found.append(f"EoT {self.eot or 'unknown'} against {other.eot}")
        if other.exact and not self.exact:
            found.append("an inexact gradient")
        if missing := set(other.names) - set(self.names):
            found.append(f"without {', '.join(sorted(missing))}")
        if self.random and self.select < other.select and len(self.names) > 1:
            found.append(f"{self.select} draws that choose the worst attack against {other.select}")
        if not found and self.passes < SHARE_OF_PASSES * other.passes and self.random == other.random:
            found.append(f"{self.passes} differentiated passes of an image against {other.passes}")
        return found + self._other_settings(other)

    def _other_settings(self, other: "Strength") -> list[str]:
        """Returns which settings of attacks that both have differ: which of two is weaker, nobody knows."""
        found = []
        for name in sorted(set(self.names) & set(other.names)):
            a, b = ({text for of, text in each.settings if of == name} for each in (self, other))
            told = [json.loads(text) for text in a ^ b]
            keys = sorted({key for one in told for key in one if any(one[key] != t.get(key) for t in told)})
            if a != b:
                found.append(f"other settings of {name} ({', '.join(keys) or 'how often it is named'})")
        return found

    def __str__(self) -> str:
        eot = "" if not self.random else f", EoT {self.eot or 'varies'}"
        gradient = "" if self.exact else ", inexact gradient"
        return f"{' + '.join(self.names)}, {self.iterations or 'unknown'} iterations{eot}{gradient}"


class Entry(NamedTuple):
    """A run on a board.

    Attributes:
        name: its title.
        source: name of the file or folder.
        group: what must be equal of two that are ranked together: threat, data, protocol.
        summary: its table.
        row: the row that ranks it; None if it has none.
        scores: what the protocol counts of every image, by example id, in [0, 1].
        labels: true class by example id.
        data_sha256: of its examples, or empty.
        strength: of the attack of that row.
        faults: sentences: why its number is not to be ranked; empty if it is.
    """

    name: str
    source: str
    group: tuple[str, ...]
    summary: Summary
    row: Row | None
    scores: dict[int, float]
    labels: dict[int, int]
    data_sha256: str
    strength: Strength
    faults: list[str]

    def estimate(self, row: str, estimand: str = "") -> Estimate | None:
        """Returns the headline of another row, or one of its estimates by the beginning of its name."""
        found = next((r for r in self.summary.rows if r.name == row), None)
        if found is None or not estimand:
            return found and found.headline
        return next((e for e in found.estimates if e.estimand.partition("@")[0] == estimand), None)


def headline_row(rows: Sequence[str]) -> str | None:
    """Returns the row that a run is ranked and remembered by: the white box, or else its first attacker's."""
    attackers = [row for row in rows if row not in BASELINE_ROWS]
    return "white_box" if "white_box" in attackers else next(iter(attackers), None)


def read_entry(path: str | Path) -> Entry:
    """Reads what a board needs of a run directory or a bundle; UserError if it is neither."""
    place = Path(path)
    if place.is_dir():
        return _entry(place.resolve().name, RunDirectory(place), None)
    with opened_bundle(place, light=True) as opened:
        return _entry(place.name, opened.run, opened.summary)


def _entry(source: str, run: RunDirectory, summary: Summary | None) -> Entry:
    summary = summary or summarise(run)
    if not summary.rows:
        raise UserError(f"'{source}' holds no result of an evaluation. Leave it out.")
    spec, columns = run.spec()["spec"], run.columns().rows
    name = headline_row([row.name for row in summary.rows])
    row = summary.row(name) if name else None
    group = columns[name] if name else next(iter(columns.values()))
    labels = dict(zip(group.example.tolist(), group.label.tolist(), strict=True))
    session: dict[str, Any] = max(run.sessions() or [{}], key=lambda s: s.get("examples") or 0)
    scores = _scores(summary, name, group) if name else {}
    strength = _strength(summary, name or "", group)
    return Entry(
        summary.name,
        source,
        _group(summary, spec),
        summary,
        row,
        scores,
        labels,
        session.get("data_sha256") or "",
        strength,
        list(_faults(summary, name, strength, unfinished(run))),
    )


def _group(summary: Summary, spec: dict[str, Any]) -> tuple[str, ...]:
    """Threat, data and protocol in a form that is equal where they are; a folder on a machine is no part."""
    threat, data = summary.spec.threat, spec["data"]
    options = {k: v for k, v in data.get("options", {}).items() if k not in ("root", "path")}
    parts = (threat.options, options)
    more = [json.dumps(part, sort_keys=True) if part else "" for part in parts]
    return threat.norm, f"{amount(threat.eps):.9g}", more[0], str(data["name"]), more[1], summary.protocol


def _scores(summary: Summary, row: str, group: RowColumns) -> dict[int, float]:
    """What the protocol counts of every image: a mean over its tapes."""
    protocol = recorded_protocol(summary.protocol) or protocols.get(DEFAULT)
    if protocol.at_once is not None:
        held = np.asarray(protocol.at_once(group), dtype=float)
    else:
        held = np.array([protocol.held(record) for record in group.records(row)])
    ids, where = np.unique(group.example, return_inverse=True)
    return dict(zip(ids.tolist(), (np.bincount(where, held) / np.bincount(where)).tolist(), strict=True))


def _strength(summary: Summary, row: str, group: RowColumns) -> Strength:
    """How strong the attack of a row was."""
    counts, passes = group.paths["loss"].counts, group.measures["gradient_passes"]
    iterations = int(counts.max(initial=0))
    whole = counts == iterations
    pairs = [(p, int(c)) for p, c in zip(passes[whole].tolist(), counts[whole].tolist(), strict=True)]
    knowledge = next((k for k in summary.spec.knowledge if k.name == row), None)
    random = int(group.draws.max(initial=1)) > 1
    told = [(a.name, {k: v for k, v in a.options.items() if k not in COUNTED}) for a in summary.spec.attacks]
    return Strength(
        tuple(sorted(a.name for a in summary.spec.attacks)),
        iterations,
        white_box_eot(summary.spec.attacks, pairs) if random else 1,
        knowledge is None or knowledge.gradient == "exact",
        random,
        int(np.nan_to_num(passes).max(initial=0)),
        summary.spec.draws.select if len(told) > 1 else 0,
        tuple(sorted((name, json.dumps(options, sort_keys=True)) for name, options in told)),
    )


def _faults(summary: Summary, row: str | None, strength: Strength, missing: str) -> Iterator[str]:
    """Why a number is not to be ranked."""
    if row is None:
        yield "No attacker of the defence was evaluated."
    elif row != "white_box":
        yield f"It has no white box; its row is '{row}'."
    if not strength.exact:
        yield "The gradient of its attack is not the exact one."
    if missing:
        yield missing
    for flag in summary.flags:
        if flag.severity == "error" and flag.row in ("", row):
            yield f"Flag {flag.name}: {flag.message}"
