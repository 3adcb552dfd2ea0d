"""A published table as data: rows, columns, published values, how each cell is measured, and what is claimed.

One TOML file a table, in `tables/data`. A cell's setting is made in layers: those of the table, then of its
column, its row and the cell itself; the later one wins. Nothing here runs anything.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from dbpkit.foundation.errors import UserError, unknown_name
from dbpkit.foundation.packaged import HERE
from dbpkit.foundation.spec import Strict, validate
from dbpkit.foundation.toml import read_table
from dbpkit.models.zoo import zoo

FOLDER = HERE / "tables" / "data"
"""Where the published tables lie."""

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError("a name has small letters, digits and hyphens only")
    return text


@cache
def _models() -> tuple[str, ...]:
    return tuple(model.name for model in zoo())


def _model(text: str) -> str:
    names = _models()
    if text not in names and " " not in text:
        raise ValueError(str(unknown_name("model", text, names)).rstrip("."))
    return text


def _sentence(text: str) -> str:
    if " " not in text.strip():
        raise ValueError("it must be a sentence")
    return text


Name = Annotated[str, AfterValidator(_name)]
"""What claims and files call a row, a column or a table."""

Sentence = Annotated[str, AfterValidator(_sentence)]

ModelName = Annotated[str, AfterValidator(_model)]
"""A model of `dbpkit models`, or a sentence that says what is missing and how it would be made."""

Reference = Annotated[str, Field(pattern=r"^[a-z0-9-]+/[a-z0-9-]+$")]
"""A cell, as ROW/COLUMN."""


class Models(Strict):
    """The published models, by part of the spec; the embedded ones stand in for them at mini scale."""

    classifier: ModelName | None = None
    denoiser: ModelName | None = None


class Mini(Strict):
    """What the mini scale changes, beside the models and data, which are the embedded ones.

    Attributes:
        images: how many images.
        iterations: most iterations of every attack.
        eot: most draws per gradient of every attack.
        draws: draws per image that are published.
        spec: further changes of the spec.
        options: changes of the options of the analysis that is read.
    """

    images: int | None = Field(default=None, gt=0)
    iterations: int | None = Field(default=None, gt=0)
    eot: int | None = Field(default=None, gt=0)
    draws: int | None = Field(default=None, gt=0)
    spec: dict[str, Any] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)


class Reads(Strict):
    """Where a cell's number is read: a row of a run under a protocol, or a number of an analysis.

    Attributes:
        row: row of an evaluation, such as ``clean`` or ``white_box``.
        protocol: which estimate of it: ``one_shot``, ``worst_of_n``, ``majority``, ...
        analysis: name of an analysis.
        options: its options.
        number: name of one of its numbers, in full.
    """

    row: str | None = None
    protocol: str | None = None
    analysis: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    number: str | None = None


class Layer(Strict):
    """What a table, a column, a row and a cell may each say of a setting.

    Attributes:
        spec: changes of the evaluation spec at both scales; a part with another name begins anew.
        models: the published models.
        reads: where the number is read.
        mini: what the mini scale changes.
        no_mini: why this is not measured at mini scale.
        unsupported: why no evaluation of dbpkit is this, at either scale.
        stands_in: what the embedded models replace here, beyond what the table says.
        note: what a reader should know.
    """

    spec: dict[str, Any] = Field(default_factory=dict)
    models: Models = Models()
    reads: Reads = Reads()
    mini: Mini = Mini()
    no_mini: Sentence | None = None
    unsupported: Sentence | None = None
    stands_in: Sentence | None = None
    note: Sentence | None = None


class Column(Layer):
    """A column.

    Attributes:
        name: what claims call it.
        title: its heading.
        unit: ``%`` for shares, whose published values are in percent; else a word or nothing.
    """

    name: Name
    title: str
    unit: str = "%"


class Cell(Layer):
    """A published value, or the lack of one; a number alone is its value.

    Attributes:
        value: as published, in the column's unit; unset where nothing is published and it is measured anyway.
        n: images behind it.
        sd: published standard deviation or error, as ``note`` says.
        low: lower end of a published interval, or of what a figure was read as.
        high: upper end.
        unconfirmed: why the value or its setting is not certain.
    """

    value: float | None = None
    n: int | None = Field(default=None, gt=0)
    sd: float | None = Field(default=None, ge=0)
    low: float | None = None
    high: float | None = None
    unconfirmed: Sentence | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        return {"value": float(value)} if plain else value


class Row(Layer):
    """A row.

    Attributes:
        name: what claims call it.
        label: its heading.
        cells: published cells by name of the column.
    """

    name: Name
    label: str
    cells: dict[str, Cell] = Field(min_length=1)


class TableClaim(Strict):
    """An order or a sign that the paper states.

    Exactly one of `order`, `contrast` and `cell` says what is tested.

    Attributes:
        words: the claim, as a sentence.
        order: cells from the highest to the lowest; each pair of neighbours is a test.
        contrast: weights by cell; the claim is that their sum is above 0.
        cell: a cell that lies above `least` or below `most`.
        least: in the column's unit.
        most: in the column's unit.
        not_mini: why it cannot be tested at mini scale; its cells are not compared there.
    """

    words: Sentence
    order: list[Reference] = Field(default_factory=list)
    contrast: dict[Reference, float] = Field(default_factory=dict)
    cell: Reference | None = None
    least: float | None = None
    most: float | None = None
    not_mini: Sentence | None = None

    @property
    def cells(self) -> list[str]:
        """The cells it is about."""
        return [*self.order, *self.contrast, *([self.cell] if self.cell else [])]

    @model_validator(mode="after")
    def _one_test(self) -> "TableClaim":
        ways = [len(self.order) > 0, len(self.contrast) > 0, self.cell is not None]
        if sum(ways) != 1 and not (self.not_mini and not any(ways)):
            raise ValueError("a claim has one of order, contrast and cell")
        if len(self.order) == 1:
            raise ValueError("an order needs two cells or more")
        if (self.cell is not None) != (self.least is not None or self.most is not None):
            raise ValueError("a claim on one cell has least or most, and no other claim has")
        return self


class Table(Layer):
    """A published table.

    Attributes:
        name: its name, that of the file.
        title: its heading.
        paper: the paper, as cited.
        place: section, table or figure.
        setting: the published setting, in a sentence.
        columns: in order.
        rows: in order.
        claims: what the paper says of it.
        status: ``published``, or ``draft`` where values are of a manuscript.
    """

    name: Name
    title: str
    paper: Sentence
    place: str
    setting: Sentence
    columns: list[Column] = Field(min_length=1)
    rows: list[Row] = Field(min_length=1)
    claims: list[TableClaim] = Field(default_factory=list)
    status: Literal["published", "draft"] = "published"

    def row(self, name: str) -> Row:
        """Returns a row by name."""
        return next(row for row in self.rows if row.name == name)

    def column(self, name: str) -> Column:
        """Returns a column by name."""
        return next(column for column in self.columns if column.name == name)

    def places(self) -> Iterator[tuple[Row, Column, Cell]]:
        """Yields every cell that has something, row by row, in the order of the columns."""
        for row in self.rows:
            for column in self.columns:
                if column.name in row.cells:
                    yield row, column, row.cells[column.name]

    @model_validator(mode="after")
    def _known_names(self) -> "Table":
        columns, rows = [c.name for c in self.columns], [r.name for r in self.rows]
        for what, names in (("columns", columns), ("rows", rows)):
            if twice := {name for name in names if names.count(name) > 1}:
                raise ValueError(f"two {what} are called '{min(twice)}'")
        for row in self.rows:
            if unknown := sorted(row.cells.keys() - set(columns)):
                raise ValueError(f"row '{row.name}' has a cell in column '{unknown[0]}', which there is not")
        there = {f"{row.name}/{column.name}" for row, column, _ in self.places()}
        for claim in self.claims:
            if unknown := [c for c in claim.cells if c not in there]:
                raise ValueError(f"a claim is about cell '{unknown[0]}', which there is not")
        return self


def table_names() -> list[str]:
    """Returns the names of the published tables, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_table(name: str) -> Table:
    """Reads a published table; UserError if there is none of that name, or its file is wrong."""
    if name not in table_names():
        raise unknown_name("table", name, table_names())
    return read_published(FOLDER / f"{name}.toml")


def read_published(path: Path) -> Table:
    """Reads a table's file; UserError says what is wrong in it."""
    table = validate({"name": path.stem, **read_table(path)}, Table, str(path))
    if table.name != path.stem:
        raise UserError(f"table '{path}' calls itself '{table.name}'. Name it after its file.")
    return table
