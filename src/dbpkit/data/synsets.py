"""The lists that come with ImageNet: which image has which synset, and the order and names of synsets.

Classes are synsets in the order of text, as in torchvision, timm and RobustBench.
"""

import re
from pathlib import Path

import numpy as np

from dbpkit.data.lists import WNID, lines_of, refused, wnids_of
from dbpkit.data.matlab import headers, variables
from dbpkit.foundation.errors import UserError, excerpt
from dbpkit.foundation.files import read_whole

CLASSES = 1000
"""Synsets of the challenge."""

LABELS = ("LOC_val_solution.csv", "val.txt", "ILSVRC2012_validation_ground_truth.txt")
"""Lists of labels, as they are looked for."""

MAPPING = "LOC_synset_mapping.txt"
"""List of the 1,000 synsets with their names."""

_WHAT = "data 'imagenet'"
_NUMBER = re.compile(r"(?:.*/)?ILSVRC2012_val_([0-9]{8})(?:\.jpe?g)?", re.IGNORECASE)
_BESIDE = ("", "data", "devkit/data", "ILSVRC2012_devkit_t12/data")
_ABOVE = 4
"""How many folders are looked into, from that of the images on; Kaggle's lists lie four above it."""


def labels_in(folder: Path, given: str | None) -> dict[int, str]:
    """Returns the synset of every image by its number, from a list that is given, or lies beside the images.

    Raises:
        UserError: if there is no list, or it is damaged.
    """
    path = Path(given).expanduser() if given else next((p for n in LABELS if (p := _near(folder, n))), None)
    if path is None:
        raise UserError(
            f"{_WHAT}: '{folder}' has no folders of synsets, and no list of labels lies beside it or above."
            f" Put {LABELS[0]} there, or set labels to it."
        )
    lines = lines_of(path, _WHAT)
    if path.name.lower().endswith(".csv"):
        found = _of_solution(path, lines)
    elif lines and " " not in lines[0]:
        found = _of_devkit(path, lines)
    else:
        found = _of_val_list(path, lines, folder)
    if not found:
        raise UserError(f"{_WHAT}: the list of labels '{path}' is empty. Download it again.")
    return found


def synsets_in(folder: Path, given: str | None) -> tuple[str, ...] | None:
    """Returns all synsets in the order of classes; None if no list is given or lies beside the images.

    Raises:
        UserError: if a list does not hold 1,000 synsets.
    """
    path = Path(given).expanduser() if given else _near(folder, MAPPING)
    if path is None:
        return None
    found = wnids_of(lines_of(path, _WHAT), path, _WHAT)
    if len(found) != CLASSES:
        raise UserError(f"{_WHAT}: '{path}' holds {len(found)} synsets; {CLASSES} were expected.")
    return tuple(sorted(found))


def names_in(folder: Path, wnids: tuple[str, ...]) -> tuple[str, ...]:
    """Returns a name of every synset: the first in the list beside the images, else its number."""
    path = _near(folder, MAPPING)
    if path is None:
        return wnids
    split = (line.partition(" ") for line in lines_of(path, _WHAT))
    named = {wnid: said.split(",")[0].strip() for wnid, _, said in split}
    return tuple(named.get(wnid) or wnid for wnid in wnids)


def _near(folder: Path, name: str) -> Path | None:
    """A list beside the images or above them."""
    above = [folder, *folder.resolve().parents][: _ABOVE + 1]
    return next((p for top in above for part in _BESIDE if (p := top / part / name).is_file()), None)


def _of_solution(path: Path, lines: list[str]) -> dict[int, str]:
    """``ImageId,PredictionString`` lines, of which the second begins with the synset."""
    found: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        name, _, said = line.partition(",")
        wnid = said.strip('" ').split(" ")[0]
        match = _NUMBER.fullmatch(name)
        if match and WNID.fullmatch(wnid):
            found[int(match[1])] = wnid
        elif number > 1:
            raise refused(path, number, line, "'ILSVRC2012_val_00000001,n01751748 ...'", _WHAT)
    return found


def _of_val_list(path: Path, lines: list[str], folder: Path) -> dict[int, str]:
    """``ILSVRC2012_val_00000001.JPEG 65`` lines, whose numbers are classes."""
    wnids = synsets_in(folder, None)
    found: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        name, _, said = line.partition(" ")
        match, value = _NUMBER.fullmatch(name), said.strip()
        if match and WNID.fullmatch(value):
            found[int(match[1])] = value
        elif match and value.isdecimal() and len(value) < 5 and int(value) < CLASSES:
            if wnids is None:
                raise UserError(
                    f"{_WHAT}: '{path}' has classes by number, whose synsets are not known. Put {MAPPING}"
                    " beside it."
                )
            found[int(match[1])] = wnids[int(value)]
        else:
            raise refused(path, number, line, "a file and a class, 0 to 999", _WHAT)
    return found


def _of_devkit(path: Path, lines: list[str]) -> dict[int, str]:
    """The ground truth of the development kit: line n is the kit's own number of image n's class."""
    wnid_of = _meta(path.with_name("meta.mat"))
    found: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.isdecimal() or len(line) > 4 or int(line) not in wnid_of:
            raise refused(path, number, line, f"a class of the kit, 1 to {CLASSES}", _WHAT)
        found[number] = wnid_of[int(line)]
    return found


def _meta(path: Path) -> dict[int, str]:
    """The synsets of the kit by their number in it, of ``meta.mat``."""
    try:
        content = read_whole(path, 2**24)
        headers(content, 2**26)
        table = np.atleast_1d(variables(content, ["synsets"], squeeze_me=True)["synsets"])
        pairs = [(int(row["ILSVRC2012_ID"]), str(row["WNID"])) for row in table]
    except Exception as error:  # scipy raises nearly anything
        raise UserError(
            f"{_WHAT}: '{path}' is missing or not that of the development kit ({excerpt(error)}), and the"
            f" ground truth beside it counts classes in its own order. Put it there, or use {LABELS[0]}."
        ) from error
    found = {number: wnid for number, wnid in pairs if 1 <= number <= CLASSES}
    if len(found) != CLASSES or not all(WNID.fullmatch(wnid) for wnid in found.values()):
        raise UserError(f"{_WHAT}: '{path}' holds {len(found)} synsets; {CLASSES} were expected.")
    return found
