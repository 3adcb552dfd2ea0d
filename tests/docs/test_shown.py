"""What pages show of the source is what the source says."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from dbpkit import cli
from tests.docs.pages import PAGES

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "dbpkit"


def test_recipes_and_moved_paths_are_shown_as_they_are() -> None:
    script = str(ROOT / "docs" / "shown.py")
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"`((?:\w+/)+\w+\.py)`", page.read_text(encoding="utf-8"))
    assert [path for path in named if not (SOURCE / path).is_file() and not (ROOT / path).is_file()] == []


def test_commands_of_the_recipes_can_be_read() -> None:
    """Words and options only; `tests/recipes` runs each recipe."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    commands = [shlex.split(found)[1:] for found in re.findall(r"^`(dbpkit [^`]+)`", page, flags=re.M)]
    assert len(commands) == len(list((ROOT / "docs" / "recipes").glob("*.py")))
    groups: Any = typer.main.get_command(cli.app)
    for name, *words in commands:
        groups.commands[name].make_context(name, words)
