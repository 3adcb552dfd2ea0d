"""Every benchmark of one GPU, each section kept as it is done; fits ten minutes of an H100.

    python -m benchmarks.gpu --out FILE [--only forward,gradient] [--minutes 9] [--device cuda]
    python -m benchmarks.gpu --out FILE --device cpu --tiny        whether the program runs, in seconds

Sections stand in order of what they are worth. None is begun when the minutes are over, and one that fails is
noted and the next goes on. Run it again with the same file for those that are missing. TF32 and bfloat16 are
those of `dbpkit.foundation.precision`.
"""

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import costs
from benchmarks.forward import Much, compiled, forward
from benchmarks.run import measure
from benchmarks.subjects import KEEP_ALL, Subject, subject
from benchmarks.timing import seconds
from dbpkit import PurifiedClassifier
from dbpkit.attacks import Target, make_attack
from dbpkit.foundation.machine import settle
from dbpkit.foundation.precision import precise
from dbpkit.threats.pixels import make_threat

GIB = 2**30
ROW = {"images": 1024, "iterations": 20, "calls": 101}
"""DW_Both of the published DDPM row: both sites' noise known, so one draw a gradient."""


class OverError(Exception):
    """The minutes are over."""


def much(device: str, minutes: float, *, tiny: bool) -> Much:
    """The size for a GPU, or a tiny one."""
    end = time.monotonic() + 60 * minutes
    if tiny:
        return Much("quick", device, "tiny", "tiny", (1, 2), 2, 2, 1, 1, (0, 2**20), end)
    budgets = (2 * GIB, 8 * GIB, 32 * GIB)
    return Much(
        "default",
        device,
        "DDPM, 35.7 M",
        "embedded, 1.9 M",
        (64, 256, 512),
        11,
        ROW["calls"],
        256,
        3,
        budgets,
        end,
    )


def in_time(section: Callable[[Much], dict[str, Any]]) -> Callable[[Much], dict[str, Any]]:
    """The section, which is not begun when the minutes are over."""

    @functools.wraps(section)
    def begun(size: Much) -> dict[str, Any]:
        if size.left() <= 0:
            raise OverError("the minutes were over; run it again with the same file")
        return section(size)

    return begun


def gradient(size: Much) -> dict[str, Any]:
    """The gradient of a purification over its bound, by what memory keeps, beside the plain one."""
    rows = []
    for precision in ("tf32", "bfloat16"):
        with precise(precision):
            one = subject(size.large, size.batches[0], size.device)
            found = costs.gradient(one, size.calls, size.rounds, equal=None)
        rows += [{"precision": precision, **row} for row in found]
    return {"rows": rows}


def purification(size: Much) -> dict[str, Any]:
    """Purification without a gradient, over N bare calls."""
    rows = []
    for name in dict.fromkeys((size.large, size.small)):
        for count in size.batches[:2]:
            with precise("tf32"):
                found = costs.purification(subject(name, count, size.device), size.calls, 2 * size.rounds)
            rows.append({"precision": "tf32", **found})
    return {"rows": rows}


def eot(size: Much) -> dict[str, Any]:
    """The attack's gradient over ten draws of 8 images, beside one draw at a time."""
    images, draws = (8, 10) if size.name != "quick" else (1, 2)
    with precise("tf32"):
        one = subject(size.large, images, size.device)
        return {"rows": costs.eot(one, size.calls, draws, images * draws, size.rounds)}


def noise(size: Much) -> dict[str, Any]:
    """One draw of noise over one call of the network, in milliseconds; operations: without its kernel."""
    from benchmarks.noise import compared

    device, tiny = torch.device(size.device), size.name == "quick"
    names, blocks = (("embedded",), 1) if tiny else (("ddpm-cifar10", "embedded"), 7)
    with precise("tf32"):
        batches = size.batches[: 1 if tiny else None]
        return {"rows": [compared(device, name, n, blocks) for name in names for n in batches]}


