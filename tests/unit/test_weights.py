"""Weights files: what is written is what is read, and everything else is refused in one sentence."""

import errno
import hashlib
import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from dbpkit import open_model
from dbpkit.foundation.arrays import write_tensors
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.files import write_atomically
from dbpkit.foundation.registry import trust
from dbpkit.models.denoisers import EDMDenoiser
from dbpkit.models.networks import ResNet9, UNet
from dbpkit.models.sources import load_classifier, load_denoiser, state_sha256
from dbpkit.models.weights import (
    Architecture,
    load_weights,
    read_tensors,
    save_weights,
    sha256_of,
)
from tests.oracles import fill, uniform

CLASSIFIER = Architecture(
    "classifier", "resnet9", {"channels": [4, 4, 8, 8]}, image_shape=(3, 16, 16), class_names=("cat", "dog")
)
DESCRIPTION = {
    "kind": "classifier",
    "network": "resnet9",
    "options": {"channels": [4, 4, 8, 8]},
    "denoiser": "edm",
    "denoiser_options": {},
    "image_shape": [3, 16, 16],
    "class_names": ["cat", "dog"],
}
"""What a file says of ``CLASSIFIER``."""
DENOISER = Architecture(
    "denoiser",
    "unet",
    {"channels": [8, 8], "blocks": [1, 1], "embedding_size": 8},
    denoiser_options={"sigma_data": 0.7},
)


