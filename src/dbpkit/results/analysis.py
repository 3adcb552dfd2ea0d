"""What an analysis leaves behind: numbers with intervals, charts as data, two sentences, and its records.

A chart holds data, not ink, so that the page, the PNG and the CSV show the same. Nobody sets a verdict: where
a paper says what to expect, the number carries the claim, and whether it holds follows from its interval, its
range and its number of images.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dbpkit.foundation.files import write_atomically
from dbpkit.results.journal import Journal
from dbpkit.results.layout import canonical_hash, checked, damaged, read_json
from dbpkit.results.run_directory import RunDirectory
from dbpkit.results.schemas import RESULT, SETTINGS
from dbpkit.statistics.intervals import VERDICT_EXAMPLES, Interval

REDO = "Restore it, or delete this folder and run 'dbpkit analyse' again."
"""What to do about a damaged file of an analysis."""


class Claim(NamedTuple):
    """What is claimed of a number: that it lies in an open range.

    Attributes:
        words: the claim.
        least: lower end of the range.
        most: upper end.
        needs: fewest independent examples of a verdict.
    """

    words: str
    least: float = -math.inf
    most: float = math.inf
    needs: int = VERDICT_EXAMPLES


class Number(NamedTuple):
    """A measured number.

    Whether its claim holds follows from interval, examples and range; nothing sets it by hand.

    Attributes:
        name: what it is, in words.
        value: the number.
        low: lower end of its 95 % interval, or None where it has none.
        high: upper end.
        examples: independent examples behind it.
        method: how value and interval were made.
        published: the value of a paper, or None.
        source: where ``published`` comes from.
        claim: what the paper says of it, in words; empty if nothing.
        least: the claim holds above this; None for no bound.
        most: the claim holds below this; None for no bound.
        needs: fewest examples of a verdict.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    examples: int = 0
    method: str = ""
    published: float | None = None
    source: str = ""
    claim: str = ""
    least: float | None = None
    most: float | None = None
    needs: int = VERDICT_EXAMPLES

    @classmethod
    def of(
        cls,
        name: str,
        found: Interval,
        *,
        claim: Claim | None = None,
        published: float | None = None,
        source: str = "",
        how: str = "",
    ) -> "Number":
        """Makes a number of an interval.

        Args:
            name: what it is, in words.
            found: value, ends, examples and method.
            claim: what is claimed of it.
            published: the value of a paper.
            source: where that is from.
            how: more about the method.
        """
        low, high = (end if math.isfinite(end) else None for end in (found.low, found.high))
        method = f"{found.method}; {how}" if how else found.method
        number = cls(name, found.value, low, high, found.examples, method, published, source)
        if claim is None:
            return number
        least, most = (end if math.isfinite(end) else None for end in (claim.least, claim.most))
        return number._replace(claim=claim.words, least=least, most=most, needs=claim.needs)

    @property
    def holds(self) -> bool | None:
        """Whether the claim holds here: None without a claim, or where `open_because` has a reason."""
        if not self.claim or self.open_because or self.low is None or self.high is None:
            return None
        return self.low > _or(self.least, -math.inf) and self.high < _or(self.most, math.inf)

    @property
    def open_because(self) -> str:
        """Why there is no verdict; empty if there is one."""
        least, most = _or(self.least, -math.inf), _or(self.most, math.inf)
        if not self.claim or (self.least is None and self.most is None):
            return "nothing is claimed that could be tested"
        if self.examples < self.needs:
            return f"a verdict needs at least {self.needs} images, here are {self.examples}"
        if not self.method or self.low is None or self.high is None or not math.isfinite(self.value):
            return "it has no interval"
        inside, outside = least < self.low and self.high < most, self.high < least or most < self.low
        return "" if inside or outside else "the interval leaves it open"


def _or(end: float | None, missing: float) -> float:
    return missing if end is None else end


class Series(NamedTuple):
    """One line, set of bars or cloud of points.

    Attributes:
        name: its label.
        x: positions, or categories.
        y: values.
        low: lower ends of intervals, or nothing.
        high: upper ends, or nothing.
    """

    name: str
    x: Sequence[float | str]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


class Chart(NamedTuple):
    """A figure as data.

    Attributes:
        kind: ``line``, ``bar``, ``scatter`` or ``heat``. A heat map has one series a row: ``name`` is its
            label, ``x`` the column labels, ``y`` the values.
        title: what it shows.
        x_label: with unit.
        y_label: with unit.
        series: the data.
        description: text alternative: what a reader sees, in a sentence.
        x_log: whether the x axis is logarithmic.
        y_log: whether the y axis is.
        curves: names of series that a scatter chart shows as lines without points, such as a fit.
    """

    kind: Literal["line", "bar", "scatter", "heat"]
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    description: str
    x_log: bool = False
    y_log: bool = False
    curves: Sequence[str] = ()


