"""The command line: parse, make a spec, call one function, print.

Every user's mistake is one sentence on standard error and exit code 2; ``--json`` prints the result alone,
for programs, on standard output. Every command imports what it needs when it is called: what reads results
needs no torch, which takes a second and 200 MB.
"""

import logging
import os
import sys
from typing import Any

import typer

from dbpkit.cli import evaluate, explain, bundles, train, convert, files, lists, models, reproduce  # noqa: F401 - in the order of the help # isort: skip
from dbpkit.cli.crash import INTERRUPTED, MISTAKE, OK, guarded
from dbpkit.cli.root import app
from dbpkit.foundation import console

__all__ = ["COMPLETION", "app", "main"]

COMPLETION = "_DBPKIT_COMPLETE"
"""Set by the shell when it asks for completions."""


def main() -> None:
    """Runs the command line; the exit status is that of `dbpkit.cli.crash`."""
    console.prepare()
    for told in (console.EXAMPLES, console.PICTURES, console.OPENED):
        logging.getLogger(told).setLevel(logging.INFO)
    sys.exit(guarded(_command))


def _command() -> int:
    """Parses the command line and runs its command."""
    command = typer.main.get_command(app)
    try:
        if COMPLETION in os.environ:  # the shell asks for completions, and leaves by itself
            app(prog_name="dbpkit")
        with command.make_context("dbpkit", sys.argv[1:]) as context:
            command.invoke(context)
    except typer.Exit as leave:
        return leave.exit_code
    except SystemExit as leave:  # of typer, which has printed completions or a script for the shell
        return leave.code if isinstance(leave.code, int) else OK
    except typer.Abort:
        return INTERRUPTED
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return _misuse(error)
    return OK


def _misuse(error: Any) -> int:
    """A command line that cannot be parsed is one sentence, and where to look; without words, the help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        console.say(error.format_message(), whole=True)
        return MISTAKE
    context = getattr(error, "ctx", None)
    called = [name for name in sys.argv[1:2] if name in typer.main.get_group(app).commands]
    path = context.command_path if context else " ".join(["dbpkit", *called])
    said = error.format_message().rstrip().replace("Value error, ", "")
    said = said.partition(", unable to parse")[0]  # which says no more than that it should be a number
    console.fail(f"{said}{'' if said.endswith(('.', '?')) else '.'} See '{path} --help'.")
    return MISTAKE
