"""The command line: parse, make a spec, call one function, print.

Every user's mistake is one sentence on standard error and exit code 2; ``--json`` prints the result alone,
for programs, on standard output. Every command imports what it needs when it is called: what reads results
needs no torch, which takes a second and 200 MB.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dbpkit import __version__
from dbpkit.cli.crash import INTERRUPTED, MISTAKE, OK, guarded
from dbpkit.cli.progress import Report, progress
from dbpkit.foundation import console
from dbpkit.foundation.errors import unknown_name
from dbpkit.foundation.options import MOST
from dbpkit.foundation.overrides import override
from dbpkit.foundation.packaged import asset, find_spec, pages, specs, title, write_template
from dbpkit.foundation.program import started
from dbpkit.foundation.registry import KINDS, import_module, trust
from dbpkit.foundation.spec import as_toml, read_spec, validate
from dbpkit.foundation.toml import read_table

if TYPE_CHECKING:
    from dbpkit.evaluation.run import Execution
    from dbpkit.experiment.spec import EvaluationSpec
    from dbpkit.results.summary import Summary

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMPLETION = "_DBPKIT_COMPLETE"
"""Set by the shell when it asks for completions."""


def complete_spec(incomplete: str) -> list[str]:
    """Names of published specs, and files, for the shell."""
    files = (str(p) for p in Path().glob("*.toml"))
    return [name for name in (*specs(), *files) if name.startswith(incomplete)]


def complete_part(incomplete: str) -> list[str]:
    """Kinds and names of parts, for the shell."""
    from dbpkit.cli.listing import described

    listed = described()
    names = {*listed, *(name for parts in listed.values() for name in parts)}
    return sorted(name for name in names if name.startswith(incomplete))


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


def _gibibytes(value: float) -> float:
    """Refuses what is no size of a memory."""
    if not 0 <= value <= 2**20:
        raise typer.BadParameter(f"{value:g} is no number of GiB from 0 to {2**20}")
    return value


def _time(value: float) -> float:
    """Refuses what is no diffusion time."""
    if not 0 < value < 1:
        raise typer.BadParameter(f"{value:g} is not between 0 and 1; the papers use 0.1")
    return value


Out = Annotated[Path, typer.Option("--out", help="Run directory; the same command continues it.")]
Set = Annotated[
    list[str],
    typer.Option("--set", help="Override a leaf of the spec, such as purifier.steps=200."),
]
PurifySet = Annotated[
    list[str],
    typer.Option(
        "--set",
        help="Set an option of a part, such as purifier.options.eta=1 or denoiser.options.variant=addt.",
    ),
]
Plugin = Annotated[
    list[str],
    typer.Option("--plugin", help="Import your own module that registers parts, or trust a module:part."),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print the result as JSON, and nothing else, on standard output."),
]
Talk = Annotated[
    bool | None,
    typer.Option("--verbose/--quiet", "-v/-q", help="A line for every step, or no progress at all."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
BatchSize = Annotated[int, typer.Option(min=1, max=MOST, help="Examples attacked together.")]
MicroBatch = Annotated[
    int, typer.Option(min=1, max=MOST, help="Rows in one call of the model; lower it if memory runs out.")
]
Memory = Annotated[
    float,
    typer.Option(
        "--memory",
        callback=_gibibytes,
        help="GiB for kept graphs in one backward pass; 0 replays every step.",
    ),
]
Steps = Annotated[int, typer.Option(min=1, max=MOST, help="Steps of the whole chain.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of every random number.")]
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
SpecFile = Annotated[
    Path,
    typer.Argument(help="TOML file, or the name of a published spec.", autocompletion=complete_spec),
]


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    device: Device = "cpu",
    full: Annotated[
        bool, typer.Option("--full", help="Also run all analyses, on 64 images; the same command continues.")
    ] = False,
    talk: Talk = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate the embedded CIFAR-10 models and write a report page."""
    from dbpkit.analyses.run import analyse
    from dbpkit.evaluation.run import Execution, evaluate
    from dbpkit.experiment.spec import EvaluationSpec
    from dbpkit.reporting import console_findings, write_report
    from dbpkit.results.findings import findings
    from dbpkit.results.run_directory import RunDirectory
    from dbpkit.statistics.intervals import CROSSED_EXAMPLES

    _settle()

    spec = read_spec(asset("demo.toml"), EvaluationSpec)
    if not full:
        _evaluate(spec, out, Execution(device), as_json, talk)
        return
    if spec.examples.count is not None:
        count = max(spec.examples.count, CROSSED_EXAMPLES)  # what the law's verdict needs
        spec = spec.model_copy(update={"examples": spec.examples.model_copy(update={"count": count})})
    with _progress(as_json, talk) as report:
        summary = evaluate(spec, out, Execution(device), report)
    with _progress(as_json, talk) as report:
        results = analyse(spec, out, execution=Execution(device), progress=report)
    run = RunDirectory(out)
    path = write_report([run])
    if as_json:
        console.as_json({"summary": summary.as_json(), "analyses": [r.as_json() for r in results]})
        return
    _print_summary(summary, as_json)
    console.show(console_findings(findings(run)))
    console.say(f"\nReport: {path.resolve()}", whole=True)


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
    talk: Talk = None,
    as_json: AsJson = False,
) -> None:
    """Measure how robust a purified classifier is; run the same command again to continue."""
    from dbpkit.evaluation.run import Execution
    from dbpkit.experiment.spec import EvaluationSpec

    _settle()

    _plugins(plugin)
    execution = Execution(device, batch_size, micro_batch, deterministic, int(memory * 2**30), reverse)
    _evaluate(read_spec(spec, EvaluationSpec, overrides), out, execution, as_json, talk)


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
    talk: Talk = None,
    as_json: AsJson = False,
) -> None:
    """Show why: run the papers' analyses on a spec's models; the same command continues."""
    from dbpkit.analyses.run import analyse
    from dbpkit.evaluation.run import Execution
    from dbpkit.experiment.spec import EvaluationSpec
    from dbpkit.reporting import write_report

    _settle()

    _plugins(plugin)
    read = read_spec(spec, EvaluationSpec, overrides)
    chosen = {name: read.analyses.get(name, {}) for name in names} or None
    execution = Execution(device, micro_batch=micro_batch, memory_bytes=int(memory * 2**30))
    with _progress(as_json, talk) as report:
        results = analyse(read, out, chosen, execution, report)
    path = write_report([out])
    if as_json:
        console.as_json([r.as_json() for r in results])
        return
    for result in results:
        console.say(result.title, "bold")
        for sentence in result.sentences:
            console.say(f"  {sentence}")
    console.say(f"\nReport: {path.resolve()}", whole=True)


