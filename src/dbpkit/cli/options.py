"""Options and arguments that several commands have: their types, ranges and words of help."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dbpkit.foundation.options import MOST
from dbpkit.foundation.packaged import specs


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


def complete_run(incomplete: str) -> list[str]:
    """Run directories, and with a slash the folders that may hold some, for the shell."""
    folder = Path(incomplete if incomplete.endswith("/") else Path(incomplete).parent)
    try:
        inside = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError:
        return []
    found = (f"{p}" if (p / "spec.json").is_file() else f"{p}/" for p in inside)
    return [name for name in found if name.startswith(incomplete)]


def complete_spec_or_run(incomplete: str) -> list[str]:
    """Names of published specs, files, and run directories, for the shell."""
    return [*complete_spec(incomplete), *complete_run(incomplete)]


def _bytes(value: str | float) -> str | int:
    """The bytes that a number of GiB stands for, or "auto"; refuses everything else."""
    if value == AUTO:
        return AUTO
    try:
        gibibytes = float(value)
    except ValueError:
        gibibytes = -1
    if not 0 <= gibibytes <= 2**20:
        raise typer.BadParameter(f"{value} is not a number of GiB from 0 to {2**20}, nor auto")
    return int(gibibytes * 2**30)


def _rows(value: str | int) -> str | int:
    """A number of rows, or "auto"; refuses everything else."""
    if value == AUTO:
        return AUTO
    if not str(value).isdecimal() or not 1 <= int(value) <= MOST:
        raise typer.BadParameter(f"{value} is neither auto nor a whole number from 1 to {MOST}")
    return int(value)


def _time(value: float) -> float:
    """Refuses what is not a diffusion time."""
    if not 0 < value < 1:
        raise typer.BadParameter(f"{value:g} is not between 0 and 1; the papers use 0.1")
    return value


# ------------------------------------------------------------------ specs and runs

SpecFile = Annotated[
    Path,
    typer.Argument(help="TOML file, or the name of a published spec.", autocompletion=complete_spec),
]
Run = Annotated[Path, typer.Argument(help="Run directory.", autocompletion=complete_run)]
Runs = Annotated[list[Path], typer.Argument(help="Run directories.", autocompletion=complete_run)]
Out = Annotated[Path, typer.Option("--out", help="Run directory; the same command continues it.")]
OutOrName = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Run directory; the same command continues it; runs/NAME if not given.",
        show_default=False,
    ),
]
Set = Annotated[
    list[str],
    typer.Option(
        "--set", help="Override a leaf of the spec, such as purifier.steps=200; denoiser= leaves it out."
    ),
]
Plugin = Annotated[
    list[str],
    typer.Option("--plugin", help="Import your own module that registers parts, or trust a module:part."),
]

Trust = Annotated[
    bool,
    typer.Option("--trust", help="Follow import paths in weights files, and run models that are programs."),
]

# ------------------------------------------------------------------ what is printed

AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print the result as JSON, and nothing else, on standard output."),
]
Talk = Annotated[
    bool | None,
    typer.Option("--verbose/--quiet", "-v/-q", help="A line for every step, or no progress at all."),
]

# ------------------------------------------------------------------ how the work is carried out

AUTO = "auto"

Device = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda or cuda:N.")]
BatchSize = Annotated[
    Any,
    typer.Option(
        parser=_rows,
        metavar="EXAMPLES",
        help="Examples attacked together; auto takes 16 on a CPU and 128 on a GPU.",
    ),
]
MicroBatch = Annotated[
    Any,
    typer.Option(
        parser=_rows,
        metavar="ROWS",
        help="Rows in one call of the model; auto takes what is fastest.",
    ),
]
Memory = Annotated[
    Any,
    typer.Option(
        "--memory",
        parser=_bytes,
        metavar="GIB",
        help="GiB for kept graphs in one backward pass; 0 replays every step, auto takes what is free.",
    ),
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

Precision = Annotated[
    Literal["float32", "tf32", "bfloat16"],
    typer.Option(help="What networks compute in."),
]
Share = Annotated[
    str | None,
    typer.Option(
        "--shard",
        help="K/N does part K of N, from 1 on; N processes share the work. torchrun says it without.",
    ),
]

Compile = Annotated[
    bool,
    typer.Option("--compile", help="Compile networks, which takes minutes; results differ by rounding."),
]

# ------------------------------------------------------------------ a purifier, without a spec

Denoiser = Annotated[str, typer.Option(help="Denoiser name, weights file or import path.")]
Sampler = Annotated[str, typer.Option(help="Sampler name or import path.")]
Time = Annotated[
    float, typer.Option(callback=_time, help="Diffusion time where purification starts, in (0, 1).")
]
Steps = Annotated[int, typer.Option(min=1, max=MOST, help="Steps of the whole chain.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of every random number.")]
