"""How fast bare forward passes are on a GPU: precision, layout, CUDA graphs, compilation."""

import contextlib
import copy
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.subjects import Subject, subject
from benchmarks.timing import Way, in_turn, spread
from dbpkit.foundation.precision import Precision, current_precision, lowered, precise


class Much(NamedTuple):
    """How much is measured, and where.

    Attributes:
        name: a size of `benchmarks.run`.
        device: ``cuda`` or ``cpu``.
        large: name of the network of paper size.
        small: name of the embedded one.
        batches: rows at once, small to large; the middle one is compiled.
        calls: network calls of a purification.
        row_calls: those of the published row.
        row_images: images at once in the published row.
        rounds: of everything.
        budgets: of memory, in bytes.
        end: clock time at which the minutes are over.
    """

    name: str
    device: str
    large: str
    small: str
    batches: tuple[int, ...]
    calls: int
    row_calls: int
    row_images: int
    rounds: int
    budgets: tuple[int, ...]
    end: float

    def left(self) -> float:
        """Seconds left."""
        return self.end - time.monotonic()


@contextlib.contextmanager
def layout(one: Subject) -> Iterator[Subject]:
    """The subject with weights and images in channels-last order; another copy of both."""
    last = torch.channels_last
    denoiser = copy.deepcopy(one.denoiser).to(memory_format=last)
    yield one._replace(denoiser=denoiser, x=one.x.contiguous(memory_format=last))


def graphed(one: Subject) -> Way:
    """One bare forward as a CUDA graph, in the current precision."""
    x, label = one.x.clone(memory_format=torch.preserve_format), one.label()

    def call() -> Tensor:
        with torch.no_grad(), lowered("cuda"):
            return one.network(x, label)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()

    def replay(_alive: tuple[Tensor, Tensor] = (x, label)) -> None:
        graph.replay()

    return replay


def bare(one: Subject) -> Way:
    """One bare forward in the current precision."""
    label = one.label()

    @torch.no_grad()
    def way() -> None:
        with lowered(one.x.device.type):
            one.network(one.x, label)

    return way


def speed_row(one: Subject, what: str, way: Way, rounds: int) -> dict[str, Any]:
    """A row: images a second of a way; ten calls in a row each time."""

    def ten() -> None:
        for _ in range(10 if one.x.is_cuda else 1):
            way()

    taken = in_turn({"ten": ten}, rounds, warm=2)["ten"]
    each = [t / (10 if one.x.is_cuda else 1) for t in taken]
    return {
        "network": one.name,
        "images": len(one.x),
        "how": what,
        "precision": current_precision(),
        "F, ms": spread(1e3 * t for t in each),
        "images/s": spread(len(one.x) / t for t in each),
    }


def forward(size: Much) -> dict[str, Any]:
    """Bare forward passes: precision, layout and CUDA graphs."""
    rows = []
    for count in size.batches:
        one, exact = subject(size.large, count, size.device), count == size.batches[1]
        for precision in ("float32", "tf32", "bfloat16")[not exact :]:  # float32 takes ten times as long
            with precise(precision), layout(one) as last:
                rows.append(speed_row(one, "eager", bare(one), size.rounds))
                rows.append(speed_row(last, "channels-last", bare(last), size.rounds))
                if size.device == "cuda":
                    way = graphed(last)
                    rows.append(speed_row(last, "channels-last, CUDA graph", way, size.rounds))
    return {"rows": rows}


def compiled(size: Much) -> dict[str, Any]:
    """Bare forward passes compiled by torch, which takes a minute each; as many as the time allows."""
    rows, failed = [], {}
    one = subject(size.large, size.batches[1], size.device)
    modes = ("default", "reduce-overhead") if size.device == "cuda" else ("default",)
    ways: list[tuple[Precision, str]] = [(p, m) for m in modes for p in ("bfloat16", "tf32")]
    for precision, mode in ways:
        if size.left() < 90 and size.name != "quick":
            break
        with precise(precision), layout(one) as last:
            torch.compiler.reset()
            start = time.perf_counter()
            try:
                network = last.network
                if size.name != "quick":
                    network = torch.compile(network, dynamic=False, mode=mode)
                label = last.label()

                @torch.no_grad()
                def way(network: Any = network, last: Subject = last, label: Tensor = label) -> None:
                    with lowered(last.x.device.type):
                        network(last.x, label)

                way()
                took = time.perf_counter() - start
                row = speed_row(last, f"channels-last, compiled, {mode}", way, size.rounds)
                rows.append(row | {"compilation, s": took})
            except Exception as error:  # the other mode may work
                failed[f"{precision}, {mode}"] = f"{type(error).__name__}: {error}"[:300]
    return {"rows": rows, "found": {"failed": failed} if failed else {}}
