"""Compiled networks: the same values and derivatives, the same identity, and what if it cannot be done."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbpkit import (
    EvaluationSpec,
    Execution,
    NoisePlan,
    PurifiedClassifier,
    Purifier,
    RunDirectory,
    evaluate,
    precise,
)
from dbpkit.evaluation.computation import computation_sha256
from dbpkit.evaluation.identity import model_sha256
from dbpkit.experiment.state import state_of
from dbpkit.foundation import compiled
from dbpkit.foundation.compiled import compiling
from dbpkit.foundation.spec import validate
from dbpkit.models.denoisers import EDMDenoiser
from dbpkit.models.sources import state_sha256
from dbpkit.purification.classifier import Undefended
from tests.oracles import TinyClassifier, TinyNetwork, uniform
from tests.parts import TINY

X, NOISE = uniform(2, 1, 4, 4), NoisePlan.of(3, [4, 5])
COMPILE = torch.compile


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs and their gradients as compiled ones have them, without the compiler of kernels."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda network, **_: COMPILE(network, backend="aot_eager"))


def model_of(memory_bytes: int = 2**30) -> PurifiedClassifier:
    purifier = Purifier(EDMDenoiser(TinyNetwork()), "ddpm", steps=50, memory_bytes=memory_bytes)
    return PurifiedClassifier(purifier, TinyClassifier())


def derivatives(model: PurifiedClassifier) -> list[Tensor]:
    """Logits without and with a graph, gradient, gradient of its norm, and a forward-mode derivative."""
    leaf = X.clone().requires_grad_()
    logits = model(leaf, noise=NOISE)
    (first,) = torch.autograd.grad(logits.sin().sum(), leaf, retain_graph=True)
    (again,) = torch.autograd.grad(logits.sin().sum(), leaf)
    (slope,) = torch.autograd.grad(model(leaf, noise=NOISE).sin().sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(slope.square().sum(), leaf)
    _, along = torch.func.jvp(partial(model, noise=NOISE), (X,), (torch.ones_like(X),))
    with torch.no_grad():
        plain = model(X, noise=NOISE)
    return [plain, logits.detach(), first, again, slope.detach(), second, along]


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("memory_bytes", [0, 2**30], ids=["replayed", "kept"])
def test_compiled_networks_give_the_same_values_and_derivatives(memory_bytes: int) -> None:
    model = model_of(memory_bytes)
    expected = derivatives(model)
    with compiling(True):
        found = derivatives(model)
        assert len(compiled._active._made) == 2
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_kernels_of_the_compiler_agree_with_eager_ones_to_rounding() -> None:
    """The one test that compiles kernels; 1e-5 is what rounding of float32 leaves."""
    torch._dynamo.reset()
    model, found = Undefended(TinyClassifier().float()), []
    for wanted in (False, True):
        leaf = X.float().requires_grad_()
        with compiling(wanted):
            logits = model(leaf)
            found.append((logits.detach(), torch.autograd.grad(logits.sum(), leaf)[0]))
            assert not wanted or not compiled._active._plain
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("traced")
def test_compiled_in_bfloat16_is_bfloat16_and_its_second_derivative_too() -> None:
    head = nn.Linear(16, 3).requires_grad_(False)
    network = nn.Sequential(nn.Flatten(), head, nn.Tanh())
    found = []
    for wanted in (False, True):
        leaf = X.float().requires_grad_()
        with precise("bfloat16"), compiling(wanted):
            logits = Undefended(network)(leaf)
            (slope,) = torch.autograd.grad(logits.sum(), leaf, create_graph=True)
        found.append((logits.detach(), torch.autograd.grad(slope.square().sum(), leaf)[0]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=1e-3)
    assert not torch.equal(found[0][0], Undefended(network)(X.float()))


@pytest.mark.usefixtures("traced")
def test_modules_are_the_same_ones_after_they_were_compiled() -> None:
    model = model_of()
    kept = dict(vars(model.classifier))

    def identity() -> tuple[Any, ...]:
        code = computation_sha256((model.classifier, model.purifier))
        return state_sha256(model.classifier), code, model_sha256(model), state_of(model)

    before = identity()
    with compiling(True):
        model(X, noise=NOISE)
        assert identity() == before
    assert identity() == before
    assert vars(model.classifier).keys() == kept.keys()
    assert compiled._active is None


def test_evaluation_compiles_its_networks_after_the_checks_and_notes_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What stands in for the compiler here calls the network as it is, so that records must be equal."""
    made: list[bool] = []

    def noted(called: Any, **_how: Any) -> Any:
        made.append((tmp_path / "on" / "env.json").exists())
        return called

    monkeypatch.setattr(torch, "compile", noted)
    spec = validate({**TINY, "examples": {"count": 2}, "knowledge": ["white_box"]}, EvaluationSpec, "test")
    for name, wanted in (("off", False), ("on", True)):
        evaluate(spec, tmp_path / name, Execution("cpu", micro_batch=8, memory_bytes=0, compile=wanted))
    assert made == [True]  # the classifier, the only module; a session is noted once the checks are done
    (session,) = RunDirectory(tmp_path / "on").sessions()
    assert session["compile"] is True
    records = [[r["predicted"] for r in RunDirectory(tmp_path / n).records()] for n in ("off", "on")]
    assert records[0] == records[1]


def test_output_that_does_not_depend_on_its_image_says_so_when_it_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Cut(TinyClassifier):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.detach())

    monkeypatch.setattr(torch, "compile", lambda called, **_: called)
    with compiling(True):
        assert not Undefended(Cut())(X.clone().requires_grad_()).requires_grad


def failing(_network: Any, **_how: Any) -> Callable[..., Tensor]:
    def compiled_(*_args: Any) -> Tensor:
        raise RuntimeError("no compiler was found\nand a long trace")

    return compiled_


def test_network_that_cannot_be_compiled_is_called_as_it_is_and_said_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "compile", failing)
    model = Undefended(TinyClassifier())
    expected = model(X)
    with caplog.at_level(logging.WARNING), compiling(True):
        for _ in range(3):
            assert torch.equal(model(X), expected)
    (record,) = caplog.records
    assert record.message == "TinyClassifier is not compiled (RuntimeError: no compiler was found)"


def test_error_of_the_network_itself_is_its_own_and_does_not_stop_the_compiler(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "compile", lambda called, **_: called)

    class Picky(TinyClassifier):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) == 1:
                raise RuntimeError("one image is not enough")
            return super().forward(x)

    network = Picky()
    with compiling(True):
        with pytest.raises(RuntimeError, match="one image is not enough"):
            Undefended(network)(X[:1])
        assert Undefended(network)(X).shape == (2, 3)
        assert not compiled._active._plain
    assert not caplog.records


def test_memory_that_runs_out_is_left_to_those_who_halve_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: Any) -> Tensor:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch, "compile", lambda _network, **_: full)
    with compiling(True), pytest.raises(torch.OutOfMemoryError):
        Undefended(TinyClassifier())(X)