def filled(architecture: Architecture, seed: int = 0) -> nn.Module:
    """A model with reproducible float32 weights."""
    model = architecture.build()
    fill(model, seed)
    return model.float()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A good classifier file."""
    path = tmp_path / "weights.safetensors"
    save_weights(path, filled(CLASSIFIER), CLASSIFIER)
    return path


def rewrite(path: Path, tensors: dict[str, Any] | None = None, about: Any = None) -> None:
    """Replaces the tensors or the description of a weights file, without the package."""
    if about is None:
        about = json.dumps({"format": "dbpkit-weights-1", "architecture": DESCRIPTION})
    tensors = load_file(path) if tensors is None else tensors
    save_file(tensors, path, metadata={"dbpkit": about})


@pytest.mark.parametrize(
    ("architecture", "kind"), [(CLASSIFIER, ResNet9), (DENOISER, EDMDenoiser)], ids=["classifier", "denoiser"]
)
def test_weights_round_trip_returns_the_same_model(
    architecture: Architecture, kind: type, tmp_path: Path
) -> None:
    path, model = tmp_path / "deep" / "folder" / "weights.safetensors", filled(architecture)
    checksum = save_weights(path, model, architecture)
    loaded, described = load_weights(path, checksum)
    assert described == architecture
    assert isinstance(loaded, kind)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    x = uniform(2, 3, 16, 16).float()
    extra = (torch.tensor(0.3),) if architecture.kind == "denoiser" else ()
    with torch.no_grad():
        assert torch.equal(loaded(x, *extra), model.eval()(x, *extra))


def test_weights_denoiser_options_survive(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", filled(DENOISER), DENOISER)
    model, _ = load_weights(tmp_path / "w")
    assert model.sigma_data == 0.7
    assert isinstance(model.network, UNet)


def test_save_weights_returns_the_sha256_of_the_file(tmp_path: Path) -> None:
    checksum = save_weights(tmp_path / "w", filled(CLASSIFIER), CLASSIFIER)
    assert checksum == hashlib.sha256((tmp_path / "w").read_bytes()).hexdigest() == sha256_of(tmp_path / "w")


def test_save_weights_same_model_twice_is_bit_equal(tmp_path: Path) -> None:
    first, again, other = (
        save_weights(tmp_path / "w", filled(CLASSIFIER, seed), CLASSIFIER) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_save_weights_half_precision_rounds_floats_only(tmp_path: Path) -> None:
    model = filled(CLASSIFIER)
    save_weights(tmp_path / "w", model, CLASSIFIER, torch.float16)
    loaded, _ = load_weights(tmp_path / "w")
    for name, tensor in model.state_dict().items():
        expected = tensor.half().to(tensor.dtype) if tensor.is_floating_point() else tensor
        assert torch.equal(loaded.state_dict()[name], expected)
        assert loaded.state_dict()[name].dtype == tensor.dtype
    save_weights(tmp_path / "full", model, CLASSIFIER)
    saving = (tmp_path / "full").stat().st_size - (tmp_path / "w").stat().st_size
    assert saving >= 2 * sum(p.numel() for p in model.parameters())


def test_save_weights_file_is_plain_safetensors_with_a_description(saved: Path) -> None:
    """Readable without the package, and no pickle."""
    assert load_file(saved).keys() == filled(CLASSIFIER).state_dict().keys()
    header_size = int.from_bytes(saved.read_bytes()[:8], "little")
    metadata = json.loads(saved.read_bytes()[8 : 8 + header_size])["__metadata__"]
    assert json.loads(metadata["dbpkit"]) == {"format": "dbpkit-weights-1", "architecture": DESCRIPTION}


def test_load_weights_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"weights file '.*nothing' is missing\. Check the path, or train one"
    ):
        load_weights(tmp_path / "nothing")


def test_load_weights_other_checksum_raises_with_both(saved: Path) -> None:
    found = hashlib.sha256(saved.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=f"has sha256 {found} where {'0' * 64} was expected"):
        load_weights(saved, "0" * 64)


def test_load_weights_one_flipped_bit_fails_the_checksum(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    good = hashlib.sha256(content).hexdigest()
    content[-1] ^= 1
    saved.write_bytes(content)
    with pytest.raises(UserError, match=f"where {good} was expected. It is damaged or another file"):
        load_weights(saved, good)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_load_weights_truncated_file_raises(saved: Path, share: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(
        UserError, match=r"is not a readable safetensors file .*It is truncated or of another kind"
    ):
        load_weights(saved)


@pytest.mark.parametrize("content", [b"\x80\x04K\x01.", b"{}", b"\xff" * 64, b"PK\x03\x04" + b"\0" * 60])
def test_load_weights_other_file_format_raises(saved: Path, content: bytes) -> None:
    """A pickle, JSON, noise, and the zip archive that torch.save writes."""
    saved.write_bytes(content)
    with pytest.raises(UserError, match="is not a readable safetensors file"):
        load_weights(saved)


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}])
def test_load_weights_foreign_safetensors_raises_with_the_way_out(
    tmp_path: Path, metadata: dict[str, str]
) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign", metadata=metadata)
    with pytest.raises(UserError, match=r"is not a dbpkit weights file.*open other files with open_model"):
        load_weights(tmp_path / "foreign")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("head.weight"), r"1 tensors are missing \(first 'head\.weight'\)"),
        (lambda t: t.update(extra=torch.zeros(1)), r"1 are unknown \(first 'extra'\)"),
        (
            lambda t: t.update({"head.weight": torch.zeros(10, 7)}),
            r"'head\.weight' is \(10, 7\) where \(10, 8\) was expected",
        ),
        (lambda t: t.clear(), r"\d\d tensors are missing \(first 'body\.0\.0\.weight'\)"),
    ],
    ids=["missing", "unexpected", "misshaped", "empty"],
)
def test_load_weights_tensors_that_do_not_fit_raise(
    saved: Path, change: Callable[[Any], Any], message: str
) -> None:
    tensors = load_file(saved)
    change(tensors)
    rewrite(saved, tensors)
    with pytest.raises(
        UserError, match=f"do not fit the network: {message}.*Use the options it was trained with"
    ):
        load_weights(saved)


def test_load_weights_tensors_of_several_faults_are_all_named(saved: Path) -> None:
    tensors = load_file(saved)
    tensors["tail.weight"] = tensors.pop("head.weight")
    rewrite(saved, tensors)
    with pytest.raises(
        UserError, match=r"missing \(first 'head\.weight'\); 1 are unknown \(first 'tail\.weight'\)"
    ):
        load_weights(saved)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("network", "resnet99", r"unknown network 'resnet99'\. Did you mean 'resnet9'\?"),
        (
            "options",
            {"chanels": [4]},
            r"network 'resnet9' has no option 'chanels'\. Available: image_channels, classes, channels",
        ),
        (
            "network",
            "os:system",
            r"network 'os:system' is an import path that '.*' names, and those are foll",
        ),
    ],
)
def test_load_weights_network_that_cannot_be_built_raises(
    saved: Path, field: str, value: Any, message: str
) -> None:
    described = {"format": "dbpkit-weights-1", "architecture": {**DESCRIPTION, field: value}}
    rewrite(saved, about=json.dumps(described))
    with pytest.raises(UserError, match=message):
        load_weights(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"network": "os:system", "options": {"command": "touch EXECUTED"}},
        {"kind": "denoiser", "network": "os:system", "options": {"command": "touch EXECUTED"}},
        {"kind": "denoiser", "denoiser": "subprocess:check_call", "denoiser_options": {"args": "id"}},
        {"kind": "denoiser", "network": "unet", "denoiser": "planted:make"},
    ],
)
def test_load_weights_never_calls_what_its_metadata_name(
    saved: Path, change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "planted.py").write_text("open('EXECUTED', 'w')\n")
    described = {"format": "dbpkit-weights-1", "architecture": {**DESCRIPTION, **change}}
    rewrite(saved, about=json.dumps(described))
    with pytest.raises(
        UserError, match=r"is an import path that '.*' names, and those are followed only where"
    ):
        load_weights(saved)
    assert not (tmp_path / "EXECUTED").exists()


def small_network(width: int) -> torch.nn.Module:
    """A network of the user's own."""
    return torch.nn.Linear(width, 2)


