"""The command line: parse, make a spec, call one function, print.

Every user's mistake is one sentence on standard error and exit code 2; ``--json`` prints the result alone,
for programs, on standard output.
"""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dbpkit.analyses.analysis import analyses
from dbpkit.analyses.law import combine
from dbpkit.analyses.run import analyse
from dbpkit.attacks import attacks, losses
from dbpkit.data import datasets, load_dataset
from dbpkit.errors import UserError, unknown_name
from dbpkit.evaluation.build import checked_device
from dbpkit.evaluation.check import quick_check
from dbpkit.evaluation.knowledge import known
from dbpkit.evaluation.replay import replay
from dbpkit.evaluation.run import Execution, evaluate
from dbpkit.evaluation.spec import EvaluationSpec, PurifierSpec
from dbpkit.images import purify_files
from dbpkit.machine import settle
from dbpkit.models import asset, classifier_sources, denoiser_sources, load_denoiser, source
from dbpkit.networks import networks
from dbpkit.purify import gradients
from dbpkit.registry import import_module, trust
from dbpkit.report import (
    console_analysis,
    console_findings,
    console_flags,
    console_table,
    replay_table,
    write_charts,
    write_replay_png,
    write_report,
)
from dbpkit.report.tables import cost_text, p_text
from dbpkit.results.compare import compare_runs
from dbpkit.results.findings import findings
from dbpkit.results.protocols import protocols
from dbpkit.results.run_directory import RunDirectory
from dbpkit.results.summary import Summary, summarise
from dbpkit.samplers import samplers
from dbpkit.spec import as_toml, read_spec
from dbpkit.threat import threats
from dbpkit.training import loop as training
from dbpkit.training.fid import Chain, make_features, quality
from dbpkit.training.levels import noise_levels
from dbpkit.training.loop import train as train_network
from dbpkit.training.objectives import objectives
from dbpkit.training.perturb import perturbations
from dbpkit.training.spec import TrainingSpec

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=__doc__.split("\n")[0],
)
out_console = Console(width=None if sys.stdout.isatty() else 160)  # a pipe or a log has no width of its own
err_console = Console(stderr=True)

REGISTRIES: dict[str, Any] = {
    "analyses": analyses,
    "attacks": attacks,
    "classifiers": classifier_sources,
    "data": datasets,
    "denoisers": denoiser_sources,
    "gradients": gradients,
    "losses": losses,
    "networks": networks,
    "noise-levels": noise_levels,
    "objectives": objectives,
    "perturbations": perturbations,
    "protocols": protocols,
    "samplers": samplers,
    "threats": threats,
}

Out = Annotated[Path, typer.Option("--out", help="Run directory; the same command continues it.")]
Set = Annotated[
    list[str],
    typer.Option("--set", help="Override a leaf of the spec, such as purifier.steps=200."),
]
Plugin = Annotated[
    list[str],
    typer.Option("--plugin", help="Import your own module that registers parts, or trust a module:part."),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print the result as JSON, and nothing else, on standard output."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Examples attacked together.")]