@app.command()
def check(
    spec: SpecFile,
    examples: Annotated[int, typer.Option(min=1, max=MOST, help="Examples to look at.")] = 8,
    overrides: Set = [],
    plugin: Plugin = [],
    device: Device = "cpu",
    micro_batch: MicroBatch = 32,
    talk: Talk = None,
    as_json: AsJson = False,
) -> None:
    """Check your own models and settings before a long run; exit code 1 if something must be mended."""
    from dbpkit.evaluation.quick_check import quick_check
    from dbpkit.evaluation.run import Execution
    from dbpkit.experiment.spec import EvaluationSpec
    from dbpkit.reporting import console_flags

    _settle()

    _plugins(plugin)
    execution = Execution(device, micro_batch=micro_batch)
    with _progress(as_json, talk, continues=False) as report:
        found = quick_check(read_spec(spec, EvaluationSpec, overrides), examples, execution, report)
    if as_json:
        flags = [f._asdict() for f in found.flags]
        console.as_json({"verdict": found.verdict, "flags": flags, "checks": found.checks})
    else:
        console.show(console_flags(found.flags))
        console.say(f"{len(found.checks)} checks ran: {', '.join(found.checks)}.", "dim")
        console.say(found.verdict)
    raise typer.Exit(int(not found.trustworthy))