class AnalysisResult(NamedTuple):
    """What an analysis found.

    Attributes:
        name: registered name of the analysis.
        title: heading.
        sentences: what was found, in plain words; the first is the answer.
        numbers: with intervals.
        charts: figures.
        settings: what it was measured with.
    """

    name: str
    title: str
    sentences: list[str]
    numbers: list[Number]
    charts: list[Chart]
    settings: Mapping[str, Any] = {}

    def as_json(self) -> dict[str, Any]:
        """Returns plain dictionaries and lists."""
        charts = [{**c._asdict(), "series": [s._asdict() for s in c.series]} for c in self.charts]
        numbers = [{**n._asdict(), "holds": n.holds} for n in self.numbers]
        return {**self._asdict(), "numbers": numbers, "charts": charts}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "AnalysisResult":
        """Reads what `as_json` wrote; keys of other versions are passed over and claims judged again."""
        numbers = [Number(**_own(Number, n)) for n in content["numbers"]]
        charts = [
            Chart(**{**_own(Chart, c), "series": [Series(**_own(Series, s)) for s in c["series"]]})
            for c in content["charts"]
        ]
        return cls(**{**_own(cls, content), "numbers": numbers, "charts": charts})


def _own(kind: Any, content: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that a type has."""
    return {k: v for k, v in content.items() if k in kind._fields}


class AnalysisRecords:
    """The records of one analysis in a run directory, under ``analyses/NAME``.

    Every unit of work leaves one line. A unit that is recorded is not done again.

    Args:
        run: the run directory.
        name: registered name of the analysis.
    """

    def __init__(self, run: RunDirectory, name: str) -> None:
        self.path = run.path / "analyses" / name
        self.is_layout_1 = (run.path / "spec.json").is_file() and run.schema == 1
        self.journal = Journal(self.path / "records.jsonl", REDO, digests=not self.is_layout_1)

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Makes these the records of the settings; records of others are put aside with a number.

        Args:
            settings: everything that decides the records, ready for JSON.
        """
        wanted = json.loads(json.dumps(settings))
        if self.settings() not in (None, wanted):
            aside = next(p for i in range(1, 1000) if not (p := Path(f"{self.path}.{i}.old")).exists())
            self.path.rename(aside)
        if self.settings() is None:
            write_atomically(self.path / "settings.json", json.dumps(wanted, indent=1).encode())
        self.journal.repair()

    def settings(self) -> dict[str, Any] | None:
        """Returns what decided the records so far, or None before there are any."""
        path = self.path / "settings.json"
        content = read_json(path, REDO)
        return None if content is None else checked(content, SETTINGS, f"'{path}'", REDO)

    def read(self) -> dict[str, Any]:
        """Returns what every recorded unit measured; what a killed process left unfinished is dropped.

        Raises:
            UserError: if a line is damaged or was changed, or belongs to other settings.
        """
        own, found = self._settings_hash(), {}
        for lines in self.journal.appends():
            for line in lines:
                where = f"'{self.journal.path}' line {line.number}"
                unit = line.entry.get("unit")
                if not isinstance(unit, str) or "measured" not in line.entry:
                    raise damaged(where, "it names no unit or holds nothing", REDO)
                if line.entry.get("settings", own) != own:
                    raise damaged(where, "it was not made with the 'settings.json' beside it", REDO)
                found[unit] = line.entry["measured"]
        return found

    def append(self, unit: str, measured: Any) -> None:
        """Appends one unit's record, flushed to the disk; UserError if the disk is full."""
        self.journal.append([{"unit": unit, "measured": measured, "settings": self._settings_hash()}])

    def write_result(self, result: AnalysisResult) -> None:
        """Replaces ``result.json``, with a hash of its own content."""
        content = json.loads(json.dumps(result.as_json()))
        text = json.dumps({**content, "hash": canonical_hash(content)}, indent=1)
        write_atomically(self.path / "result.json", text.encode())

    def read_result(self) -> AnalysisResult | None:
        """Returns what was concluded, or None before there is anything; UserError if it was changed."""
        path = self.path / "result.json"
        content = read_json(path, REDO)
        if content is None:
            return None
        checked(content, RESULT, f"'{path}'", REDO)
        own = content.pop("hash", None)
        if own != canonical_hash(content) and not (own is None and self.is_layout_1):
            raise damaged(f"'{path}'", "it does not match its hash", REDO)
        return AnalysisResult.from_json(content)

    def _settings_hash(self) -> str:
        return canonical_hash(self.settings())[:16]


def analysis_results(run: RunDirectory) -> Iterator[AnalysisResult]:
    """Yields the finished analyses of a run directory, by name; UserError if one is damaged."""
    for name in analysed(run):
        if (result := AnalysisRecords(run, name).read_result()) is not None:
            yield result


def analysed(run: RunDirectory) -> list[str]:
    """Returns the names of the analyses that have a folder in a run directory."""
    folder = run.path / "analyses"
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path.name for path in found if path.is_dir() and path.suffix != ".old"]
