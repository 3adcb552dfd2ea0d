"""The page of reproduced tables, in the look of a run's report, and the same numbers as CSV."""

import re
from collections.abc import Sequence
from pathlib import Path

from dbpkit.foundation.files import PAGE, OwnFile, check_place, write_atomically
from dbpkit.reporting.page import rendered
from dbpkit.tables.reproduce import Reproduction
from dbpkit.tables.view import counted, table_view

CELLS = OwnFile("a table of cells", ".csv", re.compile(b"table,scale,row,"))
"""The CSV beside a page."""


def write_page(found: Reproduction, path: Path | None = None) -> Path:
    """Writes one page about one table or several, and a CSV beside it.

    Args:
        found: what `dbpkit.tables.reproduce.reproduce` returned.
        path: the HTML file; None takes the table's name, or ``tables``, in the folder of the runs.

    Returns:
        The path of the HTML file.

    Raises:
        UserError: if a file that is none of these has one of their names, or they cannot be written.
    """
    views = [table_view(table) for table in found.tables]
    single = len(views) == 1
    path = path or page_of([view.name for view in views], found.out)
    check_page(path)
    page = rendered(
        "tables/page.html",
        title=views[0].title if single else f"{len(views)} published tables",
        scale=found.tables[0].scale,
        answer=answer_of(found),
        views=views,
    )
    write_atomically(path.with_suffix(".csv"), found.as_csv().encode())
    write_atomically(path, page.encode())
    return path


def page_of(names: Sequence[str], out: Path) -> Path:
    """Returns where the page about tables lies in the folder of their runs."""
    return out / f"{names[0] if len(names) == 1 else 'tables'}.html"


def check_page(path: Path) -> None:
    """Raises UserError if a page or the CSV beside it would replace a file of the user's."""
    check_place(path, PAGE)
    check_place(path.with_suffix(".csv"), CELLS)


def answer_of(found: Reproduction) -> str:
    """Returns what came out, in a sentence or two."""
    verdicts = [claim.verdict for table in found.tables for claim in table.claims]
    said = counted(verdicts, "" if len(found.tables) == 1 else f" in {len(found.tables)} tables")
    broken = len({cell.folder for table in found.tables for cell in table.cells if cell.fault})
    if left := found.left - broken:
        said += f" {left} {'run is' if left == 1 else 'runs are'} not done yet: the same command goes on."
    if broken:
        what = "1 run cannot be read: its cells name it"
        said += f" {what if broken == 1 else f'{broken} runs cannot be read: their cells name them'}."
    return said
