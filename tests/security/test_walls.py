"""What keeps files from being obeyed stays so: who may follow import paths, and what a page may hold."""

import ast
import json
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import dbpkit
import dbpkit.reporting
from dbpkit.reporting import write_report
from dbpkit.results.layout import canonical_hash
from tests.fuzz.harness import leaves, replaced, run_case

SOURCES = Path(__file__).parents[2] / "src" / "dbpkit"
OLD = Path(__file__).parents[1] / "golden" / "run-schema-1"


def calls(folder: Path = SOURCES) -> Iterator[tuple[str, str, ast.Call]]:
    """Every call in the package: file, what is called, and the call."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield str(path.relative_to(SOURCES)), ast.unparse(node.func), node


def test_readers_of_files_never_follow_import_paths() -> None:
    """`Registry.resolve` is for what the user typed. Files are read by results, report and weights."""
    readers = ("results/", "reporting/", "models/weights.py", "models/diffusers.py", "models/denoisers.py")
    readers += ("models/networks/", "models/layouts/", "models/opening.py", "foundation/checkpoints/")
    found = [
        (file, name)
        for file, name, _ in calls()
        if name.endswith(".resolve") and file.startswith(readers) and "path" not in name.lower()
    ]
    assert found == [("results/protocols.py", "protocols.resolve")]  # of a spec that is run


def test_reader_of_checkpoints_looks_no_name_up() -> None:
    """It has no function at hand that could turn a text of a file into an object, nor one that writes."""
    folder = "foundation/checkpoints/"
    looked_up = ("getattr", "setattr", "hasattr", "globals", "locals", "vars", "dir", "type", "__import__")
    found = {
        (file.removeprefix(folder), name, ast.unparse(call.args[1] if len(call.args) > 1 else call))
        for file, name, call in calls()
        if file.startswith(folder) and name in looked_up and len(call.args) != 1
    }
    names = {("regions.py", "getattr", f"'O_{word}'") for word in ("NONBLOCK", "BINARY", "CLOEXEC")}
    known = {
        ("values.py", "getattr", "name"),
        ("regions.py", "hasattr", "'readv'"),
    }  # of torch, when imported
    assert found == names | known
    opened = {name for file, name, _ in calls() if file.startswith(folder) and name.split(".")[-1] == "open"}
    assert opened == {"os.open"}


def test_modules_are_imported_by_the_registry_alone() -> None:
    found = {file for file, name, _ in calls() if name in ("import_path", "import_module", "trust")}
    assert found == {"foundation/registry.py", "cli/root.py", "bundles/trusted.py"}  # the last with --trust
    chosen = {
        file
        for file, name, call in calls()
        if name in ("importlib.import_module", "__import__") and not isinstance(call.args[0], ast.Constant)
    }
    own = {
        "__init__.py",
        "reporting/__init__.py",
        "foundation/moved.py",
    }  # modules of this package, from tables
    libraries = {"attacks/libraries/library.py", "models/libraries/library.py"}
    for importer in ("import_library", "imported"):  # whose callers name the library themselves
        named = [call for _, name, call in calls() if name == importer]
        assert named
        assert all(isinstance(call.args[0], ast.Constant) for call in named)
    assert chosen <= {"foundation/registry.py", *libraries, *own}
    assert {file for file, name, _ in calls() if name == "entry.load"} == {"foundation/plugins.py"}
    assert all(module.startswith("dbpkit.") for module, _ in dbpkit._PLACES.values())
    assert all(re.fullmatch("[a-z_.]+", place) for place in dbpkit.reporting._PLACES.values())


def test_programs_in_files_are_loaded_in_two_places_and_nothing_is_evaluated() -> None:
    loaders = ("torch.jit.load", "torch.export.load")
    places = {file for file, name, _ in calls() if name in loaders}
    assert places == {"fidelity/features.py", "models/programs.py"}  # each asks whether the file is trusted
    forbidden = ("eval", "exec", "compile", "os.system", "pickle.load", "pickle.loads", "torch.load")
    assert not [(file, name) for file, name, _ in calls() if name in forbidden]
    assert not [
        (f, n) for f, n, _ in calls() if n.startswith(("subprocess.", "marshal.", "shelve.", "dill."))
    ]


class Found(HTMLParser):
    """Scripts, handlers of events, and addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts = 0
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        for name, value in attrs:
            if name.startswith("on") or (value or "").strip().lower().startswith(
                ("javascript:", "http:", "//")
            ):
                self.wrong.append(f"{tag} {name}={value}")
        if tag in ("iframe", "object", "embed", "base", "form"):
            self.wrong.append(tag)


