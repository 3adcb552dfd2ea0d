"""What an analysis leaves behind: numbers with intervals, charts as data, two sentences, and its records.

A chart holds data, not ink, so that the page, the PNG and the CSV show the same. The thing people get wrong:
a number without its claim. Where a paper says what to expect, the number says so and whether it holds.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dbpkit.results.journal import Journal
from dbpkit.results.layout import RESULT, SETTINGS, canonical_hash, checked, damaged, read_json
from dbpkit.results.run_directory import RunDirectory
from dbpkit.weights import write_atomically

REDO = "Restore it, or delete this folder and run 'dbpkit analyse' again."
"""What to do about a damaged file of an analysis."""


class Number(NamedTuple):
    """A measured number.

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
        holds: whether the claim holds here, judged by the interval where there is one; None without a claim,
            or where the interval leaves it open.
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
    holds: bool | None = None


def above(low: float, high: float, boundary: float = 0.0) -> bool | None:
    """Whether a number is above a boundary by its interval: None where the interval leaves it open."""
    return True if low > boundary else False if high < boundary else None


def below(low: float, high: float, boundary: float) -> bool | None:
    """Whether a number is below a boundary by its interval: None where the interval leaves it open."""
    return above(-high, -low, -boundary)


def within(low: float, high: float, least: float, most: float) -> bool | None:
    """Whether a number lies between two boundaries by its interval: None where it is open."""
    if least <= low and high <= most:
        return True
    return False if high < least or most < low else None


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
        return {**self._asdict(), "numbers": [n._asdict() for n in self.numbers], "charts": charts}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "AnalysisResult":
        """Reads what `as_json` wrote; keys of newer versions are passed over."""
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
