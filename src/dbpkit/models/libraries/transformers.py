"""Image classifiers of ``transformers``."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dbpkit.foundation.errors import UserError, excerpt
from dbpkit.foundation.files import read_whole
from dbpkit.models.libraries.library import (
    Preprocessing,
    Resizing,
    as_classifier,
    built,
    hub_file,
    imported,
)
from dbpkit.models.sources import classifier_sources

INSTALL = "pip install transformers"

_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Pillow's numbers, which configurations name filters by."""


@classifier_sources.register("transformers")
def transformers(
    model: str, download: bool = False, resize: Resizing = "library", antialias: bool = True
) -> nn.Module:
    """An image classifier of transformers, with mean, deviation and size of its image processor.

    Args:
        model: a folder with ``config.json``, ``model.safetensors`` and ``preprocessor_config.json``, or a Hub
            id such as ``google/vit-base-patch16-224``.
        download: whether files that are not in the Hub's cache may be fetched.
        resize: ``library`` resizes images of another size than the processor's as it says, ``bilinear`` and
            ``bicubic`` as named; ``off`` leaves them.
        antialias: whether making them smaller averages over all pixels, as Pillow does.

    Raises:
        UserError: if transformers is missing, a file is missing or damaged, the model is no image classifier,
            or its weights are pickled.
    """
    library = imported("transformers", "transformers", INSTALL)
    where = f"classifier 'transformers': '{model}'"
    folder = Path(model).expanduser()
    if not folder.is_dir() and (model.startswith((".", "/", "~")) or model.count("/") > 1):
        raise UserError(f"{where} is not a folder. Correct the path, or give a Hub id such as 'owner/name'.")
    seen = _seen(_processor(folder, model, download), where)
    if folder.is_dir() and not any(folder.glob("model*.safetensors")):
        raise UserError(f"{where} has no model.safetensors. Save it with save_pretrained.")
    if not folder.is_dir():
        hub_file(model, "config.json", download, "transformers")
    place = str(folder) if folder.is_dir() else model
    made: Any = built(lambda: _loaded(library, place, folder.is_dir() or not download, where), where)
    names = {int(k): str(v) for k, v in (getattr(made.config, "id2label", None) or {}).items()}
    return as_classifier(made, seen, resize, antialias, tuple(names[k] for k in sorted(names)))


def _loaded(library: Any, place: str, is_local: bool, where: str) -> nn.Module:
    """The model with all its weights in float32; transformers itself would draw those that are missing."""
    made, about = library.AutoModelForImageClassification.from_pretrained(
        place,
        local_files_only=is_local,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if absent := sorted(map(str, [*about.get("missing_keys", ()), *about.get("mismatched_keys", ())])):
        raise UserError(
            f"{where} has no weights for {len(absent)} tensors ({excerpt(absent[0], 80)}, ...), so it is no"
            " finished image classifier. Name one that was trained to classify."
        )
    return made.float()


def _processor(folder: Path, model: str, download: bool) -> Mapping[str, Any]:
    """The configuration of the image processor, as it lies beside the model."""
    name = "preprocessor_config.json"
    path = folder / name if folder.is_dir() else hub_file(model, name, download, "transformers")
    try:
        found = json.loads(read_whole(path, 2**20))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"classifier 'transformers': '{path}' is missing or no JSON; mean, deviation and size of"
            " images are read from it. Save the image processor there with save_pretrained."
        ) from error
    if not isinstance(found, dict):
        raise UserError(
            f"classifier 'transformers': '{path}' holds no table. Save the image processor again."
        )
    return found


def _seen(config: Mapping[str, Any], where: str) -> Preprocessing:
    """What the processor makes of an image."""
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    is_usual = isinstance(factor, int | float) and math.isclose(factor, 1 / 255, rel_tol=1e-3)
    if not is_usual or config.get("rescale_offset"):
        raise UserError(
            f"{where} was trained on pixels that are not in [0, 1] before their normalisation (rescale_factor"
            f" {factor}). Use a function of your own, 'module:function', that returns the classifier."
        )
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    if config.get("do_normalize", True):
        mean, std = (_channels(config.get(key), where, key) for key in ("image_mean", "image_std"))
    channels = max(len(mean), len(std), 3)
    mean, std = (v * channels if len(v) == 1 else v for v in (mean, std))
    resample = config.get("resample")
    mode = _FILTERS.get(resample, "bilinear") if isinstance(resample, int) else "bilinear"
    return Preprocessing(mean, std, _size(config, where), mode)


def _channels(value: Any, where: str, key: str) -> tuple[float, ...]:
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        raise UserError(f"{where}: {key} of its image processor is no list of numbers.")
    return tuple(float(n) for n in numbers)


def _size(config: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    """Height and width that the processor ends in; None if it leaves images as they are."""
    if config.get("do_center_crop") and config.get("crop_size"):
        size = config["crop_size"]
    elif config.get("do_resize", True) and config.get("size"):
        size = config["size"]
    else:
        return None
    if isinstance(size, Mapping):
        short = size.get("shortest_edge")
        size = [size.get("height", short), size.get("width", short)]
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(isinstance(s, int) and 0 < s < 2**14 for s in sides):
        raise UserError(f"{where}: the size of its image processor is not known. Set resize = 'off'.")
    return sides[0], sides[1]
