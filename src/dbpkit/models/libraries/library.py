"""What the libraries' classifiers have in common: import, weights of a file or cache, stages before them."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dbpkit.foundation.checkpoints import read_checkpoint, tensors_of
from dbpkit.foundation.errors import UserError, excerpt
from dbpkit.foundation.noise import seeded_generator
from dbpkit.models.stages import Interpolation, Resize, StagedClassifier

Resizing = Literal["library", "bilinear", "bicubic", "off"]
"""How images of another size are resized: as the library's configuration says, or as named, or not at all."""

_WRAPPED = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
"""Entries of a training state that hold a network's weights, averages first."""


class Preprocessing(NamedTuple):
    """What a network was trained to see.

    Attributes:
        mean: of each channel, for pixels in [0, 1].
        std: of each channel.
        size: height and width; None for any.
        mode: how its library resizes.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None
    mode: str


class Logits(nn.Module):
    """A network whose output may be an object or a tuple that holds the logits (B, K).

    Args:
        network: it.
        class_names: K names, or none.
    """

    def __init__(self, network: nn.Module, class_names: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.network = network
        self.class_names = class_names

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, K) of what the network was trained to see."""
        given = self.network(x)
        logits = getattr(given, "logits", given)
        return logits[0] if isinstance(logits, tuple | list) else logits


def imported(name: str, source: str, install: str) -> Any:
    """Returns a module of a library that need not be installed.

    Args:
        name: of the module.
        source: which classifier needs it, for errors.
        install: what is written to install it.

    Raises:
        UserError: if it is missing or cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        raise UserError(
            f"classifier '{source}' needs the library '{missing.partition('.')[0]}', which is missing:"
            f" {install}."
        ) from error
    except Exception as error:  # compiled parts that do not fit torch raise anything
        raise UserError(
            f"classifier '{source}': '{name}' is installed and cannot be imported ({excerpt(error)}). Its"
            f" parts must be made for torch {torch.__version__}: {install}."
        ) from error


def built(make: Callable[[], nn.Module], where: str) -> nn.Module:
    """Returns what a library makes, first weights drawn from seed 0; UserError with what it said if not."""
    try:
        with seeded_generator(0):
            return make()
    except UserError:
        raise
    except Exception as error:  # the libraries raise nearly anything
        raise UserError(f"{where} cannot be made ({type(error).__name__}: {excerpt(error)}).") from error


def weights_of(path: str | Path) -> dict[str, Tensor]:
    """Returns the weights in a file by name, bare or in a training state; nothing in it runs.

    Raises:
        UserError: if the file is missing, damaged or holds no tensors.
    """
    content = read_checkpoint(path).content
    if isinstance(content, Mapping):
        content = next((content[k] for k in _WRAPPED if isinstance(content.get(k), Mapping)), content)
    found = {name.removeprefix("module."): tensor.read() for name, tensor in tensors_of(content).items()}
    if not found:
        raise UserError(f"'{path}' holds no tensors. Name the file with the network's weights.")
    return found


def filled(network: nn.Module, state: Mapping[str, Tensor], where: str, path: object) -> nn.Module:
    """Returns the network with all its weights taken from ``state``; UserError if names or shapes differ."""
    try:
        network.load_state_dict(dict(state))
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise UserError(f"{where}: '{path}' does not fit this model ({excerpt(said)}).") from error
    return network


def hub_file(repository: str, name: str, download: bool, source: str) -> Path:
    """Returns a file of the Hugging Face Hub, from its cache on this machine or, if asked for, the network.

    Raises:
        UserError: if it is not in the cache and ``download`` is false, or cannot be fetched.
    """
    hub = imported("huggingface_hub", source, "pip install huggingface_hub")
    try:
        if download:
            return Path(hub.hf_hub_download(repository, name))
        held = hub.try_to_load_from_cache(repository, name)
    except Exception as error:  # network, names and rights
        raise UserError(
            f"classifier '{source}': '{name}' of '{repository}' cannot be fetched ({excerpt(error)})."
        ) from error
    if not isinstance(held, str):
        raise UserError(
            f"classifier '{source}': '{name}' of '{repository}' is not in the Hub's cache on this machine,"
            " and nothing is fetched unasked. Set download = true in its options, or name a file or folder."
        )
    return Path(held)


def as_classifier(
    network: nn.Module,
    seen: Preprocessing,
    resize: Resizing,
    antialias: bool,
    class_names: tuple[str, ...] = (),
) -> nn.Module:
    """Returns a network behind a size, mean and deviation, as a classifier of pixels in [0, 1].

    Args:
        network: maps what it was trained to see to logits.
        seen: what that is.
        resize: how images of another size get to it.
        antialias: whether making them smaller averages over all pixels, as Pillow does.
        class_names: K names, or none.
    """
    mode: Interpolation = "bicubic" if seen.mode == "bicubic" or resize == "bicubic" else "bilinear"
    mode = "bilinear" if resize == "bilinear" else mode
    stage = None if resize == "off" or seen.size is None else Resize(seen.size, mode, antialias)
    normalise = {"mean": list(seen.mean), "std": list(seen.std)}
    made = StagedClassifier(Logits(network, class_names), resize=stage, normalise=normalise)
    made.class_names = class_names  # type: ignore[assignment]
    return made
