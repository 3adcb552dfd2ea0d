"""Files with one tensor missing, renamed or of another shape: one sentence, or a model that answers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dbpkit import UserError
from dbpkit.models.opening import open_model
from tests.checkpoint_files import save
from tests.reference import GOLDEN, reference

NAMES = sorted(path.stem for path in GOLDEN.glob("*.safetensors"))


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {n: t for n, t in state.items() if n != name}


def renamed(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {(f"{n}x" if n == name else n): t for n, t in state.items()}


def reshaped(change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor], str], dict[str, Tensor]]:
    return lambda state, name: {n: (change(t) if n == name else t) for n, t in state.items()}


DAMAGES: dict[str, Callable[[dict[str, Tensor], str], dict[str, Tensor]]] = {
    "without": without,
    "renamed": renamed,
    "empty": reshaped(lambda t: t.flatten()[:0]),
    "scalar": reshaped(lambda t: t.flatten()[0].clone()),
    "twice": reshaped(lambda t: torch.cat([t, t]) if t.ndim else t.repeat(2)),
    "wider": reshaped(lambda t: torch.cat([t, t], dim=-1) if t.ndim else t.repeat(2)),
    "nan": reshaped(lambda t: t * float("nan")),
    "words": reshaped(lambda t: t.bool()),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", NAMES)
def test_damaged_file_is_one_sentence_or_a_model(name: str, damage: str, tmp_path: Path) -> None:
    state = reference(name).state
    places = sorted(state)[:: max(len(state) // 12, 1)]
    said = [outcome(save(DAMAGES[damage](dict(state), place), tmp_path / "weights.pth")) for place in places]
    refused = [sentence for sentence in said if not sentence.startswith("weights.pth: ")]
    assert not [sentence for sentence in said if "\n" in sentence or len(sentence) > 700]
    assert len(refused) >= len(places) - 4  # tables that no network reads, a norm that decides nothing


def outcome(path: Path) -> str:
    """What the opener says of a file, or why it does not open it."""
    try:
        return str(open_model(path).opened)
    except UserError as error:
        return str(error)
