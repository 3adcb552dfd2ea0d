"""The records of a run: a line for each example of a row, bound to what the run was made with.

One process writes ``records.jsonl``, rank 3 of 16 writes ``records/3-of-16.jsonl``, and readers see all of
them as one. Which of two records of a key is newer is told by the turn of their writers: whoever begins takes
a turn after all that are recorded.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.files import write_atomically
from dbpkit.foundation.locking import ALONE, Shard
from dbpkit.results.columns import Columns
from dbpkit.results.gathering import Table, gather
from dbpkit.results.journal import Journal, Line
from dbpkit.results.layout import checked, damaged, parsed, read_json
from dbpkit.results.records import Key, Record, read
from dbpkit.results.schemas import IDS
from dbpkit.results.shards import Stored, is_seal

REMEDY = "Restore the file, or delete this line and all after it and run the same command again."
"""What to do about a damaged line."""

OF_ALL = "records.jsonl"
"""The file of a process that writes alone."""

OF_RANKS = "records"
"""The folder of the files of ranks."""

ORDER = f"{OF_RANKS}/order.json"
"""Ids of the examples in the order in which one process takes them."""

REDO_ORDER = "Delete it, and run the same command again to have it made anew."
"""What to do about a damaged order."""

_OF_RANK = re.compile(r"([1-9]\d{0,5})-of-([1-9]\d{0,5})\.jsonl")


def journals_in(folder: Path) -> list[str]:
    """Returns the files of records of ranks in a folder, ``records/3-of-16.jsonl``, by world and rank."""
    try:
        names = [path.name for path in (folder / OF_RANKS).iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = sorted((int(m[2]), int(m[1]), m[0]) for m in map(_OF_RANK.fullmatch, names) if m)
    return [f"{OF_RANKS}/{name}" for _, _, name in found]


def journal_of(shard: Shard) -> str:
    """Returns which file a process appends its records to."""
    return OF_ALL if shard.world == 1 else f"{OF_RANKS}/{shard.rank + 1}-of-{shard.world}.jsonl"


class RecordsFile:
    """The records of a run: appended, never changed, and read as columns.

    Args:
        folder: the run directory.
        digests: whether every append must have a digest; those of layout 1 had none.
        made_with: returns short hashes of ``spec``, ``session`` and ``checks`` as they are now.
        rows: returns the rows of the table in their order.
        shard: who appends.
    """

    def __init__(
        self,
        folder: Path,
        digests: bool,
        made_with: Callable[[], dict[str, str]],
        rows: Callable[[], Sequence[str]] = tuple,
        shard: Shard = ALONE,
    ) -> None:
        self.folder = folder
        self.digests = digests
        self.made_with = made_with
        self.rows = rows
        self.journal = self._journal(journal_of(shard))
        self._reading = self.journal
        self._last_turn: int | None = None
        self._turn: int | None = None

    def columns(self) -> Columns:
        """Returns the newest record of every key as columns; a record that is damaged counts as failed.

        Raises:
            UserError: if a line is damaged or was changed, or the records are not those of this spec and
                session.
        """
        found = gather(self._appends, self._record, self._table())
        self._last_turn = max((seal.get("turn", 0) for seal in found.seals), default=0)
        return found

    def records(self) -> list[Record]:
        """Returns the newest record of every key, in the order they first appear; errors as `columns`.

        Those of ranks are ordered by row, example and tape, whoever wrote them; a row at a time.
        """
        newest: dict[Key, tuple[int, Record]] = {}
        for lines, seal in self._appends():
            turn = seal.get("turn", 0)
            for record in map(self._record, lines):
                key = Key(record["row"], record["tape"], record["example"])
                if key not in newest or newest[key][0] <= turn:
                    newest[key] = turn, record
        if (table := self._table()) is not None:
            places = {example: k for k, example in enumerate(table.examples)}
            last = len(places)
            order = sorted(
                newest, key=lambda k: (table.place(k.row), places.get(k.example, last), k.example, k.tape)
            )
            return [newest[key][1] for key in order]
        return [record for _, record in newest.values()]

    def some(self, columns: Columns, row: str, tape: int, examples: Iterable[int]) -> dict[int, Record]:
        """Returns the good records of some examples of a row by example id; their lines alone are read."""
        group, wanted, found = columns.rows.get(row), set(examples), dict[int, Record]()
        if group is None:
            return found
        for k in np.flatnonzero((group.tape == tape) & np.isin(group.example, sorted(wanted))).tolist():
            path = self.folder / columns.seals[int(group.append[k])].get("journal", OF_ALL)
            with path.open("rb") as file:
                file.seek(int(group.line[k]))
                record = parsed(file.readline().strip(b" \t\r\n\0"), f"'{path}'")
            own = {k: v for k, v in record.items() if k not in ("seal", "digest")}
            found[int(group.example[k])] = read(own, 0)
        return found

    def begin(self, examples: Sequence[int] = ()) -> None:
        """Readies the own file for appending: cuts off what no reader sees.

        Args:
            examples: ids in the order in which one process takes them; noted where ranks write.
        """
        self.journal.repair()
        self._turn = self._last_turn = None
        path, ids = self.folder / ORDER, list(examples)
        if ids and self._is_shared() and read_json(path, REDO_ORDER) != ids:
            write_atomically(path, json.dumps(ids).encode())

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
            seal: dict[str, Any] = {**self.made_with(), "files": {f.path: f.sha256 for f in files}}
            if turn := self._own_turn():
                seal["turn"] = turn
            lines[-1]["seal"] = seal
            self.journal.append(lines)

    def has_digests(self) -> bool:
        """Whether the lines of all files can be verified; those of an older version cannot."""
        main = self._journal(OF_ALL)
        return not main.path.is_file() or main.has_digest

    def _is_shared(self) -> bool:
        """Whether this is one of several ranks, or some have written here before."""
        return self.journal.path.parent != self.folder or bool(journals_in(self.folder))

    def _table(self) -> Table | None:
        """The order of records that ranks have written; None where one process alone has."""
        if not journals_in(self.folder):
            return None
        path = self.folder / ORDER
        content = read_json(path, REDO_ORDER)
        return Table(self.rows(), checked(content or [], IDS, f"'{path}'", REDO_ORDER))

    def _own_turn(self) -> int:
        """The turn of this writer: after all that there are, and none where nobody but one writes alone."""
        if self._turn is None:
            of_ranks = self._is_shared()
            if of_ranks and self._last_turn is None:
                self._last_turn = max((seal.get("turn", 0) for _, seal in self._appends()), default=0)
            self._turn = 1 + (self._last_turn or 0) if of_ranks else 0
        return self._turn

    def _appends(self) -> Iterator[tuple[list[Line], Mapping[str, Any]]]:
        """The lines of every append, and what it says of the run, which is checked."""
        made_with = self.made_with()
        for name in (OF_ALL, *journals_in(self.folder)):
            journal = self._reading = self._journal(name)
            for lines in journal.appends():
                seal = lines[-1].entry.pop("seal", {})
                if not is_seal(seal):
                    raise self._bad_line(lines[-1], "its seal cannot be read")
                for what in ("spec", "session"):
                    if what in seal and seal[what] != made_with[what]:
                        raise self._other_run(journal, "spec.json" if what == "spec" else "env.json")
                yield lines, seal if name == OF_ALL else {**seal, "journal": name}

    def _journal(self, name: str) -> Journal:
        """One of the files; the own one still knows where it ends."""
        own: Journal | None = getattr(self, "journal", None)
        if own is not None and own.path == self.folder / name:
            return own
        return Journal(self.folder / name, REMEDY, digests=self.digests or name != OF_ALL)

    def _other_run(self, journal: Journal, file: str) -> UserError:
        """The error of records that belong to another file than the one beside them."""
        is_there = (self.folder / file).exists()
        said = f"was not made with the '{file}' beside it" if is_there else f"has no '{file}' beside it"
        return UserError(f"'{journal.path}' {said}. Restore both, or delete the directory.")

    def _record(self, line: Line) -> Record:
        """A record, or a failed one in place of one that is damaged."""
        try:
            return read(line.entry, line.number)
        except ValueError as error:
            raise self._bad_line(line, str(error)) from error

    def _bad_line(self, line: Line, why: str) -> UserError:
        return damaged(f"'{self._reading.path}' line {line.number}", why, REMEDY)
