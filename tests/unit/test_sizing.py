"""What "auto" becomes, from a model whose needs are known by hand."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbpkit.experiment import sizing
from dbpkit.experiment.build import build
from dbpkit.experiment.execution import DEFAULT_ROWS, Execution
from dbpkit.experiment.sizing import Need, measured, memory_for, rows_that_fit, settled
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.memory import free_memory
from dbpkit.foundation.spec import validate
from dbpkit.purification.replay import DEFAULT_MEMORY
from tests.parts import SIDE, TINY

MIB, GIB = 2**20, 2**30
IMAGE = 3 * SIDE * SIDE * 4
"""Bytes of one image."""


class Squares(nn.Module):
    """A denoiser that saves its input once for every square, and has weights."""

    def __init__(self, squares: int) -> None:
        super().__init__()
        self.squares = squares
        self.weight = nn.Parameter(torch.full((1000,), 1e-3))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        for _ in range(self.squares):
            x = x.square()
        return x + 0 * self.weight.sum() + 0 * sigma


def spec(**changes: Any) -> EvaluationSpec:
    table = {**TINY, "purifier": {"sampler": "one_step"}, **changes}
    return validate(table, EvaluationSpec, "tiny")


def squares(count: int = 3) -> nn.Module:
    return Squares(count)


def test_what_a_row_needs_grows_by_what_one_more_operation_saves() -> None:
    few, many = (
        measured(build(spec(denoiser={"name": f"{__name__}:squares", "options": {"count": n}})), CPU)
        for n in (3, 10)
    )
    assert few is not None
    assert many is not None
    assert many.step - few.step == 7 * IMAGE
    assert (few.steps, few.rest) == (many.steps, many.rest)
    assert few.rest >= IMAGE, "the state before the step"


CPU = torch.device("cpu")


def test_measuring_leaves_the_models_and_the_generators_alone() -> None:
    parts = build(spec())
    before = torch.get_rng_state()
    state = {k: v.clone() for k, v in parts.model.state_dict().items()}
    measured(parts, CPU)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(v, state[k]) for k, v in parts.model.state_dict().items())


@pytest.mark.parametrize(
    ("need", "memory", "kind", "rows"),
    [
        (Need(4 * MIB, 4 * MIB, 10), 8 * GIB, "cpu", DEFAULT_ROWS),  # the embedded network
        (Need(43 * MIB, 7 * MIB, 101), 8 * GIB, "cpu", 8),  # 35.7 M: 8 x 43 MiB fit 512 MiB
        (Need(4 * MIB, 4 * MIB, 10), 200 * MIB, "cpu", 8),  # 8 x 10 MiB fit half of it, 16 do not
        (Need(4 * MIB, 4 * MIB, 10), 64 * GIB, "cuda", 1024),
        (Need(43 * MIB, 7 * MIB, 101), 64 * GIB, "cuda", 256),
        (Need(40 * GIB, GIB, 2), GIB, "cuda", 1),
    ],
)
def test_rows_are_the_most_that_pay_and_fit(need: Need, memory: int, kind: str, rows: int) -> None:
    assert rows_that_fit(need, memory, kind) == rows


def test_memory_is_what_is_of_use_as_far_as_it_is_free() -> None:
    need = Need(100 * MIB, 0, 10)
    assert need.kept(4) == 10 * 400 * MIB
    assert memory_for(need, 4, 64 * GIB) == 4 * GIB, "3.9 GiB: ten graphs, in quarters of a GiB"
    assert memory_for(need, 4, 3 * GIB) == 2.25 * GIB, "less 600 MiB for one step, in quarters of a GiB"
    assert memory_for(need, 4, GIB // 2) == 0, "every step replayed"
    assert memory_for(Need(MIB, 0, 10), 4, 64 * GIB) == DEFAULT_MEMORY, "never less than the default"


def test_what_is_chosen_becomes_the_purifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "free_on", lambda _: 64 * MIB)
    monkeypatch.setattr(sizing, "measured", lambda *_: Need(MIB, 0, 10))
    parts = build(spec())
    found = settled(Execution("cpu"), parts)
    assert (found.micro_batch, found.limit.rows) == (8, 8)
    assert found.memory_bytes == parts.model.purifier.memory_bytes == 0
    assert not found.is_auto


def test_numbers_that_were_given_stay() -> None:
    parts = build(spec(), memory_bytes=77)
    asked = Execution("cpu", micro_batch=5, memory_bytes=77)
    assert settled(asked, parts) is asked
    half = settled(Execution("cpu", micro_batch=5), parts)
    assert (half.micro_batch, half.is_auto) == (5, False)


def test_deterministic_numbers_are_the_same_on_every_machine() -> None:
    found = Execution("cpu", deterministic=True)
    assert (found.micro_batch, found.memory_bytes, found.is_auto) == (32, DEFAULT_MEMORY, False)
    assert Execution("cpu", deterministic=True, micro_batch=4).micro_batch == 4


@pytest.mark.parametrize("stub", ["free_on", "measured"])
def test_unknown_memory_or_a_model_that_cannot_be_measured_takes_the_defaults(
    stub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizing, stub, lambda *_: None)
    found = settled(Execution("cpu"), build(spec()))
    assert (found.micro_batch, found.memory_bytes) == (32, DEFAULT_MEMORY)


def test_processes_of_one_launch_share_the_memory_of_their_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "free_on", lambda _: 160 * MIB)
    monkeypatch.setattr(sizing, "measured", lambda *_: Need(MIB, 0, 10))
    rows = []
    for count in ("1", "4"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", count)
        rows.append(settled(Execution("cpu"), build(spec())).micro_batch)
    assert rows == [16, 4]


def test_given_parts_keep_the_memory_that_their_purifier_has() -> None:
    parts = build(spec(), memory_bytes=12345)
    found = settled(Execution("cpu"), parts, given=True)
    assert found.memory_bytes == parts.model.purifier.memory_bytes == 12345


# ------------------------------------------------------------------ what is free


def linux(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


MEMINFO = "MemTotal: 32000000 kB\nMemFree: 100 kB\nMemAvailable: 16000000 kB\n"


def test_free_memory_without_limits_is_what_linux_can_give(tmp_path: Path) -> None:
    assert free_memory(linux(tmp_path, proc__meminfo=MEMINFO)) == 16000000 * 1024


def test_free_memory_of_a_container_counts_what_it_has_used(tmp_path: Path) -> None:
    """Version 2: the tightest group upwards counts, and files in its cache can be dropped."""
    linux(
        tmp_path,
        proc__meminfo=MEMINFO,
        proc__self__cgroup="0::/outer/inner\n",
        sys__fs__cgroup__outer__memory_DOT_max="5000\n",
        sys__fs__cgroup__outer__memory_DOT_current="4000\n",
        sys__fs__cgroup__outer__memory_DOT_stat="anon 1\ninactive_file 500\n",
        sys__fs__cgroup__outer__inner__memory_DOT_max="max\n",
        sys__fs__cgroup__outer__inner__memory_DOT_current="10\n",
    )
    assert free_memory(tmp_path) == 1500


def test_free_memory_of_an_older_container(tmp_path: Path) -> None:
    linux(
        tmp_path,
        proc__meminfo=MEMINFO,
        proc__self__cgroup="5:cpu:/x\n4:memory:/x\n",
        sys__fs__cgroup__memory__x__memory_DOT_limit_in_bytes="9000\n",
        sys__fs__cgroup__memory__x__memory_DOT_usage_in_bytes="2000\n",
        sys__fs__cgroup__memory__x__memory_DOT_stat="inactive_file 1\ntotal_inactive_file 3\n",
    )
    assert free_memory(tmp_path) == 7003


def test_free_memory_is_never_below_nothing_and_unknown_without_linux(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None
    linux(
        tmp_path,
        proc__meminfo=MEMINFO,
        proc__self__cgroup="0::/\n",
        sys__fs__cgroup__memory_DOT_max="1000\n",
        sys__fs__cgroup__memory_DOT_current="4000\n",
    )
    assert free_memory(tmp_path) == 0


def test_free_memory_of_this_machine_is_plausible() -> None:
    with contextlib.suppress(FileNotFoundError):
        total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
        assert 0 < (free_memory() or 0) <= total
