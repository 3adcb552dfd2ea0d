"""``dbpkit board``: defences of one threat, ranked with the doubt that is in their ranks.

The thing people get wrong: a defence that was attacked less is not a better one. No defence is said to be
better than another whose attack was stronger, whatever the numbers are.
"""

import csv
import io
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dbpkit.bundles.entries import Entry, read_entries
from dbpkit.bundles.strength import Strength
from dbpkit.foundation import display
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.files import PAGE, OwnFile, check_place, write_atomically
from dbpkit.statistics.estimates import Estimate
from dbpkit.statistics.intervals import Interval
from dbpkit.statistics.ranks import Rank, all_pairs, ranks

COLUMNS = (
    "group", "rank", "best_rank", "worst_rank", "letter", "name", "source", "accuracy", "low", "high",
    "estimand", "examples", "draws", "dw_both", "clean", "noise_control", "undefended", "all_draws",
    "clean_all_draws", "attack", "iterations", "eot", "gradient_passes", "network_calls", "weaker",
    "faults", "flags",
)  # fmt: skip
"""Columns of the CSV."""

TABLE = OwnFile("a board's table", ".csv", re.compile(b"group,rank,best_rank,"))
"""The CSV beside a page."""


class Standing(NamedTuple):
    """One defence on the board.

    Attributes:
        letter: its sign in sentences.
        entry: what was read of it.
        accuracy: its headline.
        rank: from the best rank that the data allow to the worst; None where it is not ranked.
        better_than: letters of those that it is told apart from, and better than.
        alike: letters of those that it is not told apart from.
        weaker: letters of those whose attack is stronger, and in what.
    """

    letter: str
    entry: Entry
    accuracy: Estimate | None
    rank: Rank | None
    better_than: list[str]
    alike: list[str]
    weaker: dict[str, list[str]]

    @property
    def strength(self) -> Strength:
        """How strong its attack was."""
        return self.entry.strength

    def as_json(self) -> dict[str, Any]:
        """Returns plain dictionaries and lists."""
        own, row = self.entry, self.entry.row
        rows = ("dw_both", "clean", "noise_control", "undefended")
        found = {name: own.estimate(name) for name in rows}
        every = own.estimate(row.name, "all_draws") if row else None
        clean = own.estimate("clean", "all_draws")
        return {
            "letter": self.letter,
            "name": own.name,
            "source": own.source,
            "rank": self.rank and list(self.rank),
            "accuracy": self.accuracy and self.accuracy._asdict(),
            **{name: e and e._asdict() for name, e in found.items()},
            "all_draws": every and every._asdict(),
            "clean_all_draws": clean and clean._asdict(),
            "attack": {**self.strength._asdict(), "names": list(self.strength.names)},
            "gradient_passes": row.gradient_passes if row else None,
            "network_calls": row.network_calls if row else None,
            "better_than": self.better_than,
            "not_told_apart_from": self.alike,
            "weaker_attack_than": self.weaker,
            "faults": own.faults,
            "flags": sorted({flag.name for flag in own.summary.flags}),
        }


class Group(NamedTuple):
    """Defences that can be ranked together: of one threat, data set and protocol.

    Attributes:
        title: which.
        standings: the ranked ones from the best on, then the others.
        differences: of every ranked pair, with intervals that hold at once.
        sentences: what to know before reading it.
    """

    title: str
    standings: list[Standing]
    differences: dict[tuple[str, str], Interval]
    sentences: list[str]

    def as_json(self) -> dict[str, Any]:
        """Returns plain dictionaries and lists."""
        pairs = [{"a": a, "b": b, **d._asdict()} for (a, b), d in self.differences.items()]
        standings = [s.as_json() for s in self.standings]
        return {
            "title": self.title,
            "sentences": self.sentences,
            "standings": standings,
            "differences": pairs,
        }


