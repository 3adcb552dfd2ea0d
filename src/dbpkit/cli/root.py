"""The application that every command joins, and what each does first."""

from collections.abc import Sequence
from typing import Annotated

import typer

from dbpkit.foundation.program import started
from dbpkit.foundation.registry import import_module, trust, trust_files

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print versions, the device, and hashes of models and data.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --version: print it as JSON.")] = False,
) -> None:
    """How robust a diffusion-purified classifier really is, why, and how to make it more robust."""
    if version:
        from dbpkit.cli.versions import show_versions

        show_versions(as_json)
        raise typer.Exit
    if as_json:
        context.fail("--json belongs behind the command, or goes with --version.")
    if context.invoked_subcommand is None:
        context.fail("Missing command.")


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
