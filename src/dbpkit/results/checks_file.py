"""``checks.json``: what the checks before a run found, and which ran.

Version 1 was the bare list of flags; it is read as one that does not say which checks ran.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dbpkit.results.layout import checked, read_json
from dbpkit.results.schemas import CHECKS, FLAGS

VERSION = 2
"""Of the file that is written."""


class ChecksFile(NamedTuple):
    """What the checks before a run left.

    Attributes:
        flags: what they found, as dictionaries.
        ran: which checks ran, with what they look at; None where that was not recorded.
    """

    flags: list[dict[str, Any]]
    ran: dict[str, str] | None


def read_checks_file(path: Path, remedy: str) -> ChecksFile | None:
    """Returns what the checks left, or None if they have not run; UserError if the file is damaged."""
    content = read_json(path, remedy)
    if content is None:
        return None
    if isinstance(content, list):
        return ChecksFile(checked(content, FLAGS, f"'{path}'", remedy), None)
    found = checked(content, CHECKS, f"'{path}'", remedy)
    return ChecksFile(found["flags"], found.get("ran"))


def checks_file(flags: Sequence[Mapping[str, Any]], ran: Mapping[str, str] | None) -> dict[str, Any]:
    """Returns the content of ``checks.json``."""
    return {"version": VERSION, "flags": list(flags), "ran": None if ran is None else dict(ran)}
