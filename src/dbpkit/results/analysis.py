"""What an analysis leaves behind: its conclusion, and the records that it was drawn from."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dbpkit.foundation import display
from dbpkit.foundation.files import write_atomically
from dbpkit.results.charts import Chart, Series
from dbpkit.results.journal import Journal
from dbpkit.results.layout import canonical_hash, checked, damaged, read_json
from dbpkit.results.numbers import Claim, Number
from dbpkit.results.records_file import OF_ALL, journal_of, journals_in
from dbpkit.results.run_directory import RunDirectory
from dbpkit.results.schemas import RESULT, SETTINGS

__all__ = [
    "AnalysisRecords",
    "AnalysisResult",
    "Chart",
    "Claim",
    "Conclusion",
    "Number",
    "Series",
    "analysed",
    "analysis_results",
]

REDO = "Restore it, or delete this folder and run 'dbpkit analyse' again."
"""What to do about a damaged file of an analysis."""


class Conclusion(NamedTuple):
    """What an analysis concludes from its records.

    Attributes:
        sentences: what was found, in plain words; the first is the answer.
        numbers: with intervals.
        charts: figures.
    """

    sentences: list[str]
    numbers: list[Number]
    charts: list[Chart]


class AnalysisResult(NamedTuple):
    """A conclusion, with the analysis that drew it and what it was measured with.

    Attributes:
        name: registered name of the analysis.
        title: heading.
        sentences: what was found, in plain words; the first is the answer.
        numbers: with intervals.
        charts: figures.
        settings: options it was measured with.
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

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return display.html(self)

    def to_frame(self) -> Any:
        """Returns a ``pandas.DataFrame``: one line for every number, with its claim.

        Raises:
            UserError: if pandas is not installed.
        """
        return display.frame(self)

    def plot(self, chart: int = 0) -> Any:
        """Returns one of the charts, by its position, as a ``matplotlib.figure.Figure``."""
        return display.plot(self, chart)


def _own(kind: Any, content: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that a type has."""
    return {k: v for k, v in content.items() if k in kind._fields}


class AnalysisRecords:
    """The records of one analysis in a run directory, under ``analyses/NAME``.

    Every unit of work leaves one line, in a file of the process that did it. A unit that is recorded is not
    done again.

    Args:
        run: the run directory.
        name: registered name of the analysis.
    """

    def __init__(self, run: RunDirectory, name: str) -> None:
        self.path = run.path / "analyses" / name
        self.is_layout_1 = (run.path / "spec.json").is_file() and run.schema == 1
        self.journal = self._journal(journal_of(run.shard))

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
        for journal in map(self._journal, (OF_ALL, *journals_in(self.path))):
            for line in (line for lines in journal.appends() for line in lines):
                where = f"'{journal.path}' line {line.number}"
                unit = line.entry.get("unit")
                if not isinstance(unit, str) or "measured" not in line.entry:
                    raise damaged(where, "it names no unit or holds nothing", REDO)
                if line.entry.get("settings", own) != own:
                    raise damaged(where, "it was not made with the 'settings.json' beside it", REDO)
                found[unit] = line.entry["measured"]
        return found

    def append(self, unit: str, measured: Any) -> Any:
        """Appends one unit's record, flushed to the disk; returns what `read` gives of it.

        Raises:
            UserError: if the disk is full.
        """
        self.journal.append([{"unit": unit, "measured": measured, "settings": self._settings_hash()}])
        return json.loads(json.dumps(measured))

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

    def _journal(self, name: str) -> Journal:
        """The records of one process or of a rank."""
        return Journal(self.path / name, REDO, digests=not self.is_layout_1 or name != OF_ALL)

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
