"""The training directory: what a resumed run needs, written and read in one place.

``train.json`` says what is trained: spec, hashes of everything that is read, and the program's version;
``checkpoint.safetensors`` the state after some update; ``log.jsonl`` the learning curve. The thing people
get wrong: a checkpoint that loads need not belong to this run. It carries the hash of ``train.json`` and of
its own tensors, and nothing is continued before both have been compared.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from dbpkit.foundation.errors import UserError, shown
from dbpkit.foundation.files import read_whole, write_atomically
from dbpkit.foundation.locking import is_trace
from dbpkit.foundation.spec import differences
from dbpkit.models.weights import read_tensors, write_tensors
from dbpkit.results.journal import Journal
from dbpkit.training.spec import TrainingSpec

LAYOUT: Literal[2] = 2
"""Version of the layout; another one is refused."""


class _Typed(BaseModel):
    """Content of a file: unknown keys and other types are refused, not converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Hashes(_Typed):
    """sha256 of what a run reads, by its name in a sentence; None where there is no such part."""

    data: str
    test_data: str
    init: str | None = None
    guide: str | None = None


class Trains(_Typed):
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


class Line(_Typed):
    """One line of the learning curve: mean loss of the updates since the line before, and their speed."""

    updates: int = Field(gt=0)
    loss: float = Field(allow_inf_nan=False)
    lr: float = Field(allow_inf_nan=False)
    seconds: float = Field(ge=0, allow_inf_nan=False)
    images_per_second: float = Field(ge=0, allow_inf_nan=False)


class _About(_Typed):
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


T = TypeVar("T", bound=_Typed)


class TrainingDirectory:
    """A folder that holds one training run.

    Args:
        path: the folder; made when something is written.
    """

    def __init__(self, path: str | Path) -> None:
        if not isinstance(path, str | os.PathLike):
            raise UserError(f"a training run's directory is named by its path, not by {shown(path)}.")
        self.path = Path(os.fsdecode(path))
        self._curve = Journal(self.path / "log.jsonl", _CURVE, digests=True)

    def refuse_other(self, spec: TrainingSpec, version: str) -> Trains | None:
        """Checks, before any work, that a run of this spec may begin or go on here.

        Returns:
            ``train.json`` of the run that goes on, or None if one begins.

        Raises:
            UserError: if the folder holds something else, or a run of another spec or version.
        """
        old = self.trains()
        if old is None:
            if self.path.exists() and (not self.path.is_dir() or _occupied(self.path)):
                raise UserError(f"'{self.path}' exists and is no training run. Use a new --out.")
            return None
        changed = differences(_lasting(old.spec), _lasting(spec.model_dump(mode="json")))
        if changed:
            raise UserError(
                f"{self.path} was made with another spec: {', '.join(changed)}. Use a new --out or delete the"
                " directory."
            )
        if old.version != version:
            raise UserError(
                f"{self.path} was made with dbpkit {old.version} and this is {version}: the weights would"
                f" come from two programs. Continue with that version or use a new --out."
            )
        return old

    def claim(self, spec: TrainingSpec, version: str, hashes: Hashes) -> None:
        """Makes this the directory of a run, or checks that it already is.

        Raises:
            UserError: if it holds another run, or one that was made from other data or weights.
        """
        old = self.refuse_other(spec, version)
        new = _sealed(spec, version, hashes)
        if old is not None and old.hashes != hashes:
            before, now = old.hashes.model_dump(), hashes.model_dump()
            changed = [_NAMED[key] for key in before if before[key] != now[key]]
            raise UserError(
                f"{self.path} was made with another spec: {', '.join(changed)}. Use a new --out or delete the"
                " directory."
            )
        if old != new:
            write_atomically(self._file("train.json"), json.dumps(new.model_dump(), indent=1).encode())

    def trains(self) -> Trains | None:
        """Returns ``train.json``, or None if there is none; UserError if it is damaged or was changed."""
        path = self._file("train.json")
        if not path.is_file():
            return None
        content = _parsed(_text(path), path)
        if isinstance(content, dict) and content.get("layout") != LAYOUT:
            raise UserError(
                f"'{self.path}' has training layout {content.get('layout', 1)!r:.40}; this dbpkit continues"
                f" layout {LAYOUT}. Use a new --out."
            )
        found = _typed(content, Trains, path)
        if found.hash != _hash(found):
            raise UserError(
                f"'{path}' was changed or is damaged: its content does not have the hash it states. Restore"
                " it, or use a new --out."
            )
        return found

    def checkpoint(self, spec: TrainingSpec) -> Checkpoint | None:
        """Returns the last checkpoint, or None if there is none.

        Raises:
            UserError: if it is damaged, not finite, or of another run.
        """
        path = self._file("checkpoint.safetensors")
        if not path.is_file():
            return None
        tensors, metadata = read_tensors(path)
        try:
            about = _typed(_parsed(metadata.get("dbpkit", ""), path), _About, path)
        except UserError as error:
            raise UserError(f"'{path}' is no checkpoint of this dbpkit. {_AFRESH}") from error
        if about.sha256 != _digest(tensors):
            raise UserError(f"'{path}' is damaged: its tensors do not have the hash it states. {_AFRESH}")
        trains = self.trains()
        if trains is None or about.run != trains.hash:
            raise UserError(f"'{path}' belongs to another training run. {_AFRESH}")
        if about.updates > spec.optimiser.updates:
            raise UserError(
                f"'{path}' has made {about.updates} updates of {spec.optimiser.updates}. {_AFRESH}"
            )
        for name in tensors:
            if name.partition(".")[0] not in ("model", "average", "optimiser"):
                raise UserError(f"'{path}' holds '{name}', which no checkpoint has. {_AFRESH}")
        require_finite(tensors, f"in '{path}'", _AFRESH)
        return Checkpoint(about.updates, tensors)

    def write_checkpoint(self, updates: int, tensors: Mapping[str, Tensor]) -> None:
        """Replaces the checkpoint in one atomic step; the same state gives the same bytes.

        Raises:
            UserError: if a value is not finite, or the file cannot be written; the old one is intact.
        """
        saved = f"what was saved in '{self.path}' is intact."
        require_finite(tensors, f"after update {updates}", f"Lower optimiser.lr or set grad_clip; {saved}")
        trains = self.trains()
        assert trains is not None
        about = _About(updates=updates, run=trains.hash, sha256=_digest(tensors))
        # One metadata key: safetensors writes several in random order, and the file's bytes would vary.
        path = self._file("checkpoint.safetensors")
        write_tensors(path, tensors, {"dbpkit": about.model_dump_json()})

    def curve(self) -> list[Line]:
        """Returns the learning curve, without a line that was not written to its end.

        Raises:
            UserError: if another line is damaged, was changed, or is not behind the one before it.
        """
        lines: list[Line] = []
        for number, entry in enumerate(self._curve.entries(), 1):
            try:
                lines.append(Line.model_validate(entry))
            except ValidationError as error:
                raise UserError(f"'{self._curve.path}' line {number} is damaged. {_CURVE}") from error
            if number > 1 and lines[-2].updates >= lines[-1].updates:
                raise UserError(f"'{self._curve.path}' line {number} is out of order. {_CURVE}")
        return lines

    def cut_curve(self, updates: int) -> None:
        """Drops what the checkpoint does not cover, all of it before there is one; it is written again."""
        if updates == 0:
            self._curve.path.unlink(missing_ok=True)
            return
        self._curve.repair()
        self._curve.keep(sum(line.updates <= updates for line in self.curve()))

    def append_curve(self, line: Line) -> None:
        """Appends to the learning curve; UserError if the disk is full, with what was there intact."""
        self._curve.append([line.model_dump()])

    def figures(self) -> dict[str, Any]:
        """Returns ``figures.json``; UserError if it is missing or damaged."""
        path = self._file("figures.json")
        content = _parsed(_text(path), path)
        if not isinstance(content, dict) or not isinstance(content.get("sha256"), str):
            raise UserError(f"'{path}' is damaged. Run 'dbpkit train' again to write it anew.")
        return content

    def _file(self, name: str) -> Path:
        return self.path / name


