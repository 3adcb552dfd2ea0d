"""How long calls of a spec's models take here: a few steps of a purification are timed, the rest is counted.

All steps of a chain cost the same, so three tell what a hundred take: N steps with k graphs kept cost
N (F + B) and N - k more F, see `dbpkit.purification.replay`.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dbpkit.experiment.build import Parts
from dbpkit.experiment.execution import Execution
from dbpkit.experiment.sizing import Need, measured
from dbpkit.foundation.noise import NoisePlan, seeded_generator
from dbpkit.foundation.types import State
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.views import StraightThrough

STEPS = 3
"""Steps of a purification that are timed."""

ENOUGH_SECONDS = 12.0
"""After so many no further step is timed."""

SLOW_SECONDS = 1.0
"""What takes as long is timed at one size only."""


class Seconds(NamedTuple):
    """Of one call with so many rows: without a graph, and with one and its backward pass."""

    rows: int
    plain: float
    graph: float


Timings = dict[Hashable, list[Seconds]]
"""Times of networks by what they are called in every spec; see `dbpkit.evaluation.estimate.estimate`."""


class Clock:
    """Times the parts of an evaluation and says how long any call of its models takes.

    Args:
        parts: models and data.
        execution: with numbers for rows and memory.
        steps: of a purification that are timed.
        names: what makes a part's time, by the ``id`` of the part; one with no name is timed by this clock.
        timings: of parts with names, from clocks before; what is timed now is added.
    """

    def __init__(
        self,
        parts: Parts,
        execution: Execution,
        steps: int = STEPS,
        names: Mapping[int, Hashable] | None = None,
        timings: Timings | None = None,
    ) -> None:
        self.parts, self.execution, self.steps = parts, execution, steps
        self.most = execution.limit.rows
        self.need: Need | None = measured(parts, execution.device)
        self._names = names or {}
        self._shared: Timings = {} if timings is None else timings
        self._own: Timings = {}

    def seconds(self, model: Any, calls: int, differentiated: bool, rows: int) -> float:
        """Seconds of one call of a model with at most `most` rows, ``calls`` times through its network."""
        purifier = _chain(model)
        if purifier is None:
            return _of(self._timed(model), differentiated, rows)
        network = self._timed(purifier)
        plain, graph = (_of(network, g, rows) for g in (False, True))
        after = _of(self._timed(model_classifier(model)), differentiated, rows)
        if not differentiated or _is_straight(model):
            return calls * plain + after
        kept = self._kept(calls, rows)
        return calls * graph + (calls - kept) * plain + after

    def _kept(self, calls: int, rows: int) -> int:
        if self.need is None or not self.need.step:
            return 1
        return max(1, min(calls, self.execution.budget // (rows * self.need.step)))

    def _timed(self, part: Any) -> list[Seconds]:
        """Times of a part with all rows, and with a quarter of them where that is quick."""
        own = id(getattr(part, "denoiser", part))
        key = self._names.get(own, own)
        known = self._shared if own in self._names else self._own  # an id means nothing to another clock
        if key not in known:
            time_of = self._purifier if isinstance(part, Purifier) else self._whole
            found = [time_of(part, self.most)]
            if self.most > 3 and found[0].plain < SLOW_SECONDS:
                found.append(time_of(part, self.most // 4))
            known[key] = found
        return known[key]

    def _rows(self, count: int) -> tuple[Tensor, NoisePlan]:
        index = torch.arange(count) % len(self.parts.data)
        return self.parts.data.x(index).to(self.execution.device), NoisePlan.of(0, range(count), "select")

    def _purifier(self, purifier: Purifier, count: int) -> Seconds:
        """Per network call."""
        x, noise = self._rows(count)
        steps = _Steps(purifier, self.steps)
        with contextlib.suppress(_EnoughError):
            purifier.driven(x, noise=noise, hook=steps)
        return Seconds(count, statistics.median(steps.plain), statistics.median(steps.graph))

    def _whole(self, model: Any, count: int) -> Seconds:
        """Of a model, or of a classifier, that is called in one piece."""
        x, noise = self._rows(count)

        def call(x: Tensor) -> Tensor:
            from_plan = hasattr(model, "sites")
            return model(x, noise=noise) if from_plan else model(x)

        with seeded_generator(0, x.device):
            plain, _ = _clocked(lambda: _without(lambda: call(x)), x.device)  # the first call is slower
            if plain < SLOW_SECONDS:
                plain, _ = _clocked(lambda: _without(lambda: call(x)), x.device)
            graph, _ = _clocked(lambda: _gradient(call, x), x.device)
        return Seconds(count, plain, graph)


class _EnoughError(Exception):
    """Enough steps are timed."""


class _Steps:
    """A step hook that times steps with and without a graph, per network call, and then stops."""

    def __init__(self, purifier: Purifier, count: int) -> None:
        self.purifier, self.count = purifier, count
        self.plain: list[float] = []
        self.graph: list[float] = []
        self.began = time.perf_counter()

    def __call__(self, step: Callable[[State], State], state: State) -> State:
        device = state[0].device
        if not self.plain:
            _without(lambda: step(state))  # the first call is slower
        plain, after = self._per_call(lambda: _without(lambda: step(state)), device)
        graph, _ = self._per_call(lambda: _pulled_back(step, state), device)
        self.plain.append(plain)
        self.graph.append(graph)
        if len(self.plain) >= self.count or time.perf_counter() - self.began > ENOUGH_SECONDS:
            raise _EnoughError
        return after

    def _per_call(self, work: Callable[[], State], device: torch.device) -> tuple[float, State]:
        before = self.purifier.network_calls
        seconds, result = _clocked(work, device)
        return seconds / max(1, self.purifier.network_calls - before), result


def _pulled_back(step: Callable[[State], State], state: State) -> State:
    """A step and its backward pass."""
    with torch.enable_grad():
        leaves = tuple(x.detach().requires_grad_(x.is_floating_point()) for x in state)
        after = step(leaves)
        reached = [y.sum() for y in after if y.requires_grad]
        wanted = [x for x in leaves if x.requires_grad]
        if reached and wanted:
            torch.autograd.grad(reached, wanted, allow_unused=True)
    return after


def _gradient(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A call and its backward pass, if it has one."""
    with torch.enable_grad():
        logits = call(leaf := x.detach().clone().requires_grad_())
        if logits.requires_grad:
            torch.autograd.grad(logits.sum(), leaf, allow_unused=True)
    return logits


@torch.no_grad()
def _without(work: Callable[[], Any]) -> Any:
    """Works without a graph."""
    return work()


def _clocked(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds that work takes, until a GPU has done it, and what it returned."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, result


def _of(found: list[Seconds], differentiated: bool, rows: int) -> float:
    """Seconds of a call with so many rows: on the line through two sizes, or in proportion to one."""
    most = found[0]
    large = most.graph if differentiated else most.plain
    if len(found) == 1:
        return large * rows / most.rows
    small = found[1].graph if differentiated else found[1].plain
    slope = max(0.0, (large - small) / (most.rows - found[1].rows))
    return max(0.0, large + slope * (rows - most.rows))


def _chain(model: Any) -> Purifier | None:
    """The diffusion chain in a model, if it has one."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return next((m for m in modules if isinstance(m, Purifier)), None)


def _is_straight(model: Any) -> bool:
    """Whether an attacker's view takes the purification for the identity."""
    return isinstance(getattr(model, "purifier", None), StraightThrough)


def model_classifier(model: Any) -> Any:
    """The classifier behind a model's purifier."""
    inner = getattr(model, "model", model)
    return inner.classifier
