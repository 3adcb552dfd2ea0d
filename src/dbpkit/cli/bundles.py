"""Commands for runs that travel: ``bundle``, ``verify`` and ``board``."""

from pathlib import Path
from typing import Annotated

import typer

from dbpkit.cli import bundle_printing as printing
from dbpkit.cli.options import AUTO, AsJson, Device, Plugin, Run, Talk
from dbpkit.cli.progress import working
from dbpkit.cli.root import app, begin
from dbpkit.foundation.options import MOST

Named = Annotated[
    str | None, typer.Option(help="Name, file or import path; that of the bundle if not given.")
]

CANNOT = 2
"""Exit code of a bundle that cannot be judged, as of a mistake: something is missing."""


@app.command("bundle")
def bundle_command(
    run: Run,
    out: Annotated[Path | None, typer.Option("--out", help="The file; RUN.zip if not given.")] = None,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Pack a run that lacks results; the bundle says so.")
    ] = False,
    plugin: Plugin = [],
    as_json: AsJson = False,
) -> None:
    """Pack a run into one file that somebody else can verify."""
    from dbpkit import bundle

    begin(plugin)
    printing.bundled(bundle(run, out, unfinished=unfinished), as_json)


@app.command("verify")
def verify_command(
    bundle: Annotated[Path, typer.Argument(help="A bundle.")],
    classifier: Named = None,
    denoiser: Named = None,
    data: Named = None,
    overrides: Annotated[
        list[str],
        typer.Option("--set", help="Set an option of these parts, such as data.options.root=FOLDER."),
    ] = [],
    examples: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Judge so many, chosen at random; all if not given.")
    ] = None,
    row: Annotated[list[str], typer.Option("--row", help="Judge this row; all if not given.")] = [],
    fresh: Annotated[
        int | None,
        typer.Option(min=0, max=100_000, help="Fresh draws of each image; as many as recorded if not given."),
    ] = None,
    fresh_seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**32 - 1, help="Of fresh draws and the choice; random if not given."),
    ] = None,
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Follow import paths of the bundle and its files: any code can run."),
    ] = False,
    device: Device = AUTO,
    plugin: Plugin = [],
    talk: Talk = None,
    as_json: AsJson = False,
) -> None:
    """Judge a bundle's images with your models; exit code 0 stands, 1 does not stand, 2 cannot be judged."""
    from dbpkit import verify

    begin(plugin, computes=True, share=False, trusting=trust)  # it has as many threads as the run had
    with working(as_json, talk, continues=False) as progress:
        found = verify(
            bundle,
            classifier=classifier,
            denoiser=denoiser,
            data=data,
            overrides=overrides,
            examples=examples,
            rows=row or None,
            fresh=fresh,
            fresh_seed=fresh_seed,
            trust=trust,
            device=device,
            progress=progress,
        )
    printing.verified(found, as_json)
    raise typer.Exit({"stands": 0, "does not stand": 1}.get(found.verdict, CANNOT))


@app.command("board")
def board_command(
    runs: Annotated[list[Path], typer.Argument(help="Bundles and run directories.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="HTML page, with a CSV beside it; none if not given.")
    ] = None,
    plugin: Plugin = [],
    as_json: AsJson = False,
) -> None:
    """Rank defences of one threat, with intervals and ties."""
    from dbpkit import board

    begin(plugin)
    printing.ranked(board(runs, out), as_json)