def memory(size: Much) -> dict[str, Any]:
    """Most memory of a gradient above the weights, against its budget and one step's graph; ten in a row."""
    rows = []
    with precise("tf32"):
        one = subject(size.large, size.batches[0], size.device)
        graph = costs.graph_bytes(one) - sum(p.numel() * p.element_size() for p in one.network.parameters())
        for budget in size.budgets:
            purifier = one.purifier(size.calls, budget)
            way = costs.purifier_gradient(one, purifier)
            made = costs.counted(way, purifier)
            before = held(peak=False)
            peaks, afterwards = [], []
            for _ in range(10 if size.name != "quick" else 2):
                way()
                peaks.append(held(peak=True) - before)
                afterwards.append(held(peak=False) - before)
            row = {
                "network": one.name,
                "images": len(one.x),
                "calls N": size.calls,
                "budget, GiB": budget / GIB,
                "graphs kept k": 2 * size.calls - made,
                "one step's graph, GiB": graph / GIB,
                "peak above, GiB": max(peaks) / GIB,
                "peak over budget and graph": max(peaks) / (budget + graph),
                "left after ten, MiB": (afterwards[-1] - afterwards[1]) / 2**20,
            }
            rows.append(row)
    return {"rows": rows}


def held(*, peak: bool) -> int:
    """Bytes allocated on the GPU, now or at most since the last question; 0 without one."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.synchronize()
    found = torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return found


def row_seconds(one: Subject, calls: int, micro_batch: int, iterations: int) -> float:
    """Seconds of DW_Both by PGD on the subject's images: the attacker knows the noise of both sites."""
    purifier = one.purifier(calls, KEEP_ALL if calls < 20 else 2 * GIB)
    target = Target(PurifiedClassifier(purifier, one.classifier), micro_batch)
    known = one.noise.sharing(purifier.sites, one.noise.on("report"))
    attack = make_attack("pgd", {"iterations": iterations, "eot": 1})
    threat = make_threat("linf", 8 / 255)
    return seconds(lambda: void(attack(target, one.x, one.y, threat=threat, noise=known)))


def void(_: object) -> None:
    """Drops a result."""


def published(size: Much) -> dict[str, Any]:
    """DW_Both of the published DDPM row on few images and iterations, and its time extrapolated."""
    rows, count = [], size.row_images
    for precision in ("bfloat16", "tf32"):
        with precise(precision):
            run = functools.partial(row_seconds, calls=size.row_calls, micro_batch=count)
            one, two = (subject(size.large, n * count, size.device) for n in (1, 2))
            run(one.first(1), iterations=1)
            cases = [(one, 1), (one, 2), (two, 1)]
            cases += [(one, 4)] * (precision == "bfloat16" and size.name != "quick")
            taken = [(len(s.x), n, run(s, iterations=n)) for s, n in cases if size.left() > -60]
        each = [t / (images * n) for images, n, t in taken]
        whole = ROW["images"] * ROW["iterations"] * sum(each[1:]) / len(each[1:])
        rows.append(
            {
                "network": one.name,
                "precision": precision,
                "calls N": size.row_calls,
                **{f"{images} images, {n} iterations, s": t for images, n, t in taken},
                "largest over smallest, a unit": max(each) / min(each),
                "1,024 images, 20 iterations, min": whole / 60,
            }
        )
    return {"rows": rows}


def training(size: Much) -> dict[str, Any]:
    """Training of the network of paper size: images a second, and over its bare passes."""
    from benchmarks import training as part

    device, tiny = torch.device(size.device), size.name == "quick"
    rows = []
    for compiles in (False, True) if size.left() > 120 and not tiny else (False,):
        setting = part.Setting("tiny" if tiny else "ddpm-cifar10", 2 if tiny else 128, device, "bfloat16")
        with part.compiling(compiles):
            found = part.measured(setting, device, size.rounds, 1 if tiny else 5)
        parts = {f"{name}, ms": value for name, value in found.pop("milliseconds").items()}
        rows.append({"images": len(setting.x), "compiled": compiles, **found, **parts})
    return {"rows": rows}


SECTIONS = {
    part.__name__: in_time(part)
    for part in (
        forward,
        gradient,
        published,
        noise,
        training,
        memory,
        purification,
        eot,
        compiled,
    )
}
"""Sections by name, the most important first."""


def main(words: Sequence[str] | None = None) -> None:
    """Measures what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    parser.add_argument("--only", help=f"sections, comma-separated: {', '.join(SECTIONS)}")
    parser.add_argument("--again", action="store_true", help="also what the file has already")
    parser.add_argument("--minutes", type=float, default=9.0, help="after them no section is begun")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="a network of 8 channels and one image")
    asked = parser.parse_args(words)
    settle()
    size = much(asked.device, asked.minutes, tiny=asked.tiny)
    chosen = {n: SECTIONS[n] for n in (asked.only.split(",") if asked.only else SECTIONS)}
    measure(chosen, size, asked.out, again=asked.again)


if __name__ == "__main__":
    main()
