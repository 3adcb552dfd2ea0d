"""Networks trained elsewhere: diffusers' ``UNet2DModel``, and what the scheduler beside it says of it.

The same network file is another denoiser under another schedule or prediction type, so the scheduler's
configuration beside it is read (`dbpkit.models.schedulers`).
"""

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from dbpkit.foundation.errors import UserError, shown
from dbpkit.models.schedulers import Described, described, learned_variance
from dbpkit.models.unet_weights import WEIGHTS, check_weights, filled, one_line, read_json

_DOWNLOADED = (
    "config.json",
    "scheduler_config.json",
    "model_index.json",
    WEIGHTS,
    f"{WEIGHTS}.index.json",
    "diffusion_pytorch_model-*.safetensors",
)


class Pretrained(NamedTuple):
    """A network made elsewhere.

    Attributes:
        network: takes scaled states (B, C, H, W) and times (B,), frozen, float32, in eval mode.
        adapter: registered denoiser adapter that fits it.
        options: the adapter's keyword arguments.
        has_scheduler: whether a scheduler's configuration said so; else both are assumed.
        sample_size: height and width of the images it was made for, or None if it does not say.
    """

    network: nn.Module
    adapter: str
    options: dict[str, Any]
    has_scheduler: bool
    sample_size: tuple[int, int] | None

    @property
    def prediction(self) -> str:
        """What the network returns, of variance-preserving ones."""
        return str(self.options.get("prediction", self.adapter))


def load_unet(path: str, subfolder: str | None = None) -> Pretrained:
    """Loads a diffusers ``UNet2DModel`` from safetensors, or from a ``.bin`` of which nothing runs.

    Args:
        path: a local directory, read without a network, or a Hub id such as ``"google/ddpm-cifar10-32"``.
        subfolder: where the network lies inside; if not given, the directory itself and then ``"unet"``.

    Returns:
        The network and what it is: as its scheduler's configuration says; one that predicts noise with the
        linear DDPM schedule if it has none.

    Raises:
        UserError: if diffusers is not installed, the Hub cannot be reached, nothing loadable is there, the
            network is told other things than a time and a class, or its scheduler is not known.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"a diffusers network is named by its directory or Hub id, not by {shown(path)}.")
    path = os.fsdecode(path)
    unet_class = _unet_class()
    directory = Path(path).expanduser()
    if not directory.is_dir():
        directory = _download(path, subfolder)
    folder = _network_folder(directory, subfolder)
    config, found = read_json(folder / "config.json"), _scheduler(folder, is_inside=folder != directory)
    adapter, options = _description(config, found, folder)
    size = config.get("sample_size")
    pair = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list) else None
    network = filled(unet_class, folder)
    return Pretrained(network, adapter, options, found is not None, pair)


def _description(
    config: dict[str, Any], found: tuple[Path, dict[str, Any]] | None, folder: Path
) -> Described:
    """The adapter of a network and its options, from its own configuration and its scheduler's."""
    if found is None:
        described_as, by = Described("vp", {"prediction": "noise"}), "linear schedule that is assumed"
    else:
        described_as, by = described(found[1], found[0]), str(found[1].get("_class_name"))
    fourier = config.get("time_embedding_type", "positional") == "fourier"
    if fourier != (described_as.adapter == "ve"):
        raise UserError(
            f"'{folder}' expects {'continuous noise levels (fourier' if fourier else 'times (positional'}"
            f" embedding), which does not go with the {by}. Give the pipeline's directory, with the scheduler"
            " it was trained with."
        )
    if described_as.adapter == "vp" and config.get("out_channels") == 2 * config.get("in_channels", 0) > 0:
        described_as.options["variance"] = learned_variance(found[1] if found else {})
    return described_as


def build_unet(config: Mapping[str, Any]) -> nn.Module:
    """Makes a diffusers ``UNet2DModel`` with random weights.

    Raises:
        UserError: if diffusers is not installed or refuses the configuration.
    """
    unet_class = _unet_class()
    try:
        network: nn.Module = unet_class(**config)
    except (TypeError, ValueError) as error:
        raise UserError(f"diffusers' UNet2DModel refuses the configuration: {one_line(error)}.") from error
    return network


