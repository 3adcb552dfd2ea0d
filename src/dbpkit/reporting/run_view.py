"""One run as its page shows it: facts, rows, flags, pictures and provenance, all as text."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.spec import as_toml
from dbpkit.foundation.times import start_words
from dbpkit.reporting.checks import preflight_note, record_checks
from dbpkit.reporting.strip import Strip, read_strip
from dbpkit.reporting.tables import (
    DifferenceRow,
    EnsembleTable,
    TableRow,
    difference_rows,
    ensemble_table,
    headline_title,
    interval_methods,
    precision_note,
    row_title,
    table_rows,
)
from dbpkit.results.analysis import AnalysisRecords, AnalysisResult, analysis_results
from dbpkit.results.columns import Columns
from dbpkit.results.findings import Finding, evaluation_numbers, gather
from dbpkit.results.flags import Flag
from dbpkit.results.protocols import DEFAULT
from dbpkit.results.run_directory import RunDirectory
from dbpkit.results.schemas import RecordedSpec
from dbpkit.results.summary import Summary, expected_rows, has_purifier, summarise

log = logging.getLogger(__name__)


class Incomplete(NamedTuple):
    """Rows that are equally far from all their examples.

    Attributes:
        recorded: ``"4 of 6 examples"``.
        failed: how many of the others failed.
        titles: the rows.
    """

    recorded: str
    failed: int
    titles: list[str]


class RunView(NamedTuple):
    """One run, ready to be shown.

    Attributes:
        letter: ``"A"``, ``"B"``, ... or empty for a single run.
        path: run directory as it was given.
        facts: what was evaluated, in a few words each.
        summary: its numbers, flags and sentence.
        rows: lines of the headline table.
        protocol: what the headline is called, or empty if it is the accuracy per draw.
        ensembles: accuracy by number of averaged draws, or None.
        methods: how the intervals were made.
        precision: what the networks computed in, in a sentence; empty for float32.
        differences: lines of the table of paired differences.
        incomplete: rows that have not all their examples, by how many they have.
        row_count: rows that were asked for.
        flags: flags with the title of their row, errors first.
        silent: checks that ran and found nothing, with what they look at.
        preflight: what there is to say of the checks before the run, if they have not run or are not listed.
        strip: pictures, or None before there are any.
        no_strip: why there are none.
        settings: the resolved spec as TOML.
        provenance: name and the value of every session.
        hash: sha256 of the spec.
        records: recorded results.
        analyses: finished analyses.
        findings: every claim that was tested.
        only_analysed: whether no evaluation was begun, so that the analyses are all there is.
    """

    letter: str
    path: str
    facts: list[str]
    summary: Summary
    rows: list[TableRow]
    protocol: str
    ensembles: EnsembleTable | None
    methods: str
    precision: str
    differences: list[DifferenceRow]
    incomplete: list[Incomplete]
    row_count: int
    flags: list[tuple[Flag, str]]
    silent: dict[str, str]
    preflight: str
    strip: Strip | None
    no_strip: str
    settings: str
    provenance: list[tuple[str, list[str]]]
    hash: str
    records: int
    analyses: list[AnalysisResult]
    findings: list[Finding]
    only_analysed: bool


def run_view(run: RunDirectory, letter: str) -> RunView:
    """Reads a run; its letter is empty where it is the only one."""
    summary, columns = summarise(run), run.columns()
    recorded = len(columns.failed) + sum(map(len, columns.rows.values()))
    raised = {flag.name for flag in summary.flags}
    checks = {**(run.checks_run() or {}), **record_checks(columns)}
    if any(row.control for row in summary.rows):
        checks["control_as_low"] = "the attack, not the protocol, takes most of what is lost"
    asked = expected_rows(summary.spec)
    titles = {row.name: row.title for row in summary.rows}
    strip, no_strip = _pictures(run, summary.spec, columns)
    results = list(analysis_results(run))
    only_analysed = bool(results) and not recorded and not run.sessions()
    return RunView(
        letter=letter,
        path=str(run.path),
        facts=_facts(summary),
        summary=summary,
        rows=table_rows(summary),
        protocol=headline_title(summary),
        ensembles=ensemble_table(summary),
        methods=interval_methods(summary),
        precision=precision_note(summary),
        differences=difference_rows(summary),
        incomplete=[] if only_analysed else _incomplete(asked, _examples_asked(run), columns),
        row_count=len(asked),
        flags=[
            (flag, titles.get(flag.row) or row_title(flag.row) if flag.row else "")
            for flag in sorted(summary.flags, key=lambda f: f.severity != "error")
        ],
        silent={name: what for name, what in checks.items() if name not in raised},
        preflight=preflight_note(run),
        strip=strip,
        no_strip=no_strip,
        settings=as_toml(run.spec()["spec"]),
        provenance=_provenance(run.sessions() or _analysed(run, results)),
        hash=run.spec()["hash"],
        records=recorded,
        analyses=results,
        findings=gather(evaluation_numbers(run, summary), results),
        only_analysed=only_analysed,
    )


def _pictures(run: RunDirectory, spec: RecordedSpec, columns: Columns) -> tuple[Strip | None, str]:
    """The pictures of a run, or None and why; no number depends on them, so a damaged file stops nothing."""
    try:
        strip = read_strip(run, spec, columns)
    except UserError as error:
        log.warning("The report has no pictures: %s", error)
        return None, f"There are no pictures: {error}"
    return strip, "This run has no pictures yet; they are stored when its evaluation has reached its end."


def _analysed(run: RunDirectory, results: Sequence[AnalysisResult]) -> list[dict[str, Any]]:
    """The hashes that the analyses noted, each once: all that is known where no evaluation was begun."""
    noted = [AnalysisRecords(run, result.name).settings() or {} for result in results]
    hashes = [settings["hashes"] for settings in noted if "hashes" in settings]
    return [h for k, h in enumerate(hashes) if h not in hashes[:k]]


def _facts(summary: Summary) -> list[str]:
    """What was evaluated, in a few words each."""
    spec, purifier = summary.spec, summary.spec.purifier
    norm = {"linf": "L∞", "l2": "L2"}.get(spec.threat.norm, spec.threat.norm)
    attacks = [
        attack.name + "".join(f", {k} {v}" for k, v in (attack.options | attack.design).items())
        for attack in spec.attacks
    ]
    defence = f"purifier {purifier.name}"
    if purifier.sampler is not None and purifier.t_star is not None:
        defence = f"purifier {purifier.sampler}, t* = {start_words(purifier.t_star)}, {purifier.steps} steps"
    if purifier.resize is not None:
        size = purifier.resize.size
        defence += (
            f", at {size} pixels" if isinstance(size, int) else f", at {' x '.join(map(str, size))} pixels"
        )
    return [
        f"data {spec.data.name}",
        defence if has_purifier(spec) else f"classifier {spec.classifier.name}",
        f"budget {norm} {spec.threat.eps}",
        f"attack {' + '.join(attacks)}",
        *([] if summary.protocol == DEFAULT else [f"protocol {summary.protocol}"]),
        *([] if spec.precision == "float32" else [f"networks in {spec.precision}"]),
    ]


def _examples_asked(run: RunDirectory) -> int | None:
    """How many examples the run is over, as its sessions noted, for it can grow; None before any."""
    return max((s["examples"] for s in run.sessions() if s.get("examples")), default=None)


def _incomplete(tapes: Mapping[str, int], asked: int | None, columns: Columns) -> list[Incomplete]:
    """Rows in which an example that was asked for has no result on one of its tapes."""
    done = {row: Counter(columns.rows[row].example.tolist()) if row in columns.rows else {} for row in tapes}
    failed: dict[str, set[int]] = {row: set() for row in tapes}
    for r in columns.failed:
        if r["row"] in tapes:
            failed[r["row"]].add(r["example"])
    groups: dict[tuple[int, int], list[str]] = {}
    for row, wanted in tapes.items():
        recorded = sum(count >= wanted for count in done[row].values())
        if asked is None or recorded < asked:
            groups.setdefault((recorded, len(failed[row])), []).append(row_title(row))
    total = "of all examples of the data" if asked is None else f"of {asked} examples"
    return [
        Incomplete(f"{recorded} {total}", failures, rows) for (recorded, failures), rows in groups.items()
    ]


def _provenance(sessions: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Every entry of the sessions, one column per session."""
    flat = [_flat(session) for session in sessions]
    names = dict.fromkeys(name for session in flat for name in session)
    return [(name, [session.get(name, "") for session in flat]) for name in names]


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """``{"versions": {"torch": "2"}}`` as ``{"versions.torch": "2"}``."""
    entries: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            entries |= _flat(value, f"{prefix}{key}.")
        else:
            shown = ("yes" if value else "no") if isinstance(value, bool) else str(value)
            entries[f"{prefix}{key}"] = shown
    return entries
