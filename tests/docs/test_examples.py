"""The files of docs/examples: what they run is what they say."""

import os
import runpy
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dbpkit import cli
from dbpkit.foundation.spec import as_toml
from dbpkit.results.completeness import counted
from dbpkit.results.run_directory import RunDirectory
from tests.docs.pages import ROOT
from tests.parts import TINY

EXAMPLES = ROOT / "docs" / "examples"
SLURM = EXAMPLES / "slurm-array.sbatch"


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two batches of the usual size."""
    made = {
        **TINY,
        "data": {"name": "tests.parts:data", "options": {"count": 17}},
        "purifier": {"sampler": "ddpm", "steps": 20},
        "attacks": [{"name": "pgd", "options": {"iterations": 1, "eot": 1}}],
        "draws": {"report": 1, "select": 1},
        "knowledge": ["white_box"],
    }
    path = tmp_path_factory.mktemp("spec") / "tiny.toml"
    path.write_text(as_toml(made))
    return path


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_slurm_file_is_bash() -> None:
    subprocess.run(["bash", "-n", str(SLURM)], check=True)


def words_of_task(task: int, tasks: int, folder: Path, *arguments: str) -> list[str]:
    """What the file gives to python in one task of an array."""
    program = folder / "python"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@" "threads=$OMP_NUM_THREADS" "rank=$RANK"\n')
    program.chmod(0o755)
    slurm = {
        "SLURM_ARRAY_TASK_ID": task,
        "SLURM_ARRAY_TASK_COUNT": tasks,
        "SLURM_CPUS_PER_TASK": 4,
        "RANK": 7,
    }
    said = subprocess.run(
        ["bash", str(SLURM), *arguments],
        env={**os.environ, **{k: str(v) for k, v in slurm.items()}, "PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return said.stdout.splitlines()


def test_slurm_tasks_do_the_whole_run(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    for task, said in ((2, "Shard 2/2 is done; 6 of 102"), (1, "white box")):
        *words, threads, rank = words_of_task(task, 2, tmp_path, str(spec), str(out))
        assert (threads, rank, words[:2]) == ("threads=4", "rank=", ["-m", "dbpkit"])
        monkeypatch.setattr(sys, "argv", words[1:])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        assert said in " ".join(capsys.readouterr().out.split())
    assert counted(RunDirectory(out)) == (102, 102)


def test_slurm_file_without_arguments_says_which() -> None:
    said = subprocess.run(["bash", str(SLURM)], capture_output=True, text=True)
    assert said.returncode
    assert "SPEC, a TOML file" in said.stderr


class StandIn(types.ModuleType):
    """Runs what Ray would run elsewhere, at once and here."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.asked: list[dict[str, Any]] = []

    def init(self) -> None:
        """Nothing to start."""

    def remote(self, **options: Any) -> Callable[[Callable[..., Any]], Any]:
        self.asked.append(options)
        return lambda function: types.SimpleNamespace(remote=function)

    def get(self, results: list[Any]) -> list[Any]:
        self.results = results
        return results


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    module = StandIn()
    monkeypatch.setitem(sys.modules, "ray", module)
    return module


def test_ray_tasks_do_the_whole_run(
    spec: Path,
    tmp_path: Path,
    ray: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["ray_shards.py", str(spec), str(out), "3", "0"])
    runpy.run_path(str(EXAMPLES / "ray_shards.py"), run_name="__main__")
    assert ray.asked == [{"num_cpus": 1, "num_gpus": 0.0, "max_retries": 3}]
    assert ray.results == [False, True, False], "two batches: the third has nothing to do, and finds it done"
    assert (out / "report.html").is_file()
    assert "report.html" in capsys.readouterr().out
