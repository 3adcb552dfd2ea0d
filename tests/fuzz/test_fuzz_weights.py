"""Damaged and hostile weights files: every reader of them says one sentence, or loads what it should."""

import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from dbpkit.models.sources import load_classifier, load_denoiser
from dbpkit.models.weights import Architecture, load_weights, read_tensors, save_weights
from tests.fuzz.harness import ODD, Outcome, chooser, dropped, leaves, replaced, run_case

CLASSIFIER = Architecture("classifier", "vgg", {"channels": [2, 2]}, class_names=tuple("abcdefghij"))
DENOISER = Architecture(
    "denoiser", "unet", {"channels": [8], "blocks": [1], "embedding_size": 4}, "edm", {"sigma_data": 0.5}
)
READERS: dict[str, Callable[[Path], Any]] = {
    "load_weights": load_weights,
    "load_classifier": lambda path: load_classifier("weights", {"path": str(path)}),
    "load_denoiser": lambda path: load_denoiser(str(path)),
    "read_tensors": read_tensors,
}
TENSORS = {
    "NaN": lambda t: t * float("nan"),
    "infinite": lambda t: t + float("inf"),
    "integers": lambda t: t.long(),
    "truth": lambda t: t.bool(),
    "complex": lambda t: t.to(torch.complex64),
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "half": lambda t: t.half(),
    "double": lambda t: t.double(),
    "flat": lambda t: t.flatten(),
    "one more": lambda t: torch.cat([t, t[:1]]) if t.ndim else t[None],
    "empty": lambda t: t[:0] if t.ndim else t[None][:0],
    "scalar": lambda t: t.flatten()[0],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A small file of each kind."""
    folder, found = tmp_path_factory.mktemp("weights"), {}
    for architecture in (CLASSIFIER, DENOISER):
        save_weights(folder / "made.safetensors", architecture.build(), architecture)
        found[architecture.kind] = (folder / "made.safetensors").read_bytes()
    return found


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    """A file's header and what follows it."""
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header: Any, body: bytes, length: int | None = None) -> bytes:
    """A file of these parts, with another length if given."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def with_description(content: bytes, about: Any) -> bytes:
    """A file with another description of its network."""
    header, body = header_of(content)
    text = about if isinstance(about, str) else json.dumps(about)
    return with_header({**header, "__metadata__": {"dbpkit": text}}, body)


def descriptions(content: bytes, choices: random.Random, number: int) -> Iterator[tuple[str, bytes]]:
    """Files whose description has one leaf replaced, dropped or added to, every leaf among them."""
    about = json.loads(header_of(content)[0]["__metadata__"]["dbpkit"])
    places = list(leaves(about))
    for place in places:
        yield f"without {place}", with_description(content, dropped(about, place))
    for turn in range(number):
        place, value = places[turn % len(places)], choices.choice(ODD)
        changed = replaced(about, place, value)
        yield f"{place} = {value!r:.60}", with_description(content, json.dumps(changed))
    for name in ("os:system", "builtins:exec", "subprocess:run", "a:b", "torch:load", "pickle:loads"):
        for place in (("architecture", "network"), ("architecture", "denoiser")):
            hostile = replaced(about, place, name)
            hostile["architecture"]["options"] = {"command": "touch EXECUTED", "f": "x"}
            yield f"{place} = {name}", with_description(content, hostile)


def bodies(content: bytes, choices: random.Random, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Files whose tensors are of another value, type, shape or name."""
    path = folder / "whole.safetensors"
    path.write_bytes(content)
    tensors, header = load_file(path), header_of(content)[0]
    for name, change in TENSORS.items():
        chosen = choices.choice(sorted(tensors))
        changed = {**tensors, chosen: change(tensors[chosen]).contiguous()}
        yield f"{chosen} {name}", save(changed, header["__metadata__"])
    for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "other."):
        yield prefix, save({prefix + n: t for n, t in tensors.items()}, header["__metadata__"])
    yield "no tensors", save({}, header["__metadata__"])
    yield "more tensors", save({**tensors, "x" * 5000: torch.ones(1)}, header["__metadata__"])


