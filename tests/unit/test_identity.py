"""Models made in Python: what shares every tensor and computes something else has another hash."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dbpkit.evaluation.identity import model_sha256

WEIGHTS = nn.Linear(3, 3)
SCALE = 1.0


class Headed(nn.Module):
    """A linear classifier with a head and a setting."""

    def __init__(self, head: Callable[[Tensor], Tensor], _scale: float = 1.0) -> None:
        super().__init__()
        self.linear, self.head, self._scale = WEIGHTS, head, _scale

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 3) logits."""
        return self.head(self._scale * self.linear(x))


class Renamed(Headed):
    """Another forward pass over the same weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 3) logits."""
        return -self.head(self._scale * self.linear(x))


def closing_over(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: model(x)


def by_global(x: Tensor) -> Tensor:
    return SCALE * WEIGHTS(x)


def with_default(scale: float) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor, scale: float = scale) -> Tensor:
        return scale * x

    return call


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Headed(torch.sigmoid), Headed(torch.tanh)),
        (Headed(lambda z: z), Headed(lambda z: 2 * z)),
        (Headed(torch.tanh), Headed(torch.tanh, 2.0)),
        (Headed(torch.tanh), Renamed(torch.tanh)),
        (nn.Sequential(WEIGHTS, nn.Softplus(1)), nn.Sequential(WEIGHTS, nn.Softplus(2))),
        (closing_over(nn.Linear(3, 3)), closing_over(nn.Linear(3, 3))),
        (with_default(1.0), with_default(2.0)),
        (functools.partial(torch.mul, other=1.0), functools.partial(torch.mul, other=2.0)),
        (Headed(torch.tanh).forward, Headed(torch.sigmoid).forward),
    ],
    ids=["head", "lambda", "setting", "forward", "library", "closure", "default", "partial", "method"],
)
def test_model_sha256_same_tensors_other_computation_differ(one: Callable, other: Callable) -> None:
    assert model_sha256(one) != model_sha256(other)


def test_model_sha256_same_model_made_twice_is_one() -> None:
    assert model_sha256(Headed(torch.tanh)) == model_sha256(Headed(torch.tanh))
    assert model_sha256(closing_over(WEIGHTS)) == model_sha256(closing_over(WEIGHTS))
    assert model_sha256(Headed(torch.tanh).train()) == model_sha256(Headed(torch.tanh).eval())


def test_model_sha256_what_a_function_reads_from_its_module_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = model_sha256(by_global)
    monkeypatch.setitem(by_global.__globals__, "SCALE", 2.0)
    assert model_sha256(by_global) != before


def test_model_sha256_model_that_holds_itself_ends() -> None:
    model = Headed(torch.tanh)
    model.head = lambda z: z + 0 * len(str(model))
    assert model_sha256(model) == model_sha256(model)