def read_config(path: str) -> dict[str, Any]:
    """Returns the configuration of a network in a ``config.json``, or in a directory that has one.

    Raises:
        UserError: if there is none, or it is not of a ``UNet2DModel``.
    """
    place = Path(path).expanduser()
    tried = [place / "config.json", place / "unet" / "config.json"] if place.is_dir() else [place]
    file = next((candidate for candidate in tried if candidate.is_file()), None)
    if file is None:
        raise UserError(
            f"no diffusers configuration: '{tried[0]}' is missing. Correct network.options.config."
        )
    config = read_json(file)
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise UserError(
            f"'{file}' is of a {shown(config['_class_name'])}. Only a UNet2DModel can be trained."
        )
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _unet_class() -> Any:
    """The network class of diffusers; the library is imported when it is first needed."""
    try:
        library = importlib.import_module("diffusers")
    except ModuleNotFoundError as error:
        raise UserError(
            "loading a diffusers network needs a library that is missing: pip install diffusers."
        ) from error
    except Exception as error:  # whatever the libraries below it raise if they do not fit each other
        raise _unfit(error) from error
    try:
        return library.UNet2DModel  # imports its own modules, and torchvision, only now
    except Exception as error:
        raise _unfit(error) from error


def _unfit(error: Exception) -> UserError:
    return UserError(
        f"diffusers cannot be imported ({type(error).__name__}: {one_line(error)}). The network's files are"
        " not to blame: install versions of diffusers, torch and torchvision that fit each other."
    )


def _download(path: str, subfolder: str | None) -> Path:
    """The local copy of a Hub repository's descriptions and safetensors."""
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise UserError(
            f"network '{path}' is not a directory. Correct the path, or give a Hub id such as 'owner/name'."
        )
    from huggingface_hub import snapshot_download

    prefixes = ["", "scheduler/", f"{(subfolder or 'unet').strip('/')}/"]
    try:
        return Path(
            snapshot_download(
                path, allow_patterns=[prefix + name for prefix in prefixes for name in _DOWNLOADED]
            )
        )
    except Exception as error:  # no network, no such repository, no permission: the library raises many kinds
        raise UserError(
            f"network '{path}' is not a local directory and cannot be fetched from the Hugging Face Hub "
            f"({type(error).__name__}: {one_line(error)}). Correct it, "
            "or download it and give its directory."
        ) from error


def _network_folder(directory: Path, subfolder: str | None) -> Path:
    """The folder that holds the network's description and weights, both checked."""
    tried = [directory / subfolder] if subfolder is not None else [directory, directory / "unet"]
    folder = next((place for place in tried if (place / "config.json").is_file()), None)
    if folder is None:
        missing = " and ".join(f"'{place / 'config.json'}'" for place in tried)
        raise UserError(
            f"no diffusers network: {missing} {'are' if len(tried) > 1 else 'is'} missing. "
            "Give the directory that save_pretrained wrote, or set subfolder."
        )
    config = read_json(folder / "config.json")
    kind = config.get("_class_name")
    if kind != "UNet2DModel":
        raise UserError(f"'{folder}' holds a {kind}, not a UNet2DModel. Only networks of pixels can be used.")
    if config.get("class_embed_type"):
        raise UserError(
            f"'{folder}' is told a class as {shown(config['class_embed_type'])}, not by its number. Wrap it"
            " in a module that supplies it."
        )
    if config.get("quantization_config") is not None:
        raise UserError(
            f"'{folder}' is a quantised network, which has no exact gradients. Use the whole one."
        )
    check_weights(folder)
    return folder


def _scheduler(folder: Path, is_inside: bool) -> tuple[Path, dict[str, Any]] | None:
    """The configuration of the scheduler beside a network, and its file; None if there is none."""
    places = [folder]
    if is_inside or (folder.parent / "model_index.json").is_file():
        places.append(folder.parent)  # a pipeline's directory, with the network in a sub-folder
    files = [
        place / name
        for place in places
        for name in ("scheduler/scheduler_config.json", "scheduler_config.json")
    ]
    file = next((candidate for candidate in files if candidate.is_file()), None)
    return None if file is None else (file, read_json(file))
