"""The command that opens a foreign file once and for all: ``convert``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dbpkit.cli.options import AsJson, Plugin, Trust
from dbpkit.cli.root import app, begin
from dbpkit.foundation import console


@app.command("convert")
def convert_command(
    file: Annotated[Path, typer.Argument(help="A model's file in any layout: .pth, .pt, .pkl, .t7, ...")],
    out: Annotated[Path, typer.Argument(help="The new file, NAME.safetensors; a card is written beside it.")],
    kind: Annotated[str | None, typer.Option(help="Layout of the file; recognised if not given.")] = None,
    overrides: Annotated[
        list[str],
        typer.Option("--set", help="What the file does not say, such as label=0 or network.num_heads=4."),
    ] = [],
    plugin: Plugin = [],
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Write a model's file as safetensors that describe themselves, with a card."""
    from dbpkit.foundation.overrides import override
    from dbpkit.foundation.spec import PartSpec
    from dbpkit.models.converting import convert

    begin(plugin, trusting=trust)
    table: dict[str, Any] = {"name": "file", "options": {}}
    for text in overrides:
        override(table, f"options.{text}", PartSpec)
    made = convert(file, out, kind, **table["options"])
    if as_json:
        console.as_json({name: str(value) for name, value in made._asdict().items()})
        return
    console.say(f"Wrote '{made.path}' and its card '{made.card.name}'.")
