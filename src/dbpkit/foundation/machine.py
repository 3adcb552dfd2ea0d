"""Settings of a program that shares its machine: memory that is kept, threads that do not fight for cores.

torch's threads wait for each other by spinning (GNU OpenMP). On a quiet machine that is the fastest way. Once
another process takes a core, a thread spins while the one it waits for cannot run, and a gradient takes 25
times as long. So a `Watch` looks four times a second how long this process's threads have waited for a core,
and as long as they do it has them sleep instead of spin.

While a program runs the number of threads stays as it was, because sums are cut by it: results are the same
bit for bit. At its start it takes no more threads than cores are free, unless the number was chosen or has to
be the same whoever else is there: two programs with all cores each are slower than two that share them. GNU
OpenMP reads its spinning time once, when torch is imported, and has no function to change it. But it hardly
spins while it knows of more threads than cores, and a team of threads that do nothing is enough for that.
"""

import ctypes
import functools
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

import torch

from dbpkit.foundation.memory import keep_freed_memory

CHOSEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Environment variables by which a user chooses how threads wait."""

COUNTED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables by which a user chooses the number of threads."""

LOOK_SECONDS = 0.25
"""How often the machine is looked at."""

BUSY = 0.1
"""Threads that wait for a core, on average over a look, from which on nobody spins."""

QUIET_LOOKS = 20
"""Looks without waiting, one after the other, until threads spin again."""

LOOKS, LOOK_APART = 4, 0.1
"""How often, and how many seconds apart, the cores are looked at when a program starts."""

_GRAIN = 32768  # elements for which torch wakes one more thread


def settle(environment: Mapping[str, str] = os.environ, *, share: bool = True) -> "Watch | None":
    """Makes this process a good neighbour; for programs, not called by the library.

    Keeps freed memory, uses no more threads than a container is given cores and others leave free, and starts
    the `Watch`. What the environment says is left alone.

    Args:
        environment: the environment's variables.
        share: whether cores that others use now are left to them. The number of threads decides how sums are
            cut, so it is to be the same where results are to be the same bit for bit.

    Returns:
        The watch, or None where it is not needed or cannot be: one thread, another OpenMP, another system.
    """
    keep_freed_memory()
    if not any(name in environment for name in COUNTED):
        threads = granted(torch.get_num_threads(), cgroup_limits())
        torch.set_num_threads(granted(threads, [free_cores()]) if share and threads > 1 else threads)
    if any(name in environment for name in CHOSEN) or torch.get_num_threads() == 1:
        return None
    if gnu_openmp() is None or waited() is None:
        return None
    watch = Watch()
    watch.start()
    return watch


class Watch(threading.Thread):
    """Has threads sleep while other processes take cores, and spin again afterwards."""

    def __init__(self) -> None:
        super().__init__(name="dbpkit-watch", daemon=True)
        self.team = Team()
        self._end = threading.Event()

    def run(self) -> None:
        """Looks until `end` is called."""
        before, since, state = waited() or 0.0, time.monotonic(), State()
        while not self._end.wait(LOOK_SECONDS):
            now, at = waited() or 0.0, time.monotonic()
            state = state.after((now - before) / max(at - since, 1e-9))
            before, since = now, at
            if state.sleeps != self.team.sleeping:
                self.team.set(state.sleeps)
        self.team.set(False)

    def end(self) -> None:
        """Stops looking and leaves threads as they were."""
        self._end.set()
        self.join()


class State:
    """Whether threads should sleep, from what one look after the other saw."""

    def __init__(self, sleeps: bool = False, quiet: int = 0) -> None:
        self.sleeps, self.quiet = sleeps, quiet

    def after(self, waiting: float) -> "State":
        """The state after a look at which ``waiting`` threads waited for a core, on average."""
        if waiting >= BUSY:
            return State(True)
        quiet = self.quiet + 1
        return State(self.sleeps and quiet < QUIET_LOOKS, quiet)


