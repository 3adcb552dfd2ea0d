"""Networks trained elsewhere: diffusers' ``UNet2DModel`` with a linear DDPM schedule.

The same network file is another denoiser under another schedule or prediction type, so the scheduler's
configuration beside it is read, and refused if it differs from what is computed here.
"""

import importlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import nn

from dbpkit.foundation.errors import UserError, excerpt, shown
from dbpkit.foundation.files import read_whole
from dbpkit.foundation.noise import seeded_generator

Prediction = Literal["noise", "v", "x0"]
"""What diffusers trains networks to predict, in our words."""

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_LARGEST_CONFIG = 2**26
_SHARD = re.compile(r"diffusion_pytorch_model-[\w-]+\.safetensors")
_WRAPPERS = ("module.", "_orig_mod.")
_DOWNLOADED = (
    "config.json",
    "scheduler_config.json",
    "model_index.json",
    _WEIGHTS,
    f"{_WEIGHTS}.index.json",
    "diffusion_pytorch_model-*.safetensors",
)
_PREDICTIONS: dict[str, Prediction] = {"epsilon": "noise", "sample": "x0", "v_prediction": "v"}
_SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
_ALTERED_BY = ("trained_betas", "rescale_betas_zero_snr")


class Pretrained(NamedTuple):
    """A network made elsewhere.

    Attributes:
        network: takes variance-preserving states (B, C, H, W) and times (B,), frozen, float32, in eval mode.
        prediction: what it returns.
        has_scheduler: whether a scheduler's configuration said so; else both it and the schedule are assumed.
        sample_size: height and width of the images it was made for, or None if it does not say.
    """

    network: nn.Module
    prediction: Prediction
    has_scheduler: bool
    sample_size: tuple[int, int] | None


