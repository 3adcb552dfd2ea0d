"""What `dbpkit reproduce all` came to at mini scale, as data and in the page about it.

python -m benchmarks.reproduce DIR [FILE]   reads the runs in DIR, runs nothing, writes both
python -m benchmarks.reproduce              writes the page anew from the data

FILE is what ``dbpkit reproduce all --json`` printed when it made the runs: it has their seconds.
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dbpkit.tables.view import counted

RESULTS = Path("benchmarks/results/reproduce-mini.json")
PAGE = Path("docs/how-to/reproduce.md")
MARKS = re.compile(r"(<!-- table reproduce-mini -->\n).*?(<!-- /table -->)", re.DOTALL)
WORDS = ("holds", "does not hold", "undecided", "not testable", "not measured")


def collected(out: Path, printed: Path | None = None) -> dict[str, Any]:
    """Everything that was measured, without what the tables' files say themselves."""
    from dbpkit.tables.reproduce import reproduce

    found = reproduce("all", out=out, run=False)
    tables = [_short(table.as_json()) for table in found.tables]
    seconds = json.loads(printed.read_text())["seconds"].values() if printed else []
    return {
        "command": "dbpkit reproduce all",
        "runs left out": found.left,
        "seconds of all runs": round(sum(seconds), 1) if seconds else None,
        "runs timed": len(seconds),
        "tables": tables,
    }


def _short(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table with the numbers of its cells and what became of its claims."""
    keys = ("row", "column", "published", "measured", "low", "high", "images", "same_as", "why_not")
    cells = [{k: _rounded(c[k]) for k in keys if c[k] not in (None, "")} for c in table["cells"]]
    claims = [
        {**c, "tests": [{k: _rounded(v) for k, v in test.items()} for test in c["tests"]]}
        for c in table["claims"]
    ]
    return {"table": table["table"], "title": table["title"], "cells": cells, "claims": claims}


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def in_words(found: Mapping[str, Any]) -> str:
    """The section of the page."""
    claims = [claim for table in found["tables"] for claim in table["claims"]]
    where = f" in {len(found['tables'])} tables" if len(found["tables"]) > 1 else ""
    lines = [
        counted([claim["verdict"] for claim in claims], where) + _cost(found),
        "",
        f"| table | cells measured | {' | '.join(WORDS)} |",
        f"|---|---|{'---|' * len(WORDS)}",
    ]
    for table in found["tables"]:
        own = [sum(c["verdict"] == word for c in table["claims"]) for word in WORDS]
        done = sum("measured" in cell for cell in table["cells"])
        lines.append(
            f"| `{table['table']}` {table['title']} | {done} of {len(table['cells'])} | "
            f"{' | '.join(map(str, own))} |"
        )
    for word, heading in (("holds", "These claims hold"), ("does not hold", "The opposite was seen")):
        seen = [(t["table"], c) for t in found["tables"] for c in t["claims"] if c["verdict"] == word]
        if seen:
            lines += ["", f"{heading}:", ""]
            lines += [f"- `{name}`: {claim['claim']} ({_tests(claim)})" for name, claim in seen]
    return "\n".join(lines) + "\n"


def _cost(found: Mapping[str, Any]) -> str:
    left, seconds = found["runs left out"], found["seconds of all runs"]
    said = f" {left} runs were not made, and their cells are not measured." if left else ""
    if seconds:
        said += f" Together the {found['runs timed']} runs took {seconds / 60:.0f} minutes."
    return said


def _tests(claim: Mapping[str, Any]) -> str:
    """The differences behind a claim."""
    return "; ".join(
        f"{t['compares'].replace(' - ', ' − ')}: {_signed(t['difference'])}, 95 % interval"
        f" {_signed(t['low'])} to {_signed(t['high'])}, {t['images']} images"
        for t in claim["tests"]
    )


def _signed(value: float) -> str:
    """A number with its sign, a minus being one."""
    return f"{value:+.3g}".replace("-", "−")


def main() -> None:
    """Writes the data, if a folder of runs is given, and the page."""
    if len(sys.argv) > 1:
        found = collected(*map(Path, sys.argv[1:3]))
        RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    section = in_words(json.loads(RESULTS.read_text()))
    PAGE.write_text(MARKS.sub(lambda m: m[1] + "\n" + section + "\n" + m[2], PAGE.read_text()))


if __name__ == "__main__":
    main()
