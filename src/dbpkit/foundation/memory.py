"""The machine's memory: how much this process may still take, and one allocator setting.

Every step of a backward pass frees and asks again for megabytes. glibc gives large blocks back to the system
at once and faults them in anew; keeping them makes gradients on a CPU a fifth faster, and costs nothing but
the memory that was in use a moment before.

The thing people get wrong: asking the machine how much is free, inside a container that may take a tenth.
"""

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # glibc accepts no larger one


def keep_freed_memory() -> bool:
    """Asks the C library to keep freed memory for the next tensors; for programs, not called by the library.

    Returns:
        Whether it did; False where there is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)) and bool(
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    )


def free_memory(system: Path = Path("/")) -> int | None:
    """Returns how many bytes this process may still take, of the machine and of its limits.

    Args:
        system: where the files of Linux lie.

    Returns:
        The bytes, or None where the system does not say.
    """
    free = _of_the_machine(system / "proc/meminfo")
    if free is None:
        return None
    return max(0, min([free, *_of_control_groups(system), *_of_the_process(system / "proc/self/status")]))


def _of_the_machine(path: Path) -> int | None:
    """What Linux would give without swapping."""
    return _entry(_text(path), "MemAvailable:", 1024)


def _of_the_process(status: Path) -> Iterator[int]:
    """What ``ulimit -v`` leaves."""
    if sys.platform == "win32":
        return
    import resource

    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        yield most - (_entry(_text(status), "VmSize:", 1024) or 0)


def _of_control_groups(system: Path) -> Iterator[int]:
    """What each control group of this process leaves, version 2 and 1; files in the cache can be dropped."""
    root = system / "sys/fs/cgroup"
    for line in _text(system / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names, folders = ("memory.max", "memory.current"), _upwards(root / path.lstrip("/"), root)
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            folders = _upwards(root / "memory" / path.lstrip("/"), root / "memory")
        else:
            continue
        for folder in folders:
            most, used = (_text(folder / name).strip() for name in names)
            if most.isdigit() and used.isdigit():
                statistics = _text(folder / "memory.stat")
                cached = _entry(statistics, "total_inactive_file") or _entry(statistics, "inactive_file") or 0
                yield int(most) - int(used) + cached


def _upwards(folder: Path, root: Path) -> Iterator[Path]:
    """A folder and those above it, down to a root."""
    yield folder
    while folder != root and root in folder.parents:
        folder = folder.parent
        yield folder


def _entry(text: str, name: str, unit: int = 1) -> int | None:
    """The number that follows a name at the beginning of a line, in bytes."""
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == name and words[1].isdigit():
            return int(words[1]) * unit
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
