"""What the opener says: what a file was taken for, and why it was not opened."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from dbpkit.foundation.checkpoints import Checkpoint
from dbpkit.foundation.errors import UserError, excerpt
from dbpkit.models.layouts import Asked, Layout, Reading, Weights
from dbpkit.models.layouts.contents import step_of


def sentence(
    file: Path, weights: Weights, reading: Reading, model: nn.Module, asked: Asked, checkpoint: Checkpoint
) -> str:
    """What a file was taken for, in one line."""
    step = step_of(checkpoint.content)
    which = "EMA weights" if weights.averaged else "weights"
    if weights.place and not weights.averaged:
        which += f" at '{excerpt(weights.place, 40)}'"
    if step:
        which += f" of {'epoch' if step[0] == 'epoch' else 'step'} {step[1]}"
    count = sum(p.numel() for p in model.parameters()) / 1e6
    parts = [f"{file.name}: {reading.title}, {which}", *reading.conventions]
    parts += [f"{count:.1f} M weights" if count >= 0.1 else f"{round(1e6 * count):,} weights"]
    parts += [f"averaged weights at '{excerpt(p, 40)}' left out: of no known layout" for p in asked.left_out]
    if (label := asked.options.get("label")) is not None:
        parts.append(f"class {label} for every image")
    if asked.guesses:
        parts.append(f"the file does not say: {', '.join(asked.guesses)}")
    return "; ".join(parts) + "."


def unknown(found: list[Weights], known: Mapping[str, Layout], file: Path, kind: str | None) -> UserError:
    """The error for weights of no layout: which is the nearest, and what it would have."""
    names = max((w.tensors for w in found), key=len)
    if kind is not None and names and (missing := known[kind].missing(names)):
        return UserError(
            f"'{file}' is not of {known[kind].title}, the kind that was asked for: it has no '{missing[0]}'."
            " Leave kind out, and the layout is recognised."
        )
    said = f"'{file}' is of no layout that dbpkit knows"
    if not names:
        return UserError(
            f"'{file}' holds {len(found[0].nameless)} tensors without names, which fit no published network."
            " Give the file that has the names by the option names."
        )
    scores = {name: len(layout.missing(names)) / max(len(layout.marks), 1) for name, layout in known.items()}
    nearest = min(scores, key=lambda name: (scores[name], name != "scoresde"))
    first = next(iter(names))
    if scores[nearest] == 0:
        return UserError(
            f"'{file}' has the names of {known[nearest].title}, but its tensors do not belong together. It is"
            " damaged; get it again."
        )
    if scores[nearest] == 1:
        return UserError(
            f"{said}: its first tensor is '{excerpt(first, 80)}', and no layout has such names. Load it in a"
            " function of your own, named as module:function."
        )
    return UserError(
        f"{said}: the nearest is {known[nearest].title}, of which '{known[nearest].missing(names)[0]}' is"
        " missing. Load it in a function of your own, named as module:function."
    )
