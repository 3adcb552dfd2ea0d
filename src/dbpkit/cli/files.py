"""The command that takes image files and writes image files: ``purify``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dbpkit.cli import printing
from dbpkit.cli.options import (
    AUTO,
    AsJson,
    Denoiser,
    Device,
    Plugin,
    Precision,
    Sampler,
    Seed,
    Steps,
    Talk,
    Time,
    Trust,
)
from dbpkit.cli.progress import working
from dbpkit.cli.root import app, begin

if TYPE_CHECKING:
    from dbpkit.experiment.spec import PurifySpec


@app.command()
def purify(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the purified images, written as PNG.")],
    denoiser: Denoiser = "embedded",
    purifier: Annotated[str, typer.Option(help="Purifier name or import path.")] = "diffusion",
    sampler: Sampler = "ddpm",
    t_star: Time = 0.1,
    steps: Steps = 1000,
    seed: Seed = 0,
    overrides: Annotated[
        list[str],
        typer.Option(
            "--set",
            help="Set an option of a part, such as purifier.options.eta=1 or denoiser.options.variant=addt.",
        ),
    ] = [],
    tile: Annotated[
        str, typer.Option(help="Side of the tiles of large images, or whole; auto is by the network's size.")
    ] = "auto",
    device: Device = AUTO,
    precision: Precision = "float32",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that this command did not write, too.")
    ] = False,
    plugin: Plugin = [],
    trust: Trust = False,
    talk: Talk = None,
    as_json: AsJson = False,
) -> None:
    """Purify image files; files that this command did not write are left alone."""
    from dbpkit import purify_files

    begin(plugin, trusting=trust, computes=True, share=False)  # the same image is purified alike
    chain = _purifier(purifier, {"sampler": sampler, "t_star": t_star, "steps": steps})
    table = {"denoiser": denoiser, "purifier": chain, "precision": precision, "tile": tile}
    spec = _spec(table, overrides)
    with working(as_json, talk, continues=False) as progress:
        written = purify_files(
            images,
            out,
            spec.purifier,
            spec.denoiser.name,
            seed,
            progress,
            device=device,
            overwrite=overwrite,
            **_settings(spec),
        )
    printing.purified(written, out, as_json)


def _purifier(name: str, chain: dict[str, Any]) -> dict[str, Any]:
    """The table of a purifier; of one that is not a diffusion chain with the keys of one that were given."""
    usual = {"sampler": "ddpm", "t_star": 0.1, "steps": 1000}
    return {"name": name} | {k: v for k, v in chain.items() if name == "diffusion" or v != usual[k]}


def _spec(table: dict[str, Any], overrides: list[str]) -> "PurifySpec":
    """The spec that the options make, with overrides in their order."""
    from dbpkit.experiment.spec import PurifySpec
    from dbpkit.foundation.overrides import override
    from dbpkit.foundation.spec import validate

    table["tile"] = int(table["tile"]) if table["tile"].isdecimal() else table["tile"]
    for text in overrides:
        override(table, text, PurifySpec)
    return validate(table, PurifySpec, "dbpkit purify")


def _settings(spec: "PurifySpec") -> dict[str, Any]:
    """What of the spec is neither purifier nor denoiser, and the options of the latter."""
    own = {"precision": spec.precision, "tile": spec.tile, "overlap": spec.overlap}
    return {"options": spec.denoiser.options, **own}
