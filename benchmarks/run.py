"""Every benchmark of a CPU, one after the other, kept in a file as each is done.

    python -m benchmarks                          10 to 15 minutes on two cores
    python -m benchmarks --quick                  2 minutes: the embedded network, fewer rounds
    python -m benchmarks --full                   35 minutes: more rounds and steps
    python -m benchmarks --only gradient,eot      these alone
    python -m benchmarks --again                  also what the file has already

A section that the file has at this size or a larger one is not measured again. Tables are printed, and again
by ``python -m benchmarks.table``. The machine should do nothing else; its load before is noted each time.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import costs, linear, peaks, whole
from benchmarks.addt import ROWS, Setting
from benchmarks.subjects import subject
from benchmarks.table import markdown
from benchmarks.timing import CLOCKS, in_turn, quotients, spread, surroundings, use_clock
from dbpkit.foundation.machine import settle

RESULTS = Path("benchmarks/results/cpu.json")
SIZES = ("quick", "default", "full")
SMALL, LARGE = "embedded, 1.9 M", "DDPM, 35.7 M"

Content = dict[str, Any]


class Size(NamedTuple):
    """How much is measured.

    Attributes:
        name: one of `SIZES`.
        rounds: of the embedded network.
        large_rounds: of the 35.7 M one; 0 leaves it out.
        images: in a batch of the embedded network.
        large_images: the same of the other.
        large_calls: network calls of a purification by it.
    """

    name: str
    rounds: int
    large_rounds: int
    images: int
    large_images: int
    large_calls: int


def size(name: str) -> Size:
    """The size of a name."""
    return {
        "quick": Size("quick", 3, 0, 8, 0, 0),
        "default": Size("default", 7, 3, 16, 4, 3),
        "full": Size("full", 11, 5, 16, 8, 6),
    }[name]


def purification(much: Size) -> Content:
    """Purification without a gradient, over N bare calls."""
    rows = [costs.purification(subject(SMALL, much.images), 11, 2 * much.rounds)]
    if much.large_rounds:
        one = subject(LARGE, much.large_images)
        rows.append(costs.purification(one, much.large_calls, 2 * much.large_rounds))
    return {"rows": rows}


def gradient(much: Size) -> Content:
    """The gradient of a purification, over its bound, by what memory keeps."""
    rows = costs.gradient(subject(SMALL, much.images), 11, much.rounds)
    if much.large_rounds:
        rows += costs.gradient(subject(LARGE, much.large_images), much.large_calls, much.large_rounds)
    return {"rows": rows}


def eot(much: Size) -> Content:
    """The attack's gradient over several draws, beside one draw at a time."""
    rows = costs.eot(subject(SMALL, 2), 11, 8, 16, much.rounds)
    if much.large_rounds:
        rows += costs.eot(subject(LARGE, 1), 2, 4, 4, much.large_rounds)
    return {"rows": rows}


def noise(much: Size) -> Content:
    """One draw of noise, over one call of the network."""
    rows = [costs.noise(subject(SMALL, much.images), 5 * much.rounds)]
    if much.large_rounds:
        rows.append(costs.noise(subject(LARGE, much.large_images), 2 * much.large_rounds))
    return {"rows": rows}


def peak(much: Size) -> Content:
    """Most memory of one gradient."""
    return peaks.measured(SMALL, 11, 101, (4,) if much.name == "quick" else (4, 8, 16))


def update(much: Size) -> Content:
    """One update of ADDT, over its network calls, and with weight gradients on the inner steps."""
    rows = []
    for precision in ("float32",) if much.name == "quick" else ("float32", "bfloat16"):
        setting = Setting(precision)
        ways = {
            "calls alone": setting.lower_bound,
            "update": setting.update,
            "plain": setting.wasteful_update,
        }
        taken = in_turn(ways, max(2, much.rounds - 2))
        rows.append(
            {
                "precision": precision,
                "images": ROWS,
                "calls alone, s": spread(taken["calls alone"]),
                "update, s": spread(taken["update"]),
                "over calls alone": quotients(taken["update"], taken["calls alone"]),
                "with inner weight gradients, s": spread(taken["plain"]),
                "times faster than plain": quotients(taken["plain"], taken["update"]),
                "seconds": taken,
            }
        )
    return {"rows": rows}


