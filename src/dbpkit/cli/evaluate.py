"""Commands that measure: ``demo``, ``evaluate`` and ``check``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dbpkit.cli import printing
from dbpkit.cli.options import (
    AUTO,
    AsJson,
    BatchSize,
    Compile,
    Deterministic,
    Device,
    Memory,
    MicroBatch,
    Out,
    OutOrName,
    Plugin,
    Reverse,
    Set,
    Share,
    Talk,
    Trust,
)
from dbpkit.cli.parts import Asked, takes_parts
from dbpkit.cli.progress import working
from dbpkit.cli.root import app, begin
from dbpkit.cli.watch import watching
from dbpkit.foundation.options import MOST
from dbpkit.foundation.packaged import asset

if TYPE_CHECKING:
    from dbpkit import EvaluationSpec
    from dbpkit.evaluation.run import Checks


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    device: Device = AUTO,
    full: Annotated[
        bool, typer.Option("--full", help="Also run all analyses, on 64 images; the same command continues.")
    ] = False,
    talk: Talk = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate the embedded CIFAR-10 models and write a report page."""
    from dbpkit import EvaluationSpec, Execution, RunDirectory, analyse, evaluate, findings, read_spec, report

    begin(computes=True)
    spec = read_spec(asset("demo.toml"), EvaluationSpec)
    execution, run = Execution(device), RunDirectory(out)
    with working(as_json, talk) as progress:
        summary = evaluate(_enough(spec) if full else spec, run, execution, progress)
    if not full:
        printing.evaluation(summary, report([run]), as_json)
        return
    with working(as_json, talk) as progress:
        results = analyse(_enough(spec), out, execution=execution, progress=progress)
    printing.everything(summary, results, findings(out), report([out]), as_json)


@app.command("evaluate")
@takes_parts
def evaluate_command(
    asked: Asked,
    out: OutOrName = None,
    overrides: Set = [],
    plugin: Plugin = [],
    trust: Trust = False,
    device: Device = AUTO,
    batch_size: BatchSize = AUTO,
    micro_batch: MicroBatch = AUTO,
    memory: Memory = AUTO,
    deterministic: Deterministic = False,
    reverse: Reverse = False,
    shard: Share = None,
    compiled: Compile = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Write the page while the run goes on; it loads itself again.")
    ] = False,
    talk: Talk = None,
    as_json: AsJson = False,
) -> None:
    """Measure how robust a purified classifier is; run the same command again to continue.

    Without a spec: dbpkit evaluate --classifier my_module:make --data cifar10 --limit 16
    On several processes or devices: torchrun --nproc-per-node N -m dbpkit evaluate ...
    """
    from dbpkit import Execution, RunDirectory, report
    from dbpkit.evaluation.run import evaluate_share
    from dbpkit.experiment.execution import shared

    begin(plugin, trusting=trust, computes=True, share=not deterministic)
    execution = Execution(device, batch_size, micro_batch, deterministic, memory, reverse, compile=compiled)
    execution = shared(execution, shard)
    read = asked.read(overrides)
    run = RunDirectory(asked.out(out))  # read once for the summary and the page
    with (
        working(as_json or (shard is None and execution.rank > 0), talk) as progress,
        watching(run.path, progress, watch=watch and execution.rank == 0) as shown,
    ):
        summary = evaluate_share(read, run, execution, shown, checks=_checks(asked))
    if summary is None:
        printing.share(execution, run, as_json)
    else:
        printing.evaluation(summary, report([run]), as_json)


@app.command("estimate")
@takes_parts
def estimate_command(
    asked: Asked,
    machines: Annotated[
        int, typer.Option(min=1, max=MOST, help="Machines like this one that would share the examples.")
    ] = 1,
    overrides: Set = [],
    plugin: Plugin = [],
    device: Device = AUTO,
    batch_size: BatchSize = AUTO,
    micro_batch: MicroBatch = AUTO,
    memory: Memory = AUTO,
    deterministic: Deterministic = False,
    as_json: AsJson = False,
) -> None:
    """Say what an evaluation will take before it begins: passes, calls, hours and memory of every row."""
    from dbpkit import Execution, estimate

    begin(plugin, computes=True, share=not deterministic)
    execution = Execution(device, batch_size, micro_batch, deterministic, memory)
    printing.estimated(estimate(asked.read(overrides), execution, machines), as_json)


@app.command("check")
@takes_parts
def check_command(
    asked: Asked,
    examples: Annotated[int, typer.Option(min=1, max=MOST, help="Examples to look at.")] = 8,
    overrides: Set = [],
    plugin: Plugin = [],
    trust: Trust = False,
    device: Device = AUTO,
    micro_batch: MicroBatch = AUTO,
    talk: Talk = None,
    as_json: AsJson = False,
) -> None:
    """Check your own models and settings before a long run; exit code 1 if something must be fixed."""
    from dbpkit import Execution, check_spec

    begin(plugin, trusting=trust, computes=True)
    execution = Execution(device, micro_batch=micro_batch)
    with working(as_json, talk, continues=False) as progress:
        found = check_spec(asked.read(overrides), examples, execution, progress)
    printing.checked(found, as_json)
    raise typer.Exit(int(not found.trustworthy))


def _checks(asked: Asked) -> "Checks | None":
    """What looks at the parts before the run: without a spec, also at whether its attack is short."""
    from dbpkit.checks.first_number import FirstNumber

    return FirstNumber() if asked.spec is None else None


def _enough(spec: "EvaluationSpec") -> "EvaluationSpec":
    """The spec with as many examples as the law's verdict needs."""
    from dbpkit.statistics.intervals import CROSSED_EXAMPLES

    if spec.examples.count is None:
        return spec
    examples = spec.examples.model_copy(update={"count": max(spec.examples.count, CROSSED_EXAMPLES)})
    return spec.model_copy(update={"examples": examples})
