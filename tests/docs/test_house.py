"""The walls of the house: how long files and functions may be, and who may import whom."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "dbpkit"
FILES = sorted(SOURCE.rglob("*.py"))

LONGEST_FILE, LONGEST_FUNCTION, LONGEST_COMMAND = 320, 60, 20


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def named(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=named)
def test_file_is_no_longer_than_a_reader_bears(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("path", FILES, ids=named)
def test_functions_fit_a_screen(path: Path) -> None:
    """Signature and docstring count."""
    lengths = {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in functions(path)}
    assert {name: n for name, n in lengths.items() if n > LONGEST_FUNCTION} == {}


def is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether typer knows it: ``@app.command()`` or ``@app.callback()`` of any group."""
    called = (d.func for d in function.decorator_list if isinstance(d, ast.Call))
    return any(isinstance(f, ast.Attribute) and f.attr in ("command", "callback") for f in called)


def test_commands_parse_call_and_print() -> None:
    """The body of a command without its docstring; its options are its signature."""
    found: dict[str, int] = {}
    for path in (SOURCE / "cli").rglob("*.py"):
        for function in filter(is_command, functions(path)):
            body = function.body[1:]  # the docstring is the command's help
            found[function.name] = (function.end_lineno or 0) - body[0].lineno + 1 if body else 0
    assert len(found) > 15, "commands are found by their decorator"
    assert {name: n for name, n in found.items() if n > LONGEST_COMMAND} == {}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_analysis_imports_another() -> None:
    """What several need lies in ``tools``; a package such as ``law`` is one analysis of several files."""
    folder = SOURCE / "analyses"
    frame = {"analysis", "run"}
    own = {p.stem for p in folder.iterdir() if p.suffix == ".py" or p.is_dir()}
    own -= frame | {"__init__", "__pycache__", "tools"}
    assert len(own) > 10
    wrong = {
        (named(path), name)
        for path in folder.rglob("*.py")
        for name in imported(path)
        if name.startswith("dbpkit.analyses.") and (other := name.split(".")[2]) in own
        if path.stem not in frame and other not in path.relative_to(folder).with_suffix("").parts
    }
    assert wrong == set()