def evaluation(much: Size) -> Content:
    """An evaluation from end to end, over its network calls."""
    one = subject(SMALL, 4 if much.name == "quick" else 8)
    return {"rows": [whole.measured(one, 6, 2, 4, much.rounds // 2)]}


def cost(much: Size) -> Content:
    """Time of the attack's gradient by examples, draws and network calls."""
    factors = linear.FACTORS[:3] if much.name == "quick" else linear.FACTORS
    return linear.measured(SMALL, much.rounds // 2, factors)


SECTIONS: dict[str, Callable[[Size], Content]] = {
    "purification": purification,
    "gradient": gradient,
    "eot": eot,
    "noise": noise,
    "memory": peak,
    "addt": update,
    "evaluation": evaluation,
    "linear": cost,
}
"""Sections by name."""


def read(file: Path) -> Content:
    """What was measured before."""
    return json.loads(file.read_text()) if file.exists() else {"sections": {}}


def keep(file: Path, content: Content) -> None:
    """Writes the file whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(file)


def done(content: Content, name: str, much: str) -> bool:
    """Whether the file has a section at this size or a larger one."""
    found = content["sections"].get(name, {})
    return "rows" in found and SIZES.index(found["size"]) >= SIZES.index(much)


def measure(
    sections: dict[str, Callable[[Any], Content]], much: Any, file: Path, *, again: bool = False
) -> Content:
    """Measures sections and keeps each at once; one that fails is noted and the next goes on.

    Args:
        sections: functions by name, called with ``much``.
        much: has the ``name`` of a size.
        file: result, read first.
        again: also what it has.
    """
    content = read(file)
    for name, section in sections.items():
        if not again and done(content, name, much.name):
            print(f"{name}: in {file} already (--again measures it again)", flush=True)
            continue
        about, start = surroundings(), time.perf_counter()
        entry: Content = {"what": (section.__doc__ or name).partition("\n")[0], "size": much.name}
        try:
            entry |= section(much)
        except Exception as error:  # the rest is still worth its time
            entry["failed"] = f"{type(error).__name__}: {error}"[:500]
        gc.collect()
        entry |= {"took, s": round(time.perf_counter() - start, 1), "about": about}
        content["sections"][name] = entry
        keep(file, content)
        print(markdown({name: entry}), flush=True)
    return content


def main(words: Sequence[str] | None = None) -> None:
    """Measures what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    sizes = parser.add_mutually_exclusive_group()
    for name in ("quick", "full"):
        sizes.add_argument(f"--{name}", dest="size", action="store_const", const=name, default="default")
    parser.add_argument("--only", help=f"sections, comma-separated: {', '.join(SECTIONS)}")
    parser.add_argument("--again", action="store_true", help="also what the file has already")
    parser.add_argument("--out", type=Path, help=f"result; {RESULTS} by default, and none with --quick")
    parser.add_argument("--threads", type=int, help="torch's threads; by default those of the machine")
    parser.add_argument(
        "--clock", choices=sorted(CLOCKS), default="wall", help="processor: one thread, loaded"
    )
    asked = parser.parse_args(words)
    use_clock(asked.clock)
    chosen = asked.only.split(",") if asked.only else list(SECTIONS)
    if unknown := sorted(set(chosen) - set(SECTIONS)):
        sys.exit(f"unknown section '{unknown[0]}'. Available: {', '.join(SECTIONS)}.")
    settle()  # as the command line does
    if asked.threads:
        torch.set_num_threads(asked.threads)
    file = asked.out or (RESULTS if asked.size != "quick" else RESULTS.with_name("quick.json"))
    content = measure({n: SECTIONS[n] for n in chosen}, size(asked.size), file, again=asked.again)
    if failed := [n for n in chosen if "failed" in content["sections"][n]]:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
