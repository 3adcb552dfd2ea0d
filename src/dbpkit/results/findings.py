"""What papers claim and whether it holds in a run: every number with a claim, and what the evaluation tells.

A claim that the interval leaves open is neither confirmed nor refuted.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dbpkit.results.analysis import AnalysisResult, Claim, Number, analysis_results
from dbpkit.results.run_directory import RunDirectory
from dbpkit.results.summary import Summary, summarise
from dbpkit.statistics.estimates import Estimate
from dbpkit.statistics.intervals import Interval, difference

Verdict = Literal["holds", "does not hold", "undecided"]

EVALUATION = "evaluation"
"""Stands in place of the analysis for what follows from the evaluation's records."""


class Finding(NamedTuple):
    """A claim and what was measured.

    Attributes:
        analysis: name of the analysis, or ``evaluation``.
        number: what was measured, with its claim.
        verdict: whether the claim holds; undecided if the interval or the number of images leaves it open.
    """

    analysis: str
    number: Number
    verdict: Verdict

    def as_json(self) -> dict[str, Any]:
        """Returns a plain dictionary; what is not a finite number is None."""
        number = {k: None if _is_no_number(v) else v for k, v in self.number._asdict().items()}
        reason = {"undecided_because": self.number.open_because} if self.verdict == "undecided" else {}
        return {"analysis": self.analysis, **number, "verdict": self.verdict, **reason}


def findings(run: RunDirectory | str | Path) -> list[Finding]:
    """Returns which of the papers' claims hold in a run: those of its evaluation first, then by analysis.

    Args:
        run: a run directory, evaluated or analysed.

    Returns:
        Every claim with what was measured and its verdict.

    Raises:
        UserError: if it is not a run directory or a file in it is damaged.
    """
    run = run if isinstance(run, RunDirectory) else RunDirectory(run)
    return gather(evaluation_numbers(run, summarise(run)), list(analysis_results(run)))


def gather(evaluated: Sequence[Number], results: Sequence[AnalysisResult]) -> list[Finding]:
    """Returns every number that has a claim, with its verdict."""
    named = [(EVALUATION, evaluated), *((result.name, result.numbers) for result in results)]
    return [
        Finding(name, number, said)
        for name, numbers in named
        for number in numbers
        if (said := verdict(number)) is not None
    ]


def verdict(number: Number) -> Verdict | None:
    """Whether a number's claim holds; None without a claim.

    It is undecided where the interval contains the boundary, where the images are too few, and where nothing
    was measured; see `dbpkit.results.analysis.Number.open_because`.
    """
    if not number.claim:
        return None
    if number.holds is None or math.isnan(number.value):
        return "undecided"
    return "holds" if number.holds else "does not hold"


def evaluation_numbers(run: RunDirectory, summary: Summary) -> list[Number]:
    """What the evaluation's records say of the papers' two claims about noise that the attacker knows."""
    numbers = []
    if fixed := summary.differences.get("white_box - fixed"):
        numbers.append(
            _number(
                "accuracy, white box minus fixed randomness",
                fixed,
                0.46,
                "arXiv:2505.22839: about 70 % with randomness, 24 % with it fixed",
                "above 0: far less robustness is left when the randomness is fixed",
            )
        )
    if lowest := _least_gap(run, summary):
        row, gap = lowest
        numbers.append(
            _number(
                f"accuracy, lowest other attacker ({row}) minus DW_Both",
                gap,
                0.3525 - 0.1680,
                "arXiv:2404.14309, DDPM: DW_Rev 35.25 %, DW_Both 16.80 %",
                "above 0: the attacker who knows all noise leaves least",
            )
        )
    return numbers


def _number(name: str, gap: Interval | Estimate, published: float, source: str, claim: str) -> Number:
    """A paired difference with a claim that it is above 0."""
    found = Interval(gap.value, gap.low, gap.high, gap.examples, gap.method)
    return Number.of(name, found, claim=Claim(claim, least=0.0), published=round(published, 4), source=source)


def lowest(gaps: Mapping[str, Sequence[float]]) -> tuple[str, Interval]:
    """The smallest of several mean differences, with an interval of the smallest that is true.

    It is above 0 only if all are, and below 0 if any is; which one is smallest was seen in the data, so the
    upper end is that of as many comparisons.

    Args:
        gaps: differences in [-1, 1], one per example, by name; at least one.
    """
    found = {name: difference(values) for name, values in gaps.items()}
    name = min(found, key=lambda k: found[k].value)
    low = min(f.low for f in found.values())
    high = min(difference(values, len(gaps)).high for values in gaps.values())
    best = found[name]
    return name, best._replace(low=low, high=high, method=f"{best.method}; lowest of {len(gaps)}")


def _least_gap(run: RunDirectory, summary: Summary) -> tuple[str, Interval] | None:
    """The attacker who comes nearest to DW_Both of those who know less, with the paired difference to it."""
    known = {k.name: k for k in summary.spec.knowledge}
    if "dw_both" not in known:
        return None
    rivals = [
        name
        for name, k in known.items()
        if k.gradient == "exact" and set(k.shared_sites) < set(known["dw_both"].shared_sites)
    ]
    groups = run.columns().rows
    scores = {name: groups[name].by_example() if name in groups else {} for name in (*rivals, "dw_both")}
    gaps = {}
    for name in rivals:
        shared = sorted(scores[name].keys() & scores["dw_both"].keys())
        if shared:
            gaps[name] = [scores[name][i] - scores["dw_both"][i] for i in shared]
    return lowest(gaps) if gaps else None


def _is_no_number(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
