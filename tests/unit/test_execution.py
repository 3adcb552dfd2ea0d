from dataclasses import replace
from typing import Any

import pytest
import torch

from dbpkit import Execution, UserError
from dbpkit.experiment.execution import BATCHES, checked_device, kernels, launched, shared


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("name", "device"), [("auto", "cuda"), ("cuda", "cuda"), ("cuda:1", "cuda:1"), ("cpu", "cpu")]
)
def test_device_by_name_is_a_torch_device(name: str, device: str) -> None:
    assert Execution(name).device == torch.device(device)
    assert checked_device(torch.device(device)) == torch.device(device)


@pytest.mark.usefixtures("no_gpu")
def test_auto_without_a_gpu_is_the_cpu() -> None:
    assert checked_device("auto") == torch.device("cpu")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda")])
def test_gpu_that_is_not_there_is_no_quiet_fall_back(device: Any) -> None:
    with pytest.raises(UserError, match=r"'cuda.*' was asked for, but this torch .* sees no CUDA"):
        Execution(device)


@pytest.mark.usefixtures("two_gpus")
def test_gpu_beyond_the_last_names_how_many_there_are() -> None:
    with pytest.raises(UserError, match="'cuda:2' was asked for, but there are 2 CUDA devices"):
        Execution("cuda:2")


@pytest.mark.parametrize("device", ["gpu", "mps", "", "cuda:x", torch.device("meta"), None, 0])
def test_unknown_device_is_refused_with_the_choices(device: Any) -> None:
    with pytest.raises(UserError, match=r"is unknown\. Use auto, cpu, cuda or cuda:N\."):
        Execution(device)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"micro_batch": True}, "micro_batch"),
        ({"memory_bytes": -1}, "memory_bytes"),
        ({"micro_batch": "many"}, "micro_batch"),
        ({"world": 0}, "world"),
        ({"rank": 2, "world": 2}, "rank"),
    ],
)
def test_number_out_of_range_is_named(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(UserError, match=f"execution.{name} must be a whole number"):
        replace(Execution("cpu"), **changes)


def test_noted_settings_are_the_keys_of_env_json() -> None:
    """As sessions of 0.1.0 have them, see docs/reference/run-directory.md."""
    assert Execution("cpu", batch_size=3, deterministic=True, rank=1, world=2).noted() == {
        "device": "cpu",
        "batch_size": 3,
        "micro_batch": 32,
        "deterministic": True,
        "memory_bytes": 2 * 2**30,
        "reverse": False,
        "compile": False,
    }


def test_launched_takes_the_place_that_the_launcher_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    found = launched(Execution(batch_size=3))
    assert (found.rank, found.world, found.batch_size) == (1, 4, 3)


def test_deterministic_kernels_hold_inside_the_block_only() -> None:
    with kernels(True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_kernels_leave_a_caller_who_wants_warnings_only_with_them() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with kernels(True):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE"])
def test_launched_by_what_gives_no_number_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "two")
    with pytest.raises(UserError, match=r"must be whole numbers, not .*'two'"):
        launched(Execution())


@pytest.mark.parametrize(
    ("shard", "place"), [("1/1", (0, 1)), ("1/16", (0, 16)), ("16/16", (15, 16)), (None, (0, 1))]
)
def test_shared_by_option_counts_from_one(shard: str | None, place: tuple[int, int]) -> None:
    found = shared(Execution(batch_size=3), shard)
    assert (found.rank, found.world, found.batch_size) == (*place, 3)


@pytest.mark.parametrize("shard", ["0/4", "5/4", "1", "1/", "/4", "a/b", "1/4/4", "-1/4", "1/0", ""])
def test_shared_by_what_is_no_shard_is_one_sentence(shard: str) -> None:
    with pytest.raises(UserError, match=r"is none\. Use K/N with K from 1 to N"):
        shared(Execution(), shard)


def test_shared_by_option_and_by_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match=r"this process is 2/4 of a launcher .* --shard 1/2 says something"):
        shared(Execution(), "1/2")


@pytest.mark.usefixtures("two_gpus")
def test_shared_each_process_of_a_machine_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert shared(Execution("cuda")).device == torch.device("cuda:1")
    with pytest.raises(UserError, match=r"'cuda:0' is one GPU, and 4 processes would share it"):
        shared(Execution("cuda:0"))
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match=r"'cuda:2' was asked for, but there are 2"):
        shared(Execution("cuda"))


def test_batch_size_is_a_rule_of_the_kind_of_device() -> None:
    """Ranks of one launch cut the examples alike, however much memory each finds."""
    assert Execution("cpu").batch_size == BATCHES["cpu"] == 16
    assert Execution("cpu", batch_size="auto", deterministic=True).batch_size == 16
    with pytest.raises(UserError, match="batch_size"):
        Execution("cpu", batch_size="all")  # type: ignore[arg-type]


def test_device_that_was_left_out_stays_so_when_something_else_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Parts that are given then run where they are, also as one of several processes."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    automatic, named = Execution(batch_size=3), Execution("cpu")
    for execution in (automatic, replace(automatic, batch_size=4), launched(automatic)):
        assert execution.device_is_auto
    for execution in (named, replace(named, batch_size=4), replace(automatic, device="cpu"), launched(named)):
        assert not execution.device_is_auto
    assert not replace(automatic, device=torch.device("cpu")).device_is_auto
