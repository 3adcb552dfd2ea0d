"""How often an evaluation calls its models, found by running its attacks on a model that costs nothing.

Each row's own attacks, with their options, attack one example of a stand-in that knows the label, is never
fooled and has a gradient. So the counts are those of an example that withstands everything: an attack that
stops early on the others passes less. The thing people get wrong: a formula of iterations and draws, which
knows nothing of restarts, backtracking, a choice of draws, or an attack of the user's own.
"""

from collections import Counter
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dbpkit.attacks import Target
from dbpkit.attacks.passing import DrawGradients, calls_of
from dbpkit.evaluation.cost import mixture_in, repeats
from dbpkit.evaluation.rows import UNDEFENDED, Rows
from dbpkit.experiment.build import Parts
from dbpkit.experiment.execution import Execution
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import MOST
from dbpkit.purification.diffusion import Purifier
from dbpkit.results.records import Record
from dbpkit.results.run_directory import RunDirectory
from dbpkit.results.shards import Stored

CONFIDENCE = 30.0
"""Margin of the stand-in; its gradient moves it by less than one."""


class Passes(NamedTuple):
    """What one row, or rows that are made together, ask of models for one example, over all tapes.

    Attributes:
        rows: the rows.
        forward: purifications by the attack, as they will be recorded.
        gradient: those of them that it differentiates.
        network_calls: of the attack, as they will be recorded.
        asked: how many calls had so many rows, by (model, whether differentiated, rows of one example).
        calls: network calls of one pass of each of these models; 0 of a classifier alone.
    """

    rows: tuple[str, ...]
    forward: int
    gradient: int
    network_calls: int
    asked: Counter[tuple[Any, bool, int]]
    calls: dict[Any, int]


