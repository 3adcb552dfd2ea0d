"""One opener for the files that the field has: what is in it, which network that is, and its weights.

The thing people get wrong: weights that load may still be read under another convention. The sentence in
``model.opened`` says what a file was taken for and what was guessed; ``dbpkit check`` looks whether the data
agree.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dbpkit.foundation import console
from dbpkit.foundation.checkpoints import Checkpoint, Stored, kind_of_program, read_checkpoint
from dbpkit.foundation.errors import UserError, excerpt, shown
from dbpkit.foundation.files import sha256_of
from dbpkit.foundation.options import checked_options, options_of
from dbpkit.foundation.registry import call_with_options, is_trusting
from dbpkit.models.denoisers import denoiser_adapters
from dbpkit.models.filling import fill_empty, made_empty
from dbpkit.models.layouts import Asked, Layout, Reading, Weights, layouts, weights_in
from dbpkit.models.layouts.contents import named
from dbpkit.models.networks import networks
from dbpkit.models.opening_words import sentence, unknown
from dbpkit.models.programs import opened_module
from dbpkit.models.weights import Architecture, is_own_file, load_weights, plain_path

log = logging.getLogger(console.OPENED)

OF_ADAPTERS = (
    "prediction", "time", "time_scale", "time_index", "image_range", "variance", "label", "sigma_data",
)  # fmt: skip
"""Options of a file that go to the adapter around its network as they are."""

OWN = ("path", "kind")
"""Parameters of the sources of files that are no options of `open_model`."""


def open_model(
    path: str | Path, kind: str | None = None, *, role: str | None = None, **options: Any
) -> nn.Module:
    """Opens a network in any layout that dbpkit knows, frozen, in float32 and in eval mode.

    Nothing in the file is executed. The model has ``opened``, a sentence that says what it was taken for.

    Args:
        path: the file.
        kind: name of its layout (``dbpkit list layouts``); recognised by its names if not given.
        role: ``"denoiser"`` or ``"classifier"`` to refuse the other.
        options: what the file does not say, see ``dbpkit list file --options``.

    Returns:
        A denoiser, called as ``model(x, sigma)``, or a classifier of images (B, C, H, W) in [0, 1].

    Raises:
        UserError: if the file is missing, damaged, unknown or ambiguous, or an option does not fit.
    """
    file = plain_path(path)
    asked = Asked(_typed(options, role))
    expected = asked.get("sha256")
    if expected and (found := sha256_of(file)) != expected:
        raise UserError(
            f"'{file}' has sha256 {found} where {expected} was expected. It is damaged or another file."
        )
    if is_own_file(file):
        asked.refuse_unused("dbpkit weights")
        model, made = load_weights(file)
        model.opened = f"{file.name}: dbpkit weights of a {made.kind}, {made.network}."  # type: ignore[assignment]
        return _of_role(model, role, file)
    if is_trusting() and kind_of_program(file):
        return _of_program(opened_module(file, trusted=True), role, asked, file)
    checkpoint = read_checkpoint(file)
    name, layout, weights = recognised(checkpoint, kind, asked, file)
    if role not in (None, layout.kind):
        raise UserError(f"'{file}' holds a {layout.kind} ({layout.title}); a {role} was expected.")
    if name == "diffusers" and "network" not in asked.options and (file.parent / "config.json").is_file():
        raise UserError(
            f"beside '{file}' lies its config.json, which says what names and shapes do not. Give the"
            f" directory '{file.parent}' as the denoiser, or what it says by the option network."
        )
    reading = read(layout, weights, asked, file, name)
    model = built(reading, file)
    if layout.kind == "denoiser" and not any("(image_size)" in guess for guess in asked.guesses):
        model.sample_size = reading.architecture.image_shape[1:]  # type: ignore[assignment]  # for checks
    model.opened = sentence(file, weights, reading, model, asked, checkpoint)  # type: ignore[assignment]
    log.info("%s", model.opened)
    return model


def _typed(options: Mapping[str, Any], role: str | None) -> dict[str, Any]:
    """Options as the sources of files take them; UserError for a value that is none of theirs."""
    from dbpkit.models.file_sources import classifier_from_file, denoiser_from_file

    sources = {"denoiser": denoiser_from_file, "classifier": classifier_from_file}
    parts = [sources[role]] if role else list(sources.values())
    part = next((p for p in parts if options.keys() <= options_of(p).keys()), parts[0])
    return checked_options(part, {k: v for k, v in options.items() if v is not None}, "a model's file", OWN)


def recognised(
    checkpoint: Checkpoint, kind: str | None, asked: Asked, file: Path
) -> tuple[str, Layout, Weights]:
    """Returns the layout of a file's content, by name, and the network's weights in it.

    Raises:
        UserError: if there is none, several fit equally well, or the layout is one that is not opened.
    """
    content = checkpoint.content
    place = asked.get("weights")
    found = [w for w in weights_in(content) if place in (None, w.place)]
    if names := asked.get("names"):
        found = [w if w.tensors else w._replace(tensors=_beside(plain_path(names))) for w in found]
    if not found:
        inside = ", ".join(sorted({w.place for w in weights_in(content)})) if place is not None else ""
        raise UserError(
            f"'{file}' holds no weights of a network"
            + (f" at {shown(place)}, but at: {inside}." if inside else ". Give the file that training saved.")
        )
    known = {name: make() for name, make in _layouts(kind).items()}
    fits = [
        (name, layout, weights)
        for weights in (w for part in found for w in _with_names(part, known))
        for name, layout in known.items()
        if not layout.missing(weights.tensors) and _accepts(layout, weights, content)
    ]
    if not fits:
        raise unknown(found, known, file, kind)
    best = [fit for fit in fits if _rank(fit[2]) == _rank(min(fits, key=lambda f: _rank(f[2]))[2])]
    if len({(name, weights.place) for name, _, weights in best}) > 1:
        said = sorted({f"{layout.title} at '{weights.place}'" for _, layout, weights in best})
        raise UserError(
            f"'{file}' holds several networks: {', '.join(said)}. Say which by the options kind and weights."
        )
    name, layout, weights = best[0]
    if not weights.averaged and place is None:
        asked.left_out = sorted({w.place for w in found if w.averaged})
    if layout.refusal:
        raise UserError(f"'{file}' is of {layout.title}, which {layout.refusal}")
    return name, layout, weights


def read(layout: Layout, weights: Weights, asked: Asked, file: Path, name: str) -> Reading:
    """Returns what a layout makes of weights, with what the user says in place of what it does.

    Raises:
        UserError: if the tensors do not belong together, or an option does not fit.
    """
    try:
        reading = layout.read(weights, asked)
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"'{file}' has the names of {layout.title}, but its tensors do not belong together"
            f" ({type(error).__name__}: {excerpt(error, 80)}). It is damaged; get it again."
        ) from error
    reading = reading._replace(architecture=_asked_for(reading.architecture, asked))
    asked.refuse_unused(name)
    return reading


def built(reading: Reading, file: Path) -> nn.Module:
    """Returns the model of a reading, filled with its tensors one by one."""
    architecture = reading.architecture
    try:
        network = empty_network(architecture)
    except UserError:
        raise
    except Exception as error:  # a constructor can raise anything at sizes that do not belong together
        said = excerpt(f"{type(error).__name__}: {error}")
        raise UserError(
            f"'{file}' has the names of {reading.title}, but its shapes make no network ({said}). It is"
            " damaged; get it again."
        ) from error
    fill_empty(network, reading.tensors, str(file))
    model = network
    if architecture.kind == "denoiser":
        adapt = denoiser_adapters.get(architecture.denoiser)
        arguments = {"network": network, **architecture.denoiser_options}
        model = call_with_options(adapt, arguments, f"denoiser adapter '{architecture.denoiser}'")
        if architecture.denoiser_options.get("label") is not None:
            model.check_label()
    model.architecture = architecture  # type: ignore[assignment]  # training goes on from it
    model.trained_levels = architecture.trained_levels  # type: ignore[assignment]
    return model.requires_grad_(False).eval()


def empty_network(architecture: Architecture) -> nn.Module:
    """The network that an architecture describes, empty and without its adapter."""
    what = f"network '{architecture.network}'"
    return made_empty(networks.get(architecture.network), architecture.options, what)


def _of_program(model: nn.Module, role: str | None, asked: Asked, file: Path) -> nn.Module:
    """A program as a model: finished, or a network for which the user names an adapter."""
    adapter = asked.get("preconditioning")
    given = {name: asked.get(name) for name in OF_ADAPTERS if name in asked.options}
    if role != "classifier" and (adapter or given):
        adapt = denoiser_adapters.get(adapter or "vp")
        model = call_with_options(adapt, {"network": model, **given}, f"denoiser adapter '{adapter or 'vp'}'")
    asked.refuse_unused("program's")
    model.opened = f"{file.name}: a program, which is run as it is."  # type: ignore[assignment]
    log.info("%s", model.opened)
    return model.requires_grad_(False).eval()


def _asked_for(architecture: Architecture, asked: Asked) -> Architecture:
    """An architecture with what the user says of it in place of what the layout does."""
    network = {**architecture.options, **(asked.get("network") or {})}
    if architecture.kind == "classifier":
        return architecture._replace(options=network)
    given = {name: asked.options[name] for name in OF_ADAPTERS if name in asked.options}
    asked.used.update(given)
    adapter = asked.get("preconditioning", architecture.denoiser)
    own = architecture.denoiser_options if adapter == architecture.denoiser else {}
    return architecture._replace(options=network, denoiser=adapter, denoiser_options={**own, **given})


def _layouts(kind: str | None) -> Mapping[str, Any]:
    """Layouts by name: all, or the one that was asked for."""
    return {name: layouts.get(name) for name in (layouts if kind is None else [kind])}


def _accepts(layout: Layout, weights: Weights, content: Any) -> bool:
    """Whether a layout takes weights that have its marks; not if their shapes are none of its kind."""
    try:
        return layout.accepts(weights, content)
    except (IndexError, KeyError, TypeError, ValueError):
        return False


def _with_names(weights: Weights, known: Mapping[str, Layout]) -> list[Weights]:
    """Averaged weights that are a list under the names of the network beside them; all others as they are."""
    if not weights.nameless:
        return [weights]
    found = []
    for layout in known.values():
        if not weights.tensors:
            if made := layout.named(weights):
                found.append(made)
        elif not layout.missing(weights.tensors):
            tensors = named(layout.trained(weights), weights, weights.nameless)
            if tensors is None:
                raise UserError(
                    f"the averaged weights at '{weights.place}' are {len(weights.nameless)} tensors without"
                    f" names, which do not fit the {len(layout.trained(weights))} trained ones of the network"
                    " beside them. Take its own weights by the option weights = 'model'."
                )
            found.append(weights._replace(tensors=tensors, nameless=()))
    return found[:1]


def _beside(file: Path) -> Mapping[str, Stored]:
    """The tensors of another file, which name those of a list without names."""
    found = [w.tensors for w in weights_in(read_checkpoint(file).content) if w.tensors]
    if not found:
        raise UserError(f"'{file}' holds no named tensors. Give the file of the network itself as names.")
    return max(found, key=len)


def _rank(weights: Weights) -> tuple[bool, int]:
    return (not weights.averaged, weights.place.count("."))


def _of_role(model: nn.Module, role: str | None, file: Path) -> nn.Module:
    kind = getattr(model, "architecture", Architecture("denoiser", "")).kind
    if role not in (None, kind):
        raise UserError(f"weights '{file}' hold a {kind}; a {role} was expected.")
    return model
