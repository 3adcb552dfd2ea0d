"""What a board needs of a run or bundle: its headline row image by image, and how strong its attack was."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dbpkit.bundles.opening import opened_bundle
from dbpkit.bundles.strength import Strength, read_strength
from dbpkit.foundation.amounts import amount
from dbpkit.foundation.errors import UserError
from dbpkit.results.columns import RowColumns
from dbpkit.results.completeness import unfinished
from dbpkit.results.kinds import BASELINE_ROWS
from dbpkit.results.protocols import DEFAULT, protocols, recorded_protocol
from dbpkit.results.run_directory import RunDirectory
from dbpkit.results.summary import Row, Summary, summarise
from dbpkit.statistics.estimates import Estimate


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

    @property
    def setting(self) -> str:
        """Which threat, data and protocol it has, for people."""
        threat, protocol = self.summary.spec.threat, recorded_protocol(self.summary.protocol)
        norm = {"linf": "L∞", "l2": "L2"}.get(threat.norm, threat.norm)
        plain = protocol is None or self.summary.protocol == DEFAULT
        measured = "accuracy per draw" if plain or protocol is None else protocol.title
        if protocol and protocol.has_control:
            measured += f", N = {self.summary.spec.draws.report}"
        return f"{norm}, eps = {threat.eps}, {self.summary.spec.data.name}: {measured}"

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


def read_entries(runs: Sequence[str | Path]) -> list[Entry]:
    """Reads run directories and bundles; UserError if one is neither, or is named twice."""
    places = [Path(run).resolve() for run in runs]
    twice = next((run for run, place in zip(runs, places, strict=True) if places.count(place) > 1), None)
    if twice is not None:
        raise UserError(f"'{twice}' is named twice, and would be ranked against itself. Name it once.")
    return [read_entry(run) for run in runs]


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
    strength = read_strength(summary, name or "", group)
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


_SPLITS = dict.fromkeys(
    ("celeba", "cifar10", "cifar100", "digits", "fashion_mnist", "huggingface", "mnist", "svhn"), "test"
) | {"celeba_hq": "all", "tiny_imagenet": "val"}
"""What a data set has where a spec says no split; written out, as boards need no torch."""


def _group(summary: Summary, spec: dict[str, Any]) -> tuple[str, ...]:
    """Threat, data and protocol in a form that is equal where they are; a folder on a machine is no part.

    The more queries a protocol allows, the lower any random defence scores: their number is a part of it.
    """
    threat, data = summary.spec.threat, spec["data"]
    usual = ("split", _SPLITS.get(str(data["name"])))
    told = data.get("options", {}).items()
    options = {k: v for k, v in told if k not in ("root", "path", "verify") and (k, v) != usual}
    parts = (threat.options, options)
    more = [json.dumps(part, sort_keys=True) if part else "" for part in parts]
    protocol = recorded_protocol(summary.protocol)
    queries = f"@{summary.spec.draws.report}" if protocol and protocol.has_control else ""
    name = f"{summary.protocol}{queries}"
    return threat.norm, f"{amount(threat.eps):.9g}", more[0], str(data["name"]), more[1], name


def _scores(summary: Summary, row: str, group: RowColumns) -> dict[int, float]:
    """What the protocol counts of every image: a mean over its tapes."""
    protocol = recorded_protocol(summary.protocol) or protocols.get(DEFAULT)
    if protocol.at_once is not None:
        held = np.asarray(protocol.at_once(group), dtype=float)
    else:
        held = np.array([protocol.held(record) for record in group.records(row)])
    ids, where = np.unique(group.example, return_inverse=True)
    return dict(zip(ids.tolist(), (np.bincount(where, held) / np.bincount(where)).tolist(), strict=True))


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
