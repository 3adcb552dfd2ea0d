"""A foreign file once and for all: its network as safetensors that describe themselves, and a card about it.

The thing people get wrong: what was guessed. The card repeats the sentence that the opener said, so that a
guess is not taken for a fact later.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dbpkit.foundation.errors import UserError, excerpt
from dbpkit.foundation.files import check_room, sha256_of, write_atomically
from dbpkit.models.opening import open_model
from dbpkit.models.weights import Architecture, plain_path, save_weights


class Converted(NamedTuple):
    """What a conversion wrote.

    Attributes:
        path: the weights.
        card: what is known of them, as Markdown.
        sha256: of the weights' file.
        sentence: what the original was taken for.
    """

    path: Path
    card: Path
    sha256: str
    sentence: str


def convert(path: str | Path, out: str | Path, kind: str | None = None, **options: Any) -> Converted:
    """Writes the network in a file of any known layout as a dbpkit weights file, with a card beside it.

    The new file opens as the same model, to the bit, and needs none of the options.

    Args:
        path: the original.
        out: a new file, whose name ends in ``.safetensors``.
        kind: see `open_model`.
        options: see `open_model`.

    Returns:
        Where both lie, the weights' sha256, and what the original was taken for.

    Raises:
        UserError: if the original cannot be opened, ``out`` exists or is no such name, or cannot be written.
    """
    source, target = plain_path(path), Path(out)
    if target.suffix != ".safetensors":
        raise UserError(f"'{excerpt(target, 300)}' must end in .safetensors. Choose such a name.")
    card = target.with_suffix(".md")
    for file in (target, card):
        if os.path.lexists(file):
            raise UserError(f"'{excerpt(file, 300)}' exists already. Choose another name, or remove it.")
        check_room(file)
    model = open_model(source, kind, **options)
    architecture: Architecture = model.architecture  # type: ignore[assignment]
    sentence = str(getattr(model, "opened", f"{source.name} is a dbpkit weights file."))
    origin = {"file": source.name, "sha256": sha256_of(source), "taken_for": sentence}
    digest = save_weights(target, model, architecture, torch.float32, {"converted_from": origin})
    count = sum(p.numel() for p in model.parameters())
    text = _card(architecture, origin, digest, count, options)
    write_atomically(card, text.encode())
    return Converted(target, card, digest, sentence)


def _card(
    architecture: Architecture, origin: dict[str, str], digest: str, count: int, options: dict[str, Any]
) -> str:
    """The card as Markdown: where the weights come from, what they are, and what was said or guessed."""
    lines = [
        f"# {architecture.kind.capitalize()}: {architecture.network} from {origin['file']}",
        "",
        "| | |",
        "|---|---|",
        f"| weights sha256 | `{digest}` |",
        f"| converted from | `{origin['file']}`, sha256 `{origin['sha256']}` |",
        f"| parameters | {count:,} stored as float32 |",
        f"| images | {' x '.join(map(str, architecture.image_shape))} |",
    ]
    if architecture.kind == "denoiser":
        lines.append(f"| adapter | {architecture.denoiser} |")
    described = architecture.as_json()
    tables = {"network": described["options"], "adapter": described["denoiser_options"], "said": options}
    lines += ["", f"Taken for: {origin['taken_for']}", ""]
    lines.append(
        "Made by `dbpkit convert`, which reads tensors and runs nothing. Options of the network and of"
    )
    lines.append("its adapter, and what was said when it was converted:")
    for title, table in tables.items():
        given = {k: v for k, v in table.items() if v is not None}
        if given and (title != "adapter" or architecture.kind == "denoiser"):
            lines += ["", f"| {title} | |", "|---|---|"]
            lines += [f"| {name} | {excerpt(value, 200)} |" for name, value in given.items()]
    return "\n".join([*lines, ""])
