"""Pages of the reference that are written from the source: commands, keys, parts, published specs and tables.

``python docs/generated.py`` writes them; with ``--check`` it fails if one of them is out of date.
"""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import typer.main

from dbpkit import EvaluationSpec, TrainingSpec
from dbpkit.cli import app, listing
from dbpkit.foundation.annotations import words
from dbpkit.foundation.options import meanings
from dbpkit.foundation.packaged import specs, title
from dbpkit.foundation.spec import PartSpec, Strict
from dbpkit.tables.layers import resolve
from dbpkit.tables.table import load_table, table_names

FOLDER = Path(__file__).parent / "reference"

NOTE = "<!-- written by docs/generated.py -->"

TAKES = {
    "Any": "a number or `auto`",
    "bool": "–",
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "Path": "a path",
    "list[str]": "text, may be repeated",
    "list[Path]": "one path or more",
    "list[int]": "a whole number, may be repeated",
}
"""What an option of a command takes, by its annotation."""

SPEC_TAKES = {
    "eps": 'a number or a fraction as text, such as `"8/255"`',
    "pad": "a whole number or `auto`",
    "normalise": "a name, or a table of `mean` and `std`",
    "size": "a whole number or a list of two",
}
"""What a key takes that a function of its own checks."""


def cell(text: str) -> str:
    """Returns a text as a cell of a table: one line, in which pipes and angles are no marks."""
    line = " ".join(text.replace("``", "`").split())
    parts = re.split(r"(`[^`]*`)", line)
    return "".join(p if p.startswith("`") else p.replace("<", "&lt;") for p in parts).replace("|", "\\|")


def table(head: str, rows: list[list[str]]) -> list[str]:
    """Returns the lines of a table; ``head`` has the names of its columns, with bars between."""
    names = head.split("|")
    lines = [f"| {' | '.join(row)} |" for row in [names, *([cell(c) for c in row] for row in rows)]]
    return [lines[0], "|" + "---|" * len(names), *lines[1:], ""]


def commands() -> str:
    """The page of the commands, from the typer application."""
    group = typer.main.get_command(app)
    out = [
        "# Commands",
        "",
        "This page answers: *which commands are there, and which options does each take?*",
        "",
        NOTE,
        "",
        "`dbpkit COMMAND --help` prints the same, and `python -m dbpkit` is `dbpkit`. Exit codes: 0, done; 1,"
        " `check` or `replay` found a fault, what a bundle claims does not stand (`verify`), memory ran out,"
        " or something unforeseen happened; 2, a mistake that you can correct, said in one sentence, or a"
        " bundle that cannot be judged; 130, stopped by Ctrl-C.",
        "",
        *table("option|meaning", [[_names(p), _help(p)] for p in group.params]),
    ]
    for name, command in sorted(group.commands.items()):
        if not command.hidden:
            out += _command(name, command)
    return "\n".join(out).rstrip() + "\n"


def _command(name: str, command: Any) -> Iterator[str]:
    arguments = [p for p in command.params if not p.opts[0].startswith("-")]
    options = [p for p in command.params if p not in arguments and not p.hidden]
    shown = [a.opts[0].upper() + ("..." if a.nargs == -1 else "") for a in arguments]
    said = [name if a.required else f"[{name}]" for name, a in zip(shown, arguments, strict=True)]
    yield from (f"## {name}", "", cell(command.help or ""), "")
    yield from ("```text", " ".join(["dbpkit", name, *filter(None, said), "[OPTIONS]"]), "```", "")
    rows = [[_names(p), _takes(p), _default(p), _help(p)] for p in [*arguments, *options]]
    if rows:
        yield from table("argument or option|takes|default|meaning", rows)


def _names(parameter: Any) -> str:
    names = [*parameter.opts, *parameter.secondary_opts]
    return ", ".join(f"`{n}`" if n.startswith("-") else f"`{n.upper()}`" for n in names)


def _takes(parameter: Any) -> str:
    annotation = parameter.type_descriptor.annotation
    name = getattr(annotation, "__name__", str(annotation)) if not get_args(annotation) else str(annotation)
    name = name.replace("pathlib.", "").replace(" | None", "")
    return TAKES.get(name, name)