MicroBatch = Annotated[
    int, typer.Option(min=1, help="Rows in one call of the model; lower it if memory runs out.")
]
Memory = Annotated[
    float,
    typer.Option("--memory", min=0, help="GiB for kept graphs in one backward pass; 0 replays every step."),
]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic",
        help="Bit-equal records whatever the batch size: every call has --micro-batch rows.",
    ),
]
Reverse = Annotated[
    bool, typer.Option("--reverse", help="Take the last example first; results do not change.")
]
SpecFile = Annotated[Path, typer.Argument(help="TOML spec.")]


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    device: Device = "cpu",
    full: Annotated[
        bool, typer.Option("--full", help="Also run all analyses; the same command continues.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate the embedded CIFAR-10 models and write a report page."""
    spec = read_spec(asset("demo.toml"), EvaluationSpec)
    if not full:
        _evaluate(spec, out, Execution(device), as_json)
        return
    with _progress(as_json) as progress:
        summary = evaluate(spec, out, Execution(device), progress)
    with _progress(as_json) as progress:
        results = analyse(spec, out, execution=Execution(device), progress=progress)
    path = write_report([out])
    if as_json:
        _print_json({"summary": summary.as_json(), "analyses": [r.as_json() for r in results]})
        return
    _print_summary(summary, as_json)
    out_console.print(console_findings(findings(RunDirectory(out))))
    out_console.print(f"\nReport: {path.resolve()}", soft_wrap=True)


@app.command("evaluate")
def evaluate_command(
    spec: SpecFile,
    out: Out,
    overrides: Set = [],
    plugin: Plugin = [],
    device: Device = "cpu",
    batch_size: BatchSize = 16,
    micro_batch: MicroBatch = 32,
    memory: Memory = 2.0,
    deterministic: Deterministic = False,
    reverse: Reverse = False,
    as_json: AsJson = False,
) -> None:
    """Measure how robust a purified classifier is; run the same command again to continue."""
    _plugins(plugin)
    execution = Execution(device, batch_size, micro_batch, deterministic, int(memory * 2**30), reverse)
    _evaluate(read_spec(spec, EvaluationSpec, overrides), out, execution, as_json)


@app.command("analyse")
def analyse_command(
    spec: SpecFile,
    out: Out,
    names: Annotated[list[str], typer.Argument(help="Analyses; those of the spec, or all, if none.")] = [],
    overrides: Set = [],
    plugin: Plugin = [],
    device: Device = "cpu",
    micro_batch: MicroBatch = 32,
    memory: Memory = 2.0,
    as_json: AsJson = False,
) -> None:
    """Show why: run the papers' analyses on a spec's models; the same command continues."""
    _plugins(plugin)
    read = read_spec(spec, EvaluationSpec, overrides)
    chosen = {name: read.analyses.get(name, {}) for name in names} or None
    execution = Execution(device, micro_batch=micro_batch, memory_bytes=int(memory * 2**30))
    with _progress(as_json) as progress:
        results = analyse(read, out, chosen, execution, progress)
    path = write_report([out])
    if as_json:
        _print_json([r.as_json() for r in results])
        return
    for result in results:
        out_console.print(f"[bold]{result.title}[/bold]")
        for sentence in result.sentences:
            out_console.print(f"  {sentence}", highlight=False, markup=False)
    out_console.print(f"\nReport: {path.resolve()}", soft_wrap=True)


@app.command()
def check(
    spec: SpecFile,
    examples: Annotated[int, typer.Option(min=1, help="Examples to look at.")] = 8,
    overrides: Set = [],
    plugin: Plugin = [],
    device: Device = "cpu",
    micro_batch: MicroBatch = 32,
    as_json: AsJson = False,
) -> None:
    """Check your own models and settings before a long run; exit code 1 if something must be mended."""
    _plugins(plugin)
    execution = Execution(device, micro_batch=micro_batch)
    with _progress(as_json) as progress:
        found = quick_check(read_spec(spec, EvaluationSpec, overrides), examples, execution, progress)
    if as_json:
        flags = [f._asdict() for f in found.flags]
        _print_json({"verdict": found.verdict, "flags": flags, "checks": found.checks})
    else:
        out_console.print(console_flags(found.flags))
        out_console.print(f"{len(found.checks)} checks ran: {', '.join(found.checks)}.", style="dim")
        out_console.print(found.verdict)
    raise typer.Exit(int(not found.trustworthy))


@app.command()
def purify(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the purified images, written as PNG.")],
    denoiser: Annotated[str, typer.Option(help="Denoiser name, weights file or import path.")] = "embedded",
    sampler: Annotated[str, typer.Option(help="Sampler name or import path.")] = "ddpm",
    t_star: Annotated[float, typer.Option(help="Diffusion time where purification starts, in (0, 1).")] = 0.1,
    steps: Annotated[int, typer.Option(help="Steps of the whole chain.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    plugin: Plugin = [],
    as_json: AsJson = False,
) -> None:
    """Purify image files."""
    _plugins(plugin)
    spec = PurifierSpec(sampler=sampler, t_star=t_star, steps=steps)
    with _progress(as_json) as progress:
        written = purify_files(images, out, spec, denoiser, seed, progress)
    (
        _print_json([str(p) for p in written])
        if as_json
        else out_console.print(f"{len(written)} purified images in {out}")
    )


@app.command()
def train(
    spec: SpecFile,
    out: Out,
    overrides: Set = [],
    plugin: Plugin = [],
    device: Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu or cuda.")] = "auto",
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write the learning curve for TensorBoard too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train or fine-tune a classifier or a denoiser; run the same command again to continue.

    On several processes or devices: accelerate launch --num_processes N -m dbpkit.cli train ...
    """
    _plugins(plugin)
    read = read_spec(spec, TrainingSpec, overrides)
    is_first = os.environ.get("RANK", "0") == "0"  # set by accelerate launch and torchrun
    with _progress(as_json or not is_first) as progress:
        trained = train_network(
            read,
            out,
            lambda done, of, loss: progress(done / of, f"loss {loss:.4f}"),
            training.Execution(device, tensorboard),
        )
    if not is_first:
        return
    if as_json:
        _print_json({"weights": str(trained.weights), **trained.figures})
    else:
        out_console.print_json(json.dumps(trained.figures))
        out_console.print(f"Weights: {trained.weights}\nModel card: {trained.weights.with_name('card.md')}")


@app.command("quality")
def quality_command(
    denoiser: Annotated[str, typer.Argument(help="Denoiser name, weights file or import path.")],
    data: Annotated[str, typer.Option(help="Data set name.")] = "embedded",
    images: Annotated[
        int | None, typer.Option(min=2, help="Images to generate; half of the data if not given.")
    ] = None,
    t_star: Annotated[
        float, typer.Option(help="1 starts from noise alone; below, from real images noised to t*.")
    ] = 0.3,
    sampler: Annotated[str, typer.Option(help="Sampler name or import path.")] = "ddim",
    steps: Annotated[int, typer.Option(help="Steps of the whole chain.")] = 50,
    inception: Annotated[
        str, typer.Option(help="Path of inception-2015-12-05.pt, for the FID; none takes --classifier.")
    ] = "",
    trust_file: Annotated[
        bool, typer.Option("--trust", help="Run another --inception file too: TorchScript can run code.")
    ] = False,
    classifier: Annotated[str, typer.Option(help="Whose features are used without Inception.")] = "embedded",
    seed: Annotated[int, typer.Option(help="Seed of noise and choice of images.")] = 0,
    device: Device = "cpu",
    plugin: Plugin = [],
    as_json: AsJson = False,
) -> None:
    """Measure a denoiser as a generative model: FID, or the distance of a classifier's features."""
    _plugins(plugin)
    checked_device(device)
    if inception:
        features = make_features("inception", {"path": inception, "trust": trust_file})
    else:
        name, options = source(classifier)
        features = make_features("classifier", {"classifier": name, "options": options})
    made = load_denoiser(*source(denoiser))
    with _progress(as_json) as progress:
        found = quality(
            made,
            load_dataset(data),
            features,
            Chain(t_star, sampler, steps),
            images=images,
            seed=seed,
            device=device,
            progress=lambda done, of: progress(done / of, f"{done} images"),
        )
    if as_json:
        _print_json(found._asdict())
        return
    floor = "" if found.floor is None else f", real images against the same: {found.floor:.2f}"
    out_console.print(f"{found.metric}: {found.value:.2f}{floor} ({found.images} images from {found.start})")
    if found.warning:
        out_console.print(found.warning)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="HTML file; report.html in the first run if not given."),
    ] = None,
    plugin: Plugin = [],
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page about one or more runs."""
    _plugins(plugin)
    path = write_report(runs, out)
    (_print_json({"report": str(path)}) if as_json else out_console.print(f"Report: {path}", soft_wrap=True))


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(help="A run directory.")],
    run_b: Annotated[Path, typer.Argument(help="Another, on the same examples.")],
    plugin: Plugin = [],
    as_json: AsJson = False,
) -> None:
    """Print the paired differences A - B of two runs over the same examples."""
    _plugins(plugin)
    found = compare_runs(RunDirectory(run_a), RunDirectory(run_b))
    for sentence in found.warnings:
        said = f"warning: {sentence}"
        err_console.print(said, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if as_json:
        p_values = {row: found.p_values.get(row) for row in found.differences}
        costs = found.network_calls
        _print_json(
            {
                row: {**e._asdict(), "p_value": p_values[row], "network_calls": costs[row]}
                for row, e in found.differences.items()
            }
        )
        return
    changed = ", ".join(found.changed) or "nothing, the settings are the same"
    out_console.print(f"A -> B differs in: {changed}", markup=False, highlight=False, soft_wrap=True)
    for row, e in found.differences.items():
        test = f"; McNemar p {p_text(found.p_values[row])}" if row in found.p_values else ""
        out_console.print(
            f"{row:18} {e.value:+7.1%}   95 % interval {e.low:+.1%} to {e.high:+.1%}   n ="
            f" {e.examples} ({e.method}{test}){cost_text(*found.network_calls[row])}",
            soft_wrap=True,
        )


@app.command("findings")
def findings_command(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.")],
    plugin: Plugin = [],
    as_json: AsJson = False,
) -> None:
    """Print which of the papers' claims hold in a run: measured, published, and the verdict."""
    _plugins(plugin)
    found = {str(run): findings(RunDirectory(run)) for run in runs}
    if as_json:
        _print_json({run: [f.as_json() for f in own] for run, own in found.items()})
        return
    for run, own in found.items():
        if len(found) > 1:
            out_console.print(run, markup=False, highlight=False, soft_wrap=True)
        out_console.print(console_findings(own))


@app.command("law")
def law_command(
    runs: Annotated[list[Path], typer.Argument(help="Run directories in which the analysis 'law' was run.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the charts as PNG and CSV.")] = None,
    as_json: AsJson = False,
) -> None:
    """Join the compression law of several runs, such as two data sets, into one."""
    joint = combine(runs)
    files = write_charts(joint, out) if out else []
    if as_json:
        _print_json(joint.as_json())
        return
    out_console.print(console_analysis(joint), highlight=False)
    if files:
        out_console.print(f"{len(files)} files in {out}", soft_wrap=True)


@app.command("replay")
def replay_command(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    example: Annotated[int, typer.Option(min=0, help="Example id.")],
    row: Annotated[str, typer.Option(help="Row of the table.")] = "white_box",
    tape: Annotated[int, typer.Option(min=0, help="Tape of the row.")] = 0,
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
    _plugins(plugin)
    typed = read_spec(spec, EvaluationSpec, overrides) if spec else None
    found = replay(run, example, row, tape, attack=attack, device=device, spec=typed, trust_run=trust_run)
    names = dict(enumerate(found.class_names))
    label, predicted = names[found.label], [names.get(k, str(k)) for k in found.predicted]
    if out:
        write_replay_png(out, found.x, found.x_adv, found.x_pure, label, predicted)
    if as_json:
        _print_json(found.as_json())
    else:
        out_console.print(f"example {example}, row {row}, tape {tape}: {label}", markup=False)
        out_console.print(replay_table(found.logits.tolist(), found.recorded, found.class_names))
        out_console.print(found.verdict, markup=False, highlight=False)
    raise typer.Exit(int(not found.reproduced))


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="TOML spec or run directory.")],
    overrides: Set = [],
    plugin: Plugin = [],
    as_json: AsJson = False,
) -> None:
    """Print a spec with every default filled in, or the table of a run."""
    _plugins(plugin)
    if path.is_dir():
        _print_summary(summarise(RunDirectory(path)), as_json)
        return
    spec = read_spec(path, EvaluationSpec, overrides).model_dump(mode="json")
    (
        _print_json(spec)
        if as_json
        else out_console.print(as_toml(spec), markup=False, highlight=False, soft_wrap=True)
    )


@app.command("list")
def list_command(
    what: Annotated[
        str,
        typer.Argument(help=f"One of {', '.join([*REGISTRIES, 'knowledge'])}; all if not given."),
    ] = "",
    plugin: Plugin = [],
    as_json: AsJson = False,
) -> None:
    """List the parts a spec can name."""
    _plugins(plugin)
    listed = {kind: registry.describe() for kind, registry in REGISTRIES.items()}
    listed["knowledge"] = {
        name: ", ".join(sorted(k.shared_sites)) or f"gradient {k.gradient}" for name, k in known.items()
    }
    if what and what not in listed:
        raise unknown_name("kind of part", what, listed)
    chosen = {what: listed[what]} if what else listed
    if as_json:
        _print_json(chosen)
        return
    for kind, parts in chosen.items():
        out_console.print(f"[bold]{kind}[/bold]")
        for name, text in parts.items():
            out_console.print(f"  {name:16} {text}", markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Runs the command line with errors as sentences."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=err_console, show_path=False)],
    )
    settle()
    try:
        app()
    except UserError as error:
        err_console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except OSError as error:
        said = (
            f"error: cannot read or write '{error.filename}' ({error.strerror}). What was recorded is intact."
        )
        err_console.print(said, style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


def _evaluate(spec: EvaluationSpec, out: Path, execution: Execution, as_json: bool) -> None:
    """Runs an evaluation, writes its report, prints its summary."""
    with _progress(as_json) as progress:
        summary = evaluate(spec, out, execution, progress)
    path = write_report([out])
    _print_summary(summary, as_json)
    if not as_json:
        out_console.print(f"\nReport: {path.resolve()}", soft_wrap=True)


def _print_summary(summary: Summary, as_json: bool) -> None:
    if as_json:
        _print_json(summary.as_json())
        return
    out_console.print(console_table(summary))
    out_console.print(console_flags(summary.flags))
    out_console.print(summary.sentence, highlight=False)


def _print_json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=1) + "\n")


def _plugins(names: list[str]) -> None:
    for name in names:
        trust(name) if ":" in name else import_module(name)


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[float, str], None]]:
    """A bar on standard error with the time left; nothing at all if quiet."""
    columns = (
        TextColumn("{task.description:28}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(
        *columns, console=err_console, refresh_per_second=2, speed_estimate_period=600, disable=quiet
    )
    try:
        with bar:
            task = bar.add_task("starting", total=1.0)
            yield lambda share, what: bar.update(task, completed=share, description=what)
    except KeyboardInterrupt:
        err_console.print(
            "stopped; run the same command again to continue where it left off.", soft_wrap=True
        )
        raise typer.Exit(130) from None


if __name__ == "__main__":
    main()