class Unbroken(nn.Module):
    """A stand-in for a model: right about one label, whatever it is shown, with a gradient.

    Args:
        real: what it stands for.
        label: the example's class.
        classes: K.
    """

    def __init__(self, real: Any, label: int, classes: int) -> None:
        super().__init__()
        self.real = (real,)  # in a tuple, so that its modules are not among this one's
        self.sites: frozenset[str] = getattr(real, "sites", frozenset())
        self.label, self.classes = label, classes
        self.classifier = nn.Identity()
        self.purifier = SimpleNamespace(calls=calls_of(real))

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        """Logits (B, K), whatever the noise."""
        del noise
        pixels = x.flatten(1)
        ramp = torch.linspace(-1, 1, pixels.shape[1], dtype=x.dtype, device=x.device)
        slope = (pixels * ramp).mean(dim=1, keepdim=True)
        turns = torch.arange(1, self.classes + 1, dtype=x.dtype, device=x.device) / self.classes
        sure = torch.zeros(self.classes, dtype=x.dtype, device=x.device)
        sure[self.label] = CONFIDENCE
        return sure + slope * turns

    def coarser(self, steps: int) -> "Unbroken | None":
        """A stand-in for the real model's surrogate, see `PurifiedClassifier.coarser`."""
        make = getattr(self.real[0], "coarser", None)
        model = make(steps) if make else None
        return None if model is None else Unbroken(model, self.label, self.classes)

    def traced(self, x: Tensor, *, noise: NoisePlan) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and a deviation (B,)."""
        return self(x, noise=noise), x.square().flatten(1).mean(dim=1)


class _Noting(Target):
    """A target that notes how many rows every call has."""

    def __init__(self, model: Any, asked: Counter[tuple[Any, bool, int]]) -> None:
        super().__init__(model, MOST)
        self.asked = asked

    def _like(self, model: Any) -> Target:
        return _Noting(model, self.asked)

    def __call__(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        self.asked[self.model.real[0], False, len(x)] += 1
        return super().__call__(x, noise=noise)

    def per_draw(self, x: Tensor, y: Tensor, *, eot: int = 1, **options: Any) -> DrawGradients:
        self.asked[self.model.real[0], True, len(x) * eot] += 1
        return super().per_draw(x, y, eot=eot, **options)


class _Nowhere:
    """A run directory that stores nothing."""

    def write_images(self, name: str, *_: Any) -> Stored:
        return Stored(name, name, "")

    write_logits = write_images


class _Stood(Rows):
    """The rows of an evaluation, of one example and stand-ins."""

    def __init__(self, spec: EvaluationSpec, parts: Parts, execution: Execution, classes: int) -> None:
        super().__init__(spec, parts, execution, cast(RunDirectory, _Nowhere()))
        label = int(parts.data.labels[0])
        self.asked: Counter[tuple[Any, bool, int]] = Counter()
        real = {**self.views, UNDEFENDED.name: parts.undefended}
        models = [parts.model, *(view for view in real.values() if view is not None)]
        x = self.batch(torch.tensor([0])).x
        self.chains = {model: chain_calls(model, x) for model in models}
        self._calls = {row: self.chains[v] or _said(v) for row, v in real.items() if v is not None}
        self.views = {name: Unbroken(view, label, classes) for name, view in self.views.items()}
        undefended = parts.undefended and Unbroken(parts.undefended, label, classes)
        self.parts = parts._replace(
            model=cast(Any, Unbroken(parts.model, label, classes)), undefended=cast(Any, undefended)
        )

    def target(self, model: Any) -> Target:
        return _Noting(model, self.asked)


def passes(spec: EvaluationSpec, parts: Parts, execution: Execution) -> list[Passes]:
    """Counts what each row of an evaluation asks of its models for one example, in the order of the table.

    Args:
        spec: what will be evaluated.
        parts: its models, data and attacks.
        execution: names the device.
    """
    one = parts._replace(data=parts.data.select(slice(0, 1)))
    x = one.data.x().to(execution.device)
    alone = parts.undefended or parts.model
    with torch.no_grad():
        classes = alone(x, noise=NoisePlan.of(0, [0])).shape[1]
    rows = _Stood(spec, one, execution, classes)
    tapes = {name: knowledge.tapes for name, knowledge in rows.knowledge.items()}
    batch, found = rows.batch(torch.tensor([0])), []
    for unit in rows.units():
        if unit.tape:
            continue
        rows.asked.clear()
        records = unit.work(batch).records
        times = tapes.get(unit.rows[0], 1)
        asked = Counter({k: times * v for k, v in rows.asked.items()})
        forward, gradient, calls = (times * _sum(records, key) for key in _COUNTED)
        chains = {model: _chain(model, rows.chains, x) for model, _, _ in asked}
        found.append(Passes(unit.rows, forward, gradient, calls, asked, {**rows.chains, **chains}))
    return found


_COUNTED = ("forward_passes", "gradient_passes", "network_calls")


def _sum(records: list[Record], key: str) -> int:
    """A count of all records that have one."""
    return sum(int(cast(Any, record).get(key, 0)) for record in records)


def chain_calls(model: Any, x: Tensor) -> int:
    """Network calls of one pass of a model: of its diffusion chains, around a network that costs nothing.

    They are those of `dbpkit.evaluation.cost.network_calls`, and 0 where there is no chain.
    """
    if (mixture := mixture_in(model)) is not None:
        return repeats(model) * max(chain_calls(member, x) for member in mixture.members)
    chains = [m for m in model.modules() if isinstance(m, Purifier)] if isinstance(model, nn.Module) else []
    calls = 0
    for chain in chains:
        cheap = Purifier(_Shrinks(), **chain.settings, clamp=chain.clamp)
        with torch.no_grad():
            cheap(torch.full_like(x, 0.5), noise=NoisePlan.of(0, range(len(x))))
        calls += cheap.network_calls
    return calls * repeats(model)


def _chain(model: Any, known: dict[Any, int], x: Tensor) -> int:
    """Network calls of a model that is known, or of a surrogate that an attack made."""
    return known[model] if model in known else chain_calls(model, x)


def _said(model: Any) -> int:
    """What the purifier of a model without a chain says of itself, as `dbpkit.evaluation.cost` has it."""
    return max(1, int(getattr(getattr(model, "purifier", None), "calls", 0)))


class _Shrinks(nn.Module):
    """A denoiser that costs nothing."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return 0.9 * x + 0 * sigma.mean()