def _default(parameter: Any) -> str:
    if parameter.required:
        return "needed"
    value = parameter.default
    return "" if value in (None, False, "", [], ()) or callable(value) else f"`{value}`"


def _help(parameter: Any) -> str:
    return parameter.help or ""


def keys() -> str:
    """The page of the spec's keys, from its models."""
    out = [
        "# Spec keys",
        "",
        "This page answers: *which keys may a spec have, and what does each take and mean?*",
        "",
        NOTE,
        "",
        "A spec is a TOML file. A key that it leaves out has its default. `--set purifier.steps=200`"
        " overrides a key for one command, and `dbpkit show SPEC` prints a spec with every default filled"
        " in. A *part* is a registered name or an import path `module:attribute`, alone or as a table"
        " with `name` and `options`; [parts](parts.md) lists all that are registered.",
        "",
        "## Evaluation",
        "",
        "`dbpkit evaluate`, `check`, `estimate` and `analyse` read it. Nothing is needed: an empty file"
        " is a spec of the models in the package.",
        "",
        *_model(EvaluationSpec, "", "evaluation"),
        "## Training",
        "",
        "`dbpkit train` reads it.",
        "",
        *_model(TrainingSpec, "", "training"),
    ]
    return "\n".join(out).rstrip() + "\n"


def _model(model: type[Strict], where: str, kind: str) -> Iterator[str]:
    """The table of a model's keys, and after it those of the tables in it."""
    said, rows, inner = meanings(model), [], []
    for name, field in model.model_fields.items():
        below = [m for m in _models(field.annotation) if m is not PartSpec]
        listed = str(field.annotation).startswith("list")
        key = f"{where}{name}"
        takes = SPEC_TAKES.get(name) or _kinds(field.annotation, below, kind, key)
        takes = takes or words(
            Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        )
        rows.append([f"`{key}`", takes, _value(field, below), said.get(name, "")])
        inner += [(m, f"{key}.N." if listed else f"{key}.") for m in below]
    yield from table("key|takes|default|meaning", rows)
    for each, place in inner:
        yield from (f"### {kind}: {place[:-1]}", "", cell((each.__doc__ or "").partition("\n")[0]), "")
        yield from _model(each, place, kind)


def _kinds(annotation: Any, below: list[Any], kind: str, key: str) -> str:
    """What a key takes that is a part or a table of its own."""
    listed = str(annotation).startswith("list")
    if below:
        place = f"{key}.N" if listed else key
        what = f"[table](#{kind}-{place.replace('.', '').lower()})"
        what = (
            f"a name or a {what}"
            if issubclass(below[0], PartSpec) or "Knowledge" in below[0].__name__
            else f"a {what}"
        )
        return f"a list, each entry {what}" if listed else what
    return "a part" if PartSpec in _models(annotation) else ""


def _models(annotation: Any) -> list[Any]:
    """The spec models in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return [annotation]
    return [m for a in get_args(annotation) for m in _models(a)]


def _value(field: Any, below: list[Any]) -> str:
    """A key's default as TOML would have it."""
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, list) and value and isinstance(value[0], Strict):
        return ", ".join(f"`{v.name}`" for v in value)  # type: ignore[attr-defined]
    if isinstance(value, PartSpec):
        return f"`{value.name}`"
    if value is None:
        return "unset"
    if below or value in ({}, []):
        return "" if below else f"`{value}`"
    value = list(value) if isinstance(value, tuple) else value
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def parts() -> str:
    """The page of the registered parts and their options."""
    out = [
        "# Parts",
        "",
        "This page answers: *which models, samplers, attacks and analyses can a spec name, and which"
        " options do they have?*",
        "",
        NOTE,
        "",
        "`dbpkit list --options` prints the same, with your own parts after `--plugin MODULE`. An option"
        " is a key of the part's table `options`; one called `grid.NAME` belongs into `purifier.grid`. An"
        " import path `module:attribute` takes the place of any name.",
        "",
    ]
    for kind, named in sorted(listing.PARTS.items()):
        out += [f"## {kind}", ""]
        described = named.parts.describe()
        if not any(_options(kind, name) for name in described):
            out += table("name|what it is", [[f"`{n}`", d] for n, d in described.items()])
            continue
        for name, text in described.items():
            out += [f"**`{name}`** {cell(text)}", ""]
            if rows := _options(kind, name):
                out += table("option|takes|default|meaning", rows)
    return "\n".join(out).rstrip() + "\n"


