"""Lists that come beside images, as texts: annotations, splits, names of classes."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from dbpkit.data.dataset import existing
from dbpkit.foundation.errors import UserError, shown
from dbpkit.foundation.files import read_whole

LARGEST = 2**26
"""Bytes of the largest list; that of CelebA's attributes has 27 MB."""

WNID = re.compile(r"n[0-9]{8}")
"""The number of a synset of WordNet, which ImageNet calls its classes by."""


def lines_of(path: Path, what: str) -> list[str]:
    """Returns the lines of a text file that hold anything, stripped.

    Args:
        path: the file.
        what: whose it is, for errors.

    Raises:
        UserError: if it is missing, larger than `LARGEST` bytes or no text.
    """
    try:
        text = read_whole(existing(path, what), LARGEST).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{what}: cannot read '{path}' ({error.strerror}). Download it again.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{what}: '{path}' is not a text. Download it again.") from error
    if "\0" in text:
        raise UserError(f"{what}: '{path}' is not a text. Download it again.")
    return [line.strip() for line in text.splitlines() if line.strip()]


def refused(path: Path, number: int, line: str, expected: str, what: str) -> UserError:
    """The error for a line of a list that is not what it should be; lines are counted from 1."""
    return UserError(f"{what}: line {number} of '{path}' is {shown(line)}; {expected} was expected.")


def wnids_of(lines: Iterable[str], path: Path, what: str) -> list[str]:
    """Returns the synset that every line begins with; UserError for a line without one, or a repeated one."""
    found: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        name = line.split()[0].split(",")[0]
        if not WNID.fullmatch(name):
            raise refused(path, number, line, "a synset such as 'n01440764'", what)
        if name in found:
            raise refused(path, number, line, "a synset that is not there before", what)
        found[name] = None
    return list(found)


def first_existing(places: Sequence[Path]) -> Path | None:
    """Returns the first of the paths that is there."""
    return next((place for place in places if place.exists()), None)
