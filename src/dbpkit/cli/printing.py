"""What each command prints: its result as JSON for programs, or as text for people."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbpkit.foundation import console
from dbpkit.foundation.packaged import folder, title
from dbpkit.foundation.spec import as_toml

if TYPE_CHECKING:
    from dbpkit.evaluation.estimate import Estimate
    from dbpkit.evaluation.quick_check import Checked
    from dbpkit.evaluation.reproduction import Reproduction
    from dbpkit.experiment.execution import Execution
    from dbpkit.fidelity.measurement import Quality
    from dbpkit.results.analysis import AnalysisResult
    from dbpkit.results.compare import RunComparison
    from dbpkit.results.findings import Finding
    from dbpkit.results.run_directory import RunDirectory
    from dbpkit.results.summary import Summary
    from dbpkit.training.loop import Trained


# ------------------------------------------------------------------ evaluations and analyses


def summary(found: "Summary", as_json: bool) -> None:
    """The table of a run with its flags and its sentence."""
    from dbpkit.reporting import console_flags, console_table

    if as_json:
        console.as_json(found.as_json())
        return
    console.show(console_table(found))
    console.show(console_flags(found.flags))
    console.say(found.sentence)


def evaluation(found: "Summary", page: Path, as_json: bool) -> None:
    """An evaluation: its table, and the page that was written about it."""
    summary(found, as_json)
    if not as_json:
        _say_page(page)


def share(execution: "Execution", run: "RunDirectory", as_json: bool) -> None:
    """A part of an evaluation that has not concluded it: how much of the whole is recorded."""
    from dbpkit.results.completeness import counted

    done, wanted = counted(run)
    shard = f"{execution.rank + 1}/{execution.world}"
    if as_json:
        console.as_json({"shard": shard, "recorded": done, "of": wanted})
        return
    others = "Start the others if they do not run; whoever does the last writes the table."
    rest = others if done < wanted else f"See 'dbpkit show {run.path}'."
    console.say(f"Shard {shard} is done; {done} of {wanted} results are recorded. {rest}")


def everything(
    found: "Summary",
    results: Sequence["AnalysisResult"],
    claims: Sequence["Finding"],
    page: Path,
    as_json: bool,
) -> None:
    """An evaluation with all its analyses, and which claims hold."""
    from dbpkit.reporting import console_findings

    if as_json:
        console.as_json({"summary": found.as_json(), "analyses": [r.as_json() for r in results]})
        return
    summary(found, as_json)
    console.show(console_findings(claims))
    _say_page(page)


def analyses(results: Sequence["AnalysisResult"], page: Path, as_json: bool) -> None:
    """The sentences of analyses, and the page that was written about their run."""
    if as_json:
        console.as_json([r.as_json() for r in results])
        return
    for result in results:
        console.say(result.title, "bold")
        for sentence in result.sentences:
            console.say(f"  {sentence}")
    _say_page(page)


def share_of_analyses(execution: "Execution", results: Sequence["AnalysisResult"], as_json: bool) -> None:
    """A part of the analyses: which are concluded; the page is for 'dbpkit report', once all are."""
    shard = f"{execution.rank + 1}/{execution.world}"
    names = [result.name for result in results]
    if as_json:
        console.as_json({"shard": shard, "concluded": names})
        return
    console.say(f"Shard {shard} is done; concluded so far: {', '.join(names) or 'nothing'}.")


def estimated(found: "Estimate", as_json: bool) -> None:
    """What an evaluation will take: a line for every row, and the total."""
    from dbpkit.evaluation.estimate import duration

    if as_json:
        console.as_json(found.as_json())
        return
    console.say(
        "per example: forward passes, gradient passes, network calls; here, for all: time, memory",
        "bold",
    )
    for row in found.rows:
        console.say(
            f"  {', '.join(row.rows)}: {row.forward_passes:,}, {row.gradient_passes:,},"
            f" {row.network_calls:,}; {duration(row.hours)}, {row.memory / 2**30:.1f} GiB"
        )
    console.say(found.sentence)
    console.say(
        "Counted for an example that withstands everything; attacks that stop early take less. The page"
        " after a run is not counted.",
        "dim",
    )


def checked(found: "Checked", as_json: bool) -> None:
    """The flags of a check, and its verdict."""
    from dbpkit.reporting import console_flags

    if as_json:
        flags = [f._asdict() for f in found.flags]
        told = {"verdict": found.verdict, "flags": flags, "checks": found.checks, "remedies": found.remedies}
        console.as_json(told | {"notes": found.notes})
        return
    console.show(console_flags(found.flags))
    for name, remedy in found.remedies.items():
        console.entry(name, remedy)
    for note in found.notes:
        console.say(note)
    console.say(f"{len(found.checks)} checks ran: {', '.join(found.checks)}.", "dim")
    console.say(found.verdict)


def _say_page(path: Path) -> None:
    console.say(f"\nReport: {path.resolve()}", whole=True)


# ------------------------------------------------------------------ what runs have left


def page(path: Path, as_json: bool) -> None:
    """Where a report page lies."""
    if as_json:
        console.as_json({"report": str(path)})
    else:
        console.say(f"Report: {path}", whole=True)


def comparison(found: "RunComparison", as_json: bool) -> None:
    """The paired differences of two runs; what makes them hard to read goes to standard error."""
    for sentence in found.warnings:
        console.warn(f"warning: {sentence}")
    if as_json:
        console.as_json(
            {
                row: {
                    **e._asdict(),
                    "p_value": found.p_values.get(row),
                    "network_calls": found.network_calls[row],
                }
                for row, e in found.differences.items()
            }
        )
        return
    changed = ", ".join(found.changed) or "nothing, the settings are the same"
    console.say(f"A -> B differs in: {changed}", whole=True)
    for row in found.differences:
        console.say(_difference(found, row), whole=True)


def _difference(found: "RunComparison", row: str) -> str:
    """One row of a comparison."""
    from dbpkit.reporting.tables import cost_text, p_text

    e = found.differences[row]
    test = f"; McNemar p {p_text(found.p_values[row])}" if row in found.p_values else ""
    return (
        f"{row:18} {e.value:+7.1%}   95 % interval {e.low:+.1%} to {e.high:+.1%}   n ="
        f" {e.examples} ({e.method}{test}){cost_text(*found.network_calls[row])}"
    )


def findings(found: Mapping[str, Sequence["Finding"]], as_json: bool) -> None:
    """The claims of the papers with what was measured, by run."""
    from dbpkit.reporting import console_findings

    if as_json:
        console.as_json({run: [f.as_json() for f in own] for run, own in found.items()})
        return
    for run, own in found.items():
        if len(found) > 1:
            console.say(run, whole=True)
        console.show(console_findings(own))


def law(joint: "AnalysisResult", out: Path | None, as_json: bool) -> None:
    """The joint law of several runs; its charts go into a folder if there is one."""
    from dbpkit.reporting import console_analysis, write_charts

    files = write_charts(joint, out) if out else []
    if as_json:
        console.as_json(joint.as_json())
        return
    console.show(console_analysis(joint))
    if files:
        console.say(f"{len(files)} files in {out}", whole=True)


def replayed(found: "Reproduction", out: Path | None, as_json: bool) -> None:
    """One example computed again, beside its record; its images go into a file if there is one."""
    from dbpkit.reporting import replay_table, write_replay_png

    names = dict(enumerate(found.class_names))
    label, predicted = names[found.label], [names.get(k, str(k)) for k in found.predicted]
    if out:
        write_replay_png(out, found.x, found.x_adv, found.x_pure, label, predicted)
    if as_json:
        console.as_json(found.as_json())
        return
    console.say(f"example {found.example}, row {found.row}, tape {found.tape}: {label}")
    console.show(replay_table(found.logits.tolist(), found.recorded, found.class_names))
    console.say(found.verdict)


# ------------------------------------------------------------------ models and images


def trained(found: "Trained", as_json: bool) -> None:
    """The figures of a trained network, and where its weights lie."""
    if as_json:
        console.as_json({"weights": str(found.weights), **found.figures})
        return
    console.say(found.words)
    console.say(f"Weights: {found.weights}\nModel card: {found.weights.with_name('card.md')}", whole=True)


def quality(found: "Quality", as_json: bool) -> None:
    """The distance of generated images from real ones, beside its floor."""
    if as_json:
        console.as_json(found._asdict())
        return
    floor = "" if found.floor is None else f", real images against the same: {found.floor:.2f}"
    console.say(f"{found.metric}: {found.value:.2f}{floor} ({found.images} images from {found.start})")
    if found.warning:
        console.say(found.warning)


def purified(written: Sequence[Path], out: Path, as_json: bool) -> None:
    """Which images were written."""
    if as_json:
        console.as_json([str(p) for p in written])
    else:
        console.say(f"{len(written)} purified image{'s' * (len(written) != 1)} in {out}", whole=True)


# ------------------------------------------------------------------ specs, parts and pages


def spec(table: dict[str, Any], left: Iterable[str], as_json: bool) -> None:
    """A spec with every default, and the defaults of its parts as comments."""
    if as_json:
        console.as_json(table)
        return
    console.say(as_toml(table), whole=True)
    if lines := list(left):
        console.say("# What the parts themselves take where the spec says nothing:")
        for line in lines:
            console.say(f"# {line}", whole=True)


def parts(chosen: Mapping[str, Mapping[str, str]], with_options: bool, as_json: bool) -> None:
    """Parts by kind with what each is, and with their options if asked for."""
    from dbpkit.cli.listing import as_data

    if as_json and with_options:
        console.as_json({kind: {name: as_data(kind, name) for name in own} for kind, own in chosen.items()})
    elif as_json:
        console.as_json(chosen)
    else:
        for kind, own in chosen.items():
            if not own and len(chosen) > 1:
                continue
            console.say(kind, "bold")
            if not own:
                console.say("  none")
            for name, text in own.items():
                console.entry(name, text, indent=2)
                if with_options:
                    _options(kind, name)


def _options(kind: str, name: str) -> None:
    """The options of one part."""
    from dbpkit.cli.listing import default, options

    for key, option in options(kind, name).items():
        said = f"{option.meaning} Takes {option.words}.".strip()
        console.entry(f"{key} = {default(option)}", said, indent=4, column=26)


def documents(found: Mapping[str, Path], page: Path | None, as_json: bool) -> None:
    """Where the pages of the documentation lie, or one of them alone."""
    if as_json:
        console.as_json({name: str(path) for name, path in found.items()})
    elif page:
        console.say(str(page), whole=True)
    else:
        for name, path in found.items():
            console.entry(name, title(path), indent=2)
        console.say(f"They lie in {folder('docs')}", whole=True)
