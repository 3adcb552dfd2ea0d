"""Every option and argument of every command with odd values, in this process.

A case ends with a status and at most one line on standard error. The parts are stubs that fail before work.
"""

import contextlib
import io
import itertools
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch._dynamo  # noqa: F401 - what training imports of torch: seconds, and a program, once for all cases
import typer

import dbpkit
from dbpkit.cli import app, crash, main
from tests.fuzz.harness import ODD, chooser, run_case
from tests.integration.conftest import TINY_TOML

TEXTS = (
    *(str(v) for v in ODD if not isinstance(v, list | dict)), "9" * 5000, "[", "{}", "-", "--", "-x",
    "--json=", "cuda:9", "mps", "meta", "~", "~nobody/x", "/", "/dev/null", "a/b/c", "*", "%s", "{0}",
    "$HOME", "name\udcff", "\u202e", "1e400", "0x10", "1_000", "٣", "'", '"', "\\", "embedded", "pgd",
    "x.safetensors", "x.toml",
)  # fmt: skip

EVALUATION = TINY_TOML.replace("tests.parts:data", "tests.parts:no_such_data")
TRAINING = """
objective = "denoising"
init = "embedded"
data = "tests.parts:no_such_data"
test_data = "embedded"
optimiser = { updates = 1, batch_size = 2, lr = 1e-4 }
"""

WORDS: dict[str, list[str]] = {
    "demo": ["--out", "run", "--device", "meta"],
    "evaluate": ["evaluation.toml", "--out", "run"],
    "analyse": ["evaluation.toml", "--out", "run"],
    "check": ["evaluation.toml"],
    "estimate": ["evaluation.toml"],
    "purify": ["no.png", "--out", "out", "--denoiser", "tests.parts:gaussian_denoiser", "--steps", "100"],
    "train": ["training.toml", "--out", "run"],
    "quality": ["tests.parts:gaussian_denoiser", "--data", "tests.parts:no_such_data"],
    "report": ["no-run"],
    "compare": ["no-run", "no-run"],
    "findings": ["no-run"],
    "law": ["no-run"],
    "reproduce": ["no-table"],
    "replay": ["no-run", "--example", "0"],
    "bundle": ["no-run"],
    "verify": ["no-bundle.zip"],
    "board": ["no-bundle.zip"],
    "show": ["evaluation.toml"],
    "list": [],
    "init": ["evaluation.toml"],
    "docs": ["no-page"],
    "models": ["no-model"],
    "convert": ["no-file.pth", "out.safetensors"],
}
"""What each command is given beside the odd value; it ends before it works."""

for _name in dbpkit.__all__:
    getattr(dbpkit, _name)  # what commands import when they are called is imported before a case has its time

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


class Case(NamedTuple):
    """Words of one command line."""

    words: list[str]


def cases() -> Iterator[Case]:
    """Each option with each odd text, after and in place of the usual words; each argument replaced."""
    for name, command in COMMANDS.items():
        usual = WORDS[name]
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                yield from (Case([name, text, *usual[1:]]) for text in TEXTS)
                yield Case([name])
                continue
            if getattr(parameter, "is_flag", False):
                yield Case([name, *usual, parameter.opts[0]])
                continue
            yield from (Case([name, *usual, parameter.opts[-1], text]) for text in TEXTS)
            yield from (Case([name, *usual, f"{parameter.opts[0]}={text}"]) for text in TEXTS[::7])
        yield from (Case([name, *usual, *texts]) for texts in itertools.pairwise(TEXTS))
    yield from (Case([text]) for text in TEXTS)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder deep enough that ``../..`` stays inside, with the specs that the cases name."""
    here = tmp_path / "a" / "b" / "c"
    here.mkdir(parents=True)
    (here / "evaluation.toml").write_text(EVALUATION)
    (here / "training.toml").write_text(TRAINING)
    monkeypatch.chdir(here)
    monkeypatch.setenv(crash.FOLDER, str(tmp_path / "crashes"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DBPKIT_DATA", str(tmp_path / "none"))
    return tmp_path


def called(words: list[str]) -> str:
    """Runs the command line; returns what it wrote on standard error."""
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    before = sys.argv
    sys.argv = ["dbpkit", *words]
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            contextlib.suppress(SystemExit),
        ):
            main()
    finally:
        sys.argv = before
    return err.buffer.getvalue().decode()  # type: ignore[attr-defined]


def judge(chosen: Iterator[Case], folder: Path) -> int:
    """Runs cases; returns how many, and fails with the defects of all."""
    count, defects = 0, []
    for case in chosen:
        count += 1
        outcome = run_case(partial(called, case.words), writes=(folder,))
        found = list(outcome.defects)
        said = outcome.value or ""
        if "Traceback" in said or said.count("\n") > 2 or not said.replace("\n", "").isprintable():
            found.append(f"said {said[-300:]!r}")
        for report in (folder / "crashes").glob("*") if (folder / "crashes").exists() else ():
            found.append(report.read_text()[-1500:])
            report.unlink()
        defects += [f"{' '.join(case.words)[:120]!r}: {d}" for d in found]
    assert not defects, f"{len(defects)} defects of {count} cases:\n" + "\n".join(defects[:5])
    return count


def test_every_command_is_tried() -> None:
    assert COMMANDS.keys() == WORDS.keys()


def test_odd_values_of_options(folder: Path) -> None:
    choices = chooser(3)
    every = list(cases())
    assert judge((case for case in choices.sample(every, 600)), folder) == 600


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_odd_value_of_every_option(folder: Path) -> None:
    assert judge(cases(), folder) > 5000
