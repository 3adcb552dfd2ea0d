"""What the files of a training directory hold: typed values, their hashes, and what is said of damage."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.files import read_whole
from dbpkit.training.spec import TrainingSpec

LAYOUT: Literal[2] = 2
"""Version of the layout; another one is refused."""

AFRESH = "Restore it, or delete it to train from the first update."


class Typed(BaseModel):
    """Content of a file: unknown keys and other types are refused, not converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Hashes(Typed):
    """sha256 of what a run reads, by its name in a sentence; None where there is no such part."""

    data: str
    test_data: str
    init: str | None = None
    guide: str | None = None


class Trains(Typed):
    """Content of ``train.json``.

    Attributes:
        layout: version of the directory's layout.
        hash: of everything else here but the number format of the final file.
        version: of dbpkit.
        spec: the resolved spec.
        hashes: of data and models.
    """

    layout: Literal[2]
    hash: str
    version: str
    spec: dict[str, Any]
    hashes: Hashes


class Line(Typed):
    """One line of the learning curve: mean loss of the updates since the line before, and their speed."""

    updates: int = Field(gt=0)
    loss: float = Field(allow_inf_nan=False)
    lr: float = Field(allow_inf_nan=False)
    seconds: float = Field(ge=0, allow_inf_nan=False)
    images_per_second: float = Field(ge=0, allow_inf_nan=False)


class About(Typed):
    """Metadata of a checkpoint: updates made, hash of its run, and of its tensors."""

    updates: int = Field(gt=0)
    run: str
    sha256: str


class Checkpoint(NamedTuple):
    """The state after ``updates`` updates: tensors by name."""

    updates: int
    tensors: dict[str, Tensor]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors whose names begin with ``name.``, without that."""
        prefix = f"{name}."
        return {k.removeprefix(prefix): t for k, t in self.tensors.items() if k.startswith(prefix)}


T = TypeVar("T", bound=Typed)


def require_finite(tensors: Mapping[str, Tensor], where: str, remedy: str) -> None:
    """Raises UserError naming the first tensor with a value that is not finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"'{name}' is not finite {where}. {remedy}")


def require_finite_figures(figures: Mapping[str, Any], remedy: str) -> None:
    """Raises UserError naming the first figure of a model card that is not finite."""
    for name, value in _leaves(figures):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"the figure '{name}' is {value} on the test data. {remedy}")


def lasting(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a resolved spec without the format of the final file, which may change when a run goes on."""
    return {key: value for key, value in spec.items() if key != "store"}


def sealed(spec: TrainingSpec, version: str, hashes: Hashes) -> Trains:
    """Returns the content of ``train.json`` with its hash."""
    content = spec.model_dump(mode="json")
    unsealed = Trains(layout=LAYOUT, hash="", version=version, spec=content, hashes=hashes)
    return unsealed.model_copy(update={"hash": hash_of(unsealed)})


def hash_of(trains: Trains) -> str:
    """Returns the sha256 of canonical JSON of all but the hash itself and the format of the final file."""
    content = trains.model_dump(exclude={"hash"})
    content["spec"] = lasting(trains.spec)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Returns the sha256 of tensors with their names, types and shapes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def text_of(path: Path) -> str:
    """Returns the text of a file; UserError if it cannot be read or is none."""
    try:
        return read_whole(path).decode()
    except OSError as error:
        raise UserError(f"cannot read '{path}' ({error.strerror}). Restore it.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is damaged (it is not text). Restore it or use a new --out.") from error


def parsed(text: str, path: Path) -> Any:
    """Returns what a file's JSON holds; UserError if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is damaged (it is no JSON). Restore it or use a new --out.") from error


def typed(content: Any, model: type[T], path: Path) -> T:
    """Returns a file's content as its type; UserError that names the first key that does not fit."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "its content"
        raise UserError(
            f"'{path}' is damaged ({key}: {first['msg']}). Restore it or use a new --out."
        ) from error


def _leaves(tree: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    if not isinstance(tree, Mapping):
        yield path, tree
        return
    for key, value in tree.items():
        yield from _leaves(value, f"{path}.{key}" if path else str(key))