@app.command()
def purify(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the purified images, written as PNG.")],
    denoiser: Annotated[str, typer.Option(help="Denoiser name, weights file or import path.")] = "embedded",
    sampler: Annotated[str, typer.Option(help="Sampler name or import path.")] = "ddpm",
    t_star: Annotated[
        float, typer.Option(callback=_time, help="Diffusion time where purification starts, in (0, 1).")
    ] = 0.1,
    steps: Steps = 1000,
    seed: Seed = 0,
    overrides: PurifySet = [],
    device: Device = "cpu",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that this command did not write, too.")
    ] = False,
    plugin: Plugin = [],
    talk: Talk = None,
    as_json: AsJson = False,
) -> None:
    """Purify image files; files that this command did not write are left alone."""
    from dbpkit.evaluation.purify_files import purify_files
    from dbpkit.experiment.spec import PurifySpec

    _settle()

    _plugins(plugin)
    table: dict[str, Any] = {
        "denoiser": denoiser,
        "purifier": {"sampler": sampler, "t_star": t_star, "steps": steps},
    }
    for text in overrides:
        override(table, text, PurifySpec)
    spec = validate(table, PurifySpec, "dbpkit purify")
    with _progress(as_json, talk, continues=False) as report:
        written = purify_files(
            images,
            out,
            spec.purifier,
            spec.denoiser.name,
            seed,
            report,
            options=spec.denoiser.options,
            device=device,
            overwrite=overwrite,
        )
    if as_json:
        console.as_json([str(p) for p in written])
    else:
        console.say(f"{len(written)} purified image{'s' * (len(written) != 1)} in {out}", whole=True)


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
    talk: Talk = None,
    as_json: AsJson = False,
) -> None:
    """Train or fine-tune a classifier or a denoiser; run the same command again to continue.

    On several processes or devices: accelerate launch --num_processes N -m dbpkit.cli train ...
    """
    from dbpkit.training import loop as training
    from dbpkit.training.spec import TrainingSpec

    _settle()

    _plugins(plugin)
    read = read_spec(spec, TrainingSpec, overrides)
    is_first = os.environ.get("RANK", "0") == "0"  # set by accelerate launch and torchrun
    with _progress(as_json or not is_first, talk) as report:
        trained = training.train(
            read,
            out,
            lambda done, of, loss: report(done / of, f"loss {loss:.4f}"),
            training.Execution(device, tensorboard),
        )
    if not is_first:
        return
    if as_json:
        console.as_json({"weights": str(trained.weights), **trained.figures})
    else:
        console.as_json(trained.figures)
        console.say(f"Weights: {trained.weights}", whole=True)
        console.say(f"Model card: {trained.weights.with_name('card.md')}", whole=True)


