"""Reproduced tables in a terminal: measured beside published, then the claims."""

from rich.table import Table as Grid

from dbpkit.tables.reproduce import ReproducedTable
from dbpkit.tables.view import CellView, TableView, table_view


def grid(found: ReproducedTable) -> Grid:
    """Returns the table: in every cell the measured value, its interval and the published value."""
    view = table_view(found)
    made = Grid(title=f"{view.title} ({view.source})", title_justify="left", header_style="bold", box=None)
    made.add_column("")
    for column, unit in view.columns:
        made.add_column(f"{column}{f', {unit}' if unit else ''}", justify="right")
    for label, cells in view.rows:
        made.add_row(label, *(_text(cell) for cell in cells))
    return made


def sentences(found: ReproducedTable) -> list[str]:
    """Returns what stands in for what, every claim with its verdict, and what is missing."""
    view = table_view(found)
    said = [f"What stands in: {view.stands_in}"] if view.stands_in else []
    said += [_claim(view, number) for number in range(len(view.claims))]
    if found.scale == "paper":
        said += [f"{where}: {text}" for where, text in view.notes]
    return said


def _text(cell: CellView | None) -> str:
    """A cell on two lines."""
    if cell is None:
        return ""
    published = f"published {cell.published}{cell.mark}" if cell.published else ""
    measured = f"{cell.value} ({cell.interval})" if cell.interval else cell.value or "–"
    return "\n".join(line for line in (measured, published) if line)


def _claim(view: TableView, number: int) -> str:
    claim = view.claims[number]
    return f"{claim.verdict}: {claim.words}{f' ({claim.reason})' if claim.reason else ''}"
