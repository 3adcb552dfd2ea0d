"""The reader of foreign checkpoints against torch's own, and against the objects that were stored."""

import argparse
import datetime
import functools
import io
import logging
import pickle  # noqa: TID251 - to make the files that the reader must read
import re
import struct
import sys
import types
import warnings
import zipfile
from collections import OrderedDict, defaultdict, namedtuple
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dbpkit.foundation.checkpoints import Record, Stored, read_checkpoint, size, tensors_of
from dbpkit.foundation.errors import UserError
from tests.security.checkpoints import call, legacy, row, storage, text, whole
from tests.security.checkpoints import name as named
from tests.security.checkpoints import tensor as tensor_of

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


# ------------------------------------------------------------------ pickles of objects


class EasyDict(dict[str, Any]):
    """As in dnnlib: items that can be read as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


def _reconstruct_persistent_obj(meta: Any) -> Any:
    raise AssertionError("a file was obeyed")


class Persistent:
    """Stands for a module that torch_utils.persistence stores: a call of a function with a description."""

    def __init__(self, name: str, state: dict[str, Any]) -> None:
        self.name, self.state = name, state

    def __reduce__(self) -> Any:
        source = f"raise AssertionError('the source of {self.name} was run')\n" * 50
        meta = EasyDict(type="class", version=6, module_src=source, class_name=self.name, state=self.state)
        return _reconstruct_persistent_obj, (meta,)


@pytest.fixture
def edm_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets pickle write the names of EDM's modules, which are gone when the file is read."""
    for name, parts in {
        "dnnlib.util": [EasyDict],
        "torch_utils.persistence": [_reconstruct_persistent_obj],
    }.items():
        module = types.ModuleType(name)
        for part in parts:
            monkeypatch.setattr(part, "__module__", name)
            setattr(module, part.__name__, part)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setitem(sys.modules, name.split(".")[0], types.ModuleType(name.split(".")[0]))


def edm_network() -> tuple[Persistent, dict[str, Tensor]]:
    """A network as EDM stores it, and its tensors."""
    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    conv.register_buffer("resample_filter", numbers((1, 1, 2, 2)))
    norm.register_buffer("table", numbers((5,)), persistent=False)
    inner = {
        **conv.__dict__, "_init_args": (), "_init_kwargs": {"in_channels": 3, "kernel": 3, "up": False},
    }  # fmt: skip
    outer = {
        "training": False, "_parameters": OrderedDict(), "_buffers": OrderedDict(),
        "_modules": OrderedDict(
            model=Persistent("SongUNet", {
                "_parameters": OrderedDict(gain=nn.Parameter(numbers((4,)), requires_grad=False)),
                "_buffers": {}, "_modules": OrderedDict(enc=nn.ModuleDict({"8x8_conv": norm}),
                                                        conv=Persistent("Conv2d", inner)),
            })
        ),
        "_init_kwargs": EasyDict(img_resolution=32, model_type="SongUNet", channel_mult=[2, 2, 2]),
        "sigma_data": np.float64(0.5), "img_channels": np.int64(3),
    }  # fmt: skip
    names = {
        "model.gain": numbers((4,)), "model.conv.weight": conv.weight, "model.conv.bias": conv.bias,
        "model.conv.resample_filter": conv.resample_filter,
        **{f"model.enc.8x8_conv.{n}": t for n, t in norm.state_dict().items()},
    }  # fmt: skip
    return Persistent("EDMPrecond", outer), names


@pytest.mark.parametrize("protocol", range(2, 6))
def test_edm_pickle_gives_its_records_and_tensors(protocol: int, edm_modules: None, tmp_path: Path) -> None:
    network, tensors = edm_network()
    path = tmp_path / "edm.pkl"
    content = {"ema": network, "loss_fn": Persistent("EDMLoss", {"P_mean": -1.2}), "augment_pipe": None}
    path.write_bytes(
        pickle.dumps({**content, "dataset_kwargs": EasyDict(path="x", max_size=50000)}, protocol)
    )
    for name in ("dnnlib.util", "torch_utils.persistence"):
        sys.modules.pop(name)
    found = read_checkpoint(path)
    assert found.container == "pickle"
    ema = found.content["ema"]
    assert isinstance(ema, Record)
    assert (ema.name, ema.state["sigma_data"], ema.state["img_channels"]) == ("EDMPrecond", 0.5, 3)
    assert ema.state["_init_kwargs"] == {
        "img_resolution": 32, "model_type": "SongUNet", "channel_mult": [2, 2, 2],
    }  # fmt: skip
    assert found.content["loss_fn"].state == {"P_mean": -1.2}
    assert found.content["dataset_kwargs"] == {"path": "x", "max_size": 50000}
    got = tensors_of(ema)
    assert sorted(got) == sorted(tensors)
    assert all(same_bits(got[name].read(), tensor.detach()) for name, tensor in tensors.items())
    assert "dnnlib.util" not in sys.modules