@app.command("quality")
def quality_command(
    denoiser: Annotated[str, typer.Argument(help="Denoiser name, weights file or import path.")],
    data: Annotated[str, typer.Option(help="Data set name.")] = "embedded",
    images: Annotated[
        int | None, typer.Option(min=2, max=MOST, help="Images to generate; half of the data if not given.")
    ] = None,
    t_star: Annotated[
        float, typer.Option(help="1 starts from noise alone; below, from real images noised to t*.")
    ] = 0.3,
    sampler: Annotated[str, typer.Option(help="Sampler name or import path.")] = "ddim",
    steps: Steps = 50,
    inception: Annotated[
        str, typer.Option(help="Path of inception-2015-12-05.pt, for the FID; none takes --classifier.")
    ] = "",
    trust_file: Annotated[
        bool, typer.Option("--trust", help="Run another --inception file too: TorchScript can run code.")
    ] = False,
    classifier: Annotated[str, typer.Option(help="Whose features are used without Inception.")] = "embedded",
    seed: Seed = 0,
    device: Device = "cpu",
    plugin: Plugin = [],
    talk: Talk = None,
    as_json: AsJson = False,
) -> None:
    """Measure a denoiser as a generative model: FID, or the distance of a classifier's features."""
    from dbpkit.data import load_dataset
    from dbpkit.experiment.build import checked_device
    from dbpkit.fidelity.frechet import Chain, make_features, quality
    from dbpkit.models.sources import load_denoiser, source

    _settle()

    _plugins(plugin)
    checked_device(device)
    if inception:
        features = make_features("inception", {"path": inception, "trust": trust_file})
    else:
        name, options = source(classifier)
        features = make_features("classifier", {"classifier": name, "options": options})
    made = load_denoiser(*source(denoiser))
    with _progress(as_json, talk, continues=False) as report:
        found = quality(
            made,
            load_dataset(data),
            features,
            Chain(t_star, sampler, steps),
            images=images,
            seed=seed,
            device=device,
            progress=lambda done, of: report(done / of, f"{done} images"),
        )
    if as_json:
        console.as_json(found._asdict())
        return
    floor = "" if found.floor is None else f", real images against the same: {found.floor:.2f}"
    console.say(f"{found.metric}: {found.value:.2f}{floor} ({found.images} images from {found.start})")
    if found.warning:
        console.say(found.warning)


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
    from dbpkit.reporting import write_report

    started()
    _plugins(plugin)
    path = write_report(runs, out)
    if as_json:
        console.as_json({"report": str(path)})
    else:
        console.say(f"Report: {path}", whole=True)


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(help="A run directory.")],
    run_b: Annotated[Path, typer.Argument(help="Another, on the same examples.")],
    plugin: Plugin = [],
    as_json: AsJson = False,
) -> None:
    """Print the paired differences A - B of two runs over the same examples."""
    from dbpkit.reporting.tables import cost_text, p_text
    from dbpkit.results.compare import compare_runs
    from dbpkit.results.run_directory import RunDirectory

    started()
    _plugins(plugin)
    first = RunDirectory(run_a)
    found = compare_runs(first, first if run_a == run_b else RunDirectory(run_b))
    for sentence in found.warnings:
        console.warn(f"warning: {sentence}")
    if as_json:
        p_values = {row: found.p_values.get(row) for row in found.differences}
        costs = found.network_calls
        console.as_json(
            {
                row: {**e._asdict(), "p_value": p_values[row], "network_calls": costs[row]}
                for row, e in found.differences.items()
            }
        )
        return
    changed = ", ".join(found.changed) or "nothing, the settings are the same"
    console.say(f"A -> B differs in: {changed}", whole=True)
    for row, e in found.differences.items():
        test = f"; McNemar p {p_text(found.p_values[row])}" if row in found.p_values else ""
        console.say(
            f"{row:18} {e.value:+7.1%}   95 % interval {e.low:+.1%} to {e.high:+.1%}   n ="
            f" {e.examples} ({e.method}{test}){cost_text(*found.network_calls[row])}",
            whole=True,
        )


@app.command("findings")
def findings_command(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.")],
    plugin: Plugin = [],
    as_json: AsJson = False,
) -> None:
    """Print which of the papers' claims hold in a run: measured, published, and the verdict."""
    from dbpkit.reporting import console_findings
    from dbpkit.results.findings import findings
    from dbpkit.results.run_directory import RunDirectory

    started()
    _plugins(plugin)
    found = {str(run): findings(RunDirectory(run)) for run in runs}
    if as_json:
        console.as_json({run: [f.as_json() for f in own] for run, own in found.items()})
        return
    for run, own in found.items():
        if len(found) > 1:
            console.say(run, whole=True)
        console.show(console_findings(own))


