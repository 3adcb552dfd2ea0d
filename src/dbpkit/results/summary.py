"""The summary of a run: a pure function of its spec, records and checks.

Accuracy of a row with several tapes is a mean over examples of means over tapes, for the tapes of one example
are not independent examples.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dbpkit.foundation import display
from dbpkit.foundation.errors import UserError, check_kind
from dbpkit.results.analysis import analysis_results
from dbpkit.results.chance import JUDGED, chance_flags
from dbpkit.results.columns import ABSENT, RowColumns, network_calls
from dbpkit.results.doubts import doubts
from dbpkit.results.ensembles import ensemble_estimates
from dbpkit.results.executed import executed
from dbpkit.results.flags import Flag, record_flags
from dbpkit.results.headline import NOTHING, STILL, headline_sentence, measured_trend, white_box_eot
from dbpkit.results.kinds import DIFFERENCES, NO_DENOISER, baseline_rows, kind_of
from dbpkit.results.protocols import (
    DEFAULT,
    Headline,
    Protocol,
    headline,
    own_protocol,
    protocol_flags,
    protocols,
    quick_headline,
    recorded_protocol,
)
from dbpkit.results.records import Record
from dbpkit.results.run_directory import RunDirectory
from dbpkit.results.schemas import RecordedSpec
from dbpkit.results.votes import votes
from dbpkit.statistics.estimates import (
    Estimate,
    any_iterate,
    mean_accuracy,
    paired_difference,
)


class Row(NamedTuple):
    """One row of the table.

    Attributes:
        name: ``white_box``, ``clean``, ...
        title: the same for people.
        tapes: independent noise tapes the attacker was given in turn, or 1.
        estimates: ``per_draw`` first; ``majority`` and ``all_draws@R`` where there are R > 1 draws;
            ``any_iterate@N`` where iterates were judged; ``mean_logits@R`` for several R under that one.
        headline: the estimate that the spec's protocol publishes.
        control: the same of unattacked images at the same number of queries, or None.
        forward_passes: purifications per example that the attack ran, each tape's added.
        gradient_passes: those of them that were differentiated.
        network_calls: forward calls of the denoiser that the passes mean, or of the model where it has none;
            None in runs that did not record them.
        failed: records without a result, one per example and tape.
    """

    name: str
    title: str
    tapes: int
    estimates: list[Estimate]
    headline: Estimate
    control: Estimate | None
    forward_passes: float
    gradient_passes: float
    network_calls: float | None
    failed: int


class Summary(NamedTuple):
    """Everything a report shows, derived from the run directory alone; ``executed`` is no result."""

    name: str
    spec: RecordedSpec
    rows: list[Row]
    differences: dict[str, Estimate]
    flags: list[Flag]
    sentence: str
    executed: str = ""

    @property
    def protocol(self) -> str:
        """Name of the protocol that decides the headline."""
        return self.spec.protocol

    def row(self, name: str) -> Row:
        """Returns the row called ``name``; KeyError if there is none."""
        return next(r for r in self.rows if r.name == name)

    def as_json(self) -> dict[str, Any]:
        """Returns plain dictionaries and lists."""
        return {
            "name": self.name,
            "sentence": self.sentence,
            "protocol": self.protocol,
            "rows": [
                {
                    **r._asdict(),
                    "estimates": [e._asdict() for e in r.estimates],
                    "headline": r.headline._asdict(),
                    "control": r.control._asdict() if r.control else None,
                }
                for r in self.rows
            ],
            "differences": {k: e._asdict() for k, e in self.differences.items()},
            "flags": [f._asdict() for f in self.flags],
        }

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return display.html(self)

    def to_frame(self) -> Any:
        """Returns a ``pandas.DataFrame``: one line for every estimate of every row.

        Values lie in [0, 1], passes and calls are per image.

        Raises:
            UserError: if pandas is not installed.
        """
        return display.frame(self)

    def plot(self) -> Any:
        """Returns the accuracy per draw of every row as a ``matplotlib.figure.Figure``."""
        return display.plot(self)


def summarise(run: RunDirectory | str | Path) -> Summary:
    """Computes the summary of a run directory, finished or not.

    Args:
        run: the run directory; one given as such still knows its records afterwards.

    Returns:
        The rows of the table with their estimates, flags, and the sentence that says what follows.

    Raises:
        UserError: if it is not a run directory or a record is damaged.
    """
    run = run if isinstance(run, RunDirectory) else RunDirectory(run)
    check_kind(run, RunDirectory, "summarise: run", "Make one with RunDirectory(path).")
    spec, columns = run.recorded_spec(), run.columns()
    chosen = spec.protocol
    protocol = recorded_protocol(chosen) or protocols.get(DEFAULT)
    failed = Counter(r["row"] for r in columns.failed)
    scores = {name: columns.rows[name].by_example() for name in expected_rows(spec) if name in columns.rows}
    rows: list[Row] = []
    own_flags: list[Flag] = []
    unattacked: dict[str, list[Record]] = {}
    for name in scores:  # the records of one row at a time: all of them fill the memory
        shown = quick_headline(protocol, columns.rows[name])
        if shown is None:
            group, clean = columns.rows[name].records(name), kind_of(name).control
            if clean not in unattacked:
                unattacked[clean] = columns.rows[clean].records(clean) if clean in columns.rows else []
            shown = headline(protocol, name, group, unattacked[clean])
            own_flags += protocol_flags(protocol, name, group, unattacked[clean])
        found = _row(name, columns.rows[name], shown, protocol)
        rows.append(found._replace(failed=failed[name], title=kind_of(name).title_in(has_purifier(spec))))
    preflight = [Flag(**f) for f in run.checks() or []]
    differences = {}
    for a, b in DIFFERENCES:
        shared = sorted(scores.get(a, {}).keys() & scores.get(b, {}).keys())
        if shared:
            pairs = [scores[a][i] for i in shared], [scores[b][i] for i in shared]
            differences[f"{a} - {b}"] = paired_difference(*pairs)
    flags = [*record_flags(columns, preflight), *own_protocol(chosen)]
    flags += chance_flags({row: columns.rows[row].records(row) for row, *_ in JUDGED if row in columns.rows})
    flags += [Flag("unverified", severity, sentence) for severity, sentence in doubts(run)]
    flags += own_flags
    gap, eot = (
        differences.get("white_box - dw_both"),
        white_box_eot(spec.attacks, _passes(columns.rows.get("white_box"))),
    )
    still = spec.draws.report > 1 and _draws_nothing(columns.rows.get("white_box"))
    sentence = STILL if still else _sentence(run, eot, scores, gap, flags)
    return Summary(spec.name, spec, rows, differences, flags, sentence, executed(run.sessions()))


def has_purifier(spec: RecordedSpec) -> bool:
    """Whether a resolved spec is of a purified classifier."""
    return spec.purifier.name != "diffusion" or spec.denoiser.name != NO_DENOISER


def expected_rows(spec: RecordedSpec) -> dict[str, int]:
    """Returns every row that a resolved spec asks for, with its tapes."""
    baseline = dict.fromkeys(baseline_rows(has_purifier(spec)), 1)
    return {**baseline, **{k.name: k.tapes for k in spec.knowledge}}


def _row(name: str, group: RowColumns, shown: Headline, protocol: Protocol) -> Row:
    """The estimates of one row."""
    tapes = 1 + int(group.tape.max())
    counted = votes(group)
    estimates = [mean_accuracy("per_draw", counted.share.tolist(), counted.most)]
    always = mean_accuracy(f"all_draws@{counted.most}", counted.always.tolist(), counted.most)
    if tapes == 1 and counted.most > 1:
        estimates += [mean_accuracy("majority", counted.won.tolist(), counted.most), always]
    if tapes == 1 and bool((group.queries["queries"] != ABSENT).all()):
        failed_at = [at or None for at in group.queries["failed_at"].tolist()]
        estimates.append(any_iterate(failed_at, group.queries["queries"].tolist()))
    if tapes == 1 and protocol.averages:
        estimates += ensemble_estimates(group, protocol.estimand)
    if tapes > 1:
        estimates.append(always._replace(estimand=f"all_tapes@{counted.most}"))
    forward, gradient = (
        float(np.nansum(group.measures[k])) / len(counted.draws)
        for k in ("forward_passes", "gradient_passes")
    )
    return Row(
        name,
        name,
        tapes,
        estimates,
        shown.estimate,
        shown.control,
        forward,
        gradient,
        network_calls(group),
        0,
    )


def _passes(group: RowColumns | None) -> set[tuple[float, int]]:
    """Differentiated passes and iterations of a row's attacks."""
    if group is None:
        return set()
    pairs = zip(group.measures["gradient_passes"].tolist(), group.paths["loss"].counts.tolist(), strict=True)
    return {(passes, count) for passes, count in pairs if passes == passes and count}


def _draws_nothing(group: RowColumns | None) -> bool:
    """Whether a row was judged on one draw, which all would be like."""
    return group is not None and len(group.draws) > 0 and bool((group.draws == 1).all())


def _sentence(
    run: RunDirectory,
    eot: int | None,
    scores: Mapping[str, Mapping[int, float]],
    gap: Estimate | None,
    flags: Sequence[Flag],
) -> str:
    """What the difference between white box and DW_Both means, over the examples both have."""
    shared = scores.get("white_box", {}).keys() & scores.get("dw_both", {}).keys()
    if not shared:
        return NOTHING
    white, known = (sum(scores[row][i] for i in shared) / len(shared) for row in ("white_box", "dw_both"))
    try:
        trend = measured_trend(list(analysis_results(run)))
    except UserError:
        trend = None  # whoever shows the analyses says which file is damaged
    return headline_sentence(white, known, gap, eot, flags, trend)