def raw(content: bytes, choices: random.Random, number: int) -> Iterator[tuple[str, bytes]]:
    """Files that are cut off, have single bytes changed, or lie about their own lengths."""
    header, body = header_of(content)
    text = json.dumps(header)
    for _ in range(number):
        yield "cut off", content[: choices.randrange(len(content))]
        place = choices.randrange(len(content) - len(body))
        yield "a byte", content[:place] + bytes([choices.randrange(256)]) + content[place + 1 :]
    for length in (0, 1, len(text) + 1, 10**6, 2**31, 2**40, 2**63, 2**64 - 1):
        yield f"header of {length}", with_header(header, body, length)
    for bad in (
        b"",
        b"[]",
        b"null",
        b"{",
        b"{}",
        b"\xff\xfe{}",
        b"[" * 50_000,
        b'{"a":' * 50_000,
        text.encode() + b"}",
    ):
        yield f"header {bad[:10]!r}", with_header(bad, body)
    name = next(n for n in header if n != "__metadata__")
    for entry in (
        {**header[name], "data_offsets": [0, 2**62]},
        {**header[name], "data_offsets": [-1, 4]},
        {**header[name], "data_offsets": [4, 0]},
        {**header[name], "shape": [2**31, 2**31, 2**31]},
        {**header[name], "shape": [-1]},
        {**header[name], "shape": []},
        {**header[name], "shape": [1] * 200},
        {**header[name], "dtype": "F7"},
        {**header[name], "dtype": "F8_E8M0"},
        {**header[name], "dtype": "U16"},
        {},
        None,
        5,
    ):
        yield f"{name} = {entry}", with_header({**header, name: entry}, body)
    for metadata in ({}, None, [], {"dbpkit": 5}, {"other": "x"}, {"dbpkit": ""}, {"dbpkit": "\x00"}):
        yield f"metadata {metadata}", with_header({**header, "__metadata__": metadata}, body)
    twice = text[:-1] + f', "{name}": {json.dumps(header[name])}' + "}"
    yield "a name twice", with_header(twice.encode(), body)
    about = header["__metadata__"]["dbpkit"]
    for odd in (
        "[" * 100_000,
        about[:-1],
        about + "x",
        about.replace("1", "1" * 5000),
        "\ud800",
        f"{about[:-1]}, {about[1:]}",
    ):
        yield f"description {odd[:20]!r}", with_description(content, odd)


def judge(name: str, content: bytes, folder: Path) -> list[str]:
    """The defects of every reader on one file."""
    path = folder / "case.safetensors"
    path.write_bytes(content)
    found: dict[str, Outcome] = {r: run_case(lambda read=read: read(path)) for r, read in READERS.items()}
    return [f"{name}: {reader}: {d}" for reader, outcome in found.items() for d in outcome.defects]


def check(made: dict[str, bytes], folder: Path, seed: int, number: int) -> int:
    """Runs the cases of a seed; returns how many there were."""
    defects, count = [], 0
    for content in made.values():
        choices = chooser(seed)
        for cases in (
            descriptions(content, choices, number),
            bodies(content, choices, folder),
            raw(content, choices, number),
        ):
            for name, changed in cases:
                defects += judge(name, changed, folder)
                count += len(READERS)
    assert not defects, "\n".join(defects[:5])
    assert not list(folder.glob("**/EXECUTED"))
    return count


def test_weights_files_are_read_or_refused_in_a_sentence(
    made: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert check(made, tmp_path, seed=0, number=60) > 1000


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 21))
def test_weights_files_are_read_or_refused_in_a_sentence_at_length(
    seed: int, made: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert check(made, tmp_path, seed, number=1000) > 10_000


def test_good_files_are_among_the_cases(made: dict[str, bytes], tmp_path: Path) -> None:
    """The judge would pass if nothing loaded at all."""
    path = tmp_path / "good.safetensors"
    for kind, content in made.items():
        for prefix in ("", "module.", "_orig_mod.module."):
            path.write_bytes(content)
            header = header_of(content)[0]
            path.write_bytes(
                save({prefix + n: t for n, t in load_file(path).items()}, header["__metadata__"])
            )
            model, found = load_weights(path)
            assert found.kind == kind
            assert not model.training


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read_as_float32(
    dtype: torch.dtype, made: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "half.safetensors"
    path.write_bytes(made["classifier"])
    header = header_of(made["classifier"])[0]
    halves = {n: t.to(dtype) if t.is_floating_point() else t for n, t in load_file(path).items()}
    path.write_bytes(save(halves, header["__metadata__"]))
    model, _ = load_weights(path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
