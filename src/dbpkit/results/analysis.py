"""What an analysis leaves behind: numbers with intervals, charts as data, two sentences, and its records.

A chart holds data, not ink, so that the page, the PNG and the CSV show the same. The thing people get wrong:
a number without its claim. Where a paper says what to expect, the number says so and whether it holds.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dbpkit.errors import UserError
from dbpkit.results.run_directory import RunDirectory
from dbpkit.weights import write_atomically


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
        """Reads what `as_json` wrote."""
        numbers = [Number(**n) for n in content["numbers"]]
        charts = [Chart(**{**c, "series": [Series(**s) for s in c["series"]]}) for c in content["charts"]]
        return cls(**{**content, "numbers": numbers, "charts": charts})


class AnalysisRecords:
    """The records of one analysis in a run directory, under ``analyses/NAME``.

    Every unit of work leaves one line. A unit that is recorded is not done again.

    Args:
        run: the run directory.
        name: registered name of the analysis.
    """

    def __init__(self, run: RunDirectory, name: str) -> None:
        self.path = run.path / "analyses" / name

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Makes these the records of the settings; records of others are put aside with a number.

        Args:
            settings: everything that decides the records, ready for JSON.
        """
        path = self.path / "settings.json"
        wanted = json.loads(json.dumps(settings))
        if path.is_file() and json.loads(path.read_text()) != wanted:
            aside = next(p for i in range(1, 1000) if not (p := Path(f"{self.path}.{i}.old")).exists())
            self.path.rename(aside)
        if not path.is_file():
            write_atomically(path, json.dumps(wanted, indent=1).encode())

    def settings(self) -> dict[str, Any] | None:
        """Returns what decided the records so far, or None before there are any."""
        path = self.path / "settings.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def read(self) -> dict[str, Any]:
        """Returns what every recorded unit measured; a torn last line is dropped."""
        path = self.path / "records.jsonl"
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
        found = {}
        for number, line in enumerate(lines):
            try:
                record = json.loads(line)
                found[record["unit"]] = record["measured"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                if number == len(lines) - 1:
                    continue
                raise UserError(
                    f"'{path}' line {number + 1} is damaged. Restore it or delete the directory."
                ) from error
        return found

    def append(self, unit: str, measured: Any) -> None:
        """Appends one unit's record, flushed to the disk; UserError if the disk is full."""
        path = self.path / "records.jsonl"
        content = path.read_bytes() if path.is_file() else b""
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
        try:
            with path.open("ab") as file:
                file.write((json.dumps({"unit": unit, "measured": measured}) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            os.truncate(path, whole)
            raise UserError(
                f"cannot write '{path}' ({error.strerror}). Free space and run the same command"
                " again; earlier records are intact."
            ) from error

    def write_result(self, result: AnalysisResult) -> None:
        """Replaces ``result.json``."""
        write_atomically(self.path / "result.json", json.dumps(result.as_json(), indent=1).encode())


def analysis_results(run: RunDirectory) -> Iterator[AnalysisResult]:
    """Yields the finished analyses of a run directory, by name."""
    for path in sorted((run.path / "analyses").glob("*/result.json")):
        if not path.parent.name.endswith(".old"):
            yield AnalysisResult.from_json(json.loads(path.read_text()))
