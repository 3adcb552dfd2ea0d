"""What an evaluation is of: a spec, own parts by name, or both; the arguments that several commands share.

Without a spec the parts go into ``assets/quick.toml``. An option is the same as ``--set`` for its key, so one
beside a spec changes the spec; ``--set`` comes last and wins.
"""

import functools
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from dbpkit.cli.options import complete_spec
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.options import MOST
from dbpkit.foundation.packaged import asset

if TYPE_CHECKING:
    from dbpkit.experiment.spec import EvaluationSpec

PART = "name, import path module:attribute, file"

ARGUMENTS: dict[str, Any] = {
    "spec": Annotated[
        Path | None,
        typer.Argument(
            help="TOML file, or the name of a published spec; without one, name a part below.",
            autocompletion=complete_spec,
            show_default=False,
        ),
    ],
    "classifier": Annotated[str | None, typer.Option(help=f"Your classifier: {PART}.", show_default=False)],
    "denoiser": Annotated[
        str | None, typer.Option(help=f"Your denoiser: {PART} or diffusers folder.", show_default=False)
    ],
    "data": Annotated[
        str | None,
        typer.Option(help="Images: name, import path, or folder of a folder per class.", show_default=False),
    ],
    "limit": Annotated[
        int | None, typer.Option(min=1, max=MOST, help="How many images.", show_default=False)
    ],
    "eps": Annotated[str | None, typer.Option(help="Budget, such as 8/255.", show_default=False)],
    "norm": Annotated[str | None, typer.Option(help="linf, l2 or another threat.", show_default=False)],
    "sampler": Annotated[str | None, typer.Option(help="Sampler of the purifier.", show_default=False)],
    "steps": Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Steps of the whole chain.", show_default=False)
    ],
    "t_star": Annotated[
        float | None, typer.Option(help="Time where purification starts.", show_default=False)
    ],
}
"""Arguments that say what is evaluated, each with its annotation for the command line."""

KEYS = {
    "classifier": "classifier",
    "denoiser": "denoiser",
    "data": "data",
    "limit": "examples.count",
    "eps": "threat.eps",
    "norm": "threat.norm",
    "sampler": "purifier.sampler",
    "steps": "purifier.steps",
    "t_star": "purifier.t_star",
}
"""Which key of a spec each option sets."""

OWN = ("classifier", "denoiser", "data")
"""Parts of which one must be named where there is no spec."""


class Asked(NamedTuple):
    """What a command line says of the evaluation.

    Attributes:
        spec: file or published name; None where parts stand for it.
        parts: option to value, of those that were given.
    """

    spec: Path | None
    parts: dict[str, Any]

    def read(self, overrides: list[str]) -> "EvaluationSpec":
        """Returns the spec of the parts, or the one named with its parts replaced, and then overridden.

        Raises:
            UserError: if there is neither a spec nor a part, or a value is wrong.
        """
        from dbpkit.experiment.spec import EvaluationSpec
        from dbpkit.foundation.spec import overridden, read_spec
        from dbpkit.foundation.toml import read_table

        given = [
            f"{KEYS[name]}={json.dumps(value, ensure_ascii=False)}" for name, value in self.parts.items()
        ]
        if self.spec is not None:
            return read_spec(self.spec, EvaluationSpec, [*given, *overrides])
        if not any(name in self.parts for name in OWN):
            raise UserError(
                "nothing was named to evaluate. Give a spec, or your own parts with --classifier, --denoiser"
                " or --data; 'dbpkit demo' shows it on the embedded models, 'dbpkit init my.toml' writes a"
                " spec."
            )
        own = self._named()
        title = f"{own['classifier']} + {own['denoiser']} on {own['data']}: first number"
        given.append(f"name={json.dumps(title, ensure_ascii=False)}")
        if self.parts.get("sampler", "ddpm") != "ddpm":
            given.append("purifier.options={}")  # those of the file are DDPM's
        table = read_table(asset("quick.toml"))
        typed = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in self.parts.items())
        return overridden(table, EvaluationSpec, [*given, *overrides], typed)  # wrong ones are told as typed

    def out(self, out: Path | None) -> Path:
        """Returns the run directory: the one given, or ``runs/NAME`` by the spec's file or the parts."""
        if out is not None:
            return out
        named = "-".join(self._named().values()) if self.spec is None else self.spec.name
        named = named.removesuffix(".toml")
        name = re.sub(r"[^\w.+-]+", "-", named).strip("-.")
        return Path("runs") / (name[:100] or "evaluation")

    def _named(self) -> dict[str, str]:
        """What stands for each part of `OWN`, in a word."""
        return {name: _short(str(self.parts.get(name, "embedded"))) for name in OWN}


def _short(text: str) -> str:
    """An import path as it is, and the last part of a path of files."""
    return text.replace(":", ".") if ":" in text else Path(text).name or text


def takes_parts(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the arguments of `ARGUMENTS`, and hands them over in front as one `Asked`."""
    own = list(inspect.signature(command).parameters.values())[1:]

    @functools.wraps(command)
    def called(**given: Any) -> None:
        found = {name: given.pop(name) for name in ARGUMENTS}
        spec = found.pop("spec")
        command(Asked(spec, {k: v for k, v in found.items() if v is not None}), **given)

    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(n, keyword, default=None, annotation=a) for n, a in ARGUMENTS.items()]
    own = [parameter.replace(kind=keyword) for parameter in own]
    called.__signature__ = inspect.Signature([*added, *own])  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in (*added, *own)}
    return called
