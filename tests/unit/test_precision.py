"""What networks compute in: torch's switches, autocast around the network alone, replay, specs, records."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbpkit import EvaluationSpec, NoisePlan, PurifiedClassifier, Purifier, UserError, evaluate, replay
from dbpkit.experiment.execution import kernels
from dbpkit.foundation.precision import PRECISIONS, current_precision, precise
from dbpkit.foundation.spec import spec_hash, validate
from dbpkit.models.denoisers import EDMDenoiser, VPDenoiser
from dbpkit.purification.classifier import Undefended
from dbpkit.reporting.tables import precision_note
from dbpkit.results.summary import summarise
from tests.oracles import uniform
from tests.parts import TINY, Product

X, NOISE = uniform(2, 1, 8, 8).float(), NoisePlan.of(3, [4, 5])
BACKENDS = torch.backends


def switches() -> list[Any]:
    """Every switch of torch that changes the precision of a product."""
    new = [getattr(place, "fp32_precision", None) for place in (BACKENDS.cuda.matmul, BACKENDS.cudnn)]
    return [torch.get_float32_matmul_precision(), BACKENDS.cudnn.allow_tf32, *new]


@pytest.fixture
def restored() -> Iterator[None]:
    matmul, convolution = torch.get_float32_matmul_precision(), BACKENDS.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(matmul)
    BACKENDS.cudnn.allow_tf32 = convolution


class Listening(nn.Module):
    """A convolution that notes in what it computes, and in what it is given and gives."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 1, 3, padding=1)
        self.seen: list[tuple[torch.dtype, torch.dtype, bool]] = []
        for parameter, value in ((self.body.weight, 0.11), (self.body.bias, 0.03)):
            parameter.data.fill_(value)

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        """Returns images, in bfloat16 under autocast."""
        out = self.body(x)
        self.seen.append((x.dtype, out.dtype, torch.is_autocast_enabled("cpu")))
        return out


class Head(nn.Module):
    """Logits of an image from one product, and noise of its own size in none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 3, bias=False)
        self.body.weight.data.copy_(torch.linspace(-1, 1, 192).sin().view(3, 64))

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, 3)."""
        return self.body(x.flatten(1))


# ------------------------------------------------------------------ torch's switches


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("before", ["highest", "high", "medium"])
@pytest.mark.parametrize("convolution", [True, False])
def test_switches_are_those_of_the_precision_inside_and_the_callers_after(
    before: Any, convolution: bool
) -> None:
    torch.set_float32_matmul_precision(before)
    BACKENDS.cudnn.allow_tf32 = convolution
    found = switches()
    for name in PRECISIONS:
        with contextlib.suppress(KeyError), precise(name):
            assert switches()[:2] == (["high", True] if name == "tf32" else ["highest", False])
            raise KeyError
        assert switches() == found
        assert current_precision() == "float32"


def test_blocks_nest_and_each_gives_the_one_around_it_back() -> None:
    with kernels(False, "bfloat16"):
        with kernels(True, "tf32"):
            assert current_precision() == "tf32"
            assert BACKENDS.cudnn.allow_tf32
        assert current_precision() == "bfloat16"
        assert not BACKENDS.cudnn.allow_tf32


@pytest.mark.usefixtures("restored")
def test_kernels_of_no_precision_leave_the_callers_and_deterministic_ones_are_exact() -> None:
    BACKENDS.cudnn.allow_tf32 = True
    with kernels(False, None):
        assert BACKENDS.cudnn.allow_tf32
    with kernels(True, None):
        assert not BACKENDS.cudnn.allow_tf32
    assert BACKENDS.cudnn.allow_tf32


@pytest.mark.parametrize("name", ["float16", "bf16", "", None])
def test_unknown_precision_is_one_sentence_with_the_choices(name: Any) -> None:
    with (
        pytest.raises(UserError, match=r"unknown precision .*Available: bfloat16, float32, tf32"),
        precise(name),
    ):
        pass


# ------------------------------------------------------------------ around the network, and nowhere else


DENOISERS: dict[str, Any] = {
    "edm": EDMDenoiser,
    "vp": lambda network: VPDenoiser(network, "noise"),
    "the user's own": lambda network: network,
}


