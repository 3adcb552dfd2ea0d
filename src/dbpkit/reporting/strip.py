"""The strip of pictures: what a run stored of its first examples, ready to be shown.

A purified picture shows one draw. The prediction under it is that draw's; the count beside it says what the
other draws gave.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dbpkit.foundation.arrays import Array
from dbpkit.reporting.figures import amplified, image_uri
from dbpkit.reporting.tables import row_title, short_title
from dbpkit.results.columns import Columns
from dbpkit.results.records import Record
from dbpkit.results.run_directory import RunDirectory
from dbpkit.results.schemas import RecordedSpec

EXAMPLES = 8
"""Examples shown, at most."""

CLEAN = "clean"


class Picture(NamedTuple):
    """One image with what is written under it.

    Attributes:
        uri: PNG data URI.
        alt: text that stands for it.
        text: what the classifier says, or how large the perturbation is.
        right: whether the classifier is right, or None where nothing was classified.
        note: ``"5 of 8 right"`` over all draws, or empty.
    """

    uri: str
    alt: str
    text: str
    right: bool | None = None
    note: str = ""


class StripLine(NamedTuple):
    """The pictures of one example; None where the run has no such picture."""

    example: int
    label: str
    pictures: list[Picture | None]


class Strip(NamedTuple):
    """Pictures of the first examples.

    Attributes:
        attackers: title of every attacker.
        lines: one per example: clean and purified, then attacked and purified for every attacker.
        perturbations: per attacker its title and one amplified picture per example.
        size: width and height of the pictures as stored.
    """

    attackers: list[str]
    lines: list[StripLine]
    perturbations: list[tuple[str, list[Picture]]]
    size: str


class _Stored(NamedTuple):
    """What the run directory has of its pictures."""

    tensors: dict[str, Array]
    about: dict[str, Any]
    records: dict[tuple[str, int, int], Record]

    def label(self, k: int) -> str:
        return class_name(self.about, self.about["labels"][k])


def read_strip(run: RunDirectory, spec: RecordedSpec, columns: Columns) -> Strip | None:
    """Returns the pictures of a run, or None before it has any.

    Raises:
        UserError: if the file of pictures is damaged.
    """
    tensors, about = run.read_strip()
    if not tensors:
        return None
    by_key: dict[tuple[str, int, int], Record] = {}
    for row, group in columns.rows.items():
        shown = group.select(np.flatnonzero(np.isin(group.example, tensors["ids"])))
        distances = shown.measures["distance"].tolist()
        for r, distance in zip(shown.records(row), distances, strict=True):
            by_key[row, r["example"], r["tape"]] = r
            if distance == distance:  # nan where none was recorded
                r["distance"] = distance
    stored = _Stored(tensors, about, by_key)
    attackers = [name for name in about["predicted"] if f"{name}.x_adv" in tensors]
    lines = []
    for k, example in enumerate(tensors["ids"].tolist()[:EXAMPLES]):
        pictures = [_undefended(stored, k, example), _purified(stored, CLEAN, k, example)]
        for name in attackers:
            pictures += [_attacked(stored, name, k, example, spec), _purified(stored, name, k, example)]
        lines.append(StripLine(example, stored.label(k), pictures))
    perturbations = [
        (short_title(row_title(name)), [_perturbation(stored, name, k, line) for k, line in enumerate(lines)])
        for name in attackers
    ]
    height, width = tensors[CLEAN].shape[-2:]
    titles = [short_title(row_title(name)) for name in attackers]
    return Strip(titles, lines, perturbations, f"{width} × {height}")


def class_name(about: Mapping[str, Any], index: int) -> str:
    """Returns the name of a class, or its number where it has no name."""
    names = about.get("class_names", [])
    return str(names[index]) if index < len(names) else str(index)


def _undefended(stored: _Stored, k: int, example: int) -> Picture:
    """The clean image, with what the classifier says without a purifier."""
    uri, alt = image_uri(stored.tensors[CLEAN][k]), f"example {example}, {stored.label(k)}, clean"
    record = stored.records.get(("undefended_clean", example, 0))
    if record is None:
        return Picture(uri, alt, "")
    said = class_name(stored.about, record["predicted"][0])
    return Picture(uri, f"{alt}; classified as {said}", said, record["predicted"][0] == record["label"])


def _attacked(stored: _Stored, name: str, k: int, example: int, spec: RecordedSpec) -> Picture:
    """The image an attacker made, with the size of its perturbation."""
    record = stored.records.get((name, example, 0))
    size = _amount(record["distance"], spec) if record and "distance" in record else ""
    alt = f"example {example}, {stored.label(k)}, attacked by {short_title(row_title(name))}"
    return Picture(image_uri(stored.tensors[f"{name}.x_adv"][k]), alt, size)


def _purified(stored: _Stored, name: str, k: int, example: int) -> Picture | None:
    """A purified image, with what the classifier says of it and of the row's other draws."""
    if f"{name}.x_pure" not in stored.tensors:
        return None
    label, predicted = stored.about["labels"][k], stored.about["predicted"][name][k]
    draws = [
        p == label
        for (row, i, _), record in stored.records.items()
        if (row, i) == (name, example)
        for p in record["predicted"]
    ]
    what = "clean" if name == CLEAN else f"attacked by {short_title(row_title(name))}"
    said = class_name(stored.about, predicted)
    alt = f"example {example}, {stored.label(k)}, {what}, then purified; classified as {said}"
    note = f"{sum(draws)} of {len(draws)} right" if len(draws) > 1 else ""
    return Picture(image_uri(stored.tensors[f"{name}.x_pure"][k]), alt, said, predicted == label, note)


def _perturbation(stored: _Stored, name: str, k: int, line: StripLine) -> Picture:
    """The perturbation alone, amplified."""
    alt = f"example {line.example}, {line.label}, perturbation of {short_title(row_title(name))}, amplified"
    image = amplified(stored.tensors[CLEAN][k], stored.tensors[f"{name}.x_adv"][k])
    return Picture(image_uri(image), alt, "")


def _amount(distance: float, spec: RecordedSpec) -> str:
    """A distance in the unit in which the budget is written: ``"8.0/255"`` or ``"0.500"``."""
    return f"{255 * distance:.1f}/255" if "/255" in spec.threat.eps else f"{distance:.3f}"