def _options(kind: str, name: str) -> list[list[str]]:
    found = listing.options(kind, name).items()
    takes = {n: "as its meaning says" if o.words == "anything" else o.words for n, o in found}
    defaults = {n: "needed" if o.needed else f"`{listing.default(o)}`" for n, o in found}
    return [[f"`{n}`", takes[n], defaults[n], o.meaning] for n, o in found]


def published() -> str:
    """The page of the specs that come with the package."""
    found = specs()
    rows = [[f"[`{name}`](../../specs/{name}.toml)", title(path)] for name, path in found.items()]
    out = [
        "# Published specs",
        "",
        "This page answers: *which settings of the papers can be named without writing a file?*",
        "",
        NOTE,
        "",
        "Commands take these names as they take the path of a file: `dbpkit show cifar10-ddpm`. Each is"
        " one TOML file of the folder `specs`. Most of them need data and models that are not in the"
        " package; `dbpkit check` says what is missing.",
        "",
        "## Evaluations",
        "",
        *table("name|what it is", [row for row in rows if "`train/" not in row[0]]),
        "## Training",
        "",
        *table("name|what it is", [row for row in rows if "`train/" in row[0]]),
    ]
    return "\n".join(out).rstrip() + "\n"


def tables() -> str:
    """The page of the published tables."""
    lines = [
        "# Published tables\n",
        "This page answers: *which tables can `dbpkit reproduce` measure, and what does each need?*\n",
        f"{NOTE}\n",
        "*Values* are the published ones. *Mini* is how many cells are measured with the embedded models."
        " Equal cells share one run, and all tables together take about 36 minutes of one CPU core. *Models*"
        " are those of `dbpkit models` that the published scale needs; *+ n* counts further ones, which"
        " `dbpkit models` does not have. Each table says what stands in for what."
        " [Reproduce a table](../how-to/reproduce.md) says how to read one.",
        "",
    ]
    papers: dict[str, list[list[str]]] = {}
    never: list[list[str]] = []
    for one in map(load_table, table_names()):
        cells, mini = resolve(one, "paper"), resolve(one, "mini")
        models = {m for c in cells if c.job for m in c.models.model_dump(exclude_none=True).values()}
        known = sorted(f"`{m}`" for m in models if " " not in m)
        more = [f"+ {len(models) - len(known)}"] if len(models) > len(known) else []
        values = sum(c.cell.value is not None for c in cells)
        counts = values, sum(c.job is not None for c in mini), len(one.claims)
        row = [f"`{one.name}`", f"{one.title}; {one.place}", *map(str, counts), ", ".join(known + more)]
        papers.setdefault(one.paper, []).append(row)
        reasons = dict.fromkeys((c.row.label if one.unsupported is None else "all", c.skipped) for c in cells)
        never += [[f"`{one.name}`", label, why] for label, why in reasons if why]
    for paper, rows in papers.items():
        lines += [f"## {paper}", "", *table("name|table|values|mini|claims|models", rows)]
    lines += ["## What no evaluation of dbpkit is", "", *table("table|row|why", never)]
    return "\n".join(lines)


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": commands,
    "spec.md": keys,
    "parts.md": parts,
    "specs.md": published,
    "tables.md": tables,
}


def main(arguments: list[str]) -> None:
    """Writes the pages, or checks them."""
    for name, write in PAGES.items():
        path, text = FOLDER / name, write()
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            raise SystemExit(f"docs/reference/{name} is out of date: run 'python docs/generated.py'.")


if __name__ == "__main__":
    main(sys.argv[1:])
