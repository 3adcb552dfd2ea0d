"""Commands that say what there is: ``show``, ``list``, ``init`` and ``docs``."""

from pathlib import Path
from typing import Annotated

import typer

from dbpkit.cli import printing
from dbpkit.cli.options import AsJson, Plugin, Set, complete_part, complete_spec_or_run
from dbpkit.cli.root import app, begin
from dbpkit.foundation import console
from dbpkit.foundation.packaged import find_page, find_spec, pages, write_template
from dbpkit.foundation.registry import KINDS
from dbpkit.foundation.toml import read_table


@app.command()
def show(
    path: Annotated[
        Path, typer.Argument(help="Spec, run directory or bundle.", autocompletion=complete_spec_or_run)
    ],
    overrides: Set = [],
    plugin: Plugin = [],
    as_json: AsJson = False,
) -> None:
    """Print a spec with every default filled in, or the table of a run or a bundle."""
    shows = _show_run if path.is_dir() else _show_bundle if path.suffix == ".zip" else _show_spec
    shows(path, overrides, plugin, as_json)


def _show_run(path: Path, _overrides: list[str], plugin: list[str], as_json: bool) -> None:
    """Prints the table of a run."""
    from dbpkit import RunDirectory, summarise
    from dbpkit.results.completeness import unfinished

    begin(plugin)
    run = RunDirectory(path)
    printing.summary(summarise(run), as_json)
    if not as_json and (said := unfinished(run)):
        console.say(said)


def _show_bundle(path: Path, _overrides: list[str], plugin: list[str], as_json: bool) -> None:
    """Prints the table of a bundle, which nobody has judged again."""
    from dbpkit.bundles.opening import opened_bundle

    begin(plugin)
    with opened_bundle(path, light=True) as opened:
        printing.summary(opened.summary, as_json)
        if not as_json:
            said = "This is what the bundle claims; judge it with dbpkit verify."
            console.say(f"{opened.manifest.unfinished} {said}".strip())


def _show_spec(path: Path, overrides: list[str], plugin: list[str], as_json: bool) -> None:
    """Prints a spec with every default, and what its parts take beside it."""
    from dbpkit import EvaluationSpec, TrainingSpec, read_spec
    from dbpkit.cli.listing import check_parts, part_defaults

    begin(plugin)
    is_training = "optimiser" in read_table(find_spec(path, or_run=True))
    spec = read_spec(path, TrainingSpec if is_training else EvaluationSpec, overrides)
    check_parts(spec)
    printing.spec(spec.model_dump(mode="json"), part_defaults(spec), as_json)


@app.command("list")
def list_command(
    what: Annotated[
        str,
        typer.Argument(
            help=f"One of {', '.join(KINDS)}, or a part's name; all if not given.",
            autocompletion=complete_part,
        ),
    ] = "",
    with_options: Annotated[
        bool, typer.Option("--options", help="Also what each option takes, its default and its meaning.")
    ] = False,
    plugin: Plugin = [],
    as_json: AsJson = False,
) -> None:
    """List the parts a spec can name, and what they take."""
    from dbpkit.cli.listing import described

    begin(plugin)
    printing.parts(described(what), with_options, as_json)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("my-model.toml"),
    as_json: AsJson = False,
) -> None:
    """Write a commented spec for your own models; nothing is overwritten."""
    write_template(path)
    if as_json:
        console.as_json({"spec": str(path)})
        return
    console.say(f"Written: {path}", whole=True)
    console.say("Name your parts in it, then: dbpkit check, and dbpkit evaluate.")


@app.command()
def docs(
    page: Annotated[str, typer.Argument(help="Print the path of this page alone, such as flags.")] = "",
    as_json: AsJson = False,
) -> None:
    """Say where the documentation lies."""
    printing.documents(pages(), find_page(page) if page else None, as_json)