@app.command("law")
def law_command(
    runs: Annotated[list[Path], typer.Argument(help="Run directories in which the analysis 'law' was run.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the charts as PNG and CSV.")] = None,
    as_json: AsJson = False,
) -> None:
    """Join the compression law of several runs, such as two data sets, into one."""
    from dbpkit.analyses.law.law import combine
    from dbpkit.reporting import console_analysis, write_charts

    started()
    joint = combine(runs)
    files = write_charts(joint, out) if out else []
    if as_json:
        console.as_json(joint.as_json())
        return
    console.show(console_analysis(joint))
    if files:
        console.say(f"{len(files)} files in {out}", whole=True)


@app.command("replay")
def replay_command(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
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
    from dbpkit.evaluation.replay import replay
    from dbpkit.experiment.spec import EvaluationSpec
    from dbpkit.reporting import replay_table, write_replay_png

    _settle()

    _plugins(plugin)
    typed = read_spec(spec, EvaluationSpec, overrides) if spec else None
    found = replay(run, example, row, tape, attack=attack, device=device, spec=typed, trust_run=trust_run)
    names = dict(enumerate(found.class_names))
    label, predicted = names[found.label], [names.get(k, str(k)) for k in found.predicted]
    if out:
        write_replay_png(out, found.x, found.x_adv, found.x_pure, label, predicted)
    if as_json:
        console.as_json(found.as_json())
    else:
        console.say(f"example {example}, row {row}, tape {tape}: {label}")
        console.show(replay_table(found.logits.tolist(), found.recorded, found.class_names))
        console.say(found.verdict)
    raise typer.Exit(int(not found.reproduced))


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="Spec or run directory.", autocompletion=complete_spec)],
    overrides: Set = [],
    plugin: Plugin = [],
    as_json: AsJson = False,
) -> None:
    """Print a spec with every default filled in, or the table of a run."""
    _plugins(plugin)
    _show_run(path, as_json) if path.is_dir() else _show_spec(path, overrides, as_json)


def _show_run(path: Path, as_json: bool) -> None:
    """Prints the table of a run."""
    from dbpkit.results.completeness import unfinished
    from dbpkit.results.run_directory import RunDirectory
    from dbpkit.results.summary import summarise

    started()
    run = RunDirectory(path)
    _print_summary(summarise(run), as_json)
    if not as_json and (said := unfinished(run)):
        console.say(said)


def _show_spec(path: Path, overrides: list[str], as_json: bool) -> None:
    """Prints a spec with every default, and what its parts take beside it."""
    from dbpkit.cli.listing import check_parts, part_defaults
    from dbpkit.experiment.spec import EvaluationSpec
    from dbpkit.training.spec import TrainingSpec

    started()
    table = read_table(find_spec(path, or_run=True))
    kind = TrainingSpec if "optimiser" in table else EvaluationSpec
    spec = read_spec(path, kind, overrides)
    check_parts(spec)
    table = spec.model_dump(mode="json")
    if as_json:
        console.as_json(table)
        return
    console.say(as_toml(table), whole=True)
    if left := list(part_defaults(spec)):
        console.say("# What the parts themselves take where the spec says nothing:")
        for line in left:
            console.say(f"# {line}", whole=True)


