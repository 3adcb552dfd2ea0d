"""The command that says which published models there are, and which of them are here: ``models``."""

from typing import Annotated, Any

import typer

from dbpkit.cli.options import AsJson
from dbpkit.cli.root import app, begin
from dbpkit.foundation import console


@app.command("models")
def models_command(
    name: Annotated[
        str, typer.Argument(help="One model's name, or a published spec's; all if not given.")
    ] = "",
    download: Annotated[
        bool, typer.Option("--download", help="Fetch the named model from the Hub, if it is there.")
    ] = False,
    sha256: Annotated[bool, typer.Option("--sha256", help="Compute the digest of every file found.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the models behind published rows, where to get them, and which are on this machine."""
    from dbpkit.foundation.errors import UserError
    from dbpkit.models.zoo import download as fetch
    from dbpkit.models.zoo import look, named, zoo

    begin()
    of_spec = [model for model in zoo() if name in model.specs]
    chosen = of_spec or ([named(name)] if name else zoo())
    if download:
        if not name or of_spec:
            raise UserError("--download needs the name of one model, such as ddpm-cifar10.")
        fetch(chosen[0])
    found = look(chosen, digests=sha256)
    if as_json:
        console.as_json([one.as_data() for one in found])
        return
    for one in found:
        _entry(one, whole=bool(name))


def _entry(found: Any, whole: bool) -> None:
    """One model: a line with its state, or all that is known of it."""
    model = found.model
    where = f" at {found.path}" if found.path else ""
    console.entry(model.name, f"{model.kind}, {found.verdict}{where}", column=26)
    if not whole:
        return
    facts = {
        "files": ", ".join(model.files),
        "size": "unknown" if model.bytes is None else f"{model.bytes:,} bytes",
        "sha256": found.sha256 or model.sha256 or "unknown",
        "get it from": model.get,
        "licence": model.licence,
        "holds": model.layout,
        "checked": model.checked,
        "specs": ", ".join(model.specs) or "none",
    }
    for head, text in facts.items():
        console.entry(head, text, indent=2, column=14)
