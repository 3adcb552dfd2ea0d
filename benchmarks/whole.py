"""An evaluation from end to end, against its network calls alone and a plain implementation of it."""

import functools
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.plain import PlainPurification, draws, plain_gradient
from benchmarks.subjects import Subject, bare_backward, bare_forward
from benchmarks.timing import in_turn, quotients, spread
from dbpkit import Execution, PurifiedClassifier, benchmark
from dbpkit.threats.pixels import make_threat

DRAWS = 4
"""Purifications by which an image is judged."""


class Rows:
    """Counts rows through a network, with and without a graph."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.seen: Counter[bool] = Counter()
        self.handle = network.register_forward_pre_hook(self._count)

    def _count(self, _: torch.nn.Module, given: tuple[Any, ...]) -> None:
        self.seen[torch.is_grad_enabled() and given[0].requires_grad] += len(given[0])


def evaluation(one: Subject, calls: int, iterations: int, eot: int, folder: Path) -> None:
    """Undefended, clean, control, transfer and the adaptive white box, recorded, with its checks and page."""
    model = PurifiedClassifier(one.purifier(calls), one.classifier)
    pgd = {"name": "pgd", "options": {"iterations": iterations, "eot": eot}}
    count = len(one.x)
    execution = Execution(batch_size=count, micro_batch=count * eot)
    data = (one.x, one.y)
    benchmark(
        model, data, attacks=[pgd], examples=count, order="file", draws=DRAWS, out=folder, execution=execution
    )


def plain_pgd(one: Subject, calls: int, iterations: int, eot: int) -> Tensor:
    """PGD in L-infinity of 8/255 as published code has it; returns the attacked images."""
    threat = make_threat("linf", 8 / 255)
    purifier, x_adv = one.purifier(calls), one.x
    for i in range(iterations):
        at = one._replace(x=x_adv, noise=one.noise.at(i))
        grad = plain_gradient(at, draws(at, purifier, eot))
        x_adv = threat.project(one.x, x_adv + threat.default_step_size * threat.steepest(grad))
        x_adv.cpu()
    return x_adv


@torch.no_grad()
def plain_judged(one: Subject, calls: int, x: Tensor) -> None:
    """Predictions of every draw, one draw at a time."""
    purifier = one.purifier(calls)
    for r in range(DRAWS):
        purify = PlainPurification(one, purifier, one.noise.on("report").at(r), x)
        one.classifier(purify(x)).argmax(dim=1).cpu()


def plain_evaluation(one: Subject, calls: int, iterations: int, eot: int) -> None:
    """The rows that a paper has: clean accuracy, and accuracy under the attack."""
    plain_judged(one, calls, one.x)
    plain_judged(one, calls, plain_pgd(one, calls, iterations, eot))


def measured(one: Subject, calls: int, iterations: int, eot: int, rounds: int) -> dict[str, Any]:
    """A row: the evaluation over its own calls alone, and the plain one beside it."""
    with tempfile.TemporaryDirectory() as place:
        number = iter(range(1 << 20))

        def ours() -> None:
            evaluation(one, calls, iterations, eot, Path(place) / str(next(number)))

        rows = Rows(one.network)
        ours()
        rows.handle.remove()
        at_once = len(one.x) * eot
        wide = one._replace(
            x=one.x.repeat_interleave(eot, 0), y=one.y.repeat_interleave(eot), noise=one.noise.repeat(eot)
        )
        ways = {
            "F": bare_forward(wide, 2),
            "B": bare_backward(wide, 2),
            "evaluation": ours,
            "plain": functools.partial(plain_evaluation, one, calls, iterations, eot),
        }
        taken = in_turn(ways, rounds, warm=0)
    forward, backward = (rows.seen[False] + rows.seen[True]) / at_once, rows.seen[True] / at_once
    bound = [forward * f + backward * b for f, b in zip(taken["F"], taken["B"], strict=True)]
    return {
        "network": one.name,
        "images": len(one.x),
        "calls N": calls,
        "iterations": iterations,
        "draws": eot,
        "rows forward": sum(rows.seen.values()),
        "rows backward": rows.seen[True],
        "calls alone, s": spread(bound),
        "evaluation, s": spread(taken["evaluation"]),
        "over calls alone": quotients(taken["evaluation"], bound),
        "plain, fewer rows, s": spread(taken["plain"]),
        "seconds": taken,
    }