class Board(NamedTuple):
    """Defences by group.

    Attributes:
        groups: of one threat each, in the order in which they were given.
        page: the HTML file that was written, or None.
        table: the CSV file beside it, or None.
    """

    groups: list[Group]
    page: Path | None = None
    table: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """Returns plain dictionaries and lists."""
        files = {"page": self.page and str(self.page), "csv": self.table and str(self.table)}
        return {"groups": [group.as_json() for group in self.groups], **files}

    def as_csv(self) -> str:
        """Returns one line for each defence."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for group in self.groups:
            writer.writerows(_line(group.title, standing) for standing in group.standings)
        return text.getvalue()

    def _repr_html_(self) -> str:
        """What a notebook shows: the table of every group."""
        return display.html(self)

    def to_frame(self) -> Any:
        """Returns a ``pandas.DataFrame``: a line for every defence, accuracies in [0, 1].

        Raises:
            UserError: if pandas is not installed.
        """
        return display.frame(self)


def board(runs: Sequence[str | Path], out: str | Path | None = None) -> Board:
    """Ranks the defences of several bundles or run directories.

    Args:
        runs: files of bundles, and run directories.
        out: the HTML page; a CSV of the same name is written beside it. None writes nothing.

    Returns:
        The defences of each threat, data set and protocol, with ranks that hold at once with 95 %.

    Raises:
        UserError: if one is neither a bundle nor a run, or the page cannot be written.

    Example:
        >>> dbpkit.board(["a.zip", "b.zip"], "board.html")  # doctest: +SKIP
    """
    if isinstance(runs, str | Path) or not runs:
        raise UserError("a board needs a list of bundles or run directories, at least one.")
    page = None if out is None else check_place(out, PAGE)
    table = None if page is None else check_place(_beside(page), TABLE)
    made = Board(ranked(read_entries(runs)))
    if page is None or table is None:
        return made
    from dbpkit.bundles.board_page import board_page

    write_atomically(table, made.as_csv().encode())
    write_atomically(page, board_page(made).encode())
    return made._replace(page=page, table=table)


def _beside(page: Path) -> Path:
    """Where the CSV of a page lies."""
    return page.with_suffix(".csv") if page.suffix != ".csv" else page.with_name(f"{page.name}.csv")


def ranked(entries: Sequence[Entry]) -> list[Group]:
    """Returns entries by group, ranked in each."""
    groups: list[list[tuple[str, Entry]]] = []
    for number, entry in enumerate(entries):
        letter = string.ascii_uppercase[number] if number < 26 else str(number + 1)
        fitting = next((g for g in groups if all(_fits(entry, other) for _, other in g)), None)
        if fitting is None:
            groups.append(fitting := [])
        fitting.append((letter, entry))
    return [_group(group, len(groups)) for group in groups]


def _fits(a: Entry, b: Entry) -> bool:
    """Whether two can be ranked together: the same threat, protocol and data, as far as they can be known."""
    threat_and_protocol = (*a.group[:3], a.group[5]) == (*b.group[:3], b.group[5])
    shared = a.labels.keys() & b.labels.keys()
    if not threat_and_protocol or any(a.labels[i] != b.labels[i] for i in shared):
        return False
    return a.group[3:5] == b.group[3:5] or ("" != a.data_sha256 == b.data_sha256)


def _group(group: Sequence[tuple[str, Entry]], count: int) -> Group:
    """Ranks the entries of a group."""
    sound = [(letter, e) for letter, e in group if not e.faults]
    letters = [letter for letter, _ in sound]
    pairs = all_pairs([e.scores for _, e in sound])
    stronger = {
        (i, j): sound[i][1].strength.weaker_than(sound[j][1].strength)
        for i in range(len(sound))
        for j in range(len(sound))
    }
    better = {(i, j) for (i, j), d in pairs.items() if d.low > 0 and not stronger[i, j]}
    better |= {(j, i) for (i, j), d in pairs.items() if d.high < 0 and not stronger[j, i]}
    places = ranks(len(sound), better)
    standings = []
    for i, (letter, entry) in enumerate(sound):
        own = [letters[j] for j in range(len(sound)) if (i, j) in better]
        apart = [j for j in range(len(sound)) if i == j or (i, j) in better or (j, i) in better]
        alike = [letters[j] for j in range(len(sound)) if j not in apart]
        weaker = {letters[j]: why for j in range(len(sound)) if (why := stronger[i, j])}
        shown = entry.row.headline if entry.row else None
        standings.append(Standing(letter, entry, shown, places[i], own, alike, weaker))
    standings.sort(key=_order)
    rest = [
        Standing(letter, e, e.row.headline if e.row else None, None, [], [], {})
        for letter, e in group
        if e.faults
    ]
    named = {(letters[i], letters[j]): d for (i, j), d in pairs.items()}
    return Group(group[0][1].setting, standings + rest, named, _sentences(standings, rest, named, count))


def _order(standing: Standing) -> tuple[int, int, int, float]:
    """Where a defence stands: by its worst rank, then its best, then strong attacks before weak ones."""
    rank, accuracy = standing.rank, standing.accuracy
    assert rank is not None
    return rank.worst, rank.best, len(standing.weaker), -(accuracy.value if accuracy else 0.0)


def _sentences(
    standings: Sequence[Standing],
    rest: Sequence[Standing],
    pairs: dict[tuple[str, str], Interval],
    count: int,
) -> list[str]:
    """What to know before reading a group."""
    found = []
    if count > 1:
        found.append(
            "Other threats, data or protocols have tables of their own: their numbers do not compare."
        )
    first = [s.letter for s in standings if s.rank and s.rank.best == 1]
    if len(first) > 1:
        found.append(f"Nobody is shown to be the best: {', '.join(first)} may each be first.")
    elif len(standings) > 1 and first:
        found.append(f"{first[0]} is the best of these, as far as their attacks go.")
    if weak := [s for s in standings if s.weaker]:
        said = "; ".join(f"{s.letter} than {', '.join(s.weaker)} ({_joined(s.weaker)})" for s in weak)
        found.append(
            f"THE ATTACKS DIFFER. Weaker: {said}. A weaker attack looks like a stronger defence, so none of"
            " these is said to be better than one with a stronger attack."
        )
    if rest:
        found.append(f"Not ranked: {', '.join(s.letter for s in rest)}; the reason stands beside each.")
    ways = {d.method for d in pairs.values()}
    if any("two samples" in way for way in ways):
        found.append(
            "Some pairs share no images; their differences are of two samples, and less is told apart."
        )
    if "too few images" in ways:
        found.append("Some pairs share too few images to be told apart.")
    return found


def _joined(weaker: dict[str, list[str]]) -> str:
    """In what an attack is weaker, each said once."""
    return "; ".join(dict.fromkeys(why for own in weaker.values() for why in own))


def _line(title: str, standing: Standing) -> dict[str, Any]:
    """The line of a defence in the CSV."""
    told, own = standing.as_json(), standing.accuracy
    values = ("dw_both", "clean", "noise_control", "undefended", "all_draws", "clean_all_draws")
    rank, strength = standing.rank, standing.strength
    return {
        "group": title,
        "rank": str(rank).replace("–", "-") if rank else "",
        "best_rank": rank.best if rank else "",
        "worst_rank": rank.worst if rank else "",
        **{name: _cell(told[name]) for name in ("letter", "name", "source")},
        **(
            {"accuracy": own.value, "low": own.low, "high": own.high, "estimand": own.estimand} if own else {}
        ),
        **({"examples": own.examples, "draws": own.draws} if own else {}),
        **{name: told[name]["value"] if told[name] else "" for name in values},
        "attack": _cell("+".join(strength.names)),
        "iterations": strength.iterations,
        "eot": strength.eot or "",
        "gradient_passes": told["gradient_passes"],
        "network_calls": told["network_calls"],
        "weaker": _cell("; ".join(f"{k}: {', '.join(v)}" for k, v in standing.weaker.items())),
        "faults": _cell(" ".join(standing.entry.faults)),
        "flags": " ".join(told["flags"]),
    }


def _cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula: names come from strangers."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
