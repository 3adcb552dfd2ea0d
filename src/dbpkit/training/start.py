"""What a training run starts from: its network with first weights, checked before any data are read.

A network is fitted to the classes and channels of the data. Options that fit no network at all are found by
building it once before the data are there.
"""

from typing import Any, NamedTuple

from torch import nn

from dbpkit.data import Dataset
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import seeded_generator
from dbpkit.models.denoisers import denoiser_adapters
from dbpkit.models.networks import networks
from dbpkit.models.sources import load_classifier, load_denoiser
from dbpkit.models.weights import Architecture
from dbpkit.training.objectives import Objective
from dbpkit.training.spec import TrainingSpec


class Start(NamedTuple):
    """The network to train, with its first weights, and its description."""

    architecture: Architecture
    model: nn.Module


def initial(spec: TrainingSpec, objective: Objective) -> Start | None:
    """Loads what a run trains on from, or tries the options of a network that is to be made.

    Returns:
        The loaded network, or None for random weights, which need the data's classes and channels.

    Raises:
        UserError: if a name or an option is wrong.
    """
    if spec.init is not None:
        start = _loaded(spec, objective)
        set_dropout(start.model, spec.dropout)
        return start
    options = {"image_channels": 3, **_options(spec)}
    if objective.kind == "classifier":
        options.setdefault("classes", 10)
    tried = _described(spec, objective, options, (3, 32, 32), ())
    with seeded_generator(spec.seed):
        set_dropout(tried.build(), spec.dropout)
    return None


def from_random(spec: TrainingSpec, objective: Objective, data: Dataset) -> Start:
    """Makes the network a spec describes, fitted to the data, with first weights from the seed.

    Raises:
        UserError: if it has other classes or channels than the data.
    """
    architecture = _architecture(spec, objective, data)
    with seeded_generator(spec.seed):
        model = architecture.build()
    set_dropout(model, spec.dropout)
    return Start(architecture, model)


def set_dropout(model: nn.Module, share: float | None) -> None:
    """Sets the share that every dropout layer drops; UserError if there is none to set."""
    if share is None:
        return
    layers = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    if not layers:
        raise UserError(f"dropout {share} has no effect: the network has no dropout layer. Leave it out.")
    for layer in layers:
        layer.p = share


def _loaded(spec: TrainingSpec, objective: Objective) -> Start:
    """The network that a spec trains on from."""
    assert spec.init is not None
    load = load_classifier if objective.kind == "classifier" else load_denoiser
    model: Any = load(spec.init.name, spec.init.options)
    architecture = getattr(model, "architecture", None)
    if not isinstance(architecture, Architecture):
        raise UserError(
            f"init '{spec.init.name}' cannot be trained: it has no 'architecture' to write into a"
            " weights file. Start from a weights file, 'embedded' or 'diffusers'."
        )
    architecture = architecture._replace(trained_levels=_trained(objective))
    return Start(architecture, model.requires_grad_(True))


def _architecture(spec: TrainingSpec, objective: Objective, data: Dataset) -> Architecture:
    """The weights file's description of the network, fitted to the data."""
    options = _options(spec)
    options.setdefault("image_channels", data.shape[0])
    class_names: tuple[str, ...] = ()
    if objective.kind == "classifier":
        options.setdefault("classes", len(data.class_names))
        class_names = data.class_names
        if options["classes"] != len(class_names):
            raise UserError(
                f"network.options.classes is {options['classes']}, but '{data.name}' has"
                f" {len(class_names)} classes."
            )
    if options["image_channels"] != data.shape[0]:
        raise UserError(
            f"network.options.image_channels is {options['image_channels']}, but '{data.name}' has"
            f" {data.shape[0]}."
        )
    return _described(spec, objective, options, data.shape, class_names)


def _options(spec: TrainingSpec) -> dict[str, Any]:
    """The network's options as a weights file holds them: what stands for a value is replaced by it."""
    assert spec.network is not None
    made_by = networks.resolve(spec.network.name)  # typed by the user: `Architecture` follows no import path
    return dict(getattr(made_by, "spelled_out", dict)(spec.network.options))


def _described(
    spec: TrainingSpec,
    objective: Objective,
    options: dict[str, Any],
    image_shape: tuple[int, int, int],
    class_names: tuple[str, ...],
) -> Architecture:
    assert spec.network is not None
    denoiser_adapters.resolve(spec.denoiser)
    return Architecture(
        objective.kind,
        spec.network.name,
        options,
        spec.denoiser,
        dict(spec.denoiser_options),
        image_shape,
        class_names,
        _trained(objective),
    )


def _trained(objective: Objective) -> tuple[float, float] | None:
    """The noise levels of an objective, if it is about noise."""
    levels: tuple[float, float] | None = getattr(objective, "trained_levels", None)
    return levels