class WideResNet(nn.Module):
    """A whole module that a file names: its class must not be needed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.layer1 = nn.Sequential(nn.BatchNorm2d(4), nn.Linear(4, 2))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_whole_module_is_read_without_its_class(
    legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = types.ModuleType("networks_of_nobody")
    package.WideResNet = WideResNet  # type: ignore[attr-defined]
    model = nn.DataParallel(WideResNet())
    with monkeypatch.context() as patched, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch looks for the source of the class and says that there is none
        patched.setitem(sys.modules, "networks_of_nobody", package)
        patched.setattr(WideResNet, "__module__", "networks_of_nobody")
        path = written({"net": model, "acc": 95.8, "epoch": 199}, tmp_path / "origin.t7", legacy)
    found = read_checkpoint(path).content
    assert (found["acc"], found["epoch"]) == (95.8, 199)
    inner = found["net"].state["_modules"]["module"]
    assert inner.name == "networks_of_nobody.WideResNet"
    assert_same(tensors_of(found["net"]), dict(model.state_dict()))
    assert_same(tensors_of(inner), dict(model.module.state_dict()))


def test_legacy_file_with_the_source_of_a_class_is_read(tmp_path: Path) -> None:
    """torch stores the source beside a module whose class it can find; it is dropped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = written(nn.Sequential(nn.Linear(2, 3)), tmp_path / "module.pt", legacy=True)
    assert b"class Linear(Module)" in path.read_bytes()
    found = read_checkpoint(path).content
    assert found.name == "torch.nn.modules.container.Sequential"
    assert {name: stored.shape for name, stored in tensors_of(found).items()} == {
        "0.weight": (3, 2), "0.bias": (3,),
    }  # fmt: skip


