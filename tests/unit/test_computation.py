"""Models made in Python: what a call can change names none of them; heads, settings and code do."""

import functools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbpkit.evaluation.computation import computation_sha256
from tests.unit.test_identity import WEIGHTS, Headed, Renamed, closing_over, with_default

CALLS = 0
X = torch.ones(2, 3)


class Counts(Headed):
    """Changes whatever a call can change."""

    total = 0

    def __init__(self, head: Callable[[Tensor], Tensor] = torch.tanh, _scale: float = 1.0) -> None:
        super().__init__(head, _scale)
        self.calls, self.seconds, self.last, self.seen = 0, 0.0, None, []

    @functools.cached_property
    def factor(self) -> float:
        """A value that is there after the first call."""
        return 2.0

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 3) logits."""
        global CALLS
        CALLS += 1
        Counts.total += 1
        self.calls += 1
        self.seconds += 0.5
        self.last = "now"
        self.seen.append(len(x))
        return self.factor * super().forward(x)


class Outer(nn.Module):
    """Counts in its part."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        part.asked = 0

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 3) logits."""
        self.part.asked += 1
        return self.part(x)


class ByName(Headed):
    """Hides what it stores."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 3) logits."""
        setattr(self, "n" + str(len(x)), 1)
        return super().forward(x)


def counting() -> Callable[[Tensor], Tensor]:
    count = 0

    def call(x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return WEIGHTS(x)

    return call


@pytest.mark.parametrize(
    "make",
    [
        Counts,
        lambda: Outer(Headed(torch.tanh)),
        lambda: ByName(torch.tanh),
        counting,
        lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.Softplus()),
    ],
    ids=["attributes", "of a part", "by name", "closure", "library"],
)
def test_computation_sha256_is_the_same_after_calls_and_for_another_one_made_alike(make: Any) -> None:
    model = make()
    before = computation_sha256(model)
    for _ in range(2):
        model(X)
        assert computation_sha256(model) == before
    assert computation_sha256(make()) == before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Headed(torch.sigmoid), Headed(torch.tanh)),
        (Headed(lambda z: z), Headed(lambda z: 2 * z)),
        (Headed(torch.tanh), Headed(torch.tanh, 2.0)),
        (Counts(), Counts(_scale=2)),
        (Headed(torch.tanh), Renamed(torch.tanh)),
        (nn.Sequential(WEIGHTS, nn.Softplus(1)), nn.Sequential(WEIGHTS, nn.Softplus(2))),
        (closing_over(Headed(torch.tanh)), closing_over(Headed(torch.sigmoid))),
        (with_default(1.0), with_default(2.0)),
        (functools.partial(torch.mul, other=1.0), functools.partial(torch.mul, other=2.0)),
        ((WEIGHTS, Headed(torch.tanh)), (WEIGHTS, Headed(torch.sigmoid))),
    ],
    ids=["head", "lambda", "float", "int", "forward", "library", "closure", "default", "partial", "tuple"],
)
def test_computation_sha256_same_tensors_other_computation_differ(one: Any, other: Any) -> None:
    assert computation_sha256(one) != computation_sha256(other)


def test_computation_sha256_is_the_same_in_every_process() -> None:
    """Sets of words have another order in each."""
    script = (
        "def f(x):\n return x if x in {'a', 'b', 'c', 'd', 'e'} else None\n"
        "from dbpkit.evaluation.computation import computation_sha256\n"
        "from dbpkit.evaluation.identity import model_sha256\n"
        "print(computation_sha256(f), model_sha256(f), *f.__code__.co_consts[1])"
    )
    said = []
    for seed in ("1", "2"):
        env = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
        command = [sys.executable, "-c", script]
        made = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
        said.append(made.stdout.split())
    assert said[0][2:] != said[1][2:]
    assert said[0][:2] == said[1][:2]
