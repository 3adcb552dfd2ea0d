"""Rows that do not fit into memory are tried again in halves, with the same results."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dbpkit.attacks import Target
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.rows import MemoryShortageError, RowLimit, is_out_of_memory

CPU_SAYS = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
    " allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)


class Tight:
    """A random linear classifier that runs out of memory above a number of rows; says how many it got."""

    def __init__(self, most: int, error: Callable[[], Exception]) -> None:
        self.most, self.error = most, error
        self.calls: list[int] = []
        self.held: list[weakref.ref[Tensor]] = []

    def __call__(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        """Logits (B, 3)."""
        self.calls.append(len(x))
        graph = x * 2
        self.held.append(weakref.ref(graph))
        if len(x) > self.most:
            raise self.error()
        z = noise.normal("forward", 0, x)
        return (graph + z).mean(dim=(2, 3)) ** 2


def images(count: int = 7) -> tuple[Tensor, Tensor, NoisePlan]:
    plan = NoisePlan.of(3, range(count))
    return plan.uniform("probe", 0, torch.zeros(count, 3, 4, 4)), torch.arange(count) % 3, plan


def out_of_memory() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    "error",
    [
        out_of_memory,
        MemoryError,
        lambda: RuntimeError(CPU_SAYS),
        lambda: RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_rows_that_run_out_of_memory_are_halved_with_the_same_numbers(
    error: Callable[[], Exception],
) -> None:
    x, y, noise = images()
    tight, ample = Target(Tight(3, error), 16), Target(Tight(100, error), 3)
    found = tight.per_draw(x, y, noise=noise, eot=4)
    for a, b in zip(found, ample.per_draw(x, y, noise=noise, eot=4), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(tight.draws(x, noise=noise, count=4), ample.draws(x, noise=noise, count=4))
    assert tight.micro_batch == 2, "16, 8, 4, 2"
    assert tight.forward_passes == ample.forward_passes, "a failed try is no pass"
    assert tight.gradient_passes == ample.gradient_passes


def test_all_who_share_a_limit_learn_where_memory_ends() -> None:
    limit, model = RowLimit(8), Tight(4, out_of_memory)
    x, _, noise = images()
    Target(model, limit)(x, noise=noise)
    Target(model, limit)(x, noise=noise)
    assert model.calls == [7, 3, 3, 1, 3, 3, 1]
    assert limit.was_halved


def test_one_row_too_many_is_a_sentence() -> None:
    x, _, noise = images()
    with pytest.raises(
        MemoryShortageError, match=r"one row of the model needs more memory .* Lower --memory"
    ):
        Target(Tight(0, out_of_memory), 8)(x, noise=noise)


def test_fixed_shape_stays_and_says_what_to_lower() -> None:
    x, _, noise = images()
    target = Target(Tight(4, out_of_memory), RowLimit(8), fixed_shape=True)
    with pytest.raises(
        MemoryShortageError, match=r"8 rows .* --deterministic .* Lower --micro-batch or --memory"
    ):
        target(x, noise=noise)
    assert target.micro_batch == 8


def test_another_error_is_raised_as_it_came() -> None:
    x, _, noise = images()
    with pytest.raises(RuntimeError, match="shapes do not fit") as caught:
        Target(Tight(0, lambda: RuntimeError("shapes do not fit")), 8)(x, noise=noise)
    assert not is_out_of_memory(caught.value)


def test_nothing_of_the_failed_call_is_alive_when_it_is_tried_again() -> None:
    gc.disable()
    try:
        x, y, noise = images()
        model = Tight(4, out_of_memory)
        alive: list[int] = []

        def looking(value: Tensor, labels: Tensor) -> Tensor:
            alive.append(sum(r() is not None for r in model.held))
            return torch.nn.functional.cross_entropy(value, labels, reduction="none")

        Target(model, 7).gradient(x, y, noise=noise, loss=looking)
    finally:
        gc.enable()
    assert model.calls == [7, 3, 3, 1]
    assert max(alive) <= 1, "the graph in use, and none of the failed or finished ones"


def test_the_allocator_of_this_machine_is_understood() -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which kind it is depends on the system
        torch.empty(2**58, dtype=torch.float64)
    assert is_out_of_memory(caught.value)


def test_an_error_raised_from_one_of_memory_counts() -> None:
    wrapped = ValueError("wrapped")
    wrapped.__cause__ = out_of_memory()
    assert is_out_of_memory(wrapped)
    assert not is_out_of_memory(UserError("the allocator's out of memory is a phrase here"))


@pytest.mark.parametrize("rows", [0, -1, 1.5, True])
def test_rows_are_a_whole_number_from_one_on(rows: object) -> None:
    with pytest.raises(UserError, match="micro_batch must be a whole number"):
        RowLimit(rows)  # type: ignore[arg-type]


def test_failed_call_gives_no_more_rows_than_a_call_inside_it_could_take() -> None:
    limit, inner = RowLimit(16), Tight(2, out_of_memory)
    x, _, noise = images(16)
    before: list[int] = []

    def work(part: slice) -> int:
        count = part.stop - part.start
        before.append(limit.rows)
        limit.over(count, lambda rows: inner(x[rows], noise=noise.rows(rows)))
        if count > 8:
            raise out_of_memory()
        return count

    assert sum(limit.over(16, work)) == 16
    assert before[:2] == [16, 2]
