"""The last handler: every end of a command is a sentence, a status, and no traceback."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dbpkit.cli import crash
from dbpkit.foundation.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(crash.FOLDER, str(tmp_path / "crashes"))
    monkeypatch.setenv("COLUMNS", "1000")
    return tmp_path / "crashes"


def raising(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize("status", [0, 1])
def test_command_that_ends_keeps_its_status(status: int) -> None:
    assert crash.guarded(lambda: status) == status


def test_fault_is_one_sentence_with_place_and_report(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert crash.guarded(raising(ZeroDivisionError("too many values to unpack\n(expected 2)"))) == 1
    captured = capsys.readouterr()
    (report,) = folder.iterdir()
    assert captured.out == ""
    assert captured.err.startswith(f"error: ZeroDivisionError in {__file__}, line ")
    assert (
        f"too many values to unpack (expected 2). What was recorded is intact. Report: {report}"
        in captured.err
    )
    assert captured.err.count("\n") == 1
    text = report.read_text()
    assert "Traceback (most recent call last):" in text
    assert "raise error" in text
    assert f"torch: {torch.__version__.partition('+')[0]}" in text
    assert report.stat().st_mode & 0o077 == 0


def test_fault_without_a_place_for_its_report_is_still_a_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.write_text("a file where the folder should be")
    assert crash.guarded(raising(KeyError("x"))) == 1
    assert "Its report could not be written" in capsys.readouterr().err


def test_fault_inside_the_package_names_the_users_line_that_called_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> int:
        torch.zeros(2) + torch.zeros(3)
        return 0

    assert crash.guarded(command) == 1
    assert f"RuntimeError in {__file__}, line " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("eps is wrong."), 2, "error: eps is wrong.\n"),
        (KeyboardInterrupt(), 130, "error: stopped.\n"),
        (MemoryError(), 1, "memory ran out. Lower --micro-batch"),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "memory ran out. Lower --micro-batch"),
        (RuntimeError("[enforce fail] can't allocate memory: you tried"), 1, "memory ran out"),
        (PermissionError(13, "Permission denied", "/\x1b[31m"), 2, r"read or write '/\x1b[31m' (Permission"),
        (OSError("no filename"), 2, "a file cannot be read or written (no filename; "),
        (OSError(28, "No space left"), 2, "standard output or a file cannot be written (No space left)"),
        (FileExistsError(17, "File exists", "a", None, "b"), 2, "read or write 'a' or 'b' (File exists)"),
        (OSError(5, "Input/output error", 7), 2, "cannot read or write a file (Input/output error)"),
    ],
)  # fmt: skip
def test_every_end_has_its_status_and_sentence(
    error: BaseException, status: int, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert crash.guarded(raising(error)) == status
    err = capsys.readouterr().err
    assert said in err
    assert "None" not in err
    assert not folder.exists()  # nothing unforeseen, so no report


def test_what_fails_only_because_ctrl_c_came_is_stopped_and_no_fault(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An import that Ctrl-C cuts short leaves half a module, on which the next use of it fails."""

    def command() -> int:
        try:
            try:
                raise KeyboardInterrupt
            finally:
                raise AttributeError("partially initialized module")
        finally:
            raise ImportError("half a module")

    assert crash.guarded(command) == 130
    assert capsys.readouterr().err == "error: stopped.\n"
    assert not folder.exists()


def test_reader_that_has_seen_enough_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    assert crash.guarded(raising(BrokenPipeError(32, "Broken pipe"))) == 0
    assert sys.stdout.name == os.devnull
    assert capsys.readouterr().err == ""


class Skipped(BaseException):
    """What a test library raises to skip a module, which is no Exception."""


@pytest.mark.parametrize("error", [SystemExit(3), SystemExit("bye"), SystemExit(), Skipped("no torchvision")])
def test_code_of_the_user_that_ends_the_program_is_a_fault_with_a_sentence(
    error: BaseException, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A part that called ``sys.exit(0)`` ended a command with status 0 and without a word."""
    assert crash.guarded(raising(error)) == 1
    assert type(error).__name__ in capsys.readouterr().err
    assert len(list(folder.iterdir())) == 1
