"""The reader of foreign checkpoints against torch's own, and against the objects that were stored."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dbpkit.foundation.checkpoints import Stored, read_checkpoint, size
from dbpkit.foundation.errors import UserError

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
    torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128,
)  # fmt: skip
NEW_DTYPES = (torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2)


def numbers(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Different numbers of a type."""
    count = int(np.prod(shape))
    if dtype is torch.bool:
        return (torch.arange(count) % 3 == 0).reshape(shape)
    if dtype in NEW_DTYPES:
        return torch.arange(count).remainder(100).to(dtype).reshape(shape)
    return (torch.arange(count) * 7 % 251 - 3).to(dtype).reshape(shape)


def written(content: Any, path: Path, legacy: bool = False) -> Path:
    """A file of torch.save."""
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)  # noqa: TID251
    return path


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are of the same type, shape and bytes."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return (
        one.contiguous().reshape(-1).view(torch.uint8).equal(other.contiguous().reshape(-1).view(torch.uint8))
    )


def assert_same(found: Any, expected: Any) -> None:
    """Asserts that what was read is what torch.load makes of it."""
    if isinstance(expected, Tensor):
        assert isinstance(found, Stored)
        assert found.shape == tuple(expected.shape)
        assert same_bits(found.read(), expected.detach())
    elif isinstance(expected, dict):
        assert type(found) is dict
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert type(found) is type(expected)
        assert found == expected


def training_state() -> dict[str, Any]:
    """What trainers store: weights, averages without names, an optimiser, numbers and texts."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    optimiser = torch.optim.Adam(model.parameters())
    model(numbers((2, 3, 3, 3))).sum().backward()
    optimiser.step()
    averages = [p.detach().clone() for p in model.parameters()]
    return {
        "model": model.state_dict(),
        "ema": {"decay": 0.9999, "num_updates": 3, "shadow_params": averages},
        "optimizer": optimiser.state_dict(),
        "step": 3,
        "args": {"name": "ü", "levels": (0.1, 2), "none": None, "on": True, "big": 2**60, "by": {1: "a"}},
    }  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_training_state_is_what_torch_load_reads(legacy: bool, tmp_path: Path) -> None:
    path = written(training_state(), tmp_path / "state.pth", legacy)
    found = read_checkpoint(path)
    assert found.container == ("legacy torch" if legacy else "torch zip")
    assert_same(found.content, torch.load(path, weights_only=True))  # noqa: TID251


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("dtype", [*DTYPES, *NEW_DTYPES], ids=str)
def test_tensor_of_every_type_is_read_to_the_bit(dtype: torch.dtype, legacy: bool, tmp_path: Path) -> None:
    tensor = numbers((3, 5), dtype)
    path = written({"plain": tensor, "one": tensor[1, 2], "empty": tensor[:0]}, tmp_path / "t.pt", legacy)
    assert_same(read_checkpoint(path).content, {"plain": tensor, "one": tensor[1, 2], "empty": tensor[:0]})


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_views_of_one_storage_are_read_as_they_are_seen(legacy: bool, tmp_path: Path) -> None:
    whole = numbers((4, 6, 5))
    views = {
        "transposed": whole.transpose(0, 2),
        "every other": whole[:, ::2],
        "column": whole[..., 1],
        "expanded": whole[0, 0, :1].expand(3, 4),
        "channels last": numbers((2, 3, 4, 5)).to(memory_format=torch.channels_last),
        "last": whole.reshape(-1)[-1:],
        "diagonal": whole[0].diagonal(),
        "parameter": nn.Parameter(whole[1]),
    }
    path = written(views, tmp_path / "views.pt", legacy)
    found = read_checkpoint(path).content
    assert_same(found, views)
    assert all(stored.read().is_contiguous() for stored in found.values())


def test_safetensors_are_read_the_same_way(tmp_path: Path) -> None:
    kinds = [d for d in (*DTYPES, *NEW_DTYPES) if d is not torch.complex128]
    tensors = {str(dtype): numbers((2, 3), dtype) for dtype in kinds} | {"empty": torch.zeros(0, 3)}
    save_file(tensors, tmp_path / "t.safetensors", {"format": "pt"})
    found = read_checkpoint(tmp_path / "t.safetensors")
    assert (found.container, found.metadata) == ("safetensors", {"format": "pt"})
    assert_same({name: found.content[name] for name in tensors}, tensors)
    assert size(found.content) == sum(t.numel() * t.element_size() for t in tensors.values())


def test_tensor_is_read_anew_each_time_and_belongs_to_the_caller(tmp_path: Path) -> None:
    stored = read_checkpoint(written({"w": numbers((3,))}, tmp_path / "w.pt")).content["w"]
    stored.read().zero_()
    assert stored.read().equal(numbers((3,)))


def test_file_that_changes_after_it_was_opened_is_not_read(tmp_path: Path) -> None:
    path = written({"w": numbers((3,))}, tmp_path / "w.pt")
    stored = read_checkpoint(path).content["w"]
    written({"w": numbers((300,))}, path)
    with pytest.raises(UserError, match="it changed while it was read"):
        stored.read()


def test_missing_file_and_folder_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read '.*none\.pt': No such file or directory\. Check"):
        read_checkpoint(tmp_path / "none.pt")
    with pytest.raises(UserError, match=r"cannot read '.*': it is not a file|Is a directory"):
        read_checkpoint(tmp_path)
