"""``records.jsonl``: a line for each example of a row, bound to what the run was made with."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dbpkit.foundation.errors import UserError
from dbpkit.results.columns import Columns
from dbpkit.results.gathering import gather
from dbpkit.results.journal import Journal, Line
from dbpkit.results.layout import damaged, parsed
from dbpkit.results.records import Key, Record, read
from dbpkit.results.shards import Stored, is_seal

REMEDY = "Restore the file, or delete this line and all after it and run the same command again."
"""What to do about a damaged line."""


class RecordsFile:
    """The records of a run: appended, never changed, and read as columns.

    Args:
        folder: the run directory.
        digests: whether every append must have a digest; those of layout 1 had none.
        made_with: returns short hashes of ``spec``, ``session`` and ``checks`` as they are now.
    """

    def __init__(self, folder: Path, digests: bool, made_with: Callable[[], dict[str, str]]) -> None:
        self.folder = folder
        self.journal = Journal(folder / "records.jsonl", REMEDY, digests=digests)
        self.made_with = made_with

    def columns(self) -> Columns:
        """Returns the newest record of every key as columns; a record that is damaged counts as failed.

        Raises:
            UserError: if a line is damaged or was changed, or the records are not those of this spec and
                session.
        """
        return gather(self._appends, self._record)

    def records(self) -> list[Record]:
        """Returns the newest record of every key, in the order they first appear; errors as `columns`."""
        newest: dict[Key, Record] = {}
        for lines, _ in self._appends():
            for record in map(self._record, lines):
                newest[Key(record["row"], record["tape"], record["example"])] = record
        return list(newest.values())

    def some(self, columns: Columns, row: str, tape: int, examples: Iterable[int]) -> dict[int, Record]:
        """Returns the good records of some examples of a row by example id; their lines alone are read."""
        group, wanted, found = columns.rows.get(row), set(examples), dict[int, Record]()
        if group is None:
            return found
        with self.journal.path.open("rb") as file:
            for k in np.flatnonzero((group.tape == tape) & np.isin(group.example, sorted(wanted))).tolist():
                file.seek(int(group.line[k]))
                record = parsed(file.readline().strip(b" \t\r\n\0"), f"'{self.journal.path}'")
                own = {k: v for k, v in record.items() if k not in ("seal", "digest")}
                found[int(group.example[k])] = read(own, 0)
        return found

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
        is_there = (self.folder / file).exists()
        said = f"was not made with the '{file}' beside it" if is_there else f"has no '{file}' beside it"
        return UserError(f"'{self.journal.path}' {said}. Restore both, or delete the directory.")

    def _record(self, line: Line) -> Record:
        """A record, or a failed one in place of one that is damaged."""
        try:
            return read(line.entry, line.number)
        except ValueError as error:
            raise self._bad_line(line, str(error)) from error

    def _bad_line(self, line: Line, why: str) -> UserError:
        where = f"'{self.journal.path}' line {line.number}"
        return damaged(where, why, self.journal.remedy)
