"""The command line under what a terminal, a shell and a user may do to it: a sentence, never a traceback."""

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dbpkit.cli import crash
from tests.integration.test_cli import run

__all__ = ["run"]

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["purify", "a.png", "--out", "x", "--t-star", "2"], "2 is not between 0 and 1"),
        (["purify", "a.png", "--out", "x", "--t-star", "nan"], "nan is not between 0 and 1"),
        (["purify", "a.png", "--out", "x", "--t-star", "inf"], "inf is not between 0 and 1"),
        (["purify", "a.png", "--out", "x", "--t-star", "0"], "0 is not between 0 and 1"),
        (["purify", "a.png", "--out", "x", "--steps", "0"], "'--steps'"),
        (["purify", "a.png", "--out", "x", "--steps", "-1"], "'--steps'"),
        (["purify", "a.png", "--out", "x", "--steps", "9" * 5000], "'--steps'"),
        (["purify", "a.png", "--out", "x", "--seed", "-1"], "'--seed'"),
        (["purify", "a.png", "--out", "x", "--seed", str(2**32)], "'--seed'"),
        (["quality", "embedded", "--t-star", "nan"], "t_star nan is outside (0, 1]"),
        (["quality", "embedded", "--steps", "0"], "'--steps'"),
        (["evaluate", "s.toml", "--out", "x", "--memory", "inf"], "inf is not a number of GiB from 0 to"),
        (["evaluate", "s.toml", "--out", "x", "--memory", "nan"], "nan is not a number of GiB from 0 to"),
        (["evaluate", "s.toml", "--out", "x", "--memory", "-1"], "-1 is not a number of GiB from 0 to"),
        (["evaluate", "s.toml", "--out", "x", "--batch-size", "0"], "'--batch-size'"),
        (["evaluate", "s.toml", "--out", "x", "--stepz", "0"], "No such option: --stepz"),
        (["evaluat"], "No such command 'evaluat'"),
        (["show", "\x00"], "embedded null byte"),
        (["show", "[/b]:a:\x1b[31m"], r"spec or run '[/b]:a:\x1b[31m' does not exist"),
        (["show", "name\udcff"], r"spec or run 'name\udcff' does not exist"),
        (["list", "[/b]"], "unknown kind or part '[/b]'"),
        (["list", "samplr"], "Did you mean 'samplers'?"),
    ],
)
def test_wrong_words_are_one_sentence(words: list[str], said: str, run) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.strip().isprintable()


@pytest.mark.parametrize(
    "device",
    ["mps", "xpu", "meta", "xla", "cuda:9", "cuda:-1", "cuda:x", "cpu:", "cpu:x", "cpu:3", "", "CPU",
     "cuda:9999999"],
)  # fmt: skip
def test_device_that_is_not_there_is_one_sentence(device: str, run, tiny_toml: Path, tmp_path: Path) -> None:
    for words in (["evaluate", tiny_toml, "--out", tmp_path / "run"], ["check", tiny_toml]):
        code, out, err = run(*words, "--device", device)
        assert (code, out) == (2, "")
        assert f"device '{device}'" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("device", ["mps", "xpu", "meta", "xla"])
def test_train_on_a_device_that_is_not_there_is_one_sentence(device: str, run, tmp_path: Path) -> None:
    spec = ROOT / "specs" / "train" / "cifar10-classifier.toml"
    code, _, err = run("train", spec, "--out", tmp_path / "run", "--device", device)
    assert code == 2
    assert f"device '{device}' is unknown" in err