@pytest.mark.parametrize("kind", DENOISERS)
def test_bfloat16_is_the_network_alone(kind: str) -> None:
    """States, logits and gradients are float32, the convolution is not; afterwards it is exact again."""
    network = Listening()
    model = PurifiedClassifier(Purifier(DENOISERS[kind](network), "ddim", steps=50), Head())
    leaf = X.clone().requires_grad_()
    exact = model(X, noise=NOISE).detach()
    with precise("bfloat16"):
        logits = model(leaf, noise=NOISE)
        grad = torch.autograd.grad(logits.sum(), leaf)[0]
        assert not torch.is_autocast_enabled("cpu")
    assert logits.dtype == grad.dtype == torch.float32
    first, low = network.seen[0], network.seen[-1]
    assert first == (torch.float32, torch.float32, False)
    assert low == (torch.float32, torch.bfloat16, True)
    gap = float((logits.detach() - exact).abs().max() / exact.abs().max())
    assert 0 < gap < 0.05  # 8 bits, a few times over
    assert torch.equal(model(X, noise=NOISE), exact)


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_float32_and_on_a_cpu_tf32_are_what_was_computed_before(precision: Any) -> None:
    model = PurifiedClassifier(Purifier(EDMDenoiser(Listening()), "ddim", steps=50), Head())
    expected = model(X, noise=NOISE)
    with precise(precision):
        assert torch.equal(model(X, noise=NOISE), expected)


def test_bfloat16_of_a_classifier_is_autocast_of_it_in_float32() -> None:
    head = Head()
    with torch.autocast("cpu", torch.bfloat16):
        expected = head(X)
    with precise("bfloat16"):
        found = Undefended(head)(X)
    assert expected.dtype == torch.bfloat16
    assert torch.equal(found, expected.float())


def test_purifier_of_the_users_own_with_the_contract_is_called_in_bfloat16_too() -> None:
    class Own(Listening):
        sites, calls = frozenset(), 1

        def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
            return super().forward(x)

    network = Own()
    with precise("bfloat16"):
        logits = PurifiedClassifier(network, Head())(X, noise=NOISE)
    assert network.seen[-1] == (torch.float32, torch.bfloat16, True)
    assert logits.dtype == torch.float32


# ------------------------------------------------------------------ replay


@pytest.mark.parametrize("inside", [True, False])
def test_replayed_steps_are_bit_equal_in_bfloat16_wherever_the_backward_pass_runs(inside: bool) -> None:
    """In bfloat16 a step that ran again in float32 would miss its stored result by far."""
    grads = []
    for memory_bytes in (0, 2**30):
        purifier = Purifier(EDMDenoiser(Listening()), "ddpm", steps=50, memory_bytes=memory_bytes)
        purifier.verify_replay = True
        leaf = X.clone().requires_grad_()
        with precise("bfloat16"):
            x_pure = purifier(leaf, noise=NOISE)
            if inside:
                grads.append(torch.autograd.grad(x_pure.sin().sum(), leaf)[0])
        if not inside:
            grads.append(torch.autograd.grad(x_pure.sin().sum(), leaf)[0])
    assert torch.equal(*grads)


# ------------------------------------------------------------------ specs and runs


def spec_of(**changes: Any) -> EvaluationSpec:
    return validate({**TINY, **changes}, EvaluationSpec, "test")


def test_precision_is_in_table_and_hash_only_where_it_is_not_float32() -> None:
    plain, exact, low = spec_of(), spec_of(precision="float32"), spec_of(precision="bfloat16")
    assert "precision" not in exact.model_dump(mode="json")
    assert spec_hash(plain) == spec_hash(exact) != spec_hash(low)
    assert low.model_dump(mode="json")["precision"] == "bfloat16"
    with pytest.raises(UserError, match="precision = float16"):
        spec_of(precision="float16")


def test_run_in_bfloat16_notes_and_says_it_and_is_replayed_in_it(tmp_path: Path) -> None:
    spec = spec_of(
        classifier="tests.parts:Product",
        knowledge=["white_box"],
        examples={"count": 2},
        precision="bfloat16",
    )
    summary = evaluate(spec, tmp_path / "run")
    assert precision_note(summary) == "Networks in bfloat16."
    (session,) = json.loads((tmp_path / "run" / "env.json").read_text())
    assert session["precision"] == "bfloat16"
    Product.seen.clear()
    again = replay(tmp_path / "run", 102, spec=spec)
    assert again.difference == 0
    assert set(Product.seen) == {torch.bfloat16}
    with pytest.raises(UserError, match="precision bfloat16 -> "):
        evaluate(spec_of(**{**spec.model_dump(mode="json"), "precision": "float32"}), tmp_path / "run")
    assert summarise(tmp_path / "run").spec.precision == "bfloat16"
