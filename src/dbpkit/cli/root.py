"""The application that every command joins, and what each does first."""

from collections.abc import Sequence
from typing import Annotated

import typer

from dbpkit import __version__
from dbpkit.foundation import console
from dbpkit.foundation.program import started
from dbpkit.foundation.registry import import_module, trust, trust_files

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    """Prints the version and leaves."""
    if asked:
        console.say(f"dbpkit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """How robust a diffusion-purified classifier really is, why, and how to make it more robust."""


def begin(
    plugins: Sequence[str] = (), *, computes: bool = False, share: bool = True, trusting: bool = False
) -> None:
    """What a command does once it has imported what it needs, and before it works.

    From now on an interrupt is an exception that says how to go on.

    Args:
        plugins: what ``--plugin`` names: modules to import, or import paths to trust.
        computes: whether networks will run, so that the machine must be shared.
        share: whether the number of threads may depend on who else uses the machine.
        trusting: whether files of models may name code, and be programs.
    """
    started()
    if computes:
        from dbpkit.foundation.machine import settle

        settle(share=share)
    if trusting:
        trust_files()
    for name in plugins:
        trust(name) if ":" in name else import_module(name)