@pytest.mark.parametrize(
    "text",
    ["raise SystemExit(3)", "import sys; sys.exit('bye')",
     "import argparse; argparse.ArgumentParser().parse_args(['--no-such-option'])"],
)  # fmt: skip
def test_users_module_that_leaves_the_program_at_import_is_named(
    text: str, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"leaves_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    code, out, err = run("list", "--plugin", name)
    assert (code, out) == (2, "")
    assert f"plugin module '{name}' fails on import: SystemExit" in err


def test_unforeseen_fault_is_a_sentence_and_a_report(
    run, tiny_toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("too many values to unpack (expected 2)")

    monkeypatch.setattr("dbpkit.evaluation.run.evaluate_share", broken)
    monkeypatch.setenv(crash.FOLDER, str(tmp_path / "crashes"))
    code, out, err = run("evaluate", tiny_toml, "--out", tmp_path / "run")
    (report,) = (tmp_path / "crashes").iterdir()
    assert (code, out) == (1, "")
    assert f"ValueError in {__file__}, line " in err.replace("\n", " ")
    assert report.name in err
    assert "Traceback" not in err
    assert "Traceback" in report.read_text()


def test_interrupt_of_a_command_that_does_not_continue_does_not_say_so(
    run, tiny_toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dbpkit.check_spec", interrupted)
    code, out, err = run("check", tiny_toml)
    assert (code, out, err) == (130, "", "stopped.\n")


def test_interrupt_outside_the_work_ends_with_130(
    run, tiny_toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dbpkit.read_spec", interrupted)
    code, out, err = run("show", tiny_toml)
    assert (code, out, err) == (130, "", "error: stopped.\n")


def test_out_with_markup_is_printed_as_it_is(run, tiny_toml: Path, tmp_path: Path) -> None:
    out = tmp_path / "run [/b] :a:"
    code, said, err = run("evaluate", tiny_toml, "--out", out)
    assert code == 0, err
    assert f"Report: {out / 'report.html'}" in said


def test_quiet_and_verbose_decide_what_standard_error_says(run, tiny_toml: Path, tmp_path: Path) -> None:
    code, _, err = run("evaluate", tiny_toml, "--out", tmp_path / "a", "--quiet")
    assert (code, err) == (0, "")
    code, _, err = run("evaluate", tiny_toml, "--out", tmp_path / "b", "--verbose")
    assert code == 0
    assert "white_box: " in err
    numbers = [(int(k), int(n)) for k, n in re.findall(r"checks \((\d+) of (\d+)\): ", err)]
    assert sorted({k for k, _ in numbers}) == list(
        range(1, numbers[0][1] + 1)
    )  # which check runs, and how far it is
    assert "% done after" in err


# ------------------------------------------------------------------ as a program of its own


def start(*words: str, stdout: Any = subprocess.PIPE, **environment: str) -> subprocess.Popen[bytes]:
    """Starts the command line as a program, on this source, heeding interrupts.

    A shell has what it starts in the background ignore them, and so would everything that the tests start.
    """
    own = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "dbpkit", *words]
    return subprocess.Popen(
        command,
        stdout=stdout,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, **own},
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def test_reader_that_leaves_is_no_error() -> None:
    """What `dbpkit list | head -1` does; and a terminal that knows ASCII alone."""
    process = start("list", PYTHONIOENCODING="ascii")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"adversaries\n"
    process.stdout.close()
    assert process.wait(60) == 0
    assert process.stderr.read() == b""


def test_interrupt_during_import_is_one_sentence(tmp_path: Path) -> None:
    """A module that the program imports says that it is reached, and then takes its time.

    It sleeps in short naps: Python runs a handler between two instructions, so a signal that arrives right
    before the system call of one long nap is heeded only after it.
    """
    reached = tmp_path / "reached"
    slow = f"import time\nopen({str(reached)!r}, 'w').close()\nfor _ in range(1200): time.sleep(0.05)\n"
    (tmp_path / "typer.py").write_text(slow)
    process = start("list", PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT / "src")]))
    while not reached.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert err.count(b"\n") == 1
    assert out == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_full_standard_output_is_one_sentence() -> None:
    with Path("/dev/full").open("wb") as full:
        process = start("show", "specs/cifar10-ddpm.toml", stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err == (
        b"error: standard output or a file cannot be written (No space left on device). What was recorded is"
        b" intact.\n"
    )