INJECTED = "\"><script>alert(1)</script><img src=x onerror=alert(2)>'--></title></style></script>"


FREE = ("title", "name", "claim", "source", "method", "description", "x_label", "y_label", "message", "error")
"""Leaves that hold any text."""


def texts(tree: Any) -> Any:
    """A tree in which every free text is an injection."""
    for place in list(leaves(tree)):
        value = tree
        for key in place:
            value = value[key]
        if isinstance(value, str) and (place[-1] in FREE or place[-2:-1] == ("sentences",)):
            tree = replaced(tree, place, f"{value}{INJECTED}")
    return tree


def hostile_run(path: Path) -> Path:
    """The old run, with injections wherever a text is free."""
    shutil.copytree(OLD, path)
    content = json.loads((path / "spec.json").read_text())
    content["spec"]["name"] = INJECTED
    content["spec"]["data"]["name"] = INJECTED
    content["hash"] = canonical_hash(content["spec"])
    (path / "spec.json").write_text(json.dumps(content))
    for file in (*path.glob("analyses/*/result.json"), path / "checks.json"):
        file.write_text(json.dumps(texts(json.loads(file.read_text()))))
    with (path / "records.jsonl").open("a") as file:
        file.write(json.dumps({"row": "dw_both", "tape": 0, "example": 100, "error": INJECTED}) + "\n")
    return path


@pytest.mark.parametrize("runs", [1, 2])
def test_texts_of_a_run_are_never_markup_on_the_page(runs: int, tmp_path: Path) -> None:
    hostile = [hostile_run(tmp_path / f"run{number}") for number in range(runs)]
    plain = [Path(shutil.copytree(OLD, tmp_path / f"plain{number}")) for number in range(runs)]
    found = []
    for made in (hostile, plain):
        outcome = run_case(
            lambda made=made: write_report(made, tmp_path / "page.html"), writes=[tmp_path], seconds=60
        )
        assert not outcome.defects, outcome.defects[0]
        assert not outcome.said
        page = Found()
        page.feed((tmp_path / "page.html").read_text())
        assert not page.wrong
        found.append(page.scripts)
        shown = (tmp_path / "page.html").read_text()
        assert ("&lt;script&gt;alert(1)" in shown) == (made is hostile)
        assert "<script>alert" not in shown
    assert found[0] == found[1]


LINKS: dict[str, Callable[[Path, Path], None]] = {
    "a folder of figures": lambda run, victim: (run / "figures").symlink_to(victim),
    "the page": lambda run, victim: (run / "report.html").symlink_to(victim / "page.html"),
    "an unfinished page": lambda run, victim: [
        (run / f".report.html.{pid}.tmp").symlink_to(victim / "page.html") for pid in range(2**15)
    ] and None,
}  # fmt: skip


@pytest.mark.parametrize("link", LINKS)
def test_report_writes_through_no_link(link: str, tmp_path: Path) -> None:
    run, victim = Path(shutil.copytree(OLD, tmp_path / "run")), tmp_path / "victim"
    victim.mkdir()
    (victim / "page.html").write_text("mine")
    LINKS[link](run, victim)
    # The judge follows a link that is removed, so it admits the victim; its content is what counts.
    outcome = run_case(lambda: write_report([run]), writes=[run, victim], seconds=60)
    assert not outcome.defects, outcome.defects[0]
    assert [p.name for p in victim.iterdir()] == ["page.html"]
    assert (victim / "page.html").read_text() == "mine"
