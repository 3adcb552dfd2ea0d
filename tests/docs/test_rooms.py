"""The figure and the table of rooms in docs/design.md are those of the imports."""

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "rooms.py"


@pytest.fixture
def rooms() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_figure_and_table_of_rooms_are_those_of_the_imports() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_arrow_is_left_out_where_a_longer_way_says_the_same(rooms: dict[str, Any]) -> None:
    imports = {"top": {"middle", "base"}, "middle": {"base"}, "base": set()}
    assert rooms["arrows"](imports) == [("middle", "base"), ("top", "middle")]
    assert rooms["heights"](imports) == {"base": 0, "middle": 1, "top": 2}


def test_circle_of_imports_is_refused(rooms: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match="in a circle through"):
        rooms["heights"]({"a": {"b"}, "b": {"a"}})


def test_room_without_a_line_in_the_table_is_named(rooms: dict[str, Any]) -> None:
    page = "| room | holds | imports |\n|---|---|---|\n| `a` | x | |\n\n"
    with pytest.raises(SystemExit, match=r"lacks .'b'. and has .. too many"):
        rooms["with_imports"](page, {"a": set(), "b": {"a"}})


def test_last_column_is_filled_from_the_imports(rooms: dict[str, Any]) -> None:
    page = "| room | holds | imports |\n|---|---|---|\n| `b` | x, y | old |\n| `a` | z | |\n\n"
    filled = rooms["with_imports"](page, {"a": set(), "b": {"a"}})
    assert filled.splitlines()[2:4] == ["| `b` | x, y | a |", "| `a` | z | – |"]


def test_map_of_the_repository_has_every_folder() -> None:
    root = SCRIPT.parents[1]
    page = (root / "docs" / "design.md").read_text(encoding="utf-8")
    shown = page[page.index("## Map of the repository") : page.index("## Abstractions")]
    tests = {f"tests/{p.name}/" for p in (root / "tests").glob("[!_.]*") if any(p.glob("[!_]*"))}
    pages = {p.name for p in (root / "docs").glob("[!_.]*") if any(p.glob("[!_]*"))}
    scripts = {p.name for p in (root / "docs").glob("*.py")}
    named = {name for cell in re.findall(r"`([^`]+)`", shown) for name in (cell, cell.removesuffix("/"))}
    assert {
        "src/dbpkit/",
        "specs/",
        "docs/",
        "benchmarks/",
        ".ci/run",
        *tests,
        *pages,
        *scripts,
    } - named == set()
