import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dbpkit import UserError
from dbpkit.foundation.locking import LOCK, is_trace, writing
from tests.integration.conftest import environment

HOLD = """
import sys, time
from dbpkit.foundation.locking import writing
with writing(sys.argv[1], "dbpkit evaluate a.toml"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, env=environment()
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def test_writing_second_process_is_refused_and_told_who_holds_it(holder, tmp_path: Path) -> None:
    with (
        pytest.raises(
            UserError, match=r"written by process \d+ on .*\(dbpkit evaluate a\.toml, since "
        ) as said,
        writing(tmp_path / "run", "dbpkit analyse"),
    ):
        pass
    assert str(holder.pid) in str(said.value)
    assert (tmp_path / "run" / LOCK).exists(), "the refused one leaves the other's lock alone"


def test_writing_lock_of_a_killed_process_does_not_block(holder, tmp_path: Path) -> None:
    unfinished = tmp_path / "run" / "x_adv" / f".a.safetensors.{holder.pid}.tmp"
    unfinished.parent.mkdir()
    unfinished.write_bytes(b"half")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / LOCK).exists()
    with writing(tmp_path / "run", "again"):
        assert not unfinished.exists(), "what the killed process left unfinished is removed"
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["x_adv"]


def test_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), writing(tmp_path / "a" / "b", "c"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with writing(tmp_path / "a" / "b", "c"):
        (tmp_path / "a" / "b" / "kept").write_text("")
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["kept"]


def test_writing_keeps_files_of_running_processes_and_of_the_user(tmp_path: Path) -> None:
    own = tmp_path / f".a.json.{os.getppid()}.tmp"
    named = tmp_path / ".notes.tmp"
    own.write_text("")
    named.write_text("")
    with writing(tmp_path, "c"):
        pass
    assert own.exists()
    assert named.exists()
    assert is_trace(own)
    assert not is_trace(named)


def test_writing_where_a_file_is_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with (
        pytest.raises(UserError, match=r"cannot write to '.*a' \(File exists\)"),
        writing(tmp_path / "a", "c"),
    ):
        pass
