"""How reproduced tables show themselves in notebooks, as `dbpkit.foundation.display` finds it."""

from dbpkit.foundation.display import Display, table_displays
from dbpkit.reporting.display import html_table
from dbpkit.tables.reproduce import ReproducedTable
from dbpkit.tables.view import CellView, table_view


def _table_html(found: ReproducedTable) -> str:
    view = table_view(found)
    heads = ["", *(f"{title}{f', {unit}' if unit else ''}" for title, unit in view.columns)]
    rows = [[label, *(_text(cell) for cell in cells)] for label, cells in view.rows]
    said = [f"What stands in: {view.stands_in}"] if view.stands_in else []
    notes = [("", f"{c.verdict}: {c.words}{f' ({c.reason})' if c.reason else ''}") for c in view.claims]
    small = "In every cell: measured, with its 95 % interval over images, and published."
    if any(cell and cell.mark for _, cells in view.rows for cell in cells):
        small += " A question mark: the published value or its setting is not certain."
    return html_table(f"{view.title} ({view.source})", said, heads, rows, notes, small)


def _text(cell: CellView | None) -> str:
    if cell is None:
        return ""
    measured = f"{cell.value} ({cell.interval})" if cell.interval else cell.value or "–"
    return f"{measured}; published {cell.published}{cell.mark}" if cell.published else measured


table_displays.register("ReproducedTable")(Display(_table_html, lambda found: found.rows()))
table_displays.register("Reproduction")(
    Display(lambda found: "".join(map(_table_html, found.tables)), lambda found: found.rows())
)
