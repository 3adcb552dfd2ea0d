"""The run directory: the whole result, readable without dbpkit, appendable, resumable.

``spec.json`` resolved spec and hash; ``env.json`` versions and hashes of every session; ``records.jsonl`` one
line per example and row, append-only; ``x_adv/`` attacked images; ``logits/`` what the judged images were
given; ``checks.json`` findings of the preflight;
``strip.safetensors`` a few images for the report; ``summary.json`` derived. The thing people get wrong: a
directory that opens is not yet the run that was made. Everything read here is checked against its schema, and
the records against the spec, the session, the checks and the images they were made with.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dbpkit.foundation.arrays import Array
from dbpkit.foundation.errors import UserError, shown
from dbpkit.foundation.files import write_atomically
from dbpkit.foundation.locking import is_trace
from dbpkit.foundation.spec import differences
from dbpkit.results.gathering import gather
from dbpkit.results.journal import Journal, Line
from dbpkit.results.layout import (
    RESTORE,
    arrays_of,
    canonical_hash,
    checked,
    damaged,
    parsed,
    read_json,
    read_shard,
    strip_fault,
)
from dbpkit.results.records import Columns, Key, Record, fault, is_shard, key_of
from dbpkit.results.schemas import ABOUT, CHECKS, HOW, SESSIONS, SPEC
from dbpkit.results.shards import Stored, as_tensor, fault_of_file, is_seal, write_shard

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Key", "Record", "RunDirectory", "Stored"]

SCHEMA = 2
"""Layout that is written. Layout 1 had no digests and is read too."""

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
        self._journal: Journal | None = None
        self._columns: tuple[Any, Columns] | None = None

    def claim(self, spec: dict[str, Any]) -> None:
        """Makes this the directory of a spec, or checks that it already is.

        Args:
            spec: the resolved spec, ready for JSON. A spec that differs in a larger ``examples.count`` alone
                is the same run, which grows.

        Raises:
            UserError: as `refuse_other`.
        """
        old = self.refuse_other(spec)
        if old is None or _count(old) != _count(spec):
            schema = SCHEMA if old is None else self.schema
            identity = spec if schema == 1 else _without_count(spec)
            self.write_json("spec.json", {"schema": schema, "hash": canonical_hash(identity), "spec": spec})
            self._journal = None
        self.journal.repair()

    def refuse_other(self, spec: dict[str, Any]) -> dict[str, Any] | None:
        """Returns the spec that this directory already has, or None for a new one.

        Raises:
            UserError: if it holds something else, a run of another spec, of more examples, or of another
                version of the layout.
        """
        if (self.path / "spec.json").is_file():
            old: dict[str, Any] = self.spec()["spec"]
            if changed := ", ".join(differences(_without_count(old), _without_count(spec))):
                raise UserError(
                    f"{self.path} was made with another spec: {changed}. Use a new --out or delete"
                    " the directory."
                )
            before, now = _count(old), _count(spec)
            if (now or math.inf) < (before or math.inf):
                raise UserError(
                    f"{self.path} is a run over {before or 'all'} examples, and examples.count = {now} is"
                    " fewer: a run can grow and not shrink."
                    f" {f'Set it to {before} or more' if before else 'Leave it out'}, or use a new --out."
                )
            return old
        if self.path.exists() and (not self.path.is_dir() or not all(map(is_trace, self.path.iterdir()))):
            raise UserError(f"'{self.path}' exists and is no run directory. Use a new --out.")
        return None

    @property
    def schema(self) -> int:
        """Version of the layout."""
        return int(self.spec()["schema"])

    def spec(self) -> dict[str, Any]:
        """Returns ``spec.json``: ``schema``, ``hash`` and ``spec``, checked against its own hash.

        Raises:
            UserError: if this is no run directory, one of another layout, or the spec was changed.
        """
        path = self.path / "spec.json"
        old = read_json(path)
        if old is None:
            raise UserError(
                f"'{self.path}' is no run directory: it has no spec.json. Give one made by 'dbpkit evaluate'."
            )
        schema = old.get("schema") if isinstance(old, dict) else None
        if type(schema) is not int or not 1 <= schema <= SCHEMA:
            raise UserError(
                f"'{self.path}' has layout version {str(schema)[:20]!r}; this dbpkit reads versions 1 to"
                f" {SCHEMA}."
            )
        found: dict[str, Any] = checked(old, SPEC, f"'{path}'")
        spec = found["spec"]
        if found["hash"] != canonical_hash(spec if schema == 1 else _without_count(spec)):
            raise UserError(
                f"'{path}' does not match its hash: it was changed after the run began. {RESTORE}"
            )
        if schema == 1:  # runs made before there was an order took the data's own
            spec["examples"].setdefault("order", "file")
        return found

    def sessions(self) -> list[dict[str, Any]]:
        """Returns ``env.json``: hashes, versions and settings of every session; empty before the first."""
        content = read_json(self.path / "env.json")
        return [] if content is None else checked(content, SESSIONS, f"'{self.path / 'env.json'}'")

    def checks(self) -> list[dict[str, Any]] | None:
        """Returns ``checks.json``: the flags of the checks before the run; None if they have not run."""
        content = read_json(self.path / "checks.json", REPAIR)
        return None if content is None else checked(content, CHECKS, f"'{self.path / 'checks.json'}'", REPAIR)

    @property
    def journal(self) -> Journal:
        """The lines of ``records.jsonl``."""
        if self._journal is None:
            remedy = "Restore the file, or delete this line and all after it and run the same command again."
            has_digests = (self.path / "spec.json").is_file() and self.schema > 1
            self._journal = Journal(self.path / "records.jsonl", remedy, digests=has_digests)
        return self._journal

    def columns(self) -> Columns:
        """Returns the newest record of every key as columns; a record that is damaged counts as failed.

        Raises:
            UserError: if a line is damaged or was changed, or the records are not those of this spec and
                session.
        """
        stamp = self._stamp()
        if self._columns is None or self._columns[0] != stamp:
            self._columns = stamp, gather(self._appends, self._record)
        return self._columns[1]

    def records(self) -> list[Record]:
        """Returns the newest record of every key, in the order they first appear; errors as `columns`."""
        newest: dict[Key, Record] = {}
        for lines, _ in self._appends():
            for record in map(self._record, lines):
                newest[Key(record["row"], record["tape"], record["example"])] = record
        return list(newest.values())

    def some(self, row: str, tape: int, examples: Iterable[int]) -> dict[int, Record]:
        """Returns the good records of some examples of a row by example id; their lines alone are read."""
        group, wanted, found = self.columns().rows.get(row), set(examples), dict[int, Record]()
        if group is None:
            return found
        with self.journal.path.open("rb") as file:
            for k in np.flatnonzero((group.tape == tape) & np.isin(group.example, sorted(wanted))).tolist():
                file.seek(int(group.line[k]))
                record = parsed(file.readline().strip(b" \t\r\n\0"), f"'{self.journal.path}'")
                found[int(group.example[k])] = {
                    k: v for k, v in record.items() if k not in ("seal", "digest")
                }
        return found

    def is_verified(self) -> bool:
        """Whether the records carry digests; those of layout 1 do not."""
        return self.journal.has_digest or not self.columns().rows

    def done(self) -> set[Key]:
        """Returns the keys whose records are good and whose images and logits are as they were made."""
        columns = self.columns()
        used = {number for group in columns.rows.values() for number in group.append.tolist()}
        lost = {number for number in used if self._lost(columns.seals[number])}
        own = {
            Key(row, tape, example)
            for row, group in columns.rows.items()
            for tape, example, number in zip(
                group.tape.tolist(), group.example.tolist(), group.append.tolist(), strict=True
            )
            if number not in lost
        }
        return own - self._without_image() if self.schema == 1 else own

    def append(self, records: Iterable[Record], files: Iterable[Stored] = ()) -> None:
        """Appends records in one write, flushed to the disk, and says in the last what they were made with.

        Args:
            records: of one unit of work.
            files: images and logits that belong to them.

        Raises:
            UserError: if the disk is full; what was recorded before is intact.
        """
        lines = [dict(record) for record in records]
        if lines:
            lines[-1]["seal"] = {**self.made_with(), "files": {f.path: f.sha256 for f in files}}
            self.journal.append(lines)

    def write_images(self, name: str, ids: "Tensor", x_adv: "Tensor") -> Stored:
        """Stores attacked images (B, C, H, W) with their ids under ``x_adv/``."""
        tensors = {"ids": ids, "x_adv": x_adv.detach().cpu().contiguous()}
        return write_shard(self.path, f"x_adv/{name}.safetensors", tensors, {})

    def read_images(self, file: str) -> dict[int, "Tensor"]:
        """Returns the attacked images (C, H, W) of one shard by example id; UserError if it was changed."""
        if not is_shard(file):
            raise damaged(f"'{self.path / 'records.jsonl'}'", f"{file!r} is no name of a file", RESTORE)
        path = self._kept(f"x_adv/{file}")
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
                ids, logits, about = read_shard(self._kept(f"logits/{path.name}"), "logits", 3, REPAIR)
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
        path = self.path / "strip.safetensors"
        if not os.path.lexists(path):
            return {}, {}
        remedy = f"Delete it: it is not needed. {REPAIR}"
        arrays, metadata = arrays_of(path, remedy)
        where = f"'{path}'"
        about: dict[str, Any] = checked(
            parsed(metadata.get("about", ""), where, remedy), ABOUT, where, remedy
        )
        if why := strip_fault(arrays, about):
            raise damaged(where, why, remedy)
        return arrays, about

    def write_json(self, name: str, content: Any) -> None:
        """Replaces a JSON file atomically."""
        write_atomically(self.path / name, json.dumps(content, indent=1).encode())

    def read_json(self, name: str) -> Any:
        """Returns the content of a JSON file, or None if it does not exist."""
        return read_json(self.path / name)

    def _kept(self, path: str) -> Path:
        """The place of a file that records were made with; UserError if it is not the one they name."""
        sealed = (
            seal["files"][path] for seal in reversed(self.columns().seals) if path in seal.get("files", {})
        )
        if why := fault_of_file(self.path, path, next(sealed, None)):
            raise UserError(f"'{self.path / path}' {why}. {REPAIR}")
        return self.path / path

    def _lost(self, seal: Mapping[str, Any]) -> bool:
        """Whether a file that an append was made with is missing or another."""
        return any(fault_of_file(self.path, path, sha256) for path, sha256 in seal.get("files", {}).items())

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

    def _appends(self) -> Iterator[tuple[list[Line], Mapping[str, Any]]]:
        """The lines of every append, and what it says of the run, which is checked."""
        made_with = self.made_with()
        for lines in self.journal.appends():
            seal = lines[-1].entry.pop("seal", {})
            if not is_seal(seal):
                raise self._bad_line(lines[-1], "its seal cannot be read")
            for name in ("spec", "session"):
                if name in seal and seal[name] != made_with[name]:
                    raise self._other_run("spec.json" if name == "spec" else "env.json")
            yield lines, seal

    def _other_run(self, file: str) -> UserError:
        """The error of records that belong to another file than the one beside them."""
        found = (
            "was not made with the '{}' beside it" if (self.path / file).exists() else "has no '{}' beside it"
        )
        return UserError(
            f"'{self.path / 'records.jsonl'}' {found.format(file)}. Restore both, or delete the directory."
        )

    def _record(self, line: Line) -> Record:
        """A record, or a failed one in place of one that is damaged."""
        key = key_of(line.entry)
        if key is None:
            raise self._bad_line(line, "row, tape or example cannot be read")
        if why := fault(line.entry):
            return {**key._asdict(), "error": f"the record is damaged: {why} (line {line.number})"}
        return line.entry

    def _bad_line(self, line: Line, why: str) -> UserError:
        where = f"'{self.journal.path}' line {line.number}"
        return damaged(where, why, self.journal.remedy)

    def made_with(self) -> dict[str, str]:
        """Short hashes of the spec, of weights and data as the first session has them, and of the checks."""
        first, checks = (self.sessions() or [{}])[0], self.checks()
        hashes = {k: v for k, v in first.items() if k.endswith("_sha256") and k != "code_sha256"}
        parts = {
            "spec": _without_count(self.spec()["spec"]) if (self.path / "spec.json").is_file() else None,
            "session": hashes,
            "checks": checks and [flag for flag in checks if flag["name"] not in RECOMPUTED],
        }
        return {name: canonical_hash(part)[:16] for name, part in parts.items()}

    def _stamp(self) -> Any:
        """Changes when a file changes that the records are read with."""
        names = ("records.jsonl", "spec.json", "env.json", "checks.json")
        return [
            (found.st_mtime_ns, found.st_size, found.st_ino)
            if (path := self.path / name).exists() and (found := path.stat())
            else None
            for name in names
        ]


def _without_count(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved spec without the number of its examples."""
    examples = {k: v for k, v in spec.get("examples", {}).items() if k != "count"}
    return {**spec, "examples": examples}


def _count(spec: Mapping[str, Any]) -> int | None:
    """How many examples a resolved spec asks for; None is all."""
    count: int | None = spec.get("examples", {}).get("count")
    return count
