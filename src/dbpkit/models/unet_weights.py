"""Weights of diffusers' folders: which file, and the network filled from it.

The thing people get wrong: weights that load may still not fit. Every tensor must be there, and none
left over.
"""

import json
import re
from pathlib import Path
from typing import Any

from torch import nn

from dbpkit.foundation.checkpoints import Stored, read_checkpoint
from dbpkit.foundation.errors import UserError, excerpt, shown
from dbpkit.foundation.files import read_whole
from dbpkit.foundation.noise import seeded_generator

WEIGHTS = "diffusion_pytorch_model.safetensors"
_LARGEST_CONFIG = 2**26
_SHARD = re.compile(r"diffusion_pytorch_model-[\w-]+\.safetensors")
_WRAPPERS = ("module.", "_orig_mod.")
_PICKLED = "diffusion_pytorch_model.bin"
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Layers of attention in files of 2022, and what they are called since."""


def check_weights(folder: Path) -> None:
    """Raises UserError unless a folder has weights, and all that an index names lie beside it."""
    if (folder / f"{WEIGHTS}.index.json").is_file():
        _check_index(folder / f"{WEIGHTS}.index.json")
    elif not (folder / WEIGHTS).is_file() and _variant(folder) is None and not _is_pickled(folder):
        raise UserError(
            f"'{folder}' holds no weights; expected '{WEIGHTS}' or '{_PICKLED}'. Save the network there"
            " again."
        )


def _variant(folder: Path) -> str | None:
    """The variant to read, such as ``fp16``, where the plain weights are not there; UserError for several."""
    if (folder / WEIGHTS).is_file() or (folder / f"{WEIGHTS}.index.json").is_file():
        return None
    stem, suffix = WEIGHTS.split(".")
    found = sorted(p.name.split(".")[1] for p in folder.glob(f"{stem}.*.{suffix}") if p.name.count(".") == 2)
    if len(found) > 1:
        raise UserError(
            f"'{folder}' holds the variants {', '.join(found)}, and not '{WEIGHTS}'. Copy the one you want"
            " to that name."
        )
    return found[0] if found else None


def _check_index(file: Path) -> None:
    """Raises UserError unless all files that an index names are safetensors that lie beside it."""
    table = read_json(file).get("weight_map")
    names = set(table.values()) if isinstance(table, dict) and table else {None}
    for name in names:
        if not isinstance(name, str) or not _SHARD.fullmatch(name) or not (file.parent / name).is_file():
            raise UserError(
                f"'{file}' names {shown(name)} where a file '{WEIGHTS.removesuffix('.safetensors')}-..."
                ".safetensors' beside it was expected. Fetch the network again."
            )


def filled(unet_class: Any, folder: Path) -> nn.Module:
    """The network of a folder with its weights; UserError unless they fit it."""
    try:
        with seeded_generator(0):  # the first weights are drawn from torch's global generator, then replaced
            if _is_pickled(folder):
                network, info = _from_pickle(unet_class, folder)
            else:
                network, info = unet_class.from_pretrained(
                    folder,
                    variant=_variant(folder),
                    use_safetensors=True,
                    local_files_only=True,
                    low_cpu_mem_usage=False,
                    output_loading_info=True,
                )
    except UserError:
        raise
    except Exception as error:  # files, configuration and shapes: diffusers raises many kinds
        raise UserError(
            f"network '{folder}' cannot be loaded ({type(error).__name__}: {one_line(error)}). "
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
    filled: nn.Module = network.float().requires_grad_(False).eval()
    return filled


def _is_pickled(folder: Path) -> bool:
    """Whether a folder's weights are a ``.bin`` only."""
    others = (folder / WEIGHTS, folder / f"{WEIGHTS}.index.json")
    return not any(f.is_file() for f in others) and _variant(folder) is None and (folder / _PICKLED).is_file()


def _from_pickle(unet_class: Any, folder: Path) -> tuple[nn.Module, dict[str, list[str]]]:
    """The network of a folder with a ``.bin``, of which nothing runs, and the keys that do not fit."""
    content = read_checkpoint(folder / _PICKLED).content
    if not isinstance(content, dict) or not all(isinstance(v, Stored) for v in content.values()):
        raise UserError(f"'{folder / _PICKLED}' holds no state dict. Save the network's state_dict() again.")
    network = unet_class.from_config(read_json(folder / "config.json"))
    state = {_renamed(str(name)): stored.read() for name, stored in content.items()}
    missing, unexpected = network.load_state_dict(state, strict=False)
    return network, {"missing_keys": missing, "unexpected_keys": unexpected}


def _renamed(name: str) -> str:
    """A tensor's name as it is called today."""
    parts = name.split(".")
    layer = len(parts) - 2
    if layer > 1 and parts[layer - 2] == "attentions" and parts[layer] in _RENAMED:
        parts[layer] = _RENAMED[parts[layer]]
    return ".".join(parts)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; UserError if the file holds anything else."""
    try:
        content = json.loads(read_whole(file, _LARGEST_CONFIG).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"'{file}' is not readable JSON ({error}). It is damaged; fetch it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"'{file}' must hold a JSON object, not a {type(content).__name__}. Fetch it again.")
    return content


def one_line(error: Exception) -> str:
    """The first 300 characters of a library's message, without line breaks."""
    return excerpt(error, 300)
