"""Analyses ready to be shown: of one run, or the same analysis of several runs beside each other.

Charts that stand beside each other have the same axes, so that they can be compared by eye.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dbpkit.foundation.files import write_atomically
from dbpkit.reporting.tables import NOTHING
from dbpkit.results.analysis import AnalysisResult, Chart, Number
from dbpkit.results.findings import EVALUATION, Finding, Verdict, verdict

if TYPE_CHECKING:
    from dbpkit.reporting.figures.charts import Drawn

ORDER: dict[Verdict | None, str] = {"holds": "3", "undecided": "2", "does not hold": "1", None: ""}
"""Places of the verdicts when a table is sorted; empty stands last."""

SIGNS: dict[Verdict, str] = {"holds": "✓", "does not hold": "✗", "undecided": "?"}
VERDICTS: tuple[Verdict, ...] = tuple(SIGNS)


class NumberCell(NamedTuple):
    """One measured number as text.

    Attributes:
        value: ``"0.281"``.
        interval: ``"0.263 to 0.299"``, or empty.
        examples: n, or empty.
        published: value of a paper, or empty.
        source: where it is from.
        method: how value and interval were made.
        verdict: whether the claim holds, or None without one.
        sort: value, published value, n and verdict as sort keys; empty where there is none.
    """

    value: str
    interval: str
    examples: str
    published: str
    source: str
    method: str
    verdict: Verdict | None
    sort: tuple[str, str, str, str]


class NumberRow(NamedTuple):
    """One line of a table of numbers: its name, what a paper says of it, and a cell for every run."""

    name: str
    claim: str
    cells: list[NumberCell | None]


class ShownChart(NamedTuple):
    """A chart of one run: the run's letter, the picture, and the stem of its files."""

    letter: str
    drawn: "Drawn"
    stem: str


class Findings(NamedTuple):
    """All claims: a sentence for every run, and one table."""

    sentences: list[str]
    rows: list[NumberRow]


class AnalysisView(NamedTuple):
    """One analysis of one run or several.

    Attributes:
        anchor: name that links on the page can point to.
        title: heading.
        answers: letter of a run and what was found in it.
        charts: a line of charts each, the runs beside each other.
        numbers: a line each, a cell for every run.
        settings: letter of a run and what was measured with which options, once if all agree.
    """

    anchor: str
    title: str
    answers: list[tuple[str, list[str]]]
    charts: list[list[ShownChart]]
    numbers: list[NumberRow]
    settings: list[tuple[str, str]]


def analysis_views(runs: Sequence[tuple[str, Sequence[AnalysisResult]]]) -> list[AnalysisView]:
    """Returns every analysis that any run has, in the order of their first appearance.

    Args:
        runs: letter (empty for a single run) and finished analyses of every run.
    """
    names = dict.fromkeys(result.name for _, results in runs for result in results)
    found = []
    for name in names:
        own = [(letter, next((r for r in results if r.name == name), None)) for letter, results in runs]
        found.append(_view(name, own))
    return found


def found_view(runs: Sequence[Sequence[Finding]]) -> Findings | None:
    """Returns the claims of one run or several, or None if there is none."""
    numbers = [{(f.analysis, f.number.name): f.number for f in found} for found in runs]
    rows = _rows(
        numbers, lambda key: key[1] if key[0] == EVALUATION else f"{key[0].replace('eot', 'EoT')}: {key[1]}"
    )
    sentences = [findings_sentence(found) if found else "No claim has been tested." for found in runs]
    return Findings(sentences, rows) if rows else None


def findings_sentence(found: Sequence[Finding]) -> str:
    """Returns how many of the claims hold, in a sentence."""
    holds, not_, undecided = (sum(f.verdict == said for f in found) for said in VERDICTS)
    if len(found) == 1:
        said = "is undecided" if undecided else found[0].verdict
        return f"The claim that was tested {said} here."
    rest = [f"{not_} {'does' if not_ == 1 else 'do'} not"] if not_ else []
    rest += [f"{undecided} {'is' if undecided == 1 else 'are'} undecided"] if undecided else []
    head = f"{holds or 'None'} of {len(found)} tested claims {'holds' if holds == 1 else 'hold'} here"
    return f"{head}{': ' if rest else ''}{', '.join(rest)}."


def write_charts(result: AnalysisResult, folder: Path) -> list[Path]:
    """Writes every chart of an analysis as PNG and its data as CSV; returns the files."""
    from dbpkit.reporting.figures.charts import draw  # a table needs no library that draws

    written = []
    for number, chart in enumerate(result.charts, start=1):
        drawn, stem = draw(chart), folder / f"{file_stem(result.name)}-{number}"
        write_atomically(stem.with_suffix(".png"), drawn.png)
        write_atomically(stem.with_suffix(".csv"), drawn.csv.encode())
        written += [stem.with_suffix(".png"), stem.with_suffix(".csv")]
    return written


