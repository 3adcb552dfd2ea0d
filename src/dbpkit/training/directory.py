"""The training directory: what a resumed run needs, written and read in one place.

``train.json`` says what is trained: spec, hashes of everything that is read, and the program's version;
``checkpoint.safetensors`` is the state after some update; ``log.jsonl`` is the learning curve. A checkpoint
carries the hash of ``train.json`` and of its own tensors, and nothing continues before both were compared: a
checkpoint that loads may still be another run's.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from dbpkit.foundation.arrays import read_tensors, write_tensors
from dbpkit.foundation.errors import UserError, shown
from dbpkit.foundation.files import write_atomically
from dbpkit.foundation.locking import is_trace
from dbpkit.foundation.spec import differences
from dbpkit.results.journal import Journal
from dbpkit.training.spec import TrainingSpec
from dbpkit.training.stored import (
    AFRESH,
    LAYOUT,
    About,
    Checkpoint,
    Hashes,
    Line,
    Trains,
    hash_of,
    lasting,
    parsed,
    require_finite,
    sealed,
    tensors_sha256,
    text_of,
    typed,
)


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
                raise UserError(f"'{self.path}' exists and is not a training run. Use a new --out.")
            return None
        changed = differences(lasting(old.spec), lasting(spec.model_dump(mode="json")))
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
        new = sealed(spec, version, hashes)
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
        content = parsed(text_of(path), path)
        if isinstance(content, dict) and content.get("layout") != LAYOUT:
            raise UserError(
                f"'{self.path}' has training layout {content.get('layout', 1)!r:.40}; this dbpkit continues"
                f" layout {LAYOUT}. Use a new --out."
            )
        found = typed(content, Trains, path)
        if found.hash != hash_of(found):
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
            about = typed(parsed(metadata.get("dbpkit", ""), path), About, path)
        except UserError as error:
            raise UserError(f"'{path}' is not a checkpoint of this dbpkit. {AFRESH}") from error
        if about.sha256 != tensors_sha256(tensors):
            raise UserError(f"'{path}' is damaged: its tensors do not have the hash it states. {AFRESH}")
        trains = self.trains()
        if trains is None or about.run != trains.hash:
            raise UserError(f"'{path}' belongs to another training run. {AFRESH}")
        if about.updates > spec.optimiser.updates:
            raise UserError(
                f"'{path}' has made {about.updates} updates of {spec.optimiser.updates}. {AFRESH}"
            )
        for name in tensors:
            if name.partition(".")[0] not in ("model", "average", "optimiser"):
                raise UserError(f"'{path}' holds '{name}', which no checkpoint has. {AFRESH}")
        require_finite(tensors, f"in '{path}'", AFRESH)
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
        about = About(updates=updates, run=trains.hash, sha256=tensors_sha256(tensors))
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
        content = parsed(text_of(path), path)
        if not isinstance(content, dict) or not isinstance(content.get("sha256"), str):
            raise UserError(f"'{path}' is damaged. Run 'dbpkit train' again to write it anew.")
        return content

    def _file(self, name: str) -> Path:
        return self.path / name


_CURVE = "Restore it, or delete the file: the curve then begins at the checkpoint."

_NAMED = {
    "data": "the training data",
    "test_data": "the test data",
    "init": "the weights that 'init' names",
    "guide": "the weights that the guide names",
}


def _occupied(path: Path) -> bool:
    """Whether a folder holds anything but what a stopped writer may leave."""
    return not all(is_trace(p) for p in path.iterdir())
