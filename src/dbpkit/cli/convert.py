"""The command that opens a foreign file once and for all: ``convert``."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from dbpkit.cli.options import AsJson, Plugin, Trust
from dbpkit.cli.root import app, begin
from dbpkit.foundation import console

IMAGES = 32
"""On which a converted model is tried."""


@app.command("convert")
def convert_command(
    file: Annotated[Path, typer.Argument(help="A model's file in any layout: .pth, .pt, .pkl, .t7, ...")],
    out: Annotated[Path, typer.Argument(help="The new file, NAME.safetensors; a card is written beside it.")],
    kind: Annotated[str | None, typer.Option(help="Layout of the file; recognised if not given.")] = None,
    overrides: Annotated[
        list[str],
        typer.Option("--set", help="What the file does not say, such as label=0 or network.num_heads=4."),
    ] = [],
    data: Annotated[
        str, typer.Option(help="Name of data on whose first 32 images it is tried, such as cifar10.")
    ] = "",
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
    tried = _tried(data) if data else lambda _: []  # wrong data are told before anything is written
    made = convert(file, out, kind, **table["options"])
    said = tried(made.path)
    if as_json:
        table = {name: str(value) for name, value in made._asdict().items()}
        console.as_json(table | ({"behaviour": said} if data else {}))
        return
    console.say(f"Wrote '{made.path}' and its card '{made.card.name}'.")
    for sentence in said:
        console.say(sentence)


def _tried(data: str) -> Callable[[Path], list[str]]:
    """What says how a model does on the first images of some data."""
    from dbpkit import load_dataset, load_weights
    from dbpkit.checks.conventions import behaviour

    few = load_dataset(data).select(slice(0, IMAGES))
    return lambda path: behaviour(load_weights(path)[0].requires_grad_(False).eval(), few.x(), few.labels)