def test_load_weights_of_a_users_own_network_needs_the_user_to_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dbpkit.foundation.registry._trusted", set())
    path = f"{__name__}:small_network"
    architecture = Architecture("classifier", path, {"width": 3}, class_names=("a", "b"))
    save_weights(tmp_path / "own.safetensors", small_network(3), architecture)
    with pytest.raises(UserError, match=rf"If you trust it: --plugin {path}, or dbpkit\.trust\('{path}'\)"):
        load_weights(tmp_path / "own.safetensors")
    trust(path)
    model, found = load_weights(tmp_path / "own.safetensors")
    assert isinstance(model, torch.nn.Linear)
    assert found == architecture


FORMAT = {"format": "dbpkit-weights-1"}


@pytest.mark.parametrize(
    "about",
    [
        "no json",
        "[]",
        json.dumps(FORMAT),
        json.dumps({**FORMAT, "architecture": []}),
        json.dumps({**FORMAT, "architecture": {}}),
        json.dumps({**FORMAT, "architecture": {**DESCRIPTION, "colour": "red"}}),
        json.dumps({**FORMAT, "architecture": {k: v for k, v in DESCRIPTION.items() if k != "network"}}),
        json.dumps({**FORMAT, "architecture": {**DESCRIPTION, "image_shape": 3}}),
        json.dumps({**FORMAT, "architecture": {**DESCRIPTION, "options": 3}}),
    ],
    ids=[
        "no json",
        "list",
        "none",
        "no table",
        "empty",
        "unknown field",
        "missing field",
        "shape",
        "options",
    ],
)
def test_load_weights_damaged_description_raises(saved: Path, about: str) -> None:
    rewrite(saved, about=about)
    with pytest.raises(UserError, match=str(saved)):
        load_weights(saved)


