"""The run directory: the whole result, readable without dbpkit, appendable, resumable.

``spec.json`` resolved spec and hash; ``env.json`` versions and hashes of every session; ``records.jsonl`` one
line per example and row, append-only; ``x_adv/`` attacked images; ``logits/`` what the judged images were
given; ``checks.json`` findings of the preflight;
``strip.safetensors`` a few images for the report; ``summary.json`` derived. The thing people get wrong: a
killed process tears the last line; it is dropped.
"""

import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from dbpkit.errors import UserError
from dbpkit.weights import read_tensors, write_atomically, write_tensors

SCHEMA = 1

Record = dict[str, Any]
"""One line of ``records.jsonl``; `docs/run-directory.md` lists its keys."""


class Key(NamedTuple):
    """What a record is about; no two good records share it."""

    row: str
    tape: int
    example: int


class RunDirectory:
    """A folder that holds one run.

    Args:
        path: the folder; made when something is written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def claim(self, spec: dict[str, Any], spec_hash: str, differences: Any) -> None:
        """Makes this the directory of a spec, or checks that it already is.

        Args:
            spec: the resolved spec, ready for JSON. A spec that differs in a larger ``examples.count`` alone
                is the same run, which grows.
            spec_hash: its hash.
            differences: function of two specs that lists the leaves in which they differ.

        Raises:
            UserError: if it holds a run of another spec, of more examples or of another layout.
        """
        if (self.path / "spec.json").is_file():
            old = self.spec()
            if changed := ", ".join(differences(_without_count(old["spec"]), _without_count(spec))):
                raise UserError(
                    f"{self.path} was made with another spec: {changed}. Use a new --out or delete"
                    " the directory."
                )
            if self._grows(old["spec"], spec):
                self.write_json("spec.json", {"schema": SCHEMA, "hash": spec_hash, "spec": spec})
            self._drop_torn_line()
            return
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UserError(f"'{self.path}' exists and is no run directory. Use a new --out.")
        self.write_json("spec.json", {"schema": SCHEMA, "hash": spec_hash, "spec": spec})

    def spec(self) -> dict[str, Any]:
        """Returns ``spec.json``; UserError if this is no run directory or one of another layout."""
        old = self.read_json("spec.json")
        if old is None:
            raise UserError(
                f"'{self.path}' is no run directory: it has no spec.json. Give one made by 'dbpkit evaluate'."
            )
        if old.get("schema") != SCHEMA:
            raise UserError(
                f"'{self.path}' has layout version {old.get('schema')}; this dbpkit reads version {SCHEMA}."
            )
        if "examples" in old.get("spec", {}):  # runs made before there was an order took the data's own
            old["spec"]["examples"].setdefault("order", "file")
        return old

    def records(self) -> list[Record]:
        """Returns the newest record of every key, in the order of their first appearance; torn lines dropped.

        Raises:
            UserError: if a line other than the last is damaged.
        """
        newest: dict[Key, Record] = {}
        lines = self._lines()
        for number, line in enumerate(lines):
            try:
                record = json.loads(line)
                newest[Key(record["row"], record["tape"], record["example"])] = record
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                if number == len(lines) - 1:
                    continue
                raise UserError(
                    f"'{self.path / 'records.jsonl'}' line {number + 1} is damaged. Restore it or"
                    " delete the directory."
                ) from error
        return list(newest.values())

    def append(self, records: Iterable[Record]) -> None:
        """Appends records in one write, flushed to the disk.

        Raises:
            UserError: if the disk is full; what was recorded before is intact.
        """
        content = "".join(json.dumps(r, allow_nan=True) + "\n" for r in records).encode()
        path = self.path / "records.jsonl"
        before = path.stat().st_size if path.is_file() else 0
        try:
            with path.open("ab") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if path.is_file():
                os.truncate(path, before)
            raise UserError(
                f"cannot write '{path}' ({error.strerror}). Free space and run the same command"
                " again; earlier records are intact."
            ) from error

    def write_images(self, name: str, ids: Tensor, x_adv: Tensor) -> str:
        """Stores attacked images (B, C, H, W) with their ids under ``x_adv/``; returns the file's name."""
        file = f"{name}.safetensors"
        write_tensors(
            self.path / "x_adv" / file, {"ids": ids, "x_adv": x_adv.detach().cpu().contiguous()}, {}
        )
        return file

    def read_images(self, file: str) -> dict[int, Tensor]:
        """Returns the attacked images of one shard by example id."""
        tensors, _ = read_tensors(self.path / "x_adv" / file)
        return dict(zip(tensors["ids"].tolist(), tensors["x_adv"], strict=True))

    def write_logits(self, name: str, ids: Tensor, logits: Tensor, how: dict[str, Any]) -> None:
        """Stores the report logits (B, R, K) of a batch under ``logits/``, and how they were computed."""
        tensors = {"ids": ids.contiguous(), "logits": logits.detach().cpu().contiguous()}
        write_tensors(self.path / "logits" / f"{name}.safetensors", tensors, {"how": json.dumps(how)})

    def read_logits(self, row: str, tape: int, example: int) -> list[tuple[Tensor, Tensor, dict[str, Any]]]:
        """Returns ids (B,), logits (B, R, K) and settings of every batch that judged an example in a row.

        There is none in runs that stored no logits, and more than one if an example was judged again in
        another batch.
        """
        batch = re.compile(rf"{re.escape(row)}-{tape}-\d+-\d+-\d+\.safetensors")
        found = []
        for path in sorted((self.path / "logits").glob("*.safetensors")):
            if batch.fullmatch(path.name):
                tensors, metadata = read_tensors(path)
                if example in tensors["ids"].tolist():
                    found.append((tensors["ids"], tensors["logits"], json.loads(metadata["how"])))
        return found

    def write_strip(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Stores the report's picture: images by name, and labels, predictions and class names."""
        write_tensors(self.path / "strip.safetensors", tensors, {"about": json.dumps(about)})

    def read_strip(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns the report's picture, or two empty dictionaries before there is one."""
        if not (self.path / "strip.safetensors").is_file():
            return {}, {}
        tensors, metadata = read_tensors(self.path / "strip.safetensors")
        return tensors, json.loads(metadata["about"])

    def write_json(self, name: str, content: Any) -> None:
        """Replaces a JSON file atomically."""
        write_atomically(self.path / name, json.dumps(content, indent=1).encode())

    def read_json(self, name: str) -> Any:
        """Returns the content of a JSON file, or None if it does not exist."""
        path = self.path / name
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"'{path}' is damaged ({error}). Restore it or delete the directory.") from error

    def _grows(self, old: dict[str, Any], spec: dict[str, Any]) -> bool:
        """Whether a spec asks for more examples than the run has; UserError if for fewer."""
        before, now = (_count(table) for table in (old, spec))
        if (now or math.inf) < (before or math.inf):
            remedy = f"Set it to {before} or more" if before else "Leave it out"
            raise UserError(
                f"{self.path} is a run over {before or 'all'} examples, and examples.count = {now} is fewer:"
                f" a run can grow and not shrink. {remedy}, or use a new --out."
            )
        return now != before

    def _lines(self) -> list[str]:
        path = self.path / "records.jsonl"
        return path.read_text(errors="replace").splitlines() if path.is_file() else []

    def _drop_torn_line(self) -> None:
        """Cuts off a last line that was not written to its end."""
        path = self.path / "records.jsonl"
        content = path.read_bytes() if path.is_file() else b""
        if content and not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)


def _without_count(spec: dict[str, Any]) -> dict[str, Any]:
    """A resolved spec without the number of its examples."""
    examples = {k: v for k, v in spec.get("examples", {}).items() if k != "count"}
    return {**spec, "examples": examples}


def _count(spec: dict[str, Any]) -> int | None:
    """How many examples a resolved spec asks for; None is all."""
    count: int | None = spec.get("examples", {}).get("count")
    return count
