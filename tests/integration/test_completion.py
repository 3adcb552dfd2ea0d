"""Shell completion: the script for each shell, and what commands, specs, parts and runs complete to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dbpkit.cli import COMPLETION, main
from dbpkit.cli.options import complete_run

SHELLS = ("bash", "zsh", "fish")


def completed(shell: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> str:
    """What the shell is told when it asks for the end of a line."""
    monkeypatch.setattr(sys, "argv", ["dbpkit"])
    monkeypatch.setenv(COMPLETION, f"complete_{shell}")
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1), "_TYPER_COMPLETE_ARGS": words}
    for name, value in {**asked, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as left:
        main()
    told = capsys.readouterr()
    assert (left.value.code, told.err) == (0, "")
    return str(told.out)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("dbpkit estim", "estimate"),
        ("dbpkit evaluate cifar10-ddpm-", "cifar10-ddpm-l2"),
        ("dbpkit show cifar10-ddpm-", "cifar10-ddpm-l2"),
        ("dbpkit list samp", "samplers"),
        ("dbpkit report runs/a", "runs/a-run"),
        ("dbpkit show runs/a", "runs/a-run"),
        ("dbpkit replay runs/", "runs/a-run"),
    ],
)
def test_shell_completes_commands_specs_parts_and_runs(
    shell: str,
    words: str,
    found: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a-run").mkdir(parents=True)
    (tmp_path / "runs" / "a-run" / "spec.json").touch()
    assert found in completed(shell, words, monkeypatch, capsys)


def test_runs_complete_without_a_slash_and_other_folders_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a", "rushes", ".hidden"):
        Path(name).mkdir(parents=True)
    Path("runs/a/spec.json").touch()
    assert complete_run("ru") == ["runs/", "rushes/"]
    assert complete_run("runs/") == ["runs/a"]
    assert complete_run(f"{tmp_path}/runs/") == [f"{tmp_path}/runs/a"]
    assert complete_run("nowhere/x") == []


@pytest.mark.parametrize("shell", SHELLS)
def test_install_completion_writes_a_script_that_asks_dbpkit(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: shell)
    monkeypatch.setattr("typer._completion_shared._get_shell_name", lambda: shell)
    for option in ("--show-completion", "--install-completion"):
        monkeypatch.setattr(sys, "argv", ["dbpkit", option])
        with pytest.raises(SystemExit) as left:
            main()
        told = capsys.readouterr()
        assert (left.value.code, told.err) == (0, ""), option
        assert option == "--install-completion" or f"{COMPLETION}=complete_{shell}" in told.out
    written = "".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file())
    assert f"{COMPLETION}=complete_{shell}" in written


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="needs bash")
def test_bash_takes_the_script_and_completes_with_it(tmp_path: Path) -> None:
    """The script of ``--show-completion`` in a real bash, with a program ``dbpkit`` on its path."""
    program = tmp_path / "dbpkit"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dbpkit "$@"\n')
    program.chmod(0o755)
    script = (
        "source <(dbpkit --show-completion); COMP_WORDS=(dbpkit list samp); COMP_CWORD=2; "
        '_dbpkit_completion dbpkit; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SHELL": "/bin/bash"}
    done = subprocess.run(["/bin/bash", "-c", script], capture_output=True, text=True, env=environment)
    assert (done.stdout.split(), done.stderr) == (["samplers"], "")