@pytest.mark.parametrize(
    "about", ["{}", json.dumps({"format": "dbpkit-weights-9", "architecture": DESCRIPTION})]
)
def test_load_weights_of_another_format_raises(saved: Path, about: str) -> None:
    rewrite(saved, about=about)
    with pytest.raises(UserError, match=r"is not a dbpkit weights file \(format (None|dbpkit-weights-9)\)"):
        load_weights(saved)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_load_weights_of_a_wrapped_module_is_the_module(saved: Path, prefix: str) -> None:
    whole, _ = load_weights(saved)
    rewrite(saved, {prefix + name: t for name, t in load_file(saved).items()})
    model, _ = load_weights(saved)
    assert state_sha256(model) == state_sha256(whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_load_weights_that_are_not_finite_raises(saved: Path, value: float) -> None:
    tensors = load_file(saved)
    tensors["head.weight"][0, 0] = value
    rewrite(saved, tensors)
    with pytest.raises(UserError, match=r"are not finite: 'head\.weight'\. The file is damaged"):
        load_weights(saved)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_load_weights_of_another_kind_of_numbers_raises(saved: Path, dtype: torch.dtype) -> None:
    tensors = load_file(saved)
    tensors["head.weight"] = tensors["head.weight"].to(dtype)
    rewrite(saved, tensors)
    with pytest.raises(UserError, match=rf"'head\.weight' is {dtype} where torch\.float32 was expected"):
        load_weights(saved)


@pytest.mark.parametrize(
    "options",
    [{"channels": [2**14] * 4}, {"classes": 2**30, "channels": [4, 4, 8, 8]}, {"channels": [2**30] * 4}],
)
def test_load_weights_network_larger_than_its_file_is_not_made(saved: Path, options: dict[str, Any]) -> None:
    """A few words in a file must not take all memory: 2**14 channels would be 65 GB."""
    described = {"format": "dbpkit-weights-1", "architecture": {**DESCRIPTION, "options": options}}
    rewrite(saved, about=json.dumps(described))
    with pytest.raises(
        UserError, match=r"more weights than the file holds|makes no network|has no option|must be"
    ):
        load_weights(saved)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".pkl", ".PTH"])
@pytest.mark.parametrize("load", [load_classifier, load_denoiser, load_weights])
def test_pickles_are_never_run(load: Callable[[str], Any], suffix: str, tmp_path: Path) -> None:
    path, victim = tmp_path / f"network{suffix}", tmp_path / "victim"
    path.write_bytes(f"cos\nmkdir\n(S'{victim}'\ntR.".encode())
    with pytest.raises(
        UserError, match=r"os\.mkdir|posix\.mkdir|is not a readable safetensors file"
    ) as raised:
        load(str(path))
    assert "\n" not in str(raised.value)
    assert not victim.exists()


@pytest.mark.parametrize(
    "name", [None, 5, {}, {"name": "embedded"}, ["embedded"], b"\x00", "", " ", "a" * 5000]
)
@pytest.mark.parametrize("load", [load_classifier, load_denoiser, load_weights])
def test_names_of_models_that_are_none_raise(load: Callable[[Any], Any], name: Any) -> None:
    with pytest.raises(UserError) as raised:
        load(name)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("options", [[], 5, "x", [("variant", "addt")]])
def test_options_of_models_that_are_no_table_raise(options: Any) -> None:
    with pytest.raises(UserError, match="options of denoiser 'embedded' must be a table by name, not "):
        load_denoiser("embedded", options)


def test_load_weights_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(UserError, match=r"pipe\.safetensors' is missing"):
        load_weights(tmp_path / "pipe.safetensors")
    with pytest.raises(UserError, match=r"is not a readable safetensors file \(it is not a file\)"):
        read_tensors(tmp_path / "pipe.safetensors")


# ------------------------------------------------------------------ writing


def no_leftovers(folder: Path, *expected: str) -> bool:
    return sorted(p.name for p in folder.iterdir()) == sorted(expected)


def test_write_atomically_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    for content in (b"old", b"new"):
        assert write_atomically(tmp_path / "file", content) == hashlib.sha256(content).hexdigest()
        assert (tmp_path / "file").read_bytes() == content
    assert no_leftovers(tmp_path, "file")


def test_write_atomically_in_pieces_is_the_whole(tmp_path: Path) -> None:
    digest = write_atomically(tmp_path / "f", iter([b"one", memoryview(b"two"), b""]))
    assert (tmp_path / "f").read_bytes() == b"onetwo"
    assert digest == hashlib.sha256(b"onetwo").hexdigest()


