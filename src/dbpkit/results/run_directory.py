"""The run directory: the whole result, readable without dbpkit, appendable, resumable.

Everything that is read is checked against its schema, and the records against the spec, the session, the
checks and the files they were made with. `docs/reference/run-directory.md` lists the files:

``spec.json``: resolved spec and hash. ``env.json``: versions and hashes of every session. ``records.jsonl``
and ``records/``: one line for each example of a row. ``x_adv/``: attacked images. ``logits/``: what they were
given. ``checks.json``: what was found before the run. ``strip.safetensors``: a few images for the report.
``summary.json``: derived from the others.
"""

import json
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dbpkit.foundation.arrays import Array
from dbpkit.foundation.errors import UserError, shown
from dbpkit.foundation.files import stamp_of, write_atomically
from dbpkit.foundation.locking import ALONE, Shard
from dbpkit.results.checks_file import ChecksFile, checks_file, read_checks_file
from dbpkit.results.columns import Columns
from dbpkit.results.kinds import BASELINE_ROWS, KINDS
from dbpkit.results.layout import (
    RESTORE,
    canonical_hash,
    checked,
    damaged,
    parsed,
    read_json,
    read_shard,
)
from dbpkit.results.records import SCHEMA, Key, Record, is_shard
from dbpkit.results.records_file import OF_ALL, ORDER, RecordsFile, journals_in
from dbpkit.results.schemas import HOW, SESSIONS, SPEC, RecordedSpec
from dbpkit.results.shards import Stored, as_tensor, fault_of_file, lost, write_shard
from dbpkit.results.spec_file import (
    count_of,
    read_spec_file,
    refuse_other_folder,
    refuse_other_spec,
    spec_file,
    without_count,
)
from dbpkit.results.strip_file import read_strip_file

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Key", "Record", "RunDirectory", "Stored"]

STATE_CHANGED = "state_changed"
"""The flag of a session that left its models other than it found them; it is added at the session's end."""

RECOMPUTED = ("missing_classes", STATE_CHANGED)
"""Flags in ``checks.json`` that a later session may add or make anew, so that no record is bound to them."""

REPAIR = "Run the same evaluation again to have it made anew."