@app.command("list")
def list_command(
    what: Annotated[
        str,
        typer.Argument(
            help=f"One of {', '.join(KINDS)}, or a part's name; all if not given.",
            autocompletion=complete_part,
        ),
    ] = "",
    with_options: Annotated[
        bool, typer.Option("--options", help="Also what each option takes, its default and its meaning.")
    ] = False,
    plugin: Plugin = [],
    as_json: AsJson = False,
) -> None:
    """List the parts a spec can name, and what they take."""
    from dbpkit.cli.listing import as_data, default, described, options

    started()
    _plugins(plugin)
    chosen = described(what)
    if as_json:
        found = (
            {k: {n: as_data(k, n) for n in parts} for k, parts in chosen.items()} if with_options else chosen
        )
        console.as_json(found)
        return
    for kind, parts in chosen.items():
        console.say(kind, "bold")
        for name, text in parts.items():
            console.entry(name, text, indent=2)
            for key, option in options(kind, name).items() if with_options else ():
                said = f"{option.meaning} Takes {option.words}.".strip()
                console.entry(f"{key} = {default(option)}", said, indent=4, column=26)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("my-model.toml"),
    as_json: AsJson = False,
) -> None:
    """Write a commented spec for your own models; nothing is overwritten."""
    write_template(path)
    if as_json:
        console.as_json({"spec": str(path)})
        return
    console.say(f"Written: {path}", whole=True)
    console.say("Name your parts in it, then: dbpkit check, and dbpkit evaluate.")


@app.command()
def docs(
    page: Annotated[str, typer.Argument(help="Print the path of this page alone, such as guide.")] = "",
    as_json: AsJson = False,
) -> None:
    """Say where the documentation lies."""
    found = pages()
    if page and page not in found:
        raise unknown_name("page", page, found)
    if as_json:
        console.as_json({name: str(path) for name, path in found.items()})
    elif page:
        console.say(str(found[page]), whole=True)
    else:
        for name, path in found.items():
            console.entry(name, title(path), indent=2)
        console.say(f"They lie in {found['guide'].parent}", whole=True)


def main() -> None:
    """Runs the command line; the exit status is that of `dbpkit.cli.crash`."""
    console.prepare()
    logging.getLogger(console.EXAMPLES).setLevel(logging.INFO)
    sys.exit(guarded(_command))


def _command() -> int:
    """Parses the command line and runs its command."""
    if COMPLETION in os.environ:  # the shell asks for completions, and leaves by itself
        try:
            app()
        except SystemExit as leave:
            return leave.code if isinstance(leave.code, int) else OK
    command = typer.main.get_command(app)
    try:
        with command.make_context("dbpkit", sys.argv[1:]) as context:
            command.invoke(context)
    except typer.Exit as leave:
        return leave.exit_code
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


def _settle() -> None:
    """What commands that compute do once all is imported."""
    from dbpkit.foundation.machine import settle

    started()
    settle()


def _evaluate(
    spec: "EvaluationSpec", out: Path, execution: "Execution", as_json: bool, talk: bool | None
) -> None:
    """Runs an evaluation, writes its report, prints its summary."""
    from dbpkit.evaluation.run import evaluate
    from dbpkit.reporting import write_report
    from dbpkit.results.run_directory import RunDirectory

    run = RunDirectory(out)  # read once for the summary and the page
    with _progress(as_json, talk) as report:
        summary = evaluate(spec, run, execution, report)
    path = write_report([run])
    _print_summary(summary, as_json)
    if not as_json:
        console.say(f"\nReport: {path.resolve()}", whole=True)


def _print_summary(summary: "Summary", as_json: bool) -> None:
    """Prints the table of a run with its flags and its sentence."""
    from dbpkit.reporting import console_flags, console_table

    if as_json:
        console.as_json(summary.as_json())
        return
    console.show(console_table(summary))
    console.show(console_flags(summary.flags))
    console.say(summary.sentence)


def _plugins(names: list[str]) -> None:
    for name in names:
        trust(name) if ":" in name else import_module(name)


@contextlib.contextmanager
def _progress(as_json: bool, talk: bool | None = None, *, continues: bool = True) -> Iterator[Report]:
    """Progress on standard error; says how to go on if it is stopped."""
    try:
        with progress(as_json or talk is False, talk is True) as report:
            yield report
    except KeyboardInterrupt:
        again = "; run the same command again to continue where it left off" if continues else ""
        console.note(f"stopped{again}.")
        raise typer.Exit(INTERRUPTED) from None