class Team:
    """Threads that do nothing but be counted by OpenMP, so that it knows more of them than of cores."""

    def __init__(self) -> None:
        self.sleeping = False
        self._holder: threading.Thread | None = None
        self._dismissed = threading.Event()

    def set(self, sleeping: bool) -> None:
        """Has waiting threads sleep, or spin as they did."""
        if sleeping and self._holder is None:
            self._dismissed.clear()
            called = threading.Event()
            self._holder = threading.Thread(target=self._hold, args=(called,), daemon=True)
            self._holder.start()
            called.wait()
        elif not sleeping and self._holder is not None:
            self._dismissed.set()
            self._holder.join()  # OpenMP dismisses the team of a thread that ends
            self._holder = None
        self.sleeping = sleeping

    def _hold(self, called: threading.Event) -> None:
        """Calls a team of this thread's own together and keeps it until it is dismissed."""
        openmp = gnu_openmp()
        count = max(2, cores() - torch.get_num_threads() + 2)
        place = torch.zeros(_GRAIN * (count + 1), dtype=torch.uint8)
        if openmp is not None:
            openmp.omp_set_num_threads(count)  # for this thread alone
        place.add_(1)
        called.set()
        self._dismissed.wait()


def affinity() -> set[int]:
    """Numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def cores() -> int:
    """How many cores this process may run on."""
    return len(affinity())


def waited(tasks: Path = Path("/proc/self/task")) -> float | None:
    """Seconds that this process's threads have waited for a core so far; None where Linux does not say."""
    total, found = 0, False
    try:
        for task in tasks.iterdir():
            try:
                total += int((task / "schedstat").read_text().split()[1])
                found = True
            except (OSError, IndexError, ValueError):
                continue  # the thread has ended
    except OSError:
        return None
    return total / 1e9 if found else None


@functools.cache
def gnu_openmp() -> ctypes.CDLL | None:
    """The GNU OpenMP that torch has loaded, or None if it uses another one."""
    if not sys.platform.startswith("linux"):
        return None
    paths = dict.fromkeys(re.findall(r"/\S*libgomp[^/\s]*", _text(Path("/proc/self/maps"))))
    own = [path for path in paths if path.startswith(str(Path(torch.__file__).parent))]
    if not own and (len(paths) != 1 or "libiomp" in _text(Path("/proc/self/maps"))):
        return None
    try:
        return ctypes.CDLL([*own, *paths][0])
    except OSError:
        return None


def free_cores(look: Callable[[], tuple[float, float] | None] | None = None) -> float:
    """Returns how many of this process's cores nobody uses, after a few looks in less than half a second.

    A core counts as taken if it was in use at every look, so that what only comes by takes nothing. This
    process waits meanwhile, and does not count.

    Args:
        look: see `core_ticks`, which is called if there is none.

    Returns:
        The cores; all of them where Linux does not say.
    """
    look = look or core_ticks
    taken, before = float(cores()), look()
    for _ in range(LOOKS):
        time.sleep(LOOK_APART)
        now = look()
        if before is None or now is None or now[0] <= before[0]:
            return float(cores())
        share = (now[1] - before[1]) / (now[0] - before[0])
        taken, before = min(taken, round(share * cores())), now
    return cores() - taken


def core_ticks(
    stat: Path = Path("/proc/stat"), own: Collection[int] | None = None
) -> tuple[float, float] | None:
    """Time of cores since the start of the machine, all and in use, in ticks; None without Linux.

    Args:
        stat: the file of Linux.
        own: numbers of the cores that are asked for; None takes those that this process may run on.
    """
    own = affinity() if own is None else own
    everything = in_use = 0.0
    for line in _text(stat).splitlines():
        name, *words = line.split()
        if name.removeprefix("cpu").isdecimal() and int(name[3:]) in own and len(words) > 6:
            user, nice, system, idle, waiting, hard, soft, *_ = map(float, words)
            in_use += user + nice + system + hard + soft
            everything += user + nice + system + hard + soft + idle + waiting
    return (everything, in_use) if everything else None


def granted(threads: int, limits: Iterable[float]) -> int:
    """The number of threads for which whole cores are granted, at least 1 and at most ``threads``."""
    return max(1, int(min([threads, *limits])))


def cgroup_limits(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> Iterator[float]:
    """Yields the cores that each control group of this process is granted, version 2 and 1."""
    for line in _text(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folder = root / path.lstrip("/")
            for group in (folder, *folder.parents):
                yield from _ratio(*_text(group / "cpu.max").split()[:2])
                if group == root:
                    break
        elif "cpu" in controllers.split(","):
            for group in (root / "cpu" / path.lstrip("/"), root / "cpu"):
                quota, period = group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us"
                yield from _ratio(_text(quota), _text(period))


def _ratio(quota: str = "", period: str = "") -> Iterator[float]:
    """Yields the quotient if both are numbers and there is a limit."""
    if quota.strip().isdigit() and period.strip().isdigit() and int(period):
        yield int(quota) / int(period)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
