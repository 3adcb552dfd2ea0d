"""Commands that explain: ``analyse``, and those that read what runs have left."""

from pathlib import Path
from typing import Annotated

import typer

from dbpkit.cli import printing
from dbpkit.cli.options import (
    AUTO,
    AsJson,
    Compile,
    Device,
    Memory,
    MicroBatch,
    OutOrName,
    Plugin,
    Run,
    Runs,
    Set,
    Share,
    Talk,
    complete_run,
)
from dbpkit.cli.parts import Asked, takes_parts
from dbpkit.cli.progress import working
from dbpkit.cli.root import app, begin


@app.command("analyse")
@takes_parts
def analyse_command(
    asked: Asked,
    out: OutOrName = None,
    names: Annotated[list[str], typer.Argument(help="Analyses; those of the spec, or all, if none.")] = [],
    overrides: Set = [],
    plugin: Plugin = [],
    device: Device = AUTO,
    micro_batch: MicroBatch = AUTO,
    memory: Memory = AUTO,
    shard: Share = None,
    compiled: Compile = False,
    talk: Talk = None,
    as_json: AsJson = False,
) -> None:
    """Show why: run the papers' analyses on a spec's models; the same command continues.

    On several processes or devices: torchrun --nproc-per-node N -m dbpkit analyse ...
    """
    from dbpkit import Execution, analyse, report
    from dbpkit.experiment.execution import shared

    begin(plugin, computes=True)
    asked, names = _analyses(asked, names)
    read, out = asked.read(overrides), asked.out(out)
    chosen = {name: read.analyses.get(name, {}) for name in names} or None
    execution = Execution(device, micro_batch=micro_batch, memory_bytes=memory, compile=compiled)
    execution = shared(execution, shard)
    with working(as_json or (shard is None and execution.rank > 0), talk) as progress:
        results = analyse(read, out, chosen, execution, progress)
    if execution.world > 1:
        printing.share_of_analyses(execution, results, as_json)
    else:
        printing.analyses(results, report([out]), as_json)


def _analyses(asked: Asked, names: list[str]) -> tuple[Asked, list[str]]:
    """What is evaluated and the names of analyses: beside parts, a first word that is one is no spec."""
    from dbpkit.analyses.analysis import analyses

    if asked.spec is None or not asked.parts or str(asked.spec) not in analyses or asked.spec.is_file():
        return asked, names
    return asked._replace(spec=None), [str(asked.spec), *names]


@app.command("report")
def report_command(
    runs: Runs,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="HTML file; report.html in the first run if not given."),
    ] = None,
    plugin: Plugin = [],
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page about one or more runs."""
    from dbpkit import report

    begin(plugin)
    printing.page(report(runs, out), as_json)


@app.command("compare")
def compare_command(
    run_a: Annotated[Path, typer.Argument(help="A run directory.")],
    run_b: Annotated[Path, typer.Argument(help="Another, on the same examples.")],
    plugin: Plugin = [],
    as_json: AsJson = False,
) -> None:
    """Print the paired differences A - B of two runs over the same examples."""
    from dbpkit import compare

    begin(plugin)
    printing.comparison(compare(run_a, run_b), as_json)


@app.command("findings")
def findings_command(runs: Runs, plugin: Plugin = [], as_json: AsJson = False) -> None:
    """Print which of the papers' claims hold in a run: measured, published, and the verdict."""
    from dbpkit import findings

    begin(plugin)
    printing.findings({str(run): findings(run) for run in runs}, as_json)


@app.command("law")
def law_command(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run directories in which the analysis 'law' was run.", autocompletion=complete_run
        ),
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the charts as PNG and CSV.")] = None,
    as_json: AsJson = False,
) -> None:
    """Join the compression law of several runs, such as two data sets, into one."""
    from dbpkit import law
    from dbpkit.foundation.files import check_folder

    begin()
    if out:
        check_folder(out)
    printing.law(law(runs), out, as_json)


@app.command("replay")
def replay_command(
    run: Run,
    example: Annotated[int, typer.Option(min=0, max=2**44, help="Example id.")],
    row: Annotated[str, typer.Option(help="Row of the table.")] = "white_box",
    tape: Annotated[int, typer.Option(min=0, max=2**44, help="Tape of the row.")] = 0,
    attack: Annotated[bool, typer.Option(help="Also run the attack again, on this example alone.")] = True,
    out: Annotated[Path | None, typer.Option("--out", help="PNG of the images; none if not given.")] = None,
    device: Annotated[str | None, typer.Option(help="That of the run if not given.")] = None,
    spec: Annotated[
        Path | None, typer.Option("--spec", help="The spec of the run; needed if it names import paths.")
    ] = None,
    overrides: Set = [],
    trust_run: Annotated[
        bool, typer.Option("--trust-run", help="Follow import paths of the run: it can run any code.")
    ] = False,
    plugin: Plugin = [],
    as_json: AsJson = False,
) -> None:
    """Compute one example of a run again and compare it with the record; exit code 1 if it differs."""
    from dbpkit import EvaluationSpec, read_spec, replay
    from dbpkit.foundation.files import check_place
    from dbpkit.reporting.picture import PICTURE

    if out:
        check_place(out, PICTURE)
    begin(plugin, computes=True, share=False)  # it has as many threads as the run had
    typed = read_spec(spec, EvaluationSpec, overrides) if spec else None
    found = replay(run, example, row, tape, attack=attack, device=device, spec=typed, trust_run=trust_run)
    printing.replayed(found, out, as_json)
    raise typer.Exit(int(not found.reproduced))
