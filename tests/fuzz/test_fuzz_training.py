"""Every file and every leaf of a training directory, replaced, dropped, retyped or cut short.

A case damages a copy and goes on with the run. It may train to the end, or say one sentence.
"""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from dbpkit.models.weights import read_tensors, write_tensors
from dbpkit.training.directory import TrainingDirectory
from dbpkit.training.stored import tensors_sha256
from tests.fuzz.harness import ODD, chooser, dropped, leaves, replaced, run_case
from tests.integration.test_training_safety import HERE, run

FILES = (
    "train.json",
    "log.jsonl",
    "checkpoint.safetensors",
    "weights.safetensors",
    "figures.json",
    "card.md",
)


class Case(NamedTuple):
    """A damage: its name, and what it does to a directory."""

    name: str
    damage: Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("training") / "run"
    run(out)
    return out


def cases(whole: Path, seed: int, share: float) -> Iterator[Case]:
    """All damages of the files as a whole, and a seeded share of those of their content."""
    choices = chooser(seed)
    inside = itertools.chain(_json_cases(whole), _line_cases(whole), _tensor_cases(whole))
    yield from _byte_cases(whole)
    yield from (case for case in inside if choices.random() < share)


def _byte_cases(whole: Path) -> Iterator[Case]:
    """Files that are gone, empty, cut, of bytes, folders, or other files of the directory."""
    choices = chooser(0)
    for name in FILES:
        content = (whole / name).read_bytes()
        yield Case(f"{name} gone", lambda out, name=name: (out / name).unlink())
        yield Case(f"{name} a folder", lambda out, name=name: _make_folder(out / name))
        yield Case(f"{name} a link to itself", lambda out, name=name: _make_loop(out / name))
        others = [(whole / other).read_bytes() for other in FILES if other != name]
        cuts = [content[: choices.randrange(len(content))] for _ in range(6)]
        flips = [_flipped(content, choices.randrange(len(content))) for _ in range(6)]
        odd = [
            b"",
            b"\0" * 64,
            b"\xff\xfe\0",
            b"{}",
            b"[]",
            b"null",
            b"\xef\xbb\xbf" + content,
            content + b"\n\n",
        ]
        odd += [
            b"[" * 5000,
            b'{"a":' * 5000,
            b"9" * 5000,
            content + content,
            content + b"{",
            content + b"\0\0",
        ]
        for number, new in enumerate([*others, *cuts, *flips, *odd]):
            yield Case(
                f"{name} bytes {number}", lambda out, name=name, new=new: (out / name).write_bytes(new)
            )


def _json_cases(whole: Path) -> Iterator[Case]:
    """Leaves of the JSON files."""
    for name in ("train.json", "figures.json"):
        content = json.loads((whole / name).read_text())
        for path in leaves(content):
            for value in ODD:
                new = replaced(content, path, value)
                yield Case(f"{name} {path} = {value!r:.30}", lambda out, n=name, c=new: _write(out / n, c))
            new = dropped(content, path)
            yield Case(f"{name} {path} dropped", lambda out, n=name, c=new: _write(out / n, c))
            new = replaced(content, (*path[:-1], "unknown"), 1)
            yield Case(f"{name} {path} renamed", lambda out, n=name, c=new: _write(out / n, c))


def _line_cases(whole: Path) -> Iterator[Case]:
    """Leaves of the learning curve, in the middle and at its end."""
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    for path in leaves(lines):
        for value in ODD:
            new = replaced(lines, path, value)
            yield Case(f"log {path} = {value!r:.30}", lambda out, c=new: _write_lines(out, c))
        new = dropped(lines, path)
        yield Case(f"log {path} dropped", lambda out, c=new: _write_lines(out, c))
    yield Case("log twice", lambda out: _write_lines(out, lines + lines))
    yield Case("log reversed", lambda out: _write_lines(out, lines[::-1]))


def _tensor_cases(whole: Path) -> Iterator[Case]:
    """Metadata and tensors of the checkpoint, signed again so that the reader has to look at them."""
    tensors, metadata = read_tensors(whole / "checkpoint.safetensors")
    about = json.loads(metadata["dbpkit"])
    for path in leaves(about):
        for value in ODD:
            new = replaced(about, path, value)
            yield Case(f"about {path} = {value!r:.30}", lambda out, a=new: _sign(out, tensors, a))
        new = dropped(about, path)
        yield Case(f"about {path} dropped", lambda out, a=new: _sign(out, tensors, a))
    for name, tensor in tensors.items():
        others: list[Tensor | None] = [
            None,
            torch.zeros(7),
            torch.zeros(0),
            tensor.long(),
            tensor.bool(),
            tensor.double() * 1e300,
            torch.full_like(tensor, float("nan")),
            tensor[None],
        ]
        for number, other in enumerate(others):
            kept = {n: t for n, t in tensors.items() if n != name}
            new = kept if other is None else {**kept, name: other}
            signed = {**about, "sha256": tensors_sha256(new)}
            yield Case(f"tensor {name} {number}", lambda out, t=new, a=signed: _sign(out, t, a))
        for renamed in ("optimiser.x.y", "optimiser.0", "optimiser..", "model", "optimiser.-1.exp_avg", "x"):
            new = {**{n: t for n, t in tensors.items() if n != name}, renamed: tensor}
            signed = {**about, "sha256": tensors_sha256(new)}
            yield Case(f"tensor {name} as {renamed}", lambda out, t=new, a=signed: _sign(out, t, a))


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x41]) + content[at + 1 :]


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _make_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def _write_lines(out: Path, lines: Any) -> None:
    content = lines if isinstance(lines, list) else [lines]
    (out / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in content))


def _sign(out: Path, tensors: dict[str, Tensor], about: Any) -> None:
    write_tensors(out / "checkpoint.safetensors", tensors, {"dbpkit": json.dumps(about)})


def judge(whole: Path, folder: Path, found: Iterator[Case]) -> tuple[int, list[str]]:
    """Goes on with a damaged copy for every case; returns their number, and the defects."""
    count, defects = 0, []
    for case in found:
        count += 1
        out = folder / "copy"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(whole, out)
        case.damage(out)
        outcome = run_case(lambda out=out: run(out), writes=[folder])
        defects += [f"{case.name}: {defect}" for defect in outcome.defects]
        if outcome.said and "\n" in outcome.said:
            defects.append(f"{case.name}: more than one line: {outcome.said!r}")
    return count, defects


def test_every_damage_trains_on_or_says_one_sentence(whole: Path, tmp_path: Path) -> None:
    count, defects = judge(whole, tmp_path, cases(whole, 0, 0.05))
    assert count >= 300
    assert not defects, "\n".join(defects[:5])


@pytest.mark.long
def test_every_damage_there_is(whole: Path, tmp_path: Path) -> None:
    count, defects = judge(whole, tmp_path, cases(whole, 0, 1.0))
    assert not defects, "\n".join(defects[:5])
    assert count >= 3600


def test_the_directory_that_is_damaged_is_whole(whole: Path) -> None:
    """The judge would pass every case if the whole directory were refused."""
    assert run(whole).figures["sha256"] == TrainingDirectory(whole).figures()["sha256"]
    assert HERE in (whole / "train.json").read_text()
