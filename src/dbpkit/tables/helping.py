"""Other processes that make runs of the same tables, from the last one on, while this one works.

Networks of the embedded size leave cores idle: two processes with one thread each make nearly twice as many
runs as one with two. Nothing is said between them but by run directories, each of which one process writes,
and by a queue that tells what was made. Whoever is killed takes nothing with it but its unfinished unit.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from typing import Any

import torch

from dbpkit.experiment.execution import Execution
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.memory import free_memory, keep_freed_memory
from dbpkit.tables.running import Planned, Progress, run_jobs

MOST = 4
"""Processes that are worth their memory."""

ROOM = 5 * 2**30
"""Memory that has to be free for each, in bytes: the largest run of the small scale takes 4.3 GB."""


def processes_here(execution: Execution) -> int:
    """Returns how many processes this machine has room for: one for each thread, and one on a GPU."""
    if execution.device.type != "cpu":
        return 1
    free = free_memory()
    return max(1, min(MOST, torch.get_num_threads(), MOST if free is None else free // ROOM))


class Helpers:
    """The other processes, and what they have made.

    Args:
        processes: that run.
        told: their queue: key and seconds of every run.
    """

    def __init__(self, processes: list[Any], told: Any) -> None:
        self.processes, self._told = processes, told
        self.seconds: dict[str, float] = {}

    def made(self) -> Mapping[str, float]:
        """Returns the seconds of every run that they have made so far."""
        while True:
            try:
                key, seconds = self._told.get_nowait()
            except Empty:
                return self.seconds
            self.seconds[key] = seconds

    def wait(self, waits: Callable[[], object] = lambda: None) -> Mapping[str, float]:
        """Waits until all have ended, and returns what they have made."""
        for process in self.processes:
            while process.is_alive():
                waits()
                process.join(1.0)
                self.made()  # a process does not end before its queue is read
        return self.made()


@contextmanager
def helped(
    planned: Mapping[str, Planned], execution: Execution, count: int, patience: float | None = None
) -> Iterator[Helpers]:
    """Inside the block other processes make runs too; what they are at when it ends is left unfinished.

    Args:
        planned: the runs.
        execution: device and batch sizes.
        count: how many other processes; the threads of this one are shared with them.
        patience: as of `run_jobs`.
    """
    spawn = multiprocessing.get_context("spawn")
    told = spawn.Queue()
    threads = torch.get_num_threads()
    own = max(1, threads // (count + 1))
    given = (str(execution.device), execution.batch_size, execution.micro_batch)
    processes = [
        spawn.Process(target=_help, args=(dict(planned), given, own, patience, told), daemon=True)
        for _ in range(count)
    ]
    try:
        if processes:
            torch.set_num_threads(own)
        with _interrupts_wait():
            for process in processes:
                process.start()
        yield Helpers(processes, told)
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()
        torch.set_num_threads(threads)


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Inside the block Ctrl-C waits; processes that are started in it are never told of it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _help(
    planned: dict[str, Planned],
    given: tuple[str, Any, Any],
    threads: int,
    patience: float | None,
    told: Any,
) -> None:
    """Makes runs in a process of its own, without a word, until none is left or its parent has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told of it, and ends this process
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - to the end
    torch.set_num_threads(threads)
    keep_freed_memory()
    parent = multiprocessing.parent_process()

    def goes_on(_share: float, _what: str) -> None:
        if parent is not None and not parent.is_alive():
            os._exit(1)

    progress: Progress = goes_on
    try:
        run_jobs(
            dict(reversed(planned.items())),
            Execution(*given),
            progress,
            patience,
            made=lambda key, seconds: told.put((key, seconds)),
        )
    except UserError:
        return  # whoever asked meets the same run, and says what is wrong with it
