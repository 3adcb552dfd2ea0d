import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from dbpkit.foundation import machine
from dbpkit.foundation.machine import (
    BUSY,
    QUIET_LOOKS,
    State,
    Team,
    cgroup_limits,
    core_ticks,
    free_cores,
    granted,
    settle,
    waited,
)
from dbpkit.foundation.noise import NoisePlan


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def tasks() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_state_sleeps_at_once_and_spins_again_only_after_quiet_looks() -> None:
    state = State()
    assert not state.after(BUSY / 2).sleeps
    state = state.after(BUSY)
    assert state.sleeps
    for _ in range(QUIET_LOOKS - 1):
        state = state.after(0.0)
        assert state.sleeps
    assert not state.after(0.0).sleeps
    interrupted = state.after(2.0)  # a busy look begins the count anew
    for _ in range(QUIET_LOOKS - 1):
        interrupted = interrupted.after(0.0)
    assert interrupted.sleeps


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux")
def test_team_adds_sleeping_threads_changes_no_bit_and_goes_again(two_threads: None) -> None:
    x = NoisePlan.of(0, range(4)).normal("probe", 0, torch.zeros(4, 8, 32, 32))
    weight = NoisePlan.of(1, range(8)).normal("probe", 0, torch.zeros(8, 8, 3, 3))
    before = functional.conv2d(x, weight, padding=1)
    alone, team = tasks(), Team()
    team.set(True)
    team.set(True)  # a second time is the same
    assert tasks() >= alone + 2  # its holder and at least one more
    assert torch.equal(functional.conv2d(x, weight, padding=1), before)
    assert torch.get_num_threads() == 2
    team.set(False)
    deadline = time.monotonic() + 10
    while tasks() > alone and time.monotonic() < deadline:
        time.sleep(0.01)
    assert tasks() <= alone
    assert torch.equal(functional.conv2d(x, weight, padding=1), before)


@pytest.mark.parametrize("name", machine.CHOSEN)
def test_settle_leaves_the_users_choice_alone(two_threads: None, name: str) -> None:
    assert settle({name: "1000"}) is None


def test_settle_with_one_thread_watches_nothing(two_threads: None) -> None:
    torch.set_num_threads(1)
    assert settle({"OMP_NUM_THREADS": "1"}) is None


@pytest.mark.skipif(machine.gnu_openmp() is None or waited() is None, reason="another OpenMP or system")
def test_settle_watches_until_it_is_told_to_end(two_threads: None) -> None:
    watch = settle({"OMP_NUM_THREADS": "2"})
    assert watch is not None
    assert watch.daemon
    watch.end()
    assert not watch.is_alive()
    assert not watch.team.sleeping
    assert torch.get_num_threads() == 2


def test_waited_sums_all_threads_and_passes_over_those_that_ended(tmp_path: Path) -> None:
    for task, text in (("1", "9 1500000000 2"), ("2", "9 500000000 2"), ("3", ""), ("4", None)):
        (tmp_path / task).mkdir()
        if text is not None:
            (tmp_path / task / "schedstat").write_text(text)
    assert waited(tmp_path) == 2.0
    assert waited(tmp_path / "none") is None
    assert waited(tmp_path / "4") is None


def test_cgroup_limits_of_version_2_are_those_of_every_group_above(tmp_path: Path) -> None:
    group = tmp_path / "a" / "b"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("max 100000\n")
    (tmp_path / "a" / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "own").write_text("0::/a/b\n")
    assert list(cgroup_limits(tmp_path, tmp_path / "own")) == [1.5]


def test_cgroup_limits_of_version_1(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("250000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "own").write_text("4:memory:/\n3:cpu,cpuacct:/docker/x\n")
    assert list(cgroup_limits(tmp_path, tmp_path / "own")) == [2.5]
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert list(cgroup_limits(tmp_path, tmp_path / "own")) == []


@pytest.mark.parametrize(
    ("limits", "threads"), [([], 8), ([2.5], 2), ([0.4], 1), ([16.0], 8), ([4.0, 3.0], 3)]
)
def test_granted_is_whole_cores_and_at_least_one(limits: list[float], threads: int) -> None:
    assert granted(8, iter(limits)) == threads


def test_importing_the_package_starts_no_watch() -> None:
    code = "import dbpkit, dbpkit.cli, threading; print([t.name for t in threading.enumerate()])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "['MainThread']"


@pytest.mark.parametrize(
    ("in_use", "free"),
    [
        ([0, 0, 0, 0, 0], 4),
        ([0, 10, 20, 30, 40], 3),  # one core all the time
        ([0, 40, 80, 120, 160], 0),
        ([0, 40, 40, 80, 120], 4),  # all of them, but not at every look: something that comes by
        ([0, 25, 45, 68, 90], 2),  # between two and three: the least busy look counts
    ],
)
def test_free_cores_are_those_that_were_never_in_use(
    in_use: list[float], free: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "LOOK_APART", 0)
    monkeypatch.setattr(machine, "affinity", lambda: {0, 1, 2, 3})
    looks = iter([(1000 + 40 * k, used) for k, used in enumerate(in_use)])  # 10 ticks of each of 4 cores
    assert free_cores(lambda: next(looks)) == free


def test_free_cores_without_linux_are_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LOOK_APART", 0)
    assert free_cores(lambda: None) == machine.cores()


def test_core_ticks_are_of_the_cores_of_this_process_only(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text(
        "cpu  999 9 9 9 9 9 9 0 0 0\n"
        "cpu0 10 1 2 100 5 3 4 0 0 0\n"
        "cpu1 50 0 0 50 0 0 0 0 0 0\n"
        "cpu12 7 0 0 1 0 0 0 0 0 0\n"
        "intr 5\n"
    )
    assert core_ticks(stat, {0}) == (125, 20)
    assert core_ticks(stat, {0, 12}) == (133, 27)
    assert core_ticks(tmp_path / "nothing", {0}) is None


@pytest.mark.parametrize(
    ("environment", "share", "threads"), [({}, True, 1), ({}, False, 2), ({"OMP_NUM_THREADS": "2"}, True, 2)]
)
def test_settle_leaves_cores_that_others_use_unless_the_number_has_to_stay(
    environment: dict[str, str],
    share: bool,
    threads: int,
    two_threads: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "free_cores", lambda: 1.0)
    monkeypatch.setattr(machine, "cgroup_limits", lambda: iter([]))
    watch = settle({"OMP_WAIT_POLICY": "PASSIVE", **environment}, share=share)
    assert watch is None
    assert torch.get_num_threads() == threads
