"""Damaged checkpoints of every container: content that torch reads too, or one sentence."""

import io
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dbpkit.foundation.checkpoints import Stored, read_checkpoint, tensors_of
from dbpkit.foundation.errors import UserError
from tests.fuzz.harness import chooser, run_case
from tests.security.checkpoints import good_files, legacy, nested, storage

MOST_BYTES = 2**28
"""Of all tensors of a damaged file: a number may be repeated 2**24 times."""


def files() -> dict[str, bytes]:
    """A valid file of every container, and one within another."""
    found = good_files()
    found["nested"] = nested(legacy(storage()))
    return found


def change(content: bytes, choices: random.Random, other: bytes) -> bytes:
    """A file with a few bytes changed, dropped, doubled, put in, or taken from another file."""
    made = bytearray(content)
    for _ in range(choices.randrange(1, 4)):
        place, length = choices.randrange(len(made)), choices.choice((1, 1, 1, 2, 4, 8, 30))
        way = choices.randrange(7)
        if way <= 2:
            made[place] = choices.randrange(256)
        elif way == 3:
            made[place] ^= 1 << choices.randrange(8)
        elif way == 4:
            del made[place : place + length]
        elif way == 5:
            made[place:place] = made[place : place + length]
        else:
            start = choices.randrange(len(other))
            made[place : place + length] = other[start : start + length]
        if not made:
            break
    return bytes(made)


def opened(path: Path) -> Any:
    """The content of a file and all of its tensors, read."""
    content = read_checkpoint(path).content
    found = tensors_of(content)
    assert sum(stored.nbytes for stored in found.values()) < MOST_BYTES
    return content, {name: stored.read() for name, stored in found.items()}


def of_torch(content: bytes) -> Any:
    """What torch makes of a file; None if it refuses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(content), weights_only=True)
    except Exception:
        return None


def same(found: Any, expected: Any) -> bool:
    """Whether the reader's content is torch's."""
    if isinstance(expected, Tensor):
        return isinstance(found, Stored) and _bits(found.read()) == _bits(expected)
    if isinstance(expected, dict):
        return list(map(repr, found)) == list(map(repr, expected)) and all(
            same(one, other) for one, other in zip(found.values(), expected.values(), strict=True)
        )
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    return repr(found) == repr(expected)


def _bits(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def check(folder: Path, seed: int, number: int) -> tuple[int, int]:
    """Runs the cases of a seed; returns how many there were, and how many torch and the reader both read."""
    defects, count, both = [], 0, 0
    path, choices, originals = folder / "case.pt", chooser(seed), files()
    for kind, content in originals.items():
        for _ in range(number):
            changed = change(content, choices, choices.choice(list(originals.values())))
            path.write_bytes(changed)
            outcome = run_case(lambda: opened(path))
            count += 1
            defects += [f"{kind}: {defect}\n{changed!r}" for defect in outcome.defects]
            if outcome.value is not None and kind in ("torch zip", "legacy torch"):
                expected = of_torch(changed)
                if expected is not None:
                    both += 1
                    # where an archive's sizes contradict each other torch can leave memory as it was
                    undamaged = of_torch(content)
                    if not same(outcome.value[0], expected) and not same(outcome.value[0], undamaged):
                        defects.append(f"{kind}: torch reads something else from {changed!r}")
    assert not defects, "\n".join(defects[:3])
    return count, both


def test_damaged_checkpoints_are_read_as_by_torch_or_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    count, both = check(tmp_path, seed=0, number=150)
    assert count >= 700
    assert both >= 25, "damage to numbers and padding leaves a file that both read"


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 11))
def test_damaged_checkpoints_are_read_as_by_torch_or_refused_in_a_sentence_at_length(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert check(tmp_path, seed, number=1000)[1] > 150


def test_good_files_are_among_the_cases(tmp_path: Path) -> None:
    """The judge would pass if nothing was read at all."""
    path = tmp_path / "good.pt"
    for kind, content in files().items():
        path.write_bytes(content)
        assert tensors_of({"all": read_checkpoint(path).content}), kind
        path.write_bytes(content[:-1])
        with pytest.raises(UserError):
            read_checkpoint(path)
