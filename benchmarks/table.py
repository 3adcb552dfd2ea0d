"""Results as tables of Markdown, and in pages.

python -m benchmarks.table [FILE]         prints the tables
python -m benchmarks.table --pages        puts them into docs/evidence/speed.md, draws docs/images/linear.svg
"""

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path("benchmarks/results/cpu.json")
PAGE = Path("docs/evidence/speed.md")
PLOT = Path("docs/images/linear.svg")
MARKS = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def cell(value: Any) -> str:
    """A value as text; of a spread the median and the quartiles."""
    match value:
        case {"median": middle, "low": low, "high": high}:
            return f"{number(middle)} ({number(low)} to {number(high)})"
        case float():
            return number(value)
        case None:
            return "–"
    return str(value)


def number(value: float) -> str:
    """Three digits, or two behind the point for what is about 1."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 3 if abs(value) < 0.1 else 2
        return f"{value:.{digits}f}"
    return f"{value:.1e}"


def rows_table(rows: list[Mapping[str, Any]]) -> str:
    """Rows as a table; columns are those of the rows, without single times."""
    names = list(dict.fromkeys(k for row in rows for k in row if k != "seconds"))
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    lines += [f"| {' | '.join(cell(row.get(name)) for name in names)} |" for row in rows]
    return "\n".join(lines)


def circumstances(entry: Mapping[str, Any]) -> str:
    """What a section was measured on, in one line."""
    about = entry["about"]
    parts = [about["device"], f"{about['threads']} threads of {about['cores']} cores"]
    parts += [f"{name} {about[name]}" for name in ("torch", "python") if about.get(name)]
    parts += ["seconds of the processor"] if about.get("clock") == "processor" else []
    parts += [f"commit {about['commit']}", f"load before {about['load_before']}", f"size '{entry['size']}'"]
    return ", ".join(parts) + f", took {entry['took, s']:.0f} s"


def section(name: str, entry: Mapping[str, Any]) -> str:
    """One section: what, the table, what was found besides, and where."""
    if "failed" in entry:
        return f"{entry['what']} **Failed**: {entry['failed']}\n"
    found = [f"{what}: {json.dumps(value)}" for what, value in entry.get("found", {}).items()]
    said = "\n".join(f"- {line}" for line in found)
    body = rows_table(entry["rows"])
    return "\n\n".join(filter(None, [entry["what"], body, said, f"*{name}: {circumstances(entry)}.*"])) + "\n"


def markdown(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """All sections."""
    return "\n".join(f"### {name}\n\n{section(name, entry)}" for name, entry in sections.items())


def filled(page: str, sections: Mapping[str, Mapping[str, Any]]) -> str:
    """A page with the tables between its marks ``<!-- table NAME -->`` and ``<!-- /table -->``."""

    def table(mark: re.Match[str]) -> str:
        entry = sections.get(mark[2])
        return f"{mark[1]}\n{section(mark[2], entry) if entry else 'Not measured yet.'}\n{mark[3]}"

    return MARKS.sub(table, page)


def main() -> None:
    """Prints or fills in."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table")
    parser.add_argument("file", type=Path, nargs="?", default=RESULTS)
    parser.add_argument("--pages", action="store_true")
    asked = parser.parse_args()
    sections = json.loads(asked.file.read_text())["sections"]
    if not asked.pages:
        print(markdown(sections))
        return
    PAGE.write_text(filled(PAGE.read_text(), sections))
    if "rows" in sections.get("linear", {}):
        from benchmarks.linear import plot

        PLOT.write_text(plot(sections["linear"]["rows"]))


if __name__ == "__main__":
    main()
