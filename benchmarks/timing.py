"""Times taken in turn, their medians and spreads, and what they were taken on."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

import torch

Way = Callable[[], Any]
"""Something to be timed. If it returns a number, that is its time in seconds, else the clock says."""

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
"""What tells the time. The processor's is for one thread on a machine that does other things as well."""

_clock = ["wall"]

VERSIONS = ("torch", "numpy", "diffusers", "triton")


def use_clock(name: str) -> None:
    """Chooses one of `CLOCKS` for all that follows."""
    _clock[0] = name


def now() -> float:
    """Seconds by the clock."""
    return CLOCKS[_clock[0]]()


def synchronise() -> None:
    """Waits for the accelerator, if there is one."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def seconds(way: Way) -> float:
    """Seconds of one call."""
    synchronise()
    start = now()
    own = way()
    synchronise()
    return own if isinstance(own, float) else now() - start


def in_turn(ways: Mapping[str, Way], rounds: int, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of every way in every round, by name.

    The ways are called one after the other, in every second round from the last to the first, so that a
    machine that becomes slower favours none of them. Compare times of the same round only.
    """
    for _ in range(warm):
        for way in ways.values():
            way()
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name in list(ways) if turn % 2 == 0 else reversed(list(ways)):
            found[name].append(seconds(ways[name]))
    return found


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median and quartiles."""
    values = sorted(values)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values
    return {"median": statistics.median(values), "low": low, "high": high}


def quotients(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Spread of the quotients of two ways, round by round."""
    return spread(a / b for a, b in zip(above, below, strict=True))


def weighted(*parts: tuple[float, Sequence[float]]) -> list[float]:
    """A sum of times with weights, round by round, such as N forwards and N backwards."""
    return [sum(w * times[i] for w, times in parts) for i in range(len(parts[0][1]))]


def surroundings() -> dict[str, Any]:
    """What a measurement depends on besides the code; without the machine's name."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "clock": _clock[0],
        "load_before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: found for name in VERSIONS if (found := _version(name))},
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:  # noqa: PTH123 - not a file of ours
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit, with ``+`` if files differ from it; None outside of a repository."""
    try:
        ask = ("git", "describe", "--always", "--dirty=+", "--exclude=*")
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
