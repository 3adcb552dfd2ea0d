"""The names that `dbpkit` itself gives: each is there, explains itself, and hides no room of the package."""

import ast
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

import dbpkit
from dbpkit.attacks import attacks
from dbpkit.cli import app

VERBS = {
    "demo": "evaluate",
    "purify": "purify_files",
    "show": "summarise",
    **dict.fromkeys(("list", "init", "docs", "models")),
}
"""Commands whose function has another name, and those that only say what a Python program can look up."""


@pytest.mark.parametrize("name", dbpkit.__all__)
def test_public_name_is_there_and_says_what_it_is(name: str) -> None:
    found = getattr(dbpkit, name)
    assert inspect.getdoc(found), name
    assert found.__module__.startswith("dbpkit.")


def test_public_names_are_not_those_of_rooms() -> None:
    rooms = {module.name for module in pkgutil.iter_modules(dbpkit.__path__)}
    assert rooms.isdisjoint(dbpkit.__all__)


def test_type_checkers_and_python_see_the_same_names() -> None:
    """Type checkers take from a stub only what is imported under its own name."""
    stub = ast.parse(Path(dbpkit.__file__).with_name("__init__.pyi").read_text())
    names = [a for node in stub.body if isinstance(node, ast.ImportFrom) for a in node.names]
    assert {a.name for a in names if a.name == a.asname} == set(dbpkit.__all__)


def test_every_command_has_its_function() -> None:
    for command in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        name = VERBS.get(command, command)
        assert name is None or callable(getattr(dbpkit, name))


def test_every_attack_is_importable() -> None:
    for name in attacks:
        if attacks.get(name).__module__.startswith("dbpkit."):
            assert getattr(dbpkit, name) is attacks.get(name)


def test_module_at_its_old_path_hides_no_public_name() -> None:
    code = "from dbpkit.report import write_report; import dbpkit; assert dbpkit.report is write_report"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_functions_say_what_they_take_and_what_they_raise() -> None:
    """Every function of a command."""
    verbs = {VERBS.get(c, c) for c in typer.main.get_command(app).commands} - {None}  # type: ignore[attr-defined]
    for name in sorted(verbs):
        said = inspect.getdoc(getattr(dbpkit, name)) or ""
        assert "Args:\n" in said, name
        assert "Raises:\n" in said, name
        assert "Returns:\n" in said, name
