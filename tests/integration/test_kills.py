"""Evaluations, analyses and trainings that are killed at any instant end as if they had not been.

At seeded random instants of a real process, by SIGKILL, SIGTERM and SIGINT, again and again in the same
directory until it is finished; then every file is compared byte for byte with an uninterrupted run.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.fuzz.harness import chooser
from tests.integration.conftest import REPOSITORY, environment

TIMED = ("seconds", "images_per_second", "digest")
"""What differs from one training to the next: time, and the digest of lines with it."""

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
COUNTS = [
    pytest.param(3, id="ci"),
    pytest.param(50, id="long", marks=[pytest.mark.long, pytest.mark.timeout(3600)]),
]


class Server:
    """A process that runs each piece of work in a process of its own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.kill_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment(),
            cwd=REPOSITORY,
        )

    def run(self, name: str, out: Path, stop_after: float | None = None, by: int = 0) -> int:
        """Starts a piece of work, stops it after some seconds, and returns its exit status, 0 for done."""
        self._stream(self.process.stdin).write(f"{name} {out}\n")
        self._stream(self.process.stdin).flush()
        pid = int(self._stream(self.process.stdout).readline())
        if stop_after is not None:
            time.sleep(stop_after)
            os.kill(pid, by)  # it is a zombie until the server has waited for it, or just gone
        return int(self._stream(self.process.stdout).readline())

    @staticmethod
    def _stream(stream: IO[str] | None) -> IO[str]:
        assert stream is not None
        return stream


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.process.kill()
    made.process.wait()


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a run; of the log of a training all but how long it took."""
    found = {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}
    for name in [name for name in found if name == "log.jsonl"]:
        lines = [json.loads(line) for line in found[name].splitlines()]
        found[name] = json.dumps(
            [{k: v for k, v in line.items() if k not in TIMED} for line in lines]
        ).encode()
    return found


def stopped(server: Server, name: str, out: Path, seconds: float, kind: int) -> int:
    """Runs and stops a piece of work; one that ended by itself before is no stop."""
    try:
        return server.run(name, out, seconds, kind)
    except ProcessLookupError:
        return int(server._stream(server.process.stdout).readline())


@pytest.mark.slow
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["evaluate", "analyse", "train"])
def test_work_that_is_killed_again_and_again_ends_as_if_it_had_not_been(
    name: str, count: int, server: Server, tmp_path: Path
) -> None:
    assert server.run(name, tmp_path / "whole") == 0
    began = time.monotonic()
    assert server.run(name, tmp_path / "again") == 0
    seconds = time.monotonic() - began
    whole = contents(tmp_path / "whole")
    assert contents(tmp_path / "again") == whole, "it is not the same even without a kill"
    choose, kills, runs = chooser(count), 0, 0
    while kills < count:
        out, runs, status = tmp_path / f"killed{runs}", runs + 1, 1
        while kills < count and status != 0:
            status = stopped(server, name, out, choose.uniform(0, seconds), choose.choice(SIGNALS))
            kills += status != 0
        assert server.run(name, out) == 0
        found = contents(out)
        assert sorted(found) == sorted(whole), "files that should not be there, or are missing"
        assert [file for file in whole if found[file] != whole[file]] == []
    sys.stderr.write(f"{name}: {kills} kills in {runs} runs, 0 differences, 0 leftovers\n")