def load_unet(path: str, subfolder: str | None = None) -> Pretrained:
    """Loads a diffusers ``UNet2DModel`` from safetensors, never from a pickle.

    Args:
        path: a local directory, read without a network, or a Hub id such as ``"google/ddpm-cifar10-32"``.
        subfolder: where the network lies inside; if not given, the directory itself and then ``"unet"``.

    Returns:
        The network and what it predicts: as its scheduler's configuration says, ``noise`` if it has none.

    Raises:
        UserError: if diffusers is not installed, the Hub cannot be reached, nothing loadable is there, the
            network needs class labels or continuous times, or its schedule is not the linear DDPM one with
            1,000 steps from 1e-4 to 0.02.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"a diffusers network is named by its directory or Hub id, not by {shown(path)}.")
    path = os.fsdecode(path)
    unet_class = _unet_class()
    directory = Path(path).expanduser()
    if not directory.is_dir():
        directory = _download(path, subfolder)
    folder = _network_folder(directory, subfolder)
    prediction = _prediction(folder, is_inside=folder != directory)
    size = _read_json(folder / "config.json").get("sample_size")
    pair = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list) else None
    try:
        with seeded_generator(0):  # the first weights are drawn from torch's global generator, then replaced
            network, info = unet_class.from_pretrained(
                folder,
                variant=_variant(folder),
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
    except Exception as error:  # files, configuration and shapes: diffusers raises many kinds
        raise UserError(
            f"network '{folder}' cannot be loaded ({type(error).__name__}: {_one_line(error)}). "
            "Its files are damaged or do not belong together; fetch them again."
        ) from error
    wrong = [*info["missing_keys"], *info["unexpected_keys"]]
    if all(key.startswith(_WRAPPERS) for key in info["unexpected_keys"] or [""]):
        raise UserError(
            f"network '{folder}': its tensors have names like '{info['unexpected_keys'][0]}', which"
            " DataParallel or torch.compile gave them. Save the module inside (model.module) again."
        )
    if wrong:
        raise UserError(
            f"network '{folder}': {len(info['missing_keys'])} tensors are missing from its weights and "
            f"{len(info['unexpected_keys'])} are unknown (first '{wrong[0]}'). "
            "Its config.json belongs to other weights."
        )
    network = network.float().requires_grad_(False).eval()
    return Pretrained(network, prediction or "noise", prediction is not None, pair)


def build_unet(config: Mapping[str, Any]) -> nn.Module:
    """Makes a diffusers ``UNet2DModel`` with random weights.

    Raises:
        UserError: if diffusers is not installed or refuses the configuration.
    """
    unet_class = _unet_class()
    try:
        network: nn.Module = unet_class(**config)
    except (TypeError, ValueError) as error:
        raise UserError(f"diffusers' UNet2DModel refuses the configuration: {_one_line(error)}.") from error
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
    config = _read_json(file)
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
        f"diffusers cannot be imported ({type(error).__name__}: {_one_line(error)}). The network's files are"
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
            f"({type(error).__name__}: {_one_line(error)}). Correct it, "
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
    config = _read_json(folder / "config.json")
    kind = config.get("_class_name")
    if kind != "UNet2DModel":
        raise UserError(
            f"'{folder}' holds a {kind}, not a UNet2DModel. Only unconditional pixel networks can be used."
        )
    if config.get("num_class_embeds") or config.get("class_embed_type"):
        raise UserError(
            f"'{folder}' is a class-conditional network. Wrap it in a module that supplies the class."
        )
    if config.get("time_embedding_type", "positional") == "fourier":
        raise UserError(
            f"'{folder}' expects continuous noise levels (fourier embedding), not times 0 to 999. "
            "Wrap it in a module that converts them."
        )
    if config.get("quantization_config") is not None:
        raise UserError(
            f"'{folder}' is a quantised network, which has no exact gradients. Use the whole one."
        )
    if (folder / f"{_WEIGHTS}.index.json").is_file():
        _check_index(folder / f"{_WEIGHTS}.index.json")
    elif not (folder / _WEIGHTS).is_file() and _variant(folder) is None:
        pickles = sorted(
            file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".ckpt")
        )
        found = (
            f"only the pickle '{pickles[0]}', which is refused because it can run code"
            if pickles
            else "no weights"
        )
        raise UserError(
            f"'{folder}' holds {found}; expected '{_WEIGHTS}'. Save it with safe_serialization=True."
        )
    return folder


def _variant(folder: Path) -> str | None:
    """The variant to read, such as ``fp16``, where the plain weights are not there; UserError for several."""
    if (folder / _WEIGHTS).is_file() or (folder / f"{_WEIGHTS}.index.json").is_file():
        return None
    stem, suffix = _WEIGHTS.split(".")
    found = sorted(p.name.split(".")[1] for p in folder.glob(f"{stem}.*.{suffix}") if p.name.count(".") == 2)
    if len(found) > 1:
        raise UserError(
            f"'{folder}' holds the variants {', '.join(found)}, and not '{_WEIGHTS}'. Copy the one you want"
            " to that name."
        )
    return found[0] if found else None


def _check_index(file: Path) -> None:
    """Raises UserError unless all files that an index names are safetensors that lie beside it."""
    table = _read_json(file).get("weight_map")
    names = set(table.values()) if isinstance(table, dict) and table else {None}
    for name in names:
        if not isinstance(name, str) or not _SHARD.fullmatch(name) or not (file.parent / name).is_file():
            raise UserError(
                f"'{file}' names {shown(name)} where a file '{_WEIGHTS.removesuffix('.safetensors')}-..."
                ".safetensors' beside it was expected. Fetch the network again."
            )


def _prediction(folder: Path, is_inside: bool) -> Prediction | None:
    """What the network predicts, from the scheduler beside it, or None; an error unless that is linear."""
    places = [folder]
    if is_inside or (folder.parent / "model_index.json").is_file():
        places.append(folder.parent)  # a pipeline's directory, with the network in a sub-folder
    files = [
        place / name
        for place in places
        for name in ("scheduler/scheduler_config.json", "scheduler_config.json")
    ]
    file = next((candidate for candidate in files if candidate.is_file()), None)
    if file is None:
        return None
    config = _read_json(file)
    found = {key: config.get(key) for key in _SCHEDULE}
    altered = {key: config[key] for key in _ALTERED_BY if config.get(key)}
    if found != _SCHEDULE or altered:
        came = ", ".join(f"{key} {_short(value)}" for key, value in {**found, **altered}.items())
        raise UserError(
            f"'{file}' describes another noise schedule ({config.get('_class_name')}: {came}). "
            "Only the linear one with 1000 steps from 0.0001 to 0.02 is supported."
        )
    kind = config.get("prediction_type", "epsilon")
    if kind not in _PREDICTIONS:
        raise UserError(
            f"'{file}' has prediction_type '{kind}'. Available: {', '.join(sorted(_PREDICTIONS))}."
        )
    return _PREDICTIONS[kind]


def _short(value: Any) -> str:
    """A setting as text; of a long list its length and ends."""
    if isinstance(value, list) and len(value) > 4:
        return f"of {len(value)} values from {value[0]} to {value[-1]}"
    return str(value)[:80]


def _read_json(file: Path) -> dict[str, Any]:
    """A JSON object; UserError if the file holds anything else."""
    try:
        content = json.loads(read_whole(file, _LARGEST_CONFIG).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"'{file}' is not readable JSON ({error}). It is damaged; fetch it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"'{file}' must hold a JSON object, not a {type(content).__name__}. Fetch it again.")
    return content


def _one_line(error: Exception) -> str:
    """The first 300 characters of a library's message, without line breaks."""
    return excerpt(error, 300)
