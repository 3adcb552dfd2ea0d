"""What reads results starts without the libraries that compute them."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import dbpkit
from dbpkit import reporting as report
from dbpkit.cli.listing import REGISTRIES
from dbpkit.foundation.registry import KINDS
from dbpkit.results.run_directory import RunDirectory

READING = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "sklearn", "accelerate", "diffusers", "pandas"}:
            raise AssertionError(f"{name} is imported")
        return None

sys.meta_path.insert(0, Refused())
import dbpkit
from dbpkit.cli import main

run, analysed, folder = sys.argv[1:]
commands = (
    ["--version"], ["--help"], ["evaluate", "--help"], ["docs", "flags"], ["init", f"{folder}/my.toml"],
    ["show", run], ["show", run, "--json"], ["findings", run, analysed], ["compare", run, run],
    ["report", analysed], ["report", run, run],
    ["bundle", run, "--unfinished", "--out", f"{folder}/b.zip"], ["show", f"{folder}/b.zip"],
    ["board", f"{folder}/b.zip", run, "--out", f"{folder}/board.html"],
)
for words in commands:
    sys.argv = ["dbpkit", *words]
    try:
        main()
    except SystemExit as leave:
        assert not leave.code, (words, leave.code)
print("all ran")
"""


def test_reading_commands_import_no_library_that_computes(
    make_run: Callable[..., RunDirectory], analysed: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    """Runs with pictures and analyses are shown, compared and reported where torch cannot be imported."""
    run = make_run()
    command = [sys.executable, "-c", READING, str(run.path), str(analysed().path), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("all ran\n"), done.stderr
    assert "data:image/png;base64," in (run.path / "report.html").read_text()
    assert (run.path / "figures" / "evaluation-1-compared.png").is_file()


@pytest.mark.parametrize("module", [dbpkit, report])
def test_every_public_name_is_imported_when_it_is_used(module: object) -> None:
    names = module.__all__  # type: ignore[attr-defined]
    for name in names:
        assert getattr(module, name).__module__.startswith("dbpkit."), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_star_import_gives_every_public_name() -> None:
    names: dict[str, object] = {}
    exec("from dbpkit import *", names)
    assert set(dbpkit.__all__) <= set(names)
    assert set(dbpkit.__all__) <= set(dir(dbpkit))


def test_kinds_in_the_help_are_those_that_are_listed() -> None:
    assert (*REGISTRIES, "knowledge", "specs", "plugins") == KINDS


def test_parts_registered_elsewhere_are_found_whatever_was_imported_first() -> None:
    code = """
from dbpkit.threats.pixels import threats
from dbpkit.attacks import attacks
print("perceptual" in threats, {"art", "foolbox", "pgd"} <= set(attacks))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True\n"
