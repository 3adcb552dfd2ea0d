"""The command that measures published tables: ``reproduce``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dbpkit.cli.options import AUTO, AsJson, BatchSize, Device, MicroBatch, Talk
from dbpkit.cli.progress import working
from dbpkit.cli.root import app, begin
from dbpkit.foundation import console
from dbpkit.foundation.options import MOST

if TYPE_CHECKING:
    from dbpkit.tables.reproduce import Reproduction


def complete_table(incomplete: str) -> list[str]:
    """Names of published tables, for the shell."""
    from dbpkit.foundation.packaged import HERE

    names = (path.stem for path in sorted((HERE / "tables" / "data").glob("*.toml")))
    return [name for name in ("all", *names) if name.startswith(incomplete)]


@app.command("reproduce")
def reproduce_command(
    table: Annotated[
        str,
        typer.Argument(
            help="Name of a table, or all; lists them if not given.", autocompletion=complete_table
        ),
    ] = "",
    scale: Annotated[
        Literal["mini", "paper"],
        typer.Option(help="mini: the embedded models, in minutes. paper: the published settings."),
    ] = "mini",
    run: Annotated[
        bool | None,
        typer.Option(
            "--run/--no-run",
            help="Whether to run what is not measured yet; mini does unless told otherwise, paper does not.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, max=MOST, help="Most images of every run.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of runs and pages; runs/reproduce/SCALE if not given."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1, max=64, help="Processes that make runs at once; as many as there is room for if not given."
        ),
    ] = None,
    device: Device = AUTO,
    batch_size: BatchSize = AUTO,
    micro_batch: MicroBatch = AUTO,
    talk: Talk = None,
    as_json: AsJson = False,
) -> None:
    """Measure published tables, with embedded models in the place of the published ones or as published."""
    if not table:
        _list(as_json)
        return
    from dbpkit import Execution
    from dbpkit.tables.helping import processes_here
    from dbpkit.tables.page import check_page, page_of
    from dbpkit.tables.reproduce import OUT, reproduce
    from dbpkit.tables.table import table_names

    begin(computes=True)
    check_page(page_of(table_names() if table == "all" else [table], out or OUT / scale))
    execution = Execution(device, batch_size, micro_batch)
    with working(as_json, talk) as progress:
        count = processes or processes_here(execution)
        found = reproduce(table, scale, out, execution, progress, run=run, limit=limit, processes=count)
    _show(found, as_json)


def _list(as_json: bool) -> None:
    """Every table: name, title and source."""
    from dbpkit.tables.table import load_table, table_names

    begin()
    tables = [load_table(name) for name in table_names()]
    if as_json:
        console.as_json(
            [{"name": t.name, "title": t.title, "paper": t.paper, "place": t.place} for t in tables]
        )
        return
    for one in tables:
        console.entry(one.name, f"{one.title}. {one.paper}, {one.place}.", column=26)


def _show(found: "Reproduction", as_json: bool) -> None:
    """What was measured, and the page about it."""
    from dbpkit.tables.page import answer_of, write_page
    from dbpkit.tables.terminal import grid, sentences

    page = write_page(found)
    if as_json:
        console.as_json(found.as_json())
        return
    for table in found.tables:
        console.show(grid(table))
        for sentence in sentences(table):
            console.say(f"  {sentence}")
        console.say()
    console.say(answer_of(found))
    console.say(f"Page: {page}")
