import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dbpkit import UserError
from dbpkit.foundation.locking import LOCK, Shard, is_trace, setting_up, writing
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


def rank(number: int, world: int = 4, launch: str = "--batch-size 16") -> Shard:
    return Shard(number, world, launch)


def test_writing_ranks_of_one_launch_write_together(tmp_path: Path) -> None:
    with writing(tmp_path, "a", rank(0)), writing(tmp_path, "a", rank(3)):
        assert {p.name for p in tmp_path.iterdir()} >= {".lock-1-of-4", ".lock-4-of-4"}
        assert all(map(is_trace, tmp_path.iterdir()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (rank(0), r"by shard 1/4, process \d+ on .*\(first, since .*\)\. Wait for it"),
        (rank(1, 3), r"by shard 1/4, process .*\. Wait for it"),
        (Shard(), r"by shard 1/4, process .*\. Wait for it"),
        (
            rank(1, launch="--batch-size 8"),
            r"with --batch-size 16, this one with --batch-size 8: stop",
        ),
    ],
)
def test_writing_who_is_no_rank_of_the_launch_is_told_so(tmp_path: Path, second: Shard, said: str) -> None:
    with (
        writing(tmp_path, "first", rank(0)),
        pytest.raises(UserError, match=said),
        writing(tmp_path, "second", second),
    ):
        pass


def test_writing_rank_is_refused_where_one_process_writes_alone(tmp_path: Path) -> None:
    with (
        writing(tmp_path, "first"),
        pytest.raises(UserError, match=r"by process \d+ on .*\(first"),
        writing(tmp_path, "second", rank(1)),
    ):
        pass


def test_writing_rank_leaves_the_unfinished_files_of_another(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()  # as the number of a process on another machine, which does not run on this one
    unfinished = tmp_path / f".a.json.{gone.pid}.tmp"
    with writing(tmp_path, "a", rank(0)):
        unfinished.write_text("")
        with writing(tmp_path, "a", rank(1)):
            assert unfinished.exists()
    with writing(tmp_path, "a", rank(2)):
        assert not unfinished.exists()


def test_writing_killed_ranks_block_nobody(tmp_path: Path) -> None:
    (tmp_path / ".lock-2-of-3").write_text("{}")
    (tmp_path / ".lock").write_text("{}")
    with writing(tmp_path, "a", rank(0)):
        assert not (tmp_path / ".lock").exists()
    with writing(tmp_path, "a"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_setting_up_one_rank_at_a_time(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with setting_up(tmp_path, rank(1), lambda: order.append("waits")):
            order.append("second")

    thread = threading.Thread(target=second)
    with writing(tmp_path, "a", rank(0)):
        with setting_up(tmp_path, rank(0)):
            thread.start()
            while not order:
                time.sleep(0.01)
            order.append("first")
        thread.join()
    assert order == ["waits", "first", "second"]


RACE = """
import glob, os, sys, time
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.locking import Shard, writing
path, own, world, until = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
entered = 0
while time.time() < until:
    try:
        with writing(path, "race", Shard(own, world, "x")):
            mark = f"{path}-{world}-{own}"
            open(mark, "x").close()
            assert {name.rsplit("-", 2)[1] for name in glob.glob(f"{path}-*-*")} == {str(world)}
            os.unlink(mark)
        entered += 1
    except UserError:
        time.sleep(0.002)
print(entered)
"""


def test_writing_of_two_worlds_and_one_alone_never_meet(tmp_path: Path) -> None:
    """Five processes try for a while; each looks whether one of another world is inside."""
    until = str(time.time() + 2.5)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(tmp_path / "run"), str(own), str(world), until],
            stdout=subprocess.PIPE,
            env=environment(),
        )
        for own, world in ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3))
    ]
    counts = [int(process.communicate()[0] or -1) for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert sum(counts) > 20, counts
