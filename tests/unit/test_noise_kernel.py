"""The kernel that draws noise on CUDA: under Triton's interpreter, compiled without a card, and on one.

The thing people get wrong: a kernel that is right for a million values and wrong for five. Here rows end
inside a block, ids have more than 32 bits, and draws and steps are the last ones.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dbpkit.foundation import drawing
from dbpkit.foundation.noise import MAX_ID, NoisePlan
from dbpkit.foundation.philox import SITES, STREAMS, UNIFORM, place, stream_key

KINDS = {"normal": 0, "uniform": UNIFORM}
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
IDS = [MAX_ID - 1, (1 << 32) + 5, (1 << 32) - 1, 0, 77]
LAST = (1 << 32) - 1


@pytest.fixture(scope="module")
def interpreted() -> Any:
    """A copy of the kernel's module that runs on the CPU, one program after the other."""
    pytest.importorskip("triton")
    name = "interpreted_noise_kernel"
    spec = importlib.util.spec_from_file_location(name, Path(drawing.__file__).parent / "noise_kernel.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    return module


def both(
    kernel: Any, plan: NoisePlan, site: str, step: int, like: torch.Tensor, kind: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernel draws, and what the plan draws on the CPU."""
    out = torch.full_like(like, torch.nan)
    key = stream_key(plan.seed, plan.stream, plan.lane)
    kernel.fill(out, plan.example_ids, plan.draw, key, place(KINDS[kind], site, step), KINDS[kind])
    return out, getattr(plan, kind)(site, step, like)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", range(1, 10))
def test_kernel_any_length_of_a_row_is_the_cpu_to_the_bit(n: int, kind: str, interpreted: Any) -> None:
    plan = NoisePlan.of(LAST, IDS[:2], "attack", draw=LAST).in_lane((1 << 24) - 1)
    drawn, expected = both(interpreted, plan, "probe", (1 << 24) - 1, torch.zeros(2, n), kind)
    assert torch.equal(drawn, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kernel_images_are_the_cpu_to_the_bit(dtype: torch.dtype, kind: str, interpreted: Any) -> None:
    """More than one program a row, and a draw of its own for each row."""
    plan = NoisePlan.of(3, IDS, draw=7).repeat(2)
    drawn, expected = both(interpreted, plan, "reverse", 5, torch.zeros(10, 3, 19, 23, dtype=dtype), kind)
    assert torch.equal(drawn, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_kernel_double_is_the_cpu_to_the_last_bit(kind: str, interpreted: Any) -> None:
    like = torch.zeros(5, 301, dtype=torch.float64)
    drawn, expected = both(interpreted, NoisePlan.of(3, IDS), "reverse", 5, like, kind)
    torch.testing.assert_close(drawn, expected, rtol=4e-16, atol=1e-15)


@pytest.mark.parametrize(("number", "site"), list(enumerate(SITES)))
def test_kernel_every_site_and_stream_is_the_cpu(number: int, site: str, interpreted: Any) -> None:
    stream = list(STREAMS)[number % len(STREAMS)]
    plan = NoisePlan.of(0x80000000 + number, IDS, stream, draw=0x80000000 + number).in_lane(number)
    for kind in KINDS:
        drawn, expected = both(interpreted, plan, site, number << 20, torch.zeros(5, 6), kind)
        assert torch.equal(drawn, expected)


@pytest.mark.parametrize(("dtype", "uniform"), [("fp32", False), ("fp64", False), ("bf16", True)])
def test_kernel_compiles_for_a_card_that_is_not_there(
    dtype: str, uniform: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from dbpkit.foundation.noise_kernel import LANES, _draw

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    words = dict.fromkeys(("seed", "lane", "last", "blocks", "n"), "i32")
    constants = {"UNIFORM": uniform, "LANES": LANES}
    signature = {"out": f"*{dtype}", "ids": "*i64", "draws": "*i64", **words}
    source = ASTSource(_draw, {**signature, **dict.fromkeys(constants, "constexpr")}, constants)
    ptx = triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"]
    assert ptx.count("mul.hi.u32") >= 20  # two in each of ten rounds
    assert ptx.count("sqrt.rn.f64") == (
        0 if uniform else 4
    )  # two of two blocks a thread, in double, to the nearest


def test_without_a_kernel_that_runs_the_same_is_drawn_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no compiler")

    kernels = [broken]
    monkeypatch.setattr(drawing, "_kernel", lambda: kernels)
    rows = drawing.Rows(torch.arange(2), torch.zeros(2, dtype=torch.int64))
    assert not drawing._fused(torch.zeros(2, 5), rows, (0, 2), 0, 0)
    assert not drawing._fused(torch.zeros(2, 5), rows, (0, 2), 0, 0)
    assert caplog.text.count("no compiler") == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_operations_of_an_accelerator_are_the_cpu_to_the_bit(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way without a kernel, which also runs inside transforms of torch.func, on PyTorch's integers."""
    plan = NoisePlan.of(3, IDS, draw=LAST)
    like = torch.zeros(5, 3, 5, dtype=dtype)
    expected = {kind: getattr(plan, kind)("churn", 3, like) for kind in KINDS}
    monkeypatch.setattr(torch._C._functorch, "is_functorch_wrapped_tensor", lambda _: True)
    for kind in KINDS:
        assert torch.equal(getattr(plan, kind)("churn", 3, like), expected[kind])


@pytest.mark.gpu
@CUDA
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(5, 1), (5, 7), (5, 3, 32, 32), (5, 3, 224, 224)])
def test_cuda_values_are_the_cpu_to_the_bit(shape: tuple[int, ...], dtype: torch.dtype, kind: str) -> None:
    plan = NoisePlan.of(LAST, IDS, "attack", draw=LAST)
    like = torch.zeros(shape, dtype=dtype)
    there = getattr(plan, kind)("reverse", 5, like.cuda())
    assert drawing._kernel(), "drawn without the kernel"
    assert torch.equal(there.cpu(), getattr(plan, kind)("reverse", 5, like))


@pytest.mark.gpu
@CUDA
def test_cuda_double_agrees_to_the_last_bits() -> None:
    plan, like = NoisePlan.of(4, IDS), torch.zeros(5, 3, 32, 32, dtype=torch.float64)
    there = plan.normal("reverse", 5, like.cuda()).cpu()
    torch.testing.assert_close(there, plan.normal("reverse", 5, like), rtol=1e-15, atol=1e-15)