class RunDirectory:
    """A folder that holds one run.

    Args:
        path: the folder; made when something is written.
    """

    def __init__(self, path: str | Path) -> None:
        if not isinstance(path, str | os.PathLike):
            raise UserError(f"a run directory is named by its path, not by {shown(path)}.")
        self.path = Path(os.fsdecode(path))
        self.shard = ALONE
        self._records: RecordsFile | None = None
        self._columns: tuple[Any, Columns] | None = None

    def claim(self, spec: dict[str, Any], examples: Sequence[int] = ()) -> None:
        """Makes this the directory of a spec, or checks that it already is.

        Args:
            spec: the resolved spec, ready for JSON. A spec that differs in a larger ``examples.count`` alone
                is the same run, which grows.
            examples: their ids in order, for records that several ranks write.

        Raises:
            UserError: as `refuse_other`.
        """
        old = self.refuse_other(spec)
        if old is None or count_of(old) != count_of(spec):
            self.write_json("spec.json", spec_file(spec, SCHEMA if old is None else self.schema))
        self._records = None
        self._file.begin(examples)

    def write_as(self, shard: Shard) -> None:
        """Says which rank appends from now on: each has a file of records of its own."""
        self.shard, self._records = shard, None

    def refuse_other(self, spec: dict[str, Any]) -> dict[str, Any] | None:
        """Returns the spec that this directory already has, or None for a new one.

        Raises:
            UserError: if it holds something else, a run of another spec, of more examples, or of another
                version of the layout.
        """
        if (self.path / "spec.json").is_file():
            old: dict[str, Any] = self.spec()["spec"]
            refuse_other_spec(self.path, old, spec)
            return old
        refuse_other_folder(self.path)
        return None

    @property
    def schema(self) -> int:
        """Version of the layout."""
        return int(self.spec()["schema"])

    def spec(self) -> dict[str, Any]:
        """Returns ``spec.json``: ``schema``, ``hash`` and ``spec``, checked against its own hash.

        Raises:
            UserError: if this is not a run directory, one of another layout, or the spec was changed.
        """
        return read_spec_file(self.path)

    def recorded_spec(self) -> RecordedSpec:
        """Returns the resolved spec with types, as far as results are read with it; errors as `spec`."""
        return SPEC.validate_python(self.spec()).spec

    def sessions(self) -> list[dict[str, Any]]:
        """Returns ``env.json``: hashes, versions and settings of every session; empty before the first."""
        content = read_json(self.path / "env.json")
        return [] if content is None else checked(content, SESSIONS, f"'{self.path / 'env.json'}'")

    def checks(self) -> list[dict[str, Any]] | None:
        """Returns the flags of the checks before the run; None if they have not run."""
        found = self._checks()
        return None if found is None else found.flags

    def checks_run(self) -> dict[str, str] | None:
        """Returns which checks ran before the run, with what they look at; None where it is not recorded."""
        found = self._checks()
        return None if found is None else found.ran

    def write_checks(self, flags: Sequence[Mapping[str, Any]], ran: Mapping[str, str] | None) -> None:
        """Writes what the checks before the run found and which ran, if it is not what is there."""
        if self._checks() != (list(flags), ran):
            self.write_json("checks.json", checks_file(flags, ran))

    @property
    def _file(self) -> RecordsFile:
        """The records, of one process or of ranks."""
        if self._records is None:
            has_digests = (self.path / "spec.json").is_file() and self.schema > 1
            self._records = RecordsFile(self.path, has_digests, self.made_with, self._rows, self.shard)
        return self._records

    def columns(self) -> Columns:
        """Returns the newest record of every key as columns; a record that is damaged counts as failed.

        Raises:
            UserError: if a line is damaged or was changed, or the records are not those of this spec and
                session.
        """
        stamp = self._stamp()
        if self._columns is None or self._columns[0] != stamp:
            self._columns = stamp, self._file.columns()
        return self._columns[1]

    def records(self) -> list[Record]:
        """Returns the newest record of every key in the order of `columns`; errors as there."""
        return self._file.records()

    def some(self, row: str, tape: int, examples: Iterable[int]) -> dict[int, Record]:
        """Returns the good records of some examples of a row by example id; their lines alone are read."""
        return self._file.some(self.columns(), row, tape, examples)

    def append(self, records: Iterable[Record], files: Iterable[Stored] = ()) -> None:
        """Appends records in one write, flushed to the disk, and says in the last what they were made with.

        Args:
            records: of one unit of work.
            files: images and logits that belong to them.

        Raises:
            UserError: if the disk is full; what was recorded before is intact.
        """
        self._file.append(records, files)

    def is_verified(self) -> bool:
        """Whether the records carry digests; those of layout 1 do not."""
        return self._file.has_digests() or not self.columns().rows

    def done(self, examples: Collection[int] | None = None) -> set[Key]:
        """Returns the keys whose records are good and whose images and logits are as they were made.

        Args:
            examples: look at these alone; None takes all.
        """
        columns, own = self.columns(), set[Key]()
        wanted = None if examples is None else np.array(sorted(examples), dtype=np.int64)
        chosen = {
            row: group if wanted is None else group.select(np.flatnonzero(np.isin(group.example, wanted)))
            for row, group in columns.rows.items()
        }
        used = sorted({number for group in chosen.values() for number in group.append.tolist()})
        is_lost = lost(self.path, [columns.seals[number] for number in used])
        without = {number for number, gone in zip(used, is_lost, strict=True) if gone}
        for row, group in chosen.items():
            keys = zip(group.tape.tolist(), group.example.tolist(), group.append.tolist(), strict=True)
            own |= {Key(row, tape, example) for tape, example, number in keys if number not in without}
        return own - self._without_image() if self.schema == 1 else own

    def write_images(self, name: str, ids: "Tensor", x_adv: "Tensor") -> Stored:
        """Stores attacked images (B, C, H, W) with their ids under ``x_adv/``."""
        tensors = {"ids": ids, "x_adv": x_adv.detach().cpu().contiguous()}
        return write_shard(self.path, f"x_adv/{name}.safetensors", tensors, {})

    def read_images(self, file: str) -> dict[int, "Tensor"]:
        """Returns the attacked images (C, H, W) of one shard by example id; UserError if it was changed."""
        if not is_shard(file):
            raise damaged(f"'{self.path / 'records.jsonl'}'", f"{file!r} is not the name of a file", RESTORE)
        path = self.kept(f"x_adv/{file}")
        ids, x_adv, _ = read_shard(path, "x_adv", 4, REPAIR)
        return dict(zip(ids.tolist(), as_tensor(x_adv), strict=True))

    def write_logits(self, name: str, ids: "Tensor", logits: "Tensor", how: dict[str, Any]) -> Stored:
        """Stores the report logits (B, R, K) of a batch under ``logits/``, and how they were computed."""
        tensors = {"ids": ids.contiguous(), "logits": logits.detach().cpu().contiguous()}
        return write_shard(self.path, f"logits/{name}.safetensors", tensors, {"how": json.dumps(how)})

    def read_logits(
        self, row: str, tape: int, example: int
    ) -> list[tuple["Tensor", "Tensor", dict[str, Any]]]:
        """Returns ids (B,), logits (B, R, K) and settings of every batch that judged an example in a row.

        There is none in runs that stored no logits, and more than one if an example was judged again in
        another batch.
        """
        batch = re.compile(rf"{re.escape(row)}-{tape}-\d+-\d+-\d+\.safetensors")
        found = []
        folder = self.path / "logits"
        for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
            if batch.fullmatch(path.name):
                ids, logits, about = read_shard(self.kept(f"logits/{path.name}"), "logits", 3, REPAIR)
                how = checked(parsed(about.get("how", ""), f"'{path}'", REPAIR), HOW, f"'{path}'", REPAIR)
                if example in ids.tolist():
                    found.append((as_tensor(ids), as_tensor(logits), how))
        return found

    def write_strip(self, tensors: dict[str, "Tensor"], about: dict[str, Any]) -> None:
        """Stores the report's picture: images by name, and labels, predictions and class names."""
        from dbpkit.foundation.arrays import write_tensors

        write_tensors(self.path / "strip.safetensors", tensors, {"about": json.dumps(about)})

    def read_strip(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Returns the report's picture as arrays, or two empty dictionaries before there is one."""
        remedy = f"Delete it: it is not needed. {REPAIR}"
        return read_strip_file(self.path / "strip.safetensors", remedy)

    def write_json(self, name: str, content: Any) -> None:
        """Replaces a JSON file atomically."""
        write_atomically(self.path / name, json.dumps(content, indent=1).encode())

    def read_json(self, name: str) -> Any:
        """Returns the content of a JSON file, or None if it does not exist."""
        return read_json(self.path / name)

    def _checks(self) -> ChecksFile | None:
        return read_checks_file(self.path / "checks.json", REPAIR)

    def kept(self, path: str) -> Path:
        """Returns where a file lies that records were made with; UserError if it is not the one they name."""
        sealed = (
            seal["files"][path] for seal in reversed(self.columns().seals) if path in seal.get("files", {})
        )
        if why := fault_of_file(self.path, path, next(sealed, None)):
            raise UserError(f"'{self.path / path}' {why}. {REPAIR}")
        return self.path / path

    def _without_image(self) -> set[Key]:
        """Keys of a run of layout 1 whose attacked images are not there."""
        found, shards = set(), dict[str, set[int]]()
        for record in self.records():
            file = record.get("images")
            if file is None:
                continue
            if file not in shards:
                try:
                    shards[file] = set(self.read_images(file))
                except UserError:
                    shards[file] = set()
            if record["example"] not in shards[file]:
                found.add(Key(record["row"], record["tape"], record["example"]))
        return found

    def made_with(self) -> dict[str, str]:
        """Short hashes of the spec, of weights and data as the first session has them, and of the checks."""
        first, checks = (self.sessions() or [{}])[0], self.checks()
        hashes = {k: v for k, v in first.items() if k.endswith("_sha256") and k != "code_sha256"}
        parts = {
            "spec": without_count(self.spec()["spec"]) if (self.path / "spec.json").is_file() else None,
            "session": hashes,
            "checks": checks and [flag for flag in checks if flag["name"] not in RECOMPUTED],
        }
        return {name: canonical_hash(part)[:16] for name, part in parts.items()}

    def _rows(self) -> list[str]:
        """The rows of the table, in the order in which one process records them."""
        baseline = sorted(BASELINE_ROWS, key=lambda row: bool(KINDS[row].attacker))
        return [*baseline, *(knowledge.name for knowledge in self.recorded_spec().knowledge)]

    def _stamp(self) -> Any:
        """Changes when a file changes that the records are read with."""
        names = (OF_ALL, "spec.json", "env.json", "checks.json", ORDER, *journals_in(self.path))
        return [(name, stamp_of(self.path / name)) for name in names]