def number_cell(number: Number) -> NumberCell:
    """Returns a number as text; digits follow the width of its interval where it has one."""
    has_interval = number.low is not None and number.high is not None
    ends = [float(number.low or 0), float(number.high or 0)] if has_interval else []
    width = ends[1] - ends[0] if ends else 0.0
    said = verdict(number)
    return NumberCell(
        number_text(number.value, width),
        f"{number_text(ends[0], width)} to {number_text(ends[1], width)}"
        if all(map(math.isfinite, ends)) and ends
        else "",
        f"{number.examples:,}" if number.examples else "",
        "" if number.published is None else number_text(number.published),
        number.source,
        number.method,
        said,
        (
            _sort_key(number.value),
            _sort_key(number.published),
            _sort_key(number.examples or None),
            ORDER[said],
        ),
    )


def number_text(value: float, width: float = 0.0) -> str:
    """Returns a number as text: two digits of its uncertainty, else three of its own.

    Args:
        value: the number.
        width: of its interval; 0 if there is none.

    Example:
        >>> number_text(0.28087, width=0.036), number_text(12345.6), number_text(-0.5)
        ('0.281', '12,346', '−0.5')
    """
    if not math.isfinite(value):
        return NOTHING if math.isnan(value) else ("−∞" if value < 0 else "∞")
    size = abs(value)
    if size and (size < 1e-4 or size >= 1e7):
        text = f"{size:.2e}"
    elif math.isfinite(width) and width > 0:
        text = f"{size:,.{min(max(1 - math.floor(math.log10(width)), 0), 6)}f}"
    else:
        text = f"{size:,.0f}" if size >= 100 else f"{size:.3g}"
    return f"−{text}" if value < 0 and float(text.replace(",", "")) else text


def _view(name: str, runs: Sequence[tuple[str, AnalysisResult | None]]) -> AnalysisView:
    """One analysis of the runs that have it."""
    own = [(letter, result) for letter, result in runs if result is not None]
    charts = {letter: _titled(result.charts) for letter, result in own}
    keys = list(dict.fromkeys(key for titled in charts.values() for key in titled))
    numbers = [{n.name: n for n in result.numbers} if result else {} for _, result in runs]
    settings = [(letter, _settings(result.settings)) for letter, result in own]
    if len({said for _, said in settings}) == 1:
        settings = [("", settings[0][1])]
    return AnalysisView(
        f"analysis-{file_stem(name)}",
        own[0][1].title or name,
        [(letter, list(result.sentences)) for letter, result in own],
        [list(_line(name, number, key, charts)) for number, key in enumerate(keys, 1)],
        _rows(numbers, str),
        [(letter, said) for letter, said in settings if said],
    )


def _line(
    name: str, number: int, key: tuple[str, int], charts: Mapping[str, Mapping[tuple[str, int], Chart]]
) -> Iterator[ShownChart]:
    """One chart of every run that has it, on the same axes."""
    from dbpkit.reporting.figures.charts import draw

    beside = [titled[key] for titled in charts.values() if key in titled]
    for letter, titled in charts.items():
        if key in titled:
            stem = f"{file_stem(name)}-{number}{f'-{letter}' if letter else ''}"
            yield ShownChart(letter, draw(titled[key], beside), stem)


def _titled(charts: Sequence[Chart]) -> dict[tuple[str, int], Chart]:
    """Charts by title, and by how many of that title stand before."""
    seen: dict[str, int] = {}
    found = {}
    for chart in charts:
        seen[chart.title] = seen.get(chart.title, 0) + 1
        found[chart.title, seen[chart.title]] = chart
    return found


def _rows(runs: Sequence[Mapping[Any, Number]], name: Callable[[Any], str]) -> list[NumberRow]:
    """A line for every number of any run, in the order of their first appearance."""
    rows = []
    for key in dict.fromkeys(key for numbers in runs for key in numbers):
        own = [numbers.get(key) for numbers in runs]
        claim = next((n.claim for n in own if n and n.claim), "")
        rows.append(NumberRow(name(key), claim, [number_cell(n) if n else None for n in own]))
    return rows


def _settings(settings: Mapping[str, Any]) -> str:
    """``"images 8, scales 0.25 1"``; of what is empty nothing."""
    return ", ".join(f"{name} {shown}" for name, value in settings.items() if (shown := _setting(value)))


def _setting(value: Any) -> str:
    """A value as words: entries after each other, and of tables in parentheses."""
    if isinstance(value, Mapping):
        return f"({', '.join(f'{name} {_setting(own)}' for name, own in value.items())})"
    if isinstance(value, (list, tuple)):
        return " ".join(map(_setting, value))
    return "" if value is None else str(value)


def file_stem(name: str) -> str:
    """A name that is safe in a file's name and in a link."""
    return re.sub(r"[^\w.-]+", "_", name)


def _sort_key(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else repr(value)
