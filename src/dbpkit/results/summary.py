"""The summary of a run: a pure function of its spec, records and preflight checks.

The thing people get wrong: accuracy of a row with several tapes is a mean over examples of means over
tapes; the tapes of one example are no independent examples.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dbpkit.results.estimates import Estimate, all_draws, majority, paired_difference, per_draw
from dbpkit.results.flags import BASELINE_ROWS, Flag, example_scores, record_flags
from dbpkit.results.run_directory import Record, RunDirectory

_PASSES = ("forward_passes", "gradient_passes")

TITLES = {
    "undefended_clean": "undefended, clean",
    "undefended": "undefended, attacked",
    "clean": "purified, clean",
    "noise_control": "purified, random noise of the same size",
    "transfer": "purified, attack on the undefended classifier",
    "white_box": "purified, white box (EoT)",
    "dw_fwd": "purified, DW_Fwd (forward noise known)",
    "dw_rev": "purified, DW_Rev (reverse noise known)",
    "dw_both": "purified, DW_Both (all noise known)",
    "fixed": "purified, fixed randomness",
    "bpda": "purified, BPDA (inexact gradient)",
    "surrogate": "purified, surrogate (inexact gradient)",
    "blind": "purified, attacker unaware of it",
}
"""What rows are called in tables."""


class Row(NamedTuple):
    """One row of the table.

    Attributes:
        name: ``white_box``, ``clean``, ...
        title: the same for people.
        tapes: independent noise tapes the attacker was given in turn, or 1.
        estimates: ``per_draw`` first; ``majority`` and ``all_draws@R`` where there are R > 1 draws.
        forward_passes: purifications per example that the attack ran, each tape's added.
        gradient_passes: those of them that were differentiated.
        failed: records without a result, one per example and tape.
    """

    name: str
    title: str
    tapes: int
    estimates: list[Estimate]
    forward_passes: float
    gradient_passes: float
    failed: int


class Summary(NamedTuple):
    """Everything a report shows, derived from the run directory alone."""

    name: str
    spec: dict[str, Any]
    rows: list[Row]
    differences: dict[str, Estimate]
    flags: list[Flag]
    sentence: str

    def row(self, name: str) -> Row:
        """Returns the row called ``name``; KeyError if there is none."""
        return next(r for r in self.rows if r.name == name)

    def as_json(self) -> dict[str, Any]:
        """Returns plain dictionaries and lists."""
        return {
            "name": self.name,
            "sentence": self.sentence,
            "rows": [{**r._asdict(), "estimates": [e._asdict() for e in r.estimates]} for r in self.rows],
            "differences": {k: e._asdict() for k, e in self.differences.items()},
            "flags": [f._asdict() for f in self.flags],
        }


def summarise(run: RunDirectory) -> Summary:
    """Computes the summary of a run directory, finished or not.

    Raises:
        UserError: if it is no run directory or a record is damaged.
    """
    spec = run.spec()["spec"]
    records = run.records()
    order = [*BASELINE_ROWS, *(k["name"] for k in spec["knowledge"])]
    grouped = {name: [r for r in records if r["row"] == name] for name in order}
    rows = [_row(name, group) for name, group in grouped.items() if any("error" not in r for r in group)]
    preflight = [Flag(**f) for f in run.read_json("checks.json") or []]
    scores = {name: example_scores(group) for name, group in grouped.items()}
    differences = {}
    for a, b in (("white_box", "dw_both"), ("white_box", "fixed"), ("clean", "white_box")):
        shared = sorted(scores.get(a, {}).keys() & scores.get(b, {}).keys())
        if shared:
            pairs = [scores[a][i] for i in shared], [scores[b][i] for i in shared]
            differences[f"{a} - {b}"] = paired_difference(*pairs)
    flags = record_flags(records, preflight)
    return Summary(
        spec["name"],
        spec,
        rows,
        differences,
        flags,
        _sentence(scores, differences.get("white_box - dw_both")),
    )


def by_example(records: Sequence[Record]) -> tuple[list[int], list[list[int]]]:
    """Returns labels and predictions of every example of one row, the tapes' draws side by side."""
    labels: dict[int, int] = {}
    predicted: dict[int, list[int]] = {}
    for r in sorted(records, key=lambda r: (r["example"], r["tape"])):
        labels[r["example"]] = r["label"]
        predicted.setdefault(r["example"], []).extend(r["predicted"])
    return list(labels.values()), list(predicted.values())


def _row(name: str, records: Sequence[Record]) -> Row:
    """The estimates of one row."""
    good = [r for r in records if "error" not in r]
    tapes = 1 + max(r["tape"] for r in good)
    labels, predicted = by_example(good)
    estimates = [per_draw(predicted, labels)]
    if tapes == 1 and estimates[0].draws > 1:
        estimates += [majority(predicted, labels), all_draws(predicted, labels)]
    if tapes > 1:
        every = all_draws(predicted, labels)
        estimates.append(every._replace(estimand=f"all_tapes@{tapes}"))
    examples = len(labels)
    forward, gradient = (sum(r.get(k, 0.0) for r in good) / examples for k in _PASSES)
    return Row(
        name,
        TITLES.get(name, f"purified, {name}"),
        tapes,
        estimates,
        forward,
        gradient,
        len(records) - len(good),
    )


def _sentence(scores: Mapping[str, Mapping[int, float]], gap: Estimate | None) -> str:
    """What the difference between white box and DW_Both means, over the examples both have."""
    if gap is None:
        return (
            "No example has been attacked both with the noise unknown (white box) and known (DW_Both),"
            " so this run cannot yet tell randomness from purification."
        )
    shared = scores["white_box"].keys() & scores["dw_both"].keys()
    white, known = (sum(scores[row][i] for i in shared) / len(shared) for row in ("white_box", "dw_both"))
    points = f"{100 * gap.value:.0f} points (95 % interval {100 * gap.low:.0f} to {100 * gap.high:.0f})"
    head = (
        f"An attacker who must guess the noise leaves {white:.0%} right, one who knows it leaves {known:.0%}"
    )
    if gap.low > 0:
        return (
            f"{head}: {points} of the white-box robustness come from randomness the attacker cannot"
            " foresee, not from removing the perturbation."
        )
    return f"{head}: the difference, {points}, does not show that randomness adds robustness in this run."