def test_write_atomically_pieces_that_fail_leave_the_old_file(tmp_path: Path) -> None:
    def failing() -> Iterator[bytes]:
        yield b"new"
        raise MemoryError

    (tmp_path / "f").write_bytes(b"old")
    with pytest.raises(MemoryError):
        write_atomically(tmp_path / "f", failing())
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"old"


NUMBERS = {
    'b.é"\\\n/\x7f\u2028\x01': torch.arange(3),
    "a": uniform(5, 7).float(),
    "none": torch.zeros(0, 2),
    "scalar": torch.tensor(3.0, dtype=torch.float64),
    "half": torch.ones(3).half(),
    "brain": torch.ones(3).bfloat16(),
    "bool": torch.tensor([True, False, True]),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "int": torch.ones(2, 2, dtype=torch.int32),
}


@pytest.mark.parametrize("tensors", [NUMBERS, {"one": torch.ones(2)}, {}], ids=["all", "one", "none"])
@pytest.mark.parametrize("metadata", [{}, {"dbpkit": '{"é": "\\"x", "t": [1, 2.5]}'}], ids=["bare", "said"])
def test_write_tensors_is_the_library_s_file_to_the_byte(
    tensors: dict[str, Tensor], metadata: dict[str, str], tmp_path: Path
) -> None:
    digest = write_tensors(tmp_path / "f", tensors, metadata)
    expected = save(tensors, metadata)
    assert (tmp_path / "f").read_bytes() == expected
    assert digest == hashlib.sha256(expected).hexdigest()


def test_write_tensors_of_a_view_is_that_of_its_copy(tmp_path: Path) -> None:
    whole = uniform(4, 6)
    write_tensors(tmp_path / "f", {"t": whole.T, "part": whole[1]}, {})
    assert (tmp_path / "f").read_bytes() == save({"t": whole.T.contiguous(), "part": whole[1].clone()}, {})


def test_opened_says_what_a_file_of_dbpkit_is(saved: Path) -> None:
    model = open_model(saved)
    assert str(model.opened).startswith(f"{saved.name}: dbpkit weights of a ")


def test_write_atomically_no_space_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that reports that it is full when the data is flushed to it."""
    write_atomically(tmp_path / "file", b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write '.*file' \(No space left on device\)\. Free space"):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert no_leftovers(tmp_path, "file")


def test_write_atomically_file_too_large_leaves_the_old_file(tmp_path: Path) -> None:
    """A real failure, part of the way: the process may write no more than 1 KiB to a file."""
    write_atomically(tmp_path / "file", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write '.*file' \(File too large\)"):
            write_atomically(tmp_path / "file", bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "file").read_bytes() == b"old"
    assert no_leftovers(tmp_path, "file")


def test_save_weights_no_space_leaves_the_old_weights(saved: Path) -> None:
    before = saved.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(UserError, match="earlier files are intact"):
            save_weights(saved, filled(CLASSIFIER, 1), CLASSIFIER)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert saved.read_bytes() == before


@pytest.mark.parametrize("below", ["file/weights", "file/deeper/weights"])
def test_write_atomically_folder_that_is_a_file_raises(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(UserError, match="cannot write"):
        write_atomically(tmp_path / below, b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_write_atomically_target_that_is_a_folder_raises(tmp_path: Path) -> None:
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot write"):
        write_atomically(tmp_path / "folder", b"new")
    assert no_leftovers(tmp_path, "folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_write_atomically_read_only_folder_raises(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"old")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match=r"\(Permission denied\)"):
            write_atomically(tmp_path / "file", b"new")
    finally:
        tmp_path.chmod(0o700)
    assert (tmp_path / "file").read_bytes() == b"old"


def test_weights_file_may_stand_for_its_source(saved: Path, tmp_path: Path) -> None:
    named = load_classifier("weights", {"path": str(saved)})
    assert state_sha256(load_classifier(str(saved))) == state_sha256(named)
    with pytest.raises(UserError, match="hold a classifier; a denoiser was expected"):
        load_denoiser(str(saved))
    with pytest.raises(UserError, match=r"gone\.safetensors"):
        load_classifier(str(tmp_path / "gone.safetensors"))