def optimiser_state(
    tensors: Mapping[str, Tensor], parameters: Sequence[Tensor], method: str, where: str
) -> dict[int, dict[str, Tensor]]:
    """Returns an optimiser's state by number of the parameter, from tensors named ``NUMBER.NAME``.

    Raises:
        UserError: if it is not the whole state of a method for these parameters.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        place = int(number) if number.isascii() and number.isdigit() and len(number) < 10 else len(parameters)
        shape = () if name == "step" else parameters[place].shape if place < len(parameters) else None
        if name not in _STATES[method] or tensor.shape != shape or not tensor.is_floating_point():
            raise UserError(f"'optimiser.{key}' in the {where} does not fit the network. {_AFRESH}")
        state.setdefault(place, {})[name] = tensor
    for place, own in state.items():
        if missing := _STATES[method] - own.keys():
            raise UserError(
                f"'optimiser.{place}.{min(missing)}' is missing, so the {where} does not fit. {_AFRESH}"
            )
    return state


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


_AFRESH = "Restore it, or delete it to train from the first update."

_STATES = {"adamw": {"step", "exp_avg", "exp_avg_sq"}, "sgd": {"momentum_buffer"}}
"""What an optimiser keeps for each parameter, by method."""

_CURVE = "Restore it, or delete the file: the curve then begins at the checkpoint."

_NAMED = {
    "data": "the training data",
    "test_data": "the test data",
    "init": "the weights that 'init' names",
    "guide": "the weights that the guide names",
}


def _leaves(tree: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    if not isinstance(tree, Mapping):
        yield path, tree
        return
    for key, value in tree.items():
        yield from _leaves(value, f"{path}.{key}" if path else str(key))


def _occupied(path: Path) -> bool:
    """Whether a folder holds anything but what a stopped writer may leave."""
    return not all(is_trace(p) for p in path.iterdir())


def _lasting(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved spec without the format of the final file, which may change when a run goes on."""
    return {key: value for key, value in spec.items() if key != "store"}


def _sealed(spec: TrainingSpec, version: str, hashes: Hashes) -> Trains:
    content = spec.model_dump(mode="json")
    unsealed = Trains(layout=LAYOUT, hash="", version=version, spec=content, hashes=hashes)
    return unsealed.model_copy(update={"hash": _hash(unsealed)})


def _hash(trains: Trains) -> str:
    """sha256 of canonical JSON of everything but the hash itself and the format of the final file."""
    content = trains.model_dump(exclude={"hash"})
    content["spec"] = _lasting(trains.spec)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of tensors with their names, types and shapes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _text(path: Path) -> str:
    try:
        return read_whole(path).decode()
    except OSError as error:
        raise UserError(f"cannot read '{path}' ({error.strerror}). Restore it.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is damaged (it is no text). Restore it or use a new --out.") from error


def _parsed(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is damaged (it is no JSON). Restore it or use a new --out.") from error


def _typed(content: Any, model: type[T], path: Path) -> T:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "its content"
        raise UserError(
            f"'{path}' is damaged ({key}: {first['msg']}). Restore it or use a new --out."
        ) from error