class Busy(nn.Module):
    """A module with attributes that are no data: functions of torch, methods, a logger, a pattern."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(numbers((3,)))
        self.activations = [torch.relu, nn.functional.silu, torch.nn.functional.gelu, self.half]
        self.schedule = functools.partial(numbers, (2,))
        self.log, self.pattern, self.kinds = (
            logging.getLogger("busy"),
            re.compile("a+"),
            [type(None), ..., int],
        )


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_module_with_functions_and_methods_is_read(legacy: bool, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = read_checkpoint(written(Busy(), tmp_path / "busy.pt", legacy)).content
    assert all(isinstance(part, Record) for part in found.state["activations"])
    assert_same(tensors_of(found), {"weight": numbers((3,))})


class Average:
    """An exponential average as trainers keep it."""

    def __init__(self) -> None:
        self.decay, self.shadow_params = 0.999, [numbers((2,)), numbers((3,))]


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize("protocol", range(6))
def test_objects_of_every_kind_are_records(protocol: int, tmp_path: Path) -> None:
    content = {
        "args": argparse.Namespace(lr=0.1, arch="ddpmpp"), "ema": Average(), "point": Point(1, 2.5),
        "ordered": OrderedDict(a=1), "default": defaultdict(list, a=[1]), "easy": EasyDict(a=1),
        "set": {3}, "frozen": frozenset({4}), "complex": 1 + 2j, "bytes": b"\x00\xff",
        "when": datetime.date(2020, 1, 2), "path": PurePosixPath("/etc/passwd"), "class": Average,
        "function": numbers, "size": torch.Size([2, 3]),
        "dtype": torch.float16, "device": torch.device("cpu"), "array": numbers((3, 2)).numpy(),
        "bytes_array": bytearray(b"ab"), 7: "by number", (1, "a"): "by a tuple", None: "by nothing",
    }  # fmt: skip
    path = tmp_path / "objects.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    found = read_checkpoint(path).content
    assert found["args"].name == "argparse.Namespace"
    assert found["args"].state == {"lr": 0.1, "arch": "ddpmpp"}
    assert found["ema"].name == f"{__name__}.Average"
    assert_same(tensors_of(found["ema"]), {f"shadow_params.{i}": numbers((n,)) for i, n in enumerate((2, 3))})
    assert found["point"].arguments == (1, 2.5)
    assert (found["ordered"], found["default"]) == ({"a": 1}, {"a": [1]})
    assert (found["easy"].items if isinstance(found["easy"], Record) else found["easy"]) == {"a": 1}
    assert (list(found["set"]), list(found["frozen"]), found["complex"]) == ([3], [4], 1 + 2j)
    assert (bytes(found["bytes"]), bytes(found["bytes_array"])) == (b"\x00\xff", b"ab")
    assert (found["when"].name, found["path"].name.split(".")[-1]) == ("datetime.date", "PurePosixPath")
    assert (found["class"].name, found["function"].name) == (f"{__name__}.Average", f"{__name__}.numbers")
    assert (found["size"], found["dtype"], found["device"]) == ((2, 3), torch.float16, "cpu")
    assert_same(found["array"], numbers((3, 2)))
    assert (found[7], found[1, "a"], found[None]) == ("by number", "by a tuple", "by nothing")


ARRAYS = {
    "C": np.arange(6.0).reshape(2, 3), "F": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "other byte order": np.arange(6, dtype=">i4"), "other order of floats": np.arange(3, dtype=">f8"),
    "truth": np.array([True, False]), "half": np.arange(3, dtype="f2"), "none": np.zeros((0, 3)),
    "one": np.array(2.5), "complex": np.arange(3) * 1j, "unsigned": np.arange(3, dtype="u2"),
    "other complex": (np.arange(3) * 1j).astype(">c16"), "large": np.arange(5000.0),
}  # fmt: skip


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_numpy_are_tensors(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "arrays.pkl"
    path.write_bytes(pickle.dumps(ARRAYS, protocol))
    found = read_checkpoint(path).content
    native = {name: array.astype(array.dtype.newbyteorder("=")) for name, array in ARRAYS.items()}
    assert_same(
        found,
        {name: torch.from_numpy(np.ascontiguousarray(a).reshape(a.shape)) for name, a in native.items()},
    )


def test_arrays_of_other_things_are_left_out_and_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "arrays.pkl"
    odd = {
        "texts": np.array(["a", "b"]),
        "objects": np.array([{}, None]),
        "records": np.zeros(2, [("a", "f4")]),
    }
    path.write_bytes(pickle.dumps({**odd, "numbers": np.arange(2.0), "when": np.array(["2020"], "M8[Y]")}))
    found = read_checkpoint(path).content
    assert list(tensors_of(found)) == ["numbers"]
    with pytest.raises(UserError, match="holds no numbers"):
        found["texts"].read()


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "numbers.pkl"
    given = {"f": np.float32(0.5), "i": np.int64(-3), "b": np.bool_(True), "c": np.complex64(1j)}
    path.write_bytes(pickle.dumps(given))
    found = read_checkpoint(path).content
    assert found == {name: value.item() for name, value in given.items()}
    assert [type(value) for value in found.values()] == [float, int, bool, complex]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_modules_that_know_each_other_are_read(legacy: bool, tmp_path: Path) -> None:
    one, other = Average(), Average()
    one.friend, other.friend = other, one  # type: ignore[attr-defined]
    found = read_checkpoint(written(one, tmp_path / "circle.pt", legacy)).content
    assert found.state["friend"].state["friend"] is found
    names = ["shadow_params.0", "shadow_params.1", "friend.shadow_params.0", "friend.shadow_params.1"]
    assert sorted(tensors_of(found)) == sorted(names)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.eye(3).to_sparse(), "not dense"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantised"),
        (lambda: torch.ones(3, device="meta"), "without numbers"),
        (lambda: torch.ones(3, dtype=torch.complex64).conj(), "conjugated"),
    ],
    ids=["sparse", "quantised", "meta", "conjugated"],
)
def test_tensors_of_other_kinds_are_refused_in_a_sentence(make: Any, said: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = written({"w": make()}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=said):
        read_checkpoint(path)


def zip_with(path: Path, content: Any, change: dict[str, bytes | None]) -> Path:
    """A file of torch.save some of whose entries are replaced or left out."""
    stream = io.BytesIO()
    torch.save(content, stream)  # noqa: TID251
    with zipfile.ZipFile(stream) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            short = name.partition("/")[2]
            data = change.get(short, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return path


def test_old_zip_without_byte_order_is_read_as_little_endian(tmp_path: Path) -> None:
    content = {"w": numbers((3,)), "step": 4}
    gone = ("byteorder", ".format_version", ".storage_alignment", ".data/serialization_id")
    assert_same(read_checkpoint(zip_with(tmp_path / "old.pt", content, dict.fromkeys(gone))).content, content)


def test_zip_of_the_other_byte_order_is_turned_round(tmp_path: Path) -> None:
    swapped = {"w": numbers((3,)), "z": torch.tensor([1 + 2j])}
    stored = {name: torch.from_numpy(t.numpy().byteswap()) for name, t in swapped.items()}
    found = read_checkpoint(zip_with(tmp_path / "big.pt", stored, {"byteorder": b"big"})).content
    assert_same(found, swapped)


def test_zip_whose_names_have_no_folder_is_read(tmp_path: Path) -> None:
    stream, path = io.BytesIO(), tmp_path / "flat.pt"
    torch.save({"w": numbers((3,))}, stream)  # noqa: TID251
    with zipfile.ZipFile(stream) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name.partition("/")[2], old.read(name))
    assert_same(read_checkpoint(path).content, {"w": numbers((3,))})


# ------------------------------------------------------------------ what older and larger files have


def test_parameters_of_torch_03_and_texts_of_python_2_are_read(tmp_path: Path) -> None:
    """A module of 2017: parameters are instances made by copy_reg, names are byte strings."""
    place = b"U\x07storage", named("torch.cuda.FloatStorage"), b"U\x0294", b"U\x06cuda:0", whole(4), b"N"
    sides = row(whole(2), whole(2)), row(whole(2), whole(1))
    tensor = call("torch._utils._rebuild_tensor", row(*place) + b"Q", whole(0), *sides)
    parameter = call("copy_reg.__newobj__", named("torch.nn.parameter.Parameter"), tensor)
    parameter += row(b"\x88", b"\x89", call("collections.OrderedDict")) + b"b"
    entry = b"](U\x06weight" + parameter + b"ea"  # Python 2 writes an OrderedDict as a list of lists
    state = b"}(U\x0b_parameters" + call("collections.OrderedDict", b"]" + entry)
    state += b"U\x08_buffers" + call("collections.OrderedDict") + b"U\x08trainingI01\nu"
    module = named("networks.wide_resnet.wide_basic") + b")\x81" + state + b"b"
    content = legacy(b"}U\x03net" + module + b"s", ("94",), (4,))
    path = tmp_path / "model.t7"
    path.write_bytes(content[:-16] + np.arange(4, dtype="f4").tobytes())
    found = read_checkpoint(path).content["net"]
    assert (found.name, found.state["training"]) == ("networks.wide_resnet.wide_basic", True)
    assert_same(tensors_of(found), {"weight": torch.arange(4.0).reshape(2, 2)})


def test_legacy_tensors_that_share_a_part_of_their_numbers_are_read(tmp_path: Path) -> None:
    """torch before 0.4 stored storages that are parts of others, with a place in them."""
    part = storage("0", 4, "torch.FloatStorage", row(text("1"), whole(1), whole(2)))
    content = legacy(b"](" + tensor_of(storage("0", 4)) + tensor_of(part, 0, (2,)) + b"e", ("0",), (4,))
    path = tmp_path / "parts.pt"
    path.write_bytes(content[:-16] + np.arange(4, dtype="f4").tobytes())
    assert_same(read_checkpoint(path).content, [torch.arange(4.0), torch.tensor([1.0, 2.0])])


def long_form(content: bytes) -> bytes:
    """A zip file whose directory says all sizes and places with 64 bits, as those of large files do."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
    start, directory = content.index(b"PK\x01\x02"), b""
    for entry in entries:
        sizes = struct.pack("<HHQQQ", 1, 24, entry.file_size, entry.file_size, entry.header_offset)
        raw, full = entry.filename.encode(), 0xFFFFFFFF
        directory += struct.pack(
            "<4s6H3I5H2I", b"PK\x01\x02", 45, 45, 0x808, 0, 0, 0, entry.CRC, full, full,
            len(raw), len(sizes), 0, 0, 0, 0, full,
        ) + raw + sizes  # fmt: skip
    counts = len(entries), len(entries), len(directory), start
    end = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, *counts)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, start + len(directory), 1)
    last = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return content[:start] + directory + end + locator + last


def test_zip_of_more_than_four_gigabytes_has_another_directory(tmp_path: Path) -> None:
    """The same in small; torch must agree that this is how it is written."""
    stream, path = io.BytesIO(), tmp_path / "long.pt"
    torch.save({"w": numbers((3,)), "v": numbers((2, 2))}, stream)  # noqa: TID251
    path.write_bytes(long_form(stream.getvalue()))
    assert_same(read_checkpoint(path).content, torch.load(path, weights_only=True))  # noqa: TID251


@pytest.mark.parametrize("path", [5, None, ["a"], "a\x00b"])
def test_what_is_no_path_is_one_sentence(path: Any) -> None:
    with pytest.raises(UserError):
        read_checkpoint(path)


@pytest.mark.parametrize("content", ["hello world\n", "to do: get the weights\n", "- a\n- b\n"])
def test_a_text_is_called_one(content: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.pt"
    path.write_text(content * 50)
    with pytest.raises(UserError, match=r"it is text, and none that is a pickle\. Name the file"):
        read_checkpoint(path)


def test_a_pickle_that_is_text_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.pkl"
    path.write_bytes(pickle.dumps({"epoch": 3}, protocol=0))
    assert read_checkpoint(path).content == {"epoch": 3}
